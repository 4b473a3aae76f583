# SPDX-License-Identifier: Apache-2.0
"""Linear + cross-entropy on the GPU, full and sampled; logits live in registers alone.

For each token, ``rest`` is the log-sum-exp over all columns (items, or samples) but its target, and
``right`` the target's logit: the loss is ``softplus(rest - right)``, never negative, and what the
one-hot takes from the target's probability is ``sigmoid(rest - right)``, free of cancellation. So
the full and the sampled form are one computation.

* ``_forward``: a program owns a tile of tokens and a share of the columns, whose tiles it streams
  with a running maximum; where the gradient of the tokens is wanted, the probabilities are
  multiplied into it in the same pass, as attention does with its values.
* ``_merge`` joins the shares, adds the target and finishes loss and gradient of the tokens.
* ``_columns``: a program owns a tile of columns, makes its logits again token tile by token tile
  and adds up the gradient of its rows of the table.
* ``_scatter`` (sampled): a sample may be drawn many times and be a target too; the contributions,
  sorted by item, are added in that order.

Four products instead of three, nothing of the size tokens x items in memory, no atomics: the same
bits every time. A target or sample that is no item cannot be refused without waiting for the
device; it makes the loss NaN.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops.triton._launch import (
    DTYPES,
    Config,
    Variant,
    input_precision,
    named,
    padded_width,
    signature,
    widths,
)
from seqrec_fast.ops.triton._numbers import add_up, multiply, processors, rounded

__all__ = ["WIDEST", "cross_entropy", "variants"]

#: width of the table that fits the registers of a program
WIDEST = 128

# columns, and tokens, that make a share of its own worthwhile
_LEAST_COLUMNS = 512
_LEAST_TOKENS = 256


@triton.jit
def _lift(dtype: tl.constexpr):
    """Factor that keeps probabilities out of float16's subnormal numbers; 1 elsewhere."""
    return 4096.0 if dtype == tl.float16 else 1.0


