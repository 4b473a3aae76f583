# SPDX-License-Identifier: Apache-2.0
"""Pointwise SiLU attention over jagged batches on the GPU: one kernel forward, two backward.

The maths are in ``seqrec_fast.ops.hstu_attention``; the walk over tiles is that of
``seqrec_fast.ops.triton.attention`` without a softmax: nothing is kept but the inputs.

A time difference finds its bucket by a logarithm in float32, which is right or one too high, and
one look at the whole bounds, which settles it.

Gradients of the tables are added with atomics into ``COPIES`` tables that the programs share out,
summed at the end: whatever adds up in the registers of a tile would be as many sums over it as it
has distances and buckets. So these two gradients vary in their last digits from run to run;
``torch.use_deterministic_algorithms`` refuses them. All others are summed in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops.hstu_attention import time_bucket_bounds
from seqrec_fast.ops.triton._attention_tiles import (
    NUMBERS,
    choice,
    kernel_variants,
    readable,
    strides,
    table_of,
    tile_width,
    width_in_memory,
)
from seqrec_fast.ops.triton._launch import (
    Variant,
    input_precision,
    load_rows,
    product,
    rounded,
    row_of_tile,
    row_tiles,
    store_rows,
    tuned,
)

__all__ = ["hstu_attention", "hstu_attention_backward", "variants"]

COPIES = 32  # of the tables of gradients

FORWARD = table_of(
    {
        "16": {32: (64, 32, 8, 2), 64: (64, 64, 8, 2), 128: (64, 32, 8, 2)},
        "tf32": {32: (64, 32, 4, 2), 64: (64, 32, 8, 2), 128: (32, 32, 4, 2)},
        "fp32": {32: (32, 16, 8, 1), 64: (32, 32, 4, 1), 128: (16, 16, 4, 1)},
    }
)
QUERY_GRADIENT = table_of(
    {
        "16": {32: (64, 64, 8, 2), 64: (64, 32, 4, 2), 128: (64, 32, 8, 2)},
        "tf32": {32: (32, 32, 8, 2), 64: (32, 32, 4, 2), 128: (32, 32, 8, 2)},
        "fp32": {32: (32, 32, 8, 1), 64: (16, 16, 8, 1), 128: (16, 16, 8, 1)},
    }
)
KEY_GRADIENT = table_of(
    {
        "16": {32: (32, 64, 8, 2), 64: (32, 16, 8, 2), 128: (64, 32, 8, 2)},
        "tf32": {32: (32, 32, 8, 2), 64: (32, 16, 4, 2), 128: (16, 16, 8, 2)},
        "fp32": {32: (16, 32, 8, 1), 64: (32, 16, 8, 1), 128: (32, 16, 8, 2)},
    }
)

_LAST_BOUND = 143  # bounds of this bucket and later ones are the largest int64
_PER_LOG2 = math.log(2) / 0.301  # buckets a doubling of the difference

# as the kernels are compiled for the table of resources; without a table they do a part of the same
BOTH = {"HAS_BIAS": True, "HAS_TIME": True, "PER_LOG2": _PER_LOG2, "LAST": _LAST_BOUND}


# fmt: off
@triton.jit
def bias_of(
    bias_row, time_row, bounds, times_row, query, key, count, distances, buckets,
    HAS_BIAS: tl.constexpr, HAS_TIME: tl.constexpr, PER_LOG2: tl.constexpr, LAST: tl.constexpr,
):
    """What is added to scores ``[query, key]``, and the entries of both tables it came from.

    ``query`` and ``key`` are places in the row, of shapes ``[n, 1]`` and ``[1, m]`` or the other
    way round.
    """
    distance = tl.minimum(tl.abs(query - key), distances - 1)
    bucket = distance
    added = tl.zeros(distance.shape, tl.float32)
    if HAS_BIAS:
        added += tl.load(bias_row + distance).to(tl.float32)
    if HAS_TIME:
        at = tl.load(times_row + query, mask=query < count, other=0)
        then = tl.load(times_row + key, mask=key < count, other=0)
        apart = tl.where(at < then, then - at, at - then)
        # what does not fit in 64 bits with a sign has wrapped around
        largest = 0x7FFFFFFFFFFFFFFF
        apart = tl.where(apart < 0, largest, apart)
        guess = tl.log2(tl.maximum(apart, 1).to(tl.float32)) * PER_LOG2 + 0.01
        bucket = tl.minimum(guess.to(tl.int32), tl.minimum(buckets - 1, LAST))
        bucket -= (apart < tl.load(bounds + bucket)).to(tl.int32)
        bucket = tl.where(apart == largest, buckets - 1, bucket)
        added += tl.load(time_row + bucket).to(tl.float32)
    return added, distance, bucket


@triton.jit
def sigmoid(x):
    """1 / (1 + 2^(-x log2 e)); 0 and 1 far out."""
    return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))


@tuned(**choice("hstu_attention_forward", FORWARD, BOTH))
@triton.jit(do_not_specialize=NUMBERS)
def hstu_attention_forward(
    q, k, v, offsets, bias, time_bias, times, bounds, out,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token,
    distances, buckets, rows, width, scale, inverse, causal,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TIME: tl.constexpr, PER_LOG2: tl.constexpr, LAST: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    """One tile of queries; ``inverse`` is 1 / normaliser."""
    head = tl.program_id(1).to(tl.int64)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    _row, begin, end, first = row_of_tile(offsets, rows, tile, QUERIES)
    count = (end - begin).to(tl.int32)
    if first < count:
        k_row = k + begin * k_token + head * k_head
        v_row = v + begin * v_token + head * v_head
        queries = load_rows(
            q + begin * q_token + head * q_head, q_token, first, count, width,
            QUERIES, PADDED, False,
        )
        query = first + tl.arange(0, QUERIES)[:, None]
        summed = tl.zeros([QUERIES, PADDED], tl.float32)
        last = count
        if causal:
            last = tl.minimum(count, first + QUERIES)
        for start in range(0, last, KEYS):
            key = start + tl.arange(0, KEYS)[None, :]
            keys = load_rows(k_row, k_token, start, count, width, KEYS, PADDED, False)
            scores = product(
                queries, tl.trans(keys), tl.zeros([QUERIES, KEYS], tl.float32), PRECISION
            ) * scale
            added, _distance, _bucket = bias_of(
                bias + head * distances, time_bias + head * buckets, bounds, times + begin,
                query, key, count, distances, buckets, HAS_BIAS, HAS_TIME, PER_LOG2, LAST,
            )
            scores += added
            seen = (key < count) & ((key <= query) | (causal == 0))
            weights = tl.where(seen, scores * sigmoid(scores), 0.0)
            values = load_rows(v_row, v_token, start, count, width, KEYS, PADDED, False)
            summed = product(rounded(weights, values.dtype), values, summed, PRECISION)
        store_rows(
            out + begin * out_token + head * width, out_token, first, count, width,
            summed * inverse, QUERIES, PADDED, False,
        )


@tuned(**choice("hstu_attention_query_gradient", QUERY_GRADIENT, BOTH))
@triton.jit(do_not_specialize=NUMBERS)
def hstu_attention_query_gradient(
    d_out, q, k, v, offsets, bias, time_bias, times, bounds, d_q, d_bias, d_time_bias,
    d_out_token, d_out_head, q_token, q_head, k_token, k_head, v_token, v_head, d_token,
    distances, buckets, rows, width, scale, inverse, causal, wants_bias, wants_time_bias,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TIME: tl.constexpr, PER_LOG2: tl.constexpr, LAST: tl.constexpr,
    COPIES: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    """Gives dQ of one tile of queries, and its part of the gradients of the tables."""
    head = tl.program_id(1).to(tl.int64)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    _row, begin, end, first = row_of_tile(offsets, rows, tile, QUERIES)
    count = (end - begin).to(tl.int32)
    if first < count:
        k_row = k + begin * k_token + head * k_head
        v_row = v + begin * v_token + head * v_head
        copy = (tile % COPIES).to(tl.int64) * tl.num_programs(1) + head
        queries = load_rows(
            q + begin * q_token + head * q_head, q_token, first, count, width,
            QUERIES, PADDED, False,
        )
        upstream = load_rows(
            d_out + begin * d_out_token + head * d_out_head, d_out_token, first, count, width,
            QUERIES, PADDED, False,
        )
        query = first + tl.arange(0, QUERIES)[:, None]
        gradient = tl.zeros([QUERIES, PADDED], tl.float32)
        last = count
        if causal:
            last = tl.minimum(count, first + QUERIES)
        for start in range(0, last, KEYS):
            key = start + tl.arange(0, KEYS)[None, :]
            keys = load_rows(k_row, k_token, start, count, width, KEYS, PADDED, False)
            scores = product(
                queries, tl.trans(keys), tl.zeros([QUERIES, KEYS], tl.float32), PRECISION
            ) * scale
            added, distance, bucket = bias_of(
                bias + head * distances, time_bias + head * buckets, bounds, times + begin,
                query, key, count, distances, buckets, HAS_BIAS, HAS_TIME, PER_LOG2, LAST,
            )
            scores += added
            part = sigmoid(scores)
            slope = part * (1.0 + scores * (1.0 - part)) * inverse
            values = load_rows(v_row, v_token, start, count, width, KEYS, PADDED, False)
            d_weights = product(
                upstream, tl.trans(values), tl.zeros([QUERIES, KEYS], tl.float32), PRECISION
            )
            seen = (key < count) & (query < count) & ((key <= query) | (causal == 0))
            d_scores = tl.where(seen, d_weights * slope, 0.0)
            if HAS_BIAS:  # noqa: SIM102, known when it is compiled
                if wants_bias:
                    tl.atomic_add(
                        d_bias + copy * distances + distance, d_scores, seen != 0, "relaxed"
                    )
            if HAS_TIME:  # noqa: SIM102
                if wants_time_bias:
                    tl.atomic_add(
                        d_time_bias + copy * buckets + bucket, d_scores, seen != 0, "relaxed"
                    )
            gradient = product(rounded(d_scores, keys.dtype), keys, gradient, PRECISION)
        store_rows(
            d_q + begin * d_token + head * width, d_token, first, count, width,
            gradient * scale, QUERIES, PADDED, False,
        )


@tuned(**choice("hstu_attention_key_gradient", KEY_GRADIENT, BOTH))
@triton.jit(do_not_specialize=NUMBERS)
def hstu_attention_key_gradient(
    d_out, q, k, v, offsets, bias, time_bias, times, bounds, d_k, d_v,
    d_out_token, d_out_head, q_token, q_head, k_token, k_head, v_token, v_head, d_token,
    distances, buckets, rows, width, scale, inverse, causal,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TIME: tl.constexpr, PER_LOG2: tl.constexpr, LAST: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    """Gives dK and dV of one tile of keys; scores lie ``[key, query]``."""
    head = tl.program_id(1).to(tl.int64)
    _row, begin, end, first = row_of_tile(offsets, rows, tl.program_id(0), KEYS)
    count = (end - begin).to(tl.int32)
    if first < count:
        q_row = q + begin * q_token + head * q_head
        d_out_row = d_out + begin * d_out_token + head * d_out_head
        keys = load_rows(
            k + begin * k_token + head * k_head, k_token, first, count, width,
            KEYS, PADDED, False,
        )
        values = load_rows(
            v + begin * v_token + head * v_head, v_token, first, count, width,
            KEYS, PADDED, False,
        )
        key = first + tl.arange(0, KEYS)[:, None]
        d_keys = tl.zeros([KEYS, PADDED], tl.float32)
        d_values = tl.zeros([KEYS, PADDED], tl.float32)
        begun = 0
        if causal:
            begun = first // QUERIES * QUERIES
        for start in range(begun, count, QUERIES):
            query = start + tl.arange(0, QUERIES)[None, :]
            queries = load_rows(q_row, q_token, start, count, width, QUERIES, PADDED, False)
            scores = product(
                keys, tl.trans(queries), tl.zeros([KEYS, QUERIES], tl.float32), PRECISION
            ) * scale
            added, _distance, _bucket = bias_of(
                bias + head * distances, time_bias + head * buckets, bounds, times + begin,
                query, key, count, distances, buckets, HAS_BIAS, HAS_TIME, PER_LOG2, LAST,
            )
            scores += added
            part = sigmoid(scores)
            seen = (query < count) & ((key <= query) | (causal == 0))
            weights = tl.where(seen, scores * part, 0.0)
            upstream = load_rows(
                d_out_row, d_out_token, start, count, width, QUERIES, PADDED, False
            )
            d_values = product(rounded(weights, upstream.dtype), upstream, d_values, PRECISION)
            d_weights = product(
                values, tl.trans(upstream), tl.zeros([KEYS, QUERIES], tl.float32), PRECISION
            )
            slope = part * (1.0 + scores * (1.0 - part)) * inverse
            d_scores = tl.where(seen, d_weights * slope, 0.0)
            d_keys = product(rounded(d_scores, queries.dtype), queries, d_keys, PRECISION)
        store_rows(
            d_k + begin * d_token + head * width, d_token, first, count, width,
            d_keys * scale, KEYS, PADDED, False,
        )
        store_rows(
            d_v + begin * d_token + head * width, d_token, first, count, width,
            d_values * inverse, KEYS, PADDED, False,
        )


# fmt: on
@cache
def _bounds(buckets: int, device: torch.device) -> Tensor:
    """On its device; copied there at the first use of a table of this size."""
    return torch.tensor(time_bucket_bounds(buckets), dtype=torch.int64).to(device)


def _tables(
    q: Tensor, offsets: Tensor, bias: Tensor | None, time_bias: Tensor | None, times: Tensor | None
) -> tuple[list[Tensor], list[int], dict[str, object]]:
    """Tensors of the tables (some other where there is none), their sizes, constexprs."""
    none = offsets
    time = time_bias is not None and times is not None
    bounds = _bounds(time_bias.shape[1], q.device) if time_bias is not None else none
    found = [none if t is None else t.contiguous() for t in (bias, time_bias, times, bounds)]
    sizes = [1 if t is None else t.shape[1] for t in (bias, time_bias)]
    return (
        found,
        sizes,
        {
            "PADDED": tile_width(q.shape[2]),
            "PRECISION": input_precision(q.dtype),
            "HAS_BIAS": bias is not None,
            "HAS_TIME": time,
            "PER_LOG2": _PER_LOG2,
            "LAST": _LAST_BOUND,
        },
    )


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    time_bias: Tensor | None,
    times: Tensor | None,
    causal: bool,
    scale: float,
    normaliser: float,
) -> Tensor:
    """The operator ``hstu_attention``: output like ``q``, dense."""
    tokens, heads, width = q.shape
    wide = width_in_memory(width)
    q, k, v, offsets = *(readable(t, wide) for t in (q, k, v)), offsets.contiguous()
    out = q.new_empty((tokens, heads, wide))
    if out.numel():
        rows = offsets.shape[0] - 1
        tables, sizes, options = _tables(q, offsets, bias, time_bias, times)
        hstu_attention_forward[lambda meta: (row_tiles(tokens, rows, meta["QUERIES"]), heads)](
            q,
            k,
            v,
            offsets,
            *tables,
            out,
            *strides(q, k, v),
            heads * wide,
            *sizes,
            rows,
            wide,
            scale,
            1.0 / normaliser,
            int(causal),
            **options,
        )
    return out[..., :width].contiguous()


def hstu_attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    time_bias: Tensor | None,
    times: Tensor | None,
    causal: bool,
    scale: float,
    normaliser: float,
    wants_bias: bool,
    wants_time_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator ``hstu_attention_backward``: gradients of q, k, v and the tables.

    Raises:
        InputError: a table wants its gradient while torch allows deterministic algorithms alone.
    """
    tokens, heads, width = q.shape
    wide = width_in_memory(width)
    d_out, q, k, v = (readable(t, wide) for t in (d_out, q, k, v))
    offsets = offsets.contiguous()
    d_q, d_k, d_v = (q.new_empty((tokens, heads, wide)) for _ in range(3))
    wanted = [bias if wants_bias else None, time_bias if wants_time_bias else None]
    if any(t is not None for t in wanted) and torch.are_deterministic_algorithms_enabled():
        raise InputError(
            "hstu_attention: gradients of bias and time_bias are summed with atomics on the GPU, "
            "and torch.use_deterministic_algorithms is on; set SEQREC_FAST_BACKEND=reference"
        )
    sums = [
        None if t is None else torch.zeros((COPIES, *t.shape), dtype=torch.float32, device=q.device)
        for t in wanted
    ]
    if d_q.numel():
        rows = offsets.shape[0] - 1
        tables, sizes, options = _tables(q, offsets, bias, time_bias, times)
        numbers = (*sizes, rows, wide, scale, 1.0 / normaliser, int(causal))
        steps = (*strides(d_out, q, k, v), heads * wide)
        hstu_attention_query_gradient[
            lambda meta: (row_tiles(tokens, rows, meta["QUERIES"]), heads)
        ](
            d_out,
            q,
            k,
            v,
            offsets,
            *tables,
            d_q,
            *(offsets if t is None else t for t in sums),
            *steps,
            *numbers,
            int(wants_bias),
            int(wants_time_bias),
            COPIES=COPIES,
            **options,
        )
        hstu_attention_key_gradient[lambda meta: (row_tiles(tokens, rows, meta["KEYS"]), heads)](
            d_out,
            q,
            k,
            v,
            offsets,
            *tables,
            d_k,
            d_v,
            *steps,
            *numbers,
            **options,
        )
    d_bias, d_time_bias = (q.new_empty(0) if t is None else t.sum(0).to(q.dtype) for t in sums)
    d_q, d_k, d_v = (t[..., :width].contiguous() for t in (d_q, d_k, d_v))
    return d_q, d_k, d_v, d_bias, d_time_bias


def variants() -> Iterator[Variant]:
    """The compiled forms that ship, with both tables."""
    yield from kernel_variants(hstu_attention_forward, FORWARD, BOTH)
    with_copies = {**BOTH, "COPIES": COPIES}
    yield from kernel_variants(hstu_attention_query_gradient, QUERY_GRADIENT, with_copies)
    yield from kernel_variants(hstu_attention_key_gradient, KEY_GRADIENT, BOTH)
