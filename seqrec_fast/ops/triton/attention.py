# SPDX-License-Identifier: Apache-2.0
"""Softmax attention over jagged batches on the GPU: one kernel forward, two backward.

The maths are in ``seqrec_fast.ops.attention``; tiles and online softmax follow Dao 2023
("FlashAttention-2"). Forward: a program takes a tile of queries of one row and one head and walks
over the keys that the mask leaves. It keeps what the CPU keeps: of each query, the largest score
in powers of two and the reciprocal of its sum.

Backward: the first kernel takes a tile of queries, sums dO O over its width (kept for the second)
and walks over keys for dQ; the second takes a tile of keys and walks over queries for dK and dV.
Every number is summed by one program in a fixed order: no atomics, results do not vary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

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

__all__ = [
    "attention",
    "attention_backward",
    "packed_attention",
    "packed_attention_backward",
    "variants",
]

_LOG2_E = math.log2(math.e)


FORWARD = table_of(
    {
        "16": {32: (64, 64, 4, 2), 64: (64, 64, 4, 2), 128: (64, 64, 8, 2)},
        "tf32": {32: (64, 32, 4, 2), 64: (64, 32, 4, 2), 128: (64, 32, 8, 2)},
        "fp32": {32: (32, 32, 4, 1), 64: (32, 32, 4, 1), 128: (16, 16, 8, 1)},
    },
    # keys and values are read half as often, and tensor cores of sm_100 multiply 128 rows at once
    {"16": {32: (128, 64, 8, 2), 64: (128, 32, 8, 2), 128: (128, 64, 8, 2)}},
)
QUERY_GRADIENT = table_of(
    {
        "16": {32: (64, 64, 4, 2), 64: (64, 64, 8, 2), 128: (64, 32, 4, 2)},
        "tf32": {32: (64, 32, 4, 2), 64: (64, 32, 4, 2), 128: (32, 32, 4, 2)},
        "fp32": {32: (32, 32, 8, 1), 64: (32, 32, 8, 1), 128: (16, 16, 8, 1)},
    }
)
KEY_GRADIENT = table_of(
    {
        "16": {32: (64, 64, 4, 2), 64: (64, 32, 8, 2), 128: (64, 32, 8, 2)},
        "tf32": {32: (16, 32, 4, 2), 64: (32, 32, 4, 2), 128: (32, 32, 4, 2)},
        "fp32": {32: (32, 32, 8, 1), 64: (32, 16, 8, 1), 128: (16, 16, 16, 1)},
    }
)


# fmt: off
@tuned(**choice("attention_forward", FORWARD, {}))
@triton.jit(do_not_specialize=NUMBERS)
def attention_forward(
    q, k, v, offsets, out, statistics,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token,
    tokens, rows, width, scale, causal,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    """One tile of queries; ``scale`` has the factor log2 e, so that weights are powers of two."""
    head = tl.program_id(1).to(tl.int64)
    # the last tiles of a row see the most keys: they begin first
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
        query = first + tl.arange(0, QUERIES)
        largest = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        summed = tl.zeros([QUERIES, PADDED], tl.float32)
        last = count
        if causal:
            last = tl.minimum(count, first + QUERIES)
        for start in range(0, last, KEYS):
            key = start + tl.arange(0, KEYS)
            keys = load_rows(k_row, k_token, start, count, width, KEYS, PADDED, False)
            scores = product(
                queries, tl.trans(keys), tl.zeros([QUERIES, KEYS], tl.float32), PRECISION
            )
            seen = (key < count)[None, :] & ((key[None, :] <= query[:, None]) | (causal == 0))
            scores = tl.where(seen, scores * scale, float("-inf"))
            larger = tl.maximum(largest, tl.max(scores, 1))
            shrink = tl.exp2(largest - larger)
            weights = tl.exp2(scores - larger[:, None])
            total = total * shrink + tl.sum(weights, 1)
            values = load_rows(v_row, v_token, start, count, width, KEYS, PADDED, False)
            summed = product(
                rounded(weights, values.dtype), values, summed * shrink[:, None], PRECISION
            )
            largest = larger
        inverse = 1.0 / total
        store_rows(
            out + begin * out_token + head * width, out_token, first, count, width,
            summed * inverse[:, None], QUERIES, PADDED, False,
        )
        place = statistics + head * tokens + begin + query
        tl.store(place, largest, mask=query < count)
        heads = tl.num_programs(1).to(tl.int64)
        tl.store(place + heads * tokens, inverse, mask=query < count)


@tuned(**choice("attention_query_gradient", QUERY_GRADIENT, {}))
@triton.jit(do_not_specialize=NUMBERS)
def attention_query_gradient(
    d_out, q, k, v, offsets, out, statistics, d_q, delta,
    d_out_token, d_out_head, q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    d_token, d_head, tokens, rows, width, scale, slope, causal,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    """Gives dQ of a tile of queries and ``delta``, the sum of dO O; ``slope`` lacks log2 e.

    Float32 scores of narrow heads lie ``[key, query]``, which leaves registers for larger tiles.
    """
    KEYS_FIRST: tl.constexpr = q.dtype.element_ty == tl.float32 and PADDED < 128
    head = tl.program_id(1).to(tl.int64)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    _row, begin, end, first = row_of_tile(offsets, rows, tile, QUERIES)
    count = (end - begin).to(tl.int32)
    if first < count:
        k_row = k + begin * k_token + head * k_head
        v_row = v + begin * v_token + head * v_head
        upstream = load_rows(
            d_out + begin * d_out_token + head * d_out_head, d_out_token, first, count, width,
            QUERIES, PADDED, False,
        )
        outputs = load_rows(
            out + begin * out_token + head * out_head, out_token, first, count, width,
            QUERIES, PADDED, False,
        )
        query = first + tl.arange(0, QUERIES)
        along = tl.sum(upstream.to(tl.float32) * outputs.to(tl.float32), 1)
        place = head * tokens + begin + query
        tl.store(delta + place, along, mask=query < count)
        largest = tl.load(statistics + place, mask=query < count, other=0.0)
        heads = tl.num_programs(1).to(tl.int64)
        inverse = tl.load(statistics + heads * tokens + place, mask=query < count, other=0.0)
        queries = load_rows(
            q + begin * q_token + head * q_head, q_token, first, count, width,
            QUERIES, PADDED, False,
        )
        gradient = tl.zeros([QUERIES, PADDED], tl.float32)
        if KEYS_FIRST:
            query, along = query[None, :], along[None, :]
            largest, inverse = largest[None, :], inverse[None, :]
        else:
            query, along = query[:, None], along[:, None]
            largest, inverse = largest[:, None], inverse[:, None]
        last = count
        if causal:
            last = tl.minimum(count, first + QUERIES)
        for start in range(0, last, KEYS):
            keys = load_rows(k_row, k_token, start, count, width, KEYS, PADDED, False)
            values = load_rows(v_row, v_token, start, count, width, KEYS, PADDED, False)
            if KEYS_FIRST:
                key = (start + tl.arange(0, KEYS))[:, None]
                none = tl.zeros([KEYS, QUERIES], tl.float32)
                scores = product(keys, tl.trans(queries), none, PRECISION)
                d_weights = product(values, tl.trans(upstream), none, PRECISION)
            else:
                key = (start + tl.arange(0, KEYS))[None, :]
                none = tl.zeros([QUERIES, KEYS], tl.float32)
                d_weights = product(upstream, tl.trans(values), none, PRECISION)
                scores = product(queries, tl.trans(keys), none, PRECISION)
            seen = (key < count) & ((key <= query) | (causal == 0))
            weights = tl.exp2(scores * scale - largest) * inverse
            weights = tl.where(seen, weights, 0.0)
            d_scores = rounded(weights * (d_weights - along), keys.dtype)
            if KEYS_FIRST:
                d_scores = tl.trans(d_scores)
            gradient = product(d_scores, keys, gradient, PRECISION)
        store_rows(
            d_q + begin * d_token + head * d_head, d_token, first, count, width,
            gradient * slope, QUERIES, PADDED, False,
        )


@tuned(**choice("attention_key_gradient", KEY_GRADIENT, {}))
@triton.jit(do_not_specialize=NUMBERS)
def attention_key_gradient(
    d_out, q, k, v, offsets, statistics, delta, d_k, d_v,
    d_out_token, d_out_head, q_token, q_head, k_token, k_head, v_token, v_head,
    d_token, d_head, tokens, rows, width, scale, slope, causal,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    """Gives dK and dV of one tile of keys; scores lie ``[key, query]``."""
    head = tl.program_id(1).to(tl.int64)
    # under the mask the first keys of a row are seen by the most queries
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
        key = first + tl.arange(0, KEYS)
        heads = tl.num_programs(1).to(tl.int64)
        d_keys = tl.zeros([KEYS, PADDED], tl.float32)
        d_values = tl.zeros([KEYS, PADDED], tl.float32)
        begun = 0
        if causal:
            begun = first // QUERIES * QUERIES
        for start in range(begun, count, QUERIES):
            query = start + tl.arange(0, QUERIES)
            place = head * tokens + begin + query
            queries = load_rows(q_row, q_token, start, count, width, QUERIES, PADDED, False)
            scores = product(
                keys, tl.trans(queries), tl.zeros([KEYS, QUERIES], tl.float32), PRECISION
            )
            largest = tl.load(statistics + place, mask=query < count, other=0.0)
            # 0 where there is no query, which makes its weights 0
            inverse = tl.load(
                statistics + heads * tokens + place, mask=query < count, other=0.0
            )
            weights = tl.exp2(scores * scale - largest[None, :]) * inverse[None, :]
            weights = tl.where((key[:, None] <= query[None, :]) | (causal == 0), weights, 0.0)
            upstream = load_rows(
                d_out_row, d_out_token, start, count, width, QUERIES, PADDED, False
            )
            d_values = product(rounded(weights, upstream.dtype), upstream, d_values, PRECISION)
            d_weights = product(
                values, tl.trans(upstream), tl.zeros([KEYS, QUERIES], tl.float32), PRECISION
            )
            along = tl.load(delta + place, mask=query < count, other=0.0)
            d_scores = weights * (d_weights - along[None, :])
            d_keys = product(rounded(d_scores, queries.dtype), queries, d_keys, PRECISION)
        store_rows(
            d_k + begin * d_token + head * d_head, d_token, first, count, width,
            d_keys * slope, KEYS, PADDED, False,
        )
        store_rows(
            d_v + begin * d_token + head * d_head, d_token, first, count, width,
            d_values, KEYS, PADDED, False,
        )


# fmt: on
def attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The operator ``attention``: output like ``q``, statistics float32 ``[2, heads, tokens]``."""
    tokens, heads, width = q.shape
    wide = width_in_memory(width)
    q, k, v, offsets = *(readable(t, wide) for t in (q, k, v)), offsets.contiguous()
    out = q.new_empty((tokens, heads, wide))
    statistics = q.new_empty((2, heads, tokens), dtype=torch.float32)
    if out.numel():
        rows = offsets.shape[0] - 1
        attention_forward[lambda meta: (row_tiles(tokens, rows, meta["QUERIES"]), heads)](
            q,
            k,
            v,
            offsets,
            out,
            statistics,
            *strides(q, k, v),
            heads * wide,
            tokens,
            rows,
            wide,
            scale * _LOG2_E,
            int(causal),
            PADDED=tile_width(width),
            PRECISION=input_precision(q.dtype),
        )
    return out[..., :width].contiguous(), statistics


