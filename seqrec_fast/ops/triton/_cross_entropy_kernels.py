# SPDX-License-Identifier: Apache-2.0
"""The kernels of linear + cross-entropy; ``cross_entropy.py`` says what they are for.

Of tensors: ``hidden [tokens, dim]``, ``weight [items, dim]``. Columns are items, or samples where
``SAMPLED``. What the kernels hand on is float32: by share of the columns, token and dimension
``part_max``, ``part_sum``, ``part_grad``; by token ``peak`` (the largest logit), ``inverse_mass``
(one over the sum of the exponentials of the logits less ``peak``: together they keep what one
logarithm of the sum would lose where logits are large) and ``taken`` (what the one-hot takes).
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from seqrec_fast.ops.triton._launch import product, rounded

__all__ = ["columns", "forward", "merge", "scatter"]


@triton.jit
def _lift(dtype: tl.constexpr):
    """Factor that keeps probabilities out of float16's subnormal numbers; 1 elsewhere."""
    return 4096.0 if dtype == tl.float16 else 1.0


@triton.jit(do_not_specialize=["tokens"])
def forward(
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
        z = product(h, tl.trans(w), tl.zeros([TOKENS, COLUMNS], tl.float32), PRECISION)
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
            grad = product(rounded(e * _lift(dtype), dtype), w, grad * shrink[:, None], PRECISION)
    own = share * tl.cast(tokens, tl.int64)
    tl.store(part_max + own + token, top, mask=live)
    tl.store(part_sum + own + token, mass, mask=live)
    if GRADIENT:
        tl.store(part_grad + own * dim + at, grad, mask=held)


@triton.jit(do_not_specialize=["tokens", "shares"])
def merge(
    hidden,
    weight,
    bias,
    targets,
    log_q,
    token_weights,
    part_max,
    part_sum,
    part_grad,
    peak,
    inverse_mass,
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
    # logits first, which may be large and near each other
    ahead = (level - right) + tl.log(mass)
    e = tl.exp(-tl.abs(ahead))
    more = tl.where(e < 1e-3, e * (1.0 - e * (0.5 - e * 0.33333334)), tl.log(1.0 + e))
    loss = tl.where(ahead > 0, ahead, 0.0) + more
    highest = tl.maximum(top, right)
    inverse = 1.0 / (mass * tl.exp(top - highest) + tl.exp(right - highest))
    lost = tl.where(ahead > 0, 1.0, e) / (1.0 + e)
    a = tl.load(token_weights + token, mask=live, other=0.0).to(tl.float32)
    tl.store(terms + token, a * loss, mask=live)
    tl.store(peak + token, highest, mask=live)
    tl.store(inverse_mass + token, inverse, mask=live)
    tl.store(taken + token, lost, mask=live)
    if GRADIENT:
        grad = -lost[:, None] * w
        for share in range(shares):
            own = tl.load(part_max + share * stride + token, mask=live, other=0.0)
            factor = tl.exp(own - highest) * (inverse / _lift(dtype))
            part = tl.load(part_grad + share * stride * dim + at, mask=held, other=0.0)
            grad += factor[:, None] * part
        tl.store(d_hidden + at, rounded(a[:, None] * grad, d_hidden.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["tokens", "per_share"])
def columns(
    hidden,
    weight,
    bias,
    targets,
    negatives,
    log_q,
    token_weights,
    heaviest,
    peak,
    inverse_mass,
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
    lift = tl.full([], 1.0, tl.float32)
    if dtype == tl.float16:
        # no weight times probability is above the largest weight
        lift = 8.0 * _lift(dtype) / tl.maximum(tl.load(heaviest), 1e-30)
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
        highest = tl.load(peak + token, mask=live, other=0.0)
        inverse = tl.load(inverse_mass + token, mask=live, other=0.0)
        lost = tl.load(taken + token, mask=live, other=0.0)
        a = tl.load(token_weights + token, mask=live, other=0.0).to(tl.float32)
        z = product(w, tl.trans(h), tl.zeros([COLUMNS, TOKENS], tl.float32), PRECISION)
        e = tl.exp((z + shift[:, None]) - highest[None, :]) * inverse[None, :]
        hit = item[:, None] == target[None, :]
        # the target of a token is added to the gradient elsewhere in the sampled form
        one_hot = tl.zeros_like(lost) if SAMPLED else -lost
        e = tl.where(hit, one_hot[None, :], e)
        e = tl.where(live[None, :], e * a[None, :], 0.0)
        slope += tl.sum(e, axis=1)
        grad = product(rounded(e * lift, dtype), h, grad, PRECISION)
    own = share * tl.cast(columns, tl.int64) + column
    at = own[:, None] * dim + place[None, :]
    held = inside[:, None] & (place < dim)[None, :]
    tl.store(d_weight + at, rounded(grad / lift, d_weight.dtype.element_ty), mask=held)
    tl.store(d_bias + own, rounded(slope, d_bias.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["entries", "samples", "shares"])
def scatter(
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