@triton.jit(do_not_specialize=["tokens"])
def _forward(
    hidden,
    weight,
    bias,
    targets,
    negatives,
    log_q,
    part_max,
    part_sum,
    part_grad,
    tokens,
    columns,
    items,
    dim,
    per_share,
    SAMPLED: tl.constexpr,
    BIAS: tl.constexpr,
    CORRECTED: tl.constexpr,
    GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    dtype: tl.constexpr = hidden.dtype.element_ty
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    share = tl.program_id(1)
    place = tl.arange(0, WIDTH)
    live = token < tokens
    at = token[:, None] * dim + place[None, :]
    held = live[:, None] & (place < dim)[None, :]
    h = tl.load(hidden + at, mask=held, other=0.0)
    target = tl.load(targets + token, mask=live, other=-1)
    top = tl.full([TOKENS], float("-inf"), tl.float32)
    mass = tl.zeros([TOKENS], tl.float32)
    grad = tl.zeros([TOKENS, WIDTH], tl.float32)
    begin = share * per_share
    end = tl.minimum(begin + per_share, columns)
    for first in range(begin, end, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < end
        item = column.to(tl.int64)
        if SAMPLED:
            item = tl.load(negatives + column, mask=inside, other=0)
        known = inside & (item >= 0) & (item < items)
        w = tl.load(
            weight + item[:, None] * dim + place[None, :],
            mask=known[:, None] & (place < dim)[None, :],
            other=0.0,
        )
        z = multiply(h, tl.trans(w), tl.zeros([TOKENS, COLUMNS], tl.float32), PRECISION)
        if BIAS:
            z += tl.load(bias + item, mask=known, other=0.0).to(tl.float32)[None, :]
        if CORRECTED:
            z -= tl.load(log_q + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        if SAMPLED:
            z = tl.where(known[None, :], z, float("nan"))
        z = tl.where(inside[None, :] & (item[None, :] != target[:, None]), z, float("-inf"))
        higher = tl.maximum(top, tl.max(z, axis=1))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        e = tl.exp(z - level[:, None])
        shrink = tl.exp(top - level)
        mass = mass * shrink + tl.sum(e, axis=1)
        top = higher
        if GRADIENT:
            grad = multiply(rounded(e * _lift(dtype), dtype), w, grad * shrink[:, None], PRECISION)
    own = share * tl.cast(tokens, tl.int64)
    tl.store(part_max + own + token, top, mask=live)
    tl.store(part_sum + own + token, mass, mask=live)
    if GRADIENT:
        tl.store(part_grad + own * dim + at, grad, mask=held)


@triton.jit(do_not_specialize=["tokens", "shares"])
def _merge(
    hidden,
    weight,
    bias,
    targets,
    log_q,
    token_weights,
    part_max,
    part_sum,
    part_grad,
    whole,
    taken,
    terms,
    d_hidden,
    tokens,
    items,
    dim,
    shares,
    BIAS: tl.constexpr,
    CORRECTED: tl.constexpr,
    GRADIENT: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    dtype: tl.constexpr = hidden.dtype.element_ty
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    place = tl.arange(0, WIDTH)
    live = token < tokens
    at = token[:, None] * dim + place[None, :]
    held = live[:, None] & (place < dim)[None, :]
    target = tl.load(targets + token, mask=live, other=-1)
    known = (target >= 0) & (target < items)
    h = tl.load(hidden + at, mask=held, other=0.0).to(tl.float32)
    w = tl.load(
        weight + target[:, None] * dim + place[None, :],
        mask=known[:, None] & (place < dim)[None, :],
        other=0.0,
    ).to(tl.float32)
    right = tl.sum(h * w, axis=1)
    if BIAS:
        right += tl.load(bias + target, mask=known, other=0.0).to(tl.float32)
    if CORRECTED:
        right -= tl.load(log_q + token, mask=live, other=0.0).to(tl.float32)
    right = tl.where(known, right, float("nan"))
    stride = tl.cast(tokens, tl.int64)
    top = tl.full([TOKENS], float("-inf"), tl.float32)
    for share in range(shares):
        top = tl.maximum(top, tl.load(part_max + share * stride + token, mask=live, other=0.0))
    level = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.zeros([TOKENS], tl.float32)
    for share in range(shares):
        own = tl.load(part_max + share * stride + token, mask=live, other=0.0)
        part = tl.load(part_sum + share * stride + token, mask=live, other=0.0)
        mass += part * tl.exp(own - level)
    rest = tl.log(mass) + level
    ahead = rest - right
    e = tl.exp(-tl.abs(ahead))
    more = tl.where(e < 1e-3, e * (1.0 - e * (0.5 - e * 0.33333334)), tl.log(1.0 + e))
    loss = tl.where(ahead > 0, ahead, 0.0) + more
    total = tl.where(ahead > 0, rest, right) + more
    lost = tl.where(ahead > 0, 1.0, e) / (1.0 + e)
    a = tl.load(token_weights + token, mask=live, other=0.0).to(tl.float32)
    tl.store(terms + token, a * loss, mask=live)
    tl.store(whole + token, total, mask=live)
    tl.store(taken + token, lost, mask=live)
    if GRADIENT:
        grad = -lost[:, None] * w
        for share in range(shares):
            own = tl.load(part_max + share * stride + token, mask=live, other=0.0)
            factor = tl.exp(own - total) / _lift(dtype)
            part = tl.load(part_grad + share * stride * dim + at, mask=held, other=0.0)
            grad += factor[:, None] * part
        tl.store(d_hidden + at, rounded(a[:, None] * grad, d_hidden.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["tokens", "per_share"])
def _columns(
    hidden,
    weight,
    bias,
    targets,
    negatives,
    log_q,
    token_weights,
    whole,
    taken,
    d_weight,
    d_bias,
    tokens,
    columns,
    items,
    dim,
    per_share,
    SAMPLED: tl.constexpr,
    BIAS: tl.constexpr,
    CORRECTED: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    dtype: tl.constexpr = hidden.dtype.element_ty
    # weights are at most 1: more is possible here than for probabilities of any size
    lift = 8.0 * _lift(dtype) if dtype == tl.float16 else 1.0
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    share = tl.program_id(1)
    place = tl.arange(0, WIDTH)
    inside = column < columns
    item = column.to(tl.int64)
    if SAMPLED:
        item = tl.load(negatives + column, mask=inside, other=0)
    known = inside & (item >= 0) & (item < items)
    w = tl.load(
        weight + item[:, None] * dim + place[None, :],
        mask=known[:, None] & (place < dim)[None, :],
        other=0.0,
    )
    shift = tl.zeros([COLUMNS], tl.float32)
    if BIAS:
        shift += tl.load(bias + item, mask=known, other=0.0).to(tl.float32)
    if CORRECTED:
        shift -= tl.load(log_q + column, mask=inside, other=0.0).to(tl.float32)
    grad = tl.zeros([COLUMNS, WIDTH], tl.float32)
    slope = tl.zeros([COLUMNS], tl.float32)
    begin = share * per_share
    end = tl.minimum(begin + per_share, tokens)
    for first in range(begin, end, TOKENS):
        token = tl.cast(first, tl.int64) + tl.arange(0, TOKENS)
        live = token < end
        h = tl.load(
            hidden + token[:, None] * dim + place[None, :],
            mask=live[:, None] & (place < dim)[None, :],
            other=0.0,
        )
        target = tl.load(targets + token, mask=live, other=-1)
        total = tl.load(whole + token, mask=live, other=0.0)
        lost = tl.load(taken + token, mask=live, other=0.0)
        a = tl.load(token_weights + token, mask=live, other=0.0).to(tl.float32)
        z = multiply(w, tl.trans(h), tl.zeros([COLUMNS, TOKENS], tl.float32), PRECISION)
        e = tl.exp(z + shift[:, None] - total[None, :])
        hit = item[:, None] == target[None, :]
        # the target of a token is added to the gradient elsewhere in the sampled form
        one_hot = tl.zeros_like(lost) if SAMPLED else -lost
        e = tl.where(hit, one_hot[None, :], e)
        e = tl.where(live[None, :], e * a[None, :], 0.0)
        slope += tl.sum(e, axis=1)
        grad = multiply(rounded(e * lift, dtype), h, grad, PRECISION)
    own = share * tl.cast(columns, tl.int64) + column
    at = own[:, None] * dim + place[None, :]
    held = inside[:, None] & (place < dim)[None, :]
    tl.store(d_weight + at, rounded(grad / lift, d_weight.dtype.element_ty), mask=held)
    tl.store(d_bias + own, rounded(slope, d_bias.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["entries", "samples", "shares"])
def _scatter(
    keys,
    order,
    part_weight,
    part_bias,
    hidden,
    token_weights,
    taken,
    d_weight,
    d_bias,
    entries,
    samples,
    items,
    dim,
    shares,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    ENTRIES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    start = tl.program_id(0)
    key = tl.load(keys + start)
    before = tl.load(keys + start - 1, mask=start > 0, other=-1)
    # the first entry of an item adds up all that follow
    if (key != before) & (key >= 0) & (key < items):
        place = tl.arange(0, WIDTH)
        grad = tl.zeros([WIDTH], tl.float32)
        slope = tl.zeros([1], tl.float32)
        first = start
        more = 1
        while more > 0:
            at = first + tl.arange(0, ENTRIES)
            same = (tl.load(keys + at, mask=at < entries, other=-1) == key) & (at < entries)
            source = tl.load(order + at, mask=same, other=0)
            drawn = same & (source < samples)
            token = tl.where(source < samples, 0, source - samples)
            aimed = same & (source >= samples)
            c = -tl.load(token_weights + token, mask=aimed, other=0.0).to(tl.float32)
            c *= tl.load(taken + token, mask=aimed, other=0.0)
            if WEIGHT:
                wide = (place < dim)[None, :]
                rows = c[:, None] * tl.load(
                    hidden + token[:, None] * dim + place[None, :],
                    mask=aimed[:, None] & wide,
                    other=0.0,
                ).to(tl.float32)
                for share in range(shares):
                    row = share * tl.cast(samples, tl.int64) + source
                    rows += tl.load(
                        part_weight + row[:, None] * dim + place[None, :],
                        mask=drawn[:, None] & wide,
                        other=0.0,
                    )
                grad += tl.sum(rows, axis=0)
            if BIAS:
                for share in range(shares):
                    row = share * tl.cast(samples, tl.int64) + source
                    c += tl.load(part_bias + row, mask=drawn, other=0.0)
                slope += tl.sum(c, axis=0)
            first += ENTRIES
            more = tl.sum(same.to(tl.int32), axis=0) // ENTRIES
        if WEIGHT:
            out = rounded(grad, d_weight.dtype.element_ty)
            tl.store(d_weight + key * dim + place, out, mask=place < dim)
        if BIAS:
            tl.store(d_bias + key + tl.arange(0, 1), rounded(slope, d_bias.dtype.element_ty))


def _config(kernel: Any, width: int, element: int, precise: bool) -> Config:
    """Tiles of a kernel for a width; float32 without tensor cores holds whole rows in registers."""
    if kernel is _merge:
        return Config({"TOKENS": max(1, 1024 // width)}, 4, 1)
    if kernel is _scatter:
        return Config({"ENTRIES": 16}, 1, 1)
    if element == 4:
        small = 16 if precise else 32
        return Config({"TOKENS": small, "COLUMNS": small}, 4, 1 if precise else 2)
    return Config({"TOKENS": 64, "COLUMNS": 64}, 4, 2)


def _shares(length: int, least: int, tiles: int, tensor: Tensor) -> tuple[int, int]:
    """How many shares to cut a loop into, and the length of one, a multiple of 64."""
    wanted = max(1, 2 * processors(tensor) // max(tiles, 1))
    count = max(1, min(wanted, length // least))
    size = 64 * triton.cdiv(triton.cdiv(length, count), 64)
    return triton.cdiv(length, size), size


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor,
    negatives: Tensor | None,
    log_q_negatives: Tensor | None,
    log_q_targets: Tensor | None,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``cross_entropy``."""
    tokens, dim = hidden.shape
    items = weight.shape[0]
    if dim > WIDEST:
        raise InputError(
            f"cross_entropy: the Triton kernels take a width up to {WIDEST}, found {dim}; "
            "set SEQREC_FAST_BACKEND=reference"
        )
    loss = hidden.new_empty((), dtype=torch.float32)
    d_hidden = hidden.new_empty(hidden.shape if want_hidden else 0)
    d_weight = weight.new_empty(weight.shape if want_weight else 0)
    d_bias = weight.new_empty(items if want_bias else 0)
    made = (loss, d_hidden, d_weight, d_bias)
    if not tokens or not items:
        for tensor in made:
            tensor.zero_()
        return made
    h, w = hidden.detach().contiguous(), weight.detach().contiguous()
    b = h if bias is None else bias.detach().contiguous()
    y, a = targets.contiguous(), token_weights.contiguous()
    n = y if negatives is None else negatives.contiguous()
    q_n = a if log_q_negatives is None else log_q_negatives.contiguous()
    q_y = a if log_q_targets is None else log_q_targets.contiguous()
    columns = items if negatives is None else n.shape[0]
    width = max(padded_width(dim), 16)
    precision = input_precision(h.dtype)
    flags = {"SAMPLED": negatives is not None, "BIAS": bias is not None}
    flags["CORRECTED"] = log_q_negatives is not None

    def fresh(*shape: int) -> Tensor:
        return h.new_empty(shape, dtype=torch.float32)

    def config(kernel: Any) -> Config:
        return _config(kernel, width, h.element_size(), precision == "ieee")

    chosen = config(_forward)
    tiles = triton.cdiv(tokens, chosen.blocks["TOKENS"])
    shares, per_share = _shares(columns, _LEAST_COLUMNS, tiles, h)
    parts = fresh(shares, tokens), fresh(shares, tokens)
    part_grad = fresh(shares, tokens, dim) if want_hidden else parts[0]
    _forward[(tiles, shares)](
        h, w, b, y, n, q_n, *parts, part_grad, tokens, columns, items, dim, per_share,
        **flags, GRADIENT=want_hidden, PRECISION=precision, **chosen.blocks, WIDTH=width,
        num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    chosen = config(_merge)
    whole, taken, terms = fresh(tokens), fresh(tokens), fresh(tokens)
    _merge[(triton.cdiv(tokens, chosen.blocks["TOKENS"]),)](
        h, w, b, y, q_y, a, *parts, part_grad, whole, taken, terms,
        d_hidden if want_hidden else terms, tokens, items, dim, shares,
        BIAS=bias is not None, CORRECTED=log_q_targets is not None, GRADIENT=want_hidden,
        **chosen.blocks, WIDTH=width, num_warps=chosen.warps,
    )  # fmt: skip
    torch.sum(terms, dim=0, out=loss)
    if not (want_weight or want_bias):
        return made
    chosen = config(_columns)
    tiles = triton.cdiv(columns, chosen.blocks["COLUMNS"])
    shares, per_share = _shares(tokens, _LEAST_TOKENS, tiles, h)
    direct = negatives is None and shares == 1 and want_weight and want_bias
    joined = None if direct else fresh(shares, columns * dim)
    slopes = None if direct else fresh(shares, columns)
    into = (d_weight, d_bias) if joined is None or slopes is None else (joined, slopes)
    _columns[(tiles, shares)](
        h, w, b, y, n, q_n, a, whole, taken, *into, tokens, columns, items, dim, per_share,
        **flags, PRECISION=precision, **chosen.blocks, WIDTH=width,
        num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    if joined is None or slopes is None:
        return made
    if negatives is None:
        if want_weight:
            add_up(joined, d_weight, d_weight[:0])
        if want_bias:
            add_up(slopes, d_bias, d_bias[:0])
        return made
    keys, order = torch.sort(torch.cat([n, y]), stable=True)
    d_weight.zero_()
    d_bias.zero_()
    chosen = config(_scatter)
    _scatter[(keys.shape[0],)](
        keys, order, joined, slopes, h, a, taken, d_weight, d_bias, keys.shape[0], columns, items,
        dim, shares, WEIGHT=want_weight, BIAS=want_bias, **chosen.blocks, WIDTH=width,
        num_warps=chosen.warps,
    )  # fmt: skip
    return made


_KERNELS = {
    "cross_entropy_forward": (_forward, {"GRADIENT": True}, True),
    "cross_entropy_merge": (_merge, {"GRADIENT": True}, False),
    "cross_entropy_columns": (_columns, {}, True),
    "cross_entropy_scatter": (_scatter, {"WEIGHT": True, "BIAS": True}, False),
}


def variants() -> Iterator[Variant]:
    """What ships: with bias and gradients, full and sampled."""
    for dtype in DTYPES.values():
        for width in widths(most=WIDEST):
            for name, (kernel, own, matrix) in _KERNELS.items():
                for sampled in (False, True):
                    if not matrix and sampled != (kernel is _scatter):
                        continue
                    modes = ("ieee", "tf32") if dtype == "fp32" and matrix else ("ieee",)
                    for precision in modes:
                        flags = {**own, "BIAS": True}
                        if matrix:
                            flags |= {"SAMPLED": sampled, "CORRECTED": sampled}
                        elif kernel is _merge:
                            flags["CORRECTED"] = True
                        yield _variant(name, kernel, dtype, width, flags, precision, matrix)


def _variant(
    name: str,
    kernel: Any,
    dtype: str,
    width: int,
    flags: dict[str, bool],
    precision: str,
    matrix: bool,
) -> Variant:
    config = _config(kernel, width, 4 if dtype == "fp32" else 2, precision == "ieee")
    constants: dict[str, Any] = {**flags, **config.blocks, "WIDTH": width}
    if matrix:
        constants["PRECISION"] = precision
    types = {
        **dict.fromkeys(
            ("hidden", "weight", "bias", "d_hidden", "d_weight", "d_bias"), f"*{dtype}"
        ),
        **dict.fromkeys(("targets", "negatives", "keys", "order"), "*i64"),
        **dict.fromkeys(("log_q", "token_weights", "whole", "taken", "terms"), "*fp32"),
        **dict.fromkeys(("part_max", "part_sum", "part_grad", "part_weight", "part_bias"), "*fp32"),
    }
    return Variant(
        named(name, dtype, width, config, tf32=precision == "tf32", **flags),
        kernel,
        signature(kernel, types, constants),
        constants,
        config.warps,
        config.stages,
        matrix=matrix,
    )