def packed_attention(
    qkv: Tensor, offsets: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The operator ``packed_attention``: the three parts are read where they lie."""
    q, k, v = _parts(qkv)
    out, statistics = attention(q, k, v, offsets, causal, scale)
    return out[..., : qkv.shape[3]].contiguous(), statistics


def _parts(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values; where they have to be filled up, at once."""
    lacking = width_in_memory(qkv.shape[3]) - qkv.shape[3]
    q, k, v = (torch.nn.functional.pad(qkv, (0, lacking)) if lacking else qkv).unbind(1)
    return q, k, v


def _write_gradients(
    d_out: Tensor,
    inputs: tuple[Tensor, ...],
    offsets: Tensor,
    out: Tensor,
    statistics: Tensor,
    causal: bool,
    scale: float,
    gradients: tuple[Tensor, ...],
) -> None:
    """``gradients`` are as wide as memory has to be, ``inputs`` may be so."""
    d_q, d_k, d_v = gradients
    tokens, heads, wide = d_q.shape
    if not d_q.numel():
        return
    d_out, q, k, v, out = (readable(t, wide) for t in (d_out, *inputs, out))
    offsets = offsets.contiguous()
    rows = offsets.shape[0] - 1
    delta = q.new_empty((heads, tokens), dtype=torch.float32)
    options = {"PADDED": tile_width(wide), "PRECISION": input_precision(q.dtype)}
    numbers = (*strides(d_q), tokens, rows, wide, scale * _LOG2_E, scale, int(causal))
    attention_query_gradient[lambda meta: (row_tiles(tokens, rows, meta["QUERIES"]), heads)](
        d_out,
        q,
        k,
        v,
        offsets,
        out,
        statistics,
        d_q,
        delta,
        *strides(d_out, q, k, v, out),
        *numbers,
        **options,
    )
    attention_key_gradient[lambda meta: (row_tiles(tokens, rows, meta["KEYS"]), heads)](
        d_out,
        q,
        k,
        v,
        offsets,
        statistics,
        delta,
        d_k,
        d_v,
        *strides(d_out, q, k, v),
        *numbers,
        **options,
    )


def attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    out: Tensor,
    statistics: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``attention_backward``: gradients of ``q``, ``k``, ``v``."""
    tokens, heads, width = q.shape
    wide = (tokens, heads, width_in_memory(width))
    made = (q.new_empty(wide), q.new_empty(wide), q.new_empty(wide))
    _write_gradients(d_out, (q, k, v), offsets, out, statistics, causal, scale, made)
    d_q, d_k, d_v = (t[..., :width].contiguous() for t in made)
    return d_q, d_k, d_v


def packed_attention_backward(
    d_out: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    out: Tensor,
    statistics: Tensor,
    causal: bool,
    scale: float,
) -> Tensor:
    """The operator ``packed_attention_backward``: the gradient is written in place of its parts."""
    *shape, width = qkv.shape
    made = qkv.new_empty((*shape, width_in_memory(width)))
    _write_gradients(d_out, _parts(qkv), offsets, out, statistics, causal, scale, made.unbind(1))
    return made[..., :width].contiguous()


def variants() -> Iterator[Variant]:
    """Every compiled form that ships."""
    yield from kernel_variants(attention_forward, FORWARD, {})
    yield from kernel_variants(attention_query_gradient, QUERY_GRADIENT, {})
    yield from kernel_variants(attention_key_gradient, KEY_GRADIENT, {})
