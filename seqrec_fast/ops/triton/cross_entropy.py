# SPDX-License-Identifier: Apache-2.0
"""Linear + cross-entropy on the GPU, full and sampled; logits live in registers alone.

For each token, ``rest`` is the log-sum-exp over all columns (items, or samples) but its target, and
``right`` the target's logit: the loss is ``softplus(rest - right)``, never negative, and what the
one-hot takes from the target's probability is ``sigmoid(rest - right)``, free of cancellation. So
the full and the sampled form are one computation.

* ``forward``: a program owns a tile of tokens and a share of the columns, whose tiles it streams
  with a running maximum; where the gradient of the tokens is wanted, the probabilities are
  multiplied into it in the same pass, as attention does with its values.
* ``merge`` joins the shares, adds the target and finishes loss and gradient of the tokens.
* ``columns``: a program owns a tile of columns, makes its logits again token tile by token tile
  and adds up the gradient of its rows of the table.
* ``scatter`` (sampled): a sample may be drawn many times and be a target too; the contributions,
  sorted by item, are added in that order.

Four products instead of three, nothing of the size tokens x items in memory, no atomics: the same
bits every time. A target or sample that is no item cannot be refused without waiting for the
device; it makes the loss NaN.

The gradients of float16 leave in float32: the factor of a loss scaler is multiplied in later. What
the tensor cores are given of them is kept away from the subnormal numbers by powers of two and by
the largest weight of a token.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops.triton import _cross_entropy_kernels as kernels
from seqrec_fast.ops.triton._launch import (
    Config,
    Variant,
    forms,
    input_precision,
    named,
    padded_width,
    signature,
    widths,
)
from seqrec_fast.ops.triton._numbers import ODD, add_up, processors

__all__ = ["WIDEST", "cross_entropy", "variants"]

#: width of the table that fits the registers of a program
WIDEST = 256

#: narrower tables are padded to it, which spares kernels to compile; on tensor cores exponentials
#: take longer than so narrow products anyway
NARROWEST = 64

# columns, and tokens, that make a share of its own worthwhile
_LEAST_COLUMNS = 512
_LEAST_TOKENS = 256


def _config(
    kernel: Any, width: int, element: int, precise: bool, sampled: bool, odd: bool
) -> Config:
    """Tiles of a kernel that spill nowhere in the table of resources.

    Float32 without tensor cores holds whole rows in registers. Tables whose width is no multiple of
    16 (``odd``) are read in smaller pieces, whose addresses take registers of their own.
    """
    if kernel is kernels.merge:
        if odd:
            return Config({"TOKENS": 1024 // width}, 4, 1)
        return Config({"TOKENS": 2048 // width}, 2 if element == 2 and width == 128 else 4, 1)
    if kernel is kernels.scatter:
        if element == 4:
            return Config({"ENTRIES": 16 if width <= 64 else 8}, 4, 1)
        return Config({"ENTRIES": 16}, width // 32, 1)
    if element == 4 and odd and width == 128 and kernel is kernels.forward:
        return Config({"TOKENS": 16, "COLUMNS": 16}, 8, 2)
    if odd and element == 4 and not precise and width == 64 and kernel is kernels.forward:
        return Config({"TOKENS": 16, "COLUMNS": 32}, 4, 1)
    if element == 4:
        tile = 16 if precise else 32
        eight = width > 64 if precise else 32 < width <= 128
        if precise and width > 128 and kernel is kernels.forward:
            return Config({"TOKENS": 8, "COLUMNS": tile}, 4 if sampled else 8, 1)
        return Config({"TOKENS": tile, "COLUMNS": tile}, 8 if eight else 4, 1)
    # what a program owns is larger than what it streams where registers run short
    if odd and sampled and width == 64 and kernel is kernels.forward:
        return Config({"TOKENS": 16, "COLUMNS": 64}, 4, 2)
    if odd or width > 128:
        return Config({"TOKENS": 32, "COLUMNS": 32}, 4, 1 if width == 32 else 2)
    if kernel is kernels.forward:
        return Config({"TOKENS": 64, "COLUMNS": 64 if width <= 64 else 32}, 4, 2)
    return Config({"TOKENS": 64 if width <= 32 else 32, "COLUMNS": 64}, 4, 2)


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
    dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
    d_hidden = hidden.new_empty(hidden.shape if want_hidden else 0, dtype=dtype)
    d_weight = weight.new_empty(weight.shape if want_weight else 0, dtype=dtype)
    d_bias = weight.new_empty(items if want_bias else 0, dtype=dtype)
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
    width = max(padded_width(dim), NARROWEST)
    precision = input_precision(h.dtype)
    flags = {"SAMPLED": negatives is not None, "BIAS": bias is not None}
    flags["CORRECTED"] = log_q_negatives is not None

    def fresh(*shape: int) -> Tensor:
        return h.new_empty(shape, dtype=torch.float32)

    def config(kernel: Any) -> Config:
        odd = dim % 16 != 0
        sampled = negatives is not None
        return _config(kernel, width, h.element_size(), precision == "ieee", sampled, odd)

    chosen = config(kernels.forward)
    tiles = triton.cdiv(tokens, chosen.blocks["TOKENS"])
    shares, per_share = _shares(columns, _LEAST_COLUMNS, tiles, h)
    parts = fresh(shares, tokens), fresh(shares, tokens)
    part_grad = fresh(shares, tokens, dim) if want_hidden else parts[0]
    kernels.forward[(tiles, shares)](
        h, w, b, y, n, q_n, *parts, part_grad, tokens, columns, items, dim, per_share,
        **flags, GRADIENT=want_hidden, PRECISION=precision, **chosen.blocks, WIDTH=width,
        num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    chosen = config(kernels.merge)
    peak, inverse_mass, taken, terms = (fresh(tokens) for _ in range(4))
    kernels.merge[(triton.cdiv(tokens, chosen.blocks["TOKENS"]),)](
        h, w, b, y, q_y, a, *parts, part_grad, peak, inverse_mass, taken, terms,
        d_hidden if want_hidden else terms, tokens, items, dim, shares,
        BIAS=bias is not None, CORRECTED=log_q_targets is not None, GRADIENT=want_hidden,
        **chosen.blocks, WIDTH=width, num_warps=chosen.warps,
    )  # fmt: skip
    torch.sum(terms, dim=0, out=loss)
    if not (want_weight or want_bias):
        return made
    chosen = config(kernels.columns)
    tiles = triton.cdiv(columns, chosen.blocks["COLUMNS"])
    shares, per_share = _shares(tokens, _LEAST_TOKENS, tiles, h)
    direct = negatives is None and shares == 1
    if direct:
        joined = d_weight if want_weight else h.new_empty((items, dim), dtype=dtype)
        slopes = d_bias if want_bias else h.new_empty(items, dtype=dtype)
    else:
        joined, slopes = fresh(shares, columns * dim), fresh(shares, columns)
    heaviest = a.amax() if h.dtype == torch.float16 else a
    kernels.columns[(tiles, shares)](
        h, w, b, y, n, q_n, a, heaviest, peak, inverse_mass, taken, joined, slopes, tokens, columns,
        items, dim, per_share,
        **flags, PRECISION=precision, **chosen.blocks, WIDTH=width,
        num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    if direct:
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
    chosen = config(kernels.scatter)
    kernels.scatter[(keys.shape[0],)](
        keys, order, joined, slopes, h, a, taken, d_weight, d_bias, keys.shape[0], columns, items,
        dim, shares, WEIGHT=want_weight, BIAS=want_bias, **chosen.blocks, WIDTH=width,
        num_warps=chosen.warps,
    )  # fmt: skip
    return made


_KERNELS = {
    "cross_entropy_forward": (kernels.forward, {"GRADIENT": True}, True),
    "cross_entropy_merge": (kernels.merge, {"GRADIENT": True}, False),
    "cross_entropy_columns": (kernels.columns, {}, True),
    "cross_entropy_scatter": (kernels.scatter, {"WEIGHT": True, "BIAS": True}, False),
}


def variants() -> Iterator[Variant]:
    """What ships: with bias and gradients, full and sampled; also of odd widths."""
    for (dtype, width), odd in product(forms(widths(NARROWEST, WIDEST)), (False, True)):
        if not odd or (width in ODD and dtype != "fp16"):
            for name, (kernel, own, matrix) in _KERNELS.items():
                for sampled in (False, True):
                    if not matrix and sampled != (kernel is kernels.scatter):
                        continue
                    modes = ("ieee", "tf32") if dtype == "fp32" and matrix else ("ieee",)
                    for precision in modes:
                        flags = {**own, "BIAS": True}
                        if matrix:
                            flags |= {"SAMPLED": sampled, "CORRECTED": sampled}
                        elif kernel is kernels.merge:
                            flags["CORRECTED"] = True
                        yield _variant(name, kernel, dtype, width, flags, precision, matrix, odd)


def _variant(
    name: str,
    kernel: Any,
    dtype: str,
    width: int,
    flags: dict[str, bool],
    precision: str,
    matrix: bool,
    odd: bool,
) -> Variant:
    element, sampled = 4 if dtype == "fp32" else 2, flags.get("SAMPLED", False)
    config = _config(kernel, width, element, precision == "ieee", sampled, odd)
    constants: dict[str, Any] = {**flags, **config.blocks, "WIDTH": width}
    if matrix:
        constants["PRECISION"] = precision
    partial = kernel is kernels.columns and flags["SAMPLED"]
    made = "fp32" if dtype == "fp16" or partial else dtype
    types = {
        **dict.fromkeys(("hidden", "weight", "bias"), f"*{dtype}"),
        **dict.fromkeys(("d_hidden", "d_weight", "d_bias"), f"*{made}"),
        **dict.fromkeys(("targets", "negatives", "keys", "order"), "*i64"),
        **dict.fromkeys(
            ("log_q", "token_weights", "heaviest", "peak", "inverse_mass", "taken", "terms"),
            "*fp32",
        ),
        **dict.fromkeys(("part_max", "part_sum", "part_grad", "part_weight", "part_bias"), "*fp32"),
    }
    return Variant(
        named(name, dtype, width, config, tf32=precision == "tf32", **flags, odd=odd),
        kernel,
        signature(kernel, types, constants),
        constants,
        config.warps,
        config.stages,
        matrix=matrix,
        multiples=() if odd else ("dim",),
    )
