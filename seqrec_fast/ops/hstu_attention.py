# SPDX-License-Identifier: Apache-2.0
"""Pointwise SiLU attention over jagged batches, the attention of HSTU (Zhai et al. 2024).

For each row and head, over the row's own tokens only, those with ``j <= i`` where causal:
``out_i = sum_j silu(scale * q_i . k_j + bias_ij) / normaliser * v_j``. Nothing is divided by a sum,
so the strength of an interest is kept. The bias has two optional parts, tables by distance and by
time difference. The native kernels never hold a matrix of length x length: the backward computes
the scores again.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops._autocast import narrow
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops._checks import (
    check_device,
    check_heads,
    check_jagged,
    check_like,
    check_offsets,
)
from seqrec_fast.ops._library import address, register
from seqrec_fast.ops._rows import equal_runs
from seqrec_fast.ops.attention import dense_width, view_of

__all__ = ["hstu_attention", "hstu_attention_reference", "time_bucket_bounds"]

_LOG_STEP = 0.301  # of the natural logarithm: about the decimal logarithm of 2


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    normaliser: float,
    causal: bool = True,
    scale: float | None = None,
    bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """Pointwise SiLU attention inside each row of a jagged batch, native for float32 on the CPU.

    Args:
        q: floating ``[tokens, heads, width]``, rows end to end. The kernels read it where it lies
            as long as widths are dense, so that parts of one projection need no copy.
        k: as ``q``.
        v: as ``q``.
        offsets: int64 ``[rows + 1]``.
        normaliser: what every silu is divided by. The paper takes the longest length that a model
            allows; it has no default, because one taken from the batch (its longest row, or each
            row's own length) would make the result of a token depend on other rows or on the
            events that follow.
        causal: whether a token sees only itself and earlier tokens of its row.
        scale: factor of the scores; ``1 / sqrt(width)`` where None (the paper's formula has 1).
        bias: ``[heads, distances]``: entry ``min(|i - j|, distances - 1)`` is added to the score of
            query ``i`` and key ``j``; rows may be longer than the table.
        time_bias: ``[heads, buckets]``: likewise by the bucket of ``|times_i - times_j|``, which is
            ``clamp(floor(log(max(1, dt)) / 0.301), 0, buckets - 1)``.
        times: int64 ``[tokens]``, in any unit and order; needed with ``time_bias``.

    Returns:
        ``[tokens, heads, width]`` in the order of ``q``. Gradients flow to ``q``, ``k``, ``v`` and
        both tables.

    Raises:
        InputError: shapes or dtypes do not fit one another or the offsets.
    """
    q, k, v, bias, time_bias = narrow(q, k, v, bias, time_bias)
    _check(q, k, v, offsets, normaliser, bias, time_bias, times)
    scale = max(int(q.shape[2]), 1) ** -0.5 if scale is None else scale
    if choose_backend("hstu_attention", q.device, q.dtype) == "reference":
        return _reference(
            q, k, v, offsets, bias, time_bias, times, causal, scale, float(normaliser)
        )
    result: Tensor = _FORWARD(
        q, k, v, offsets, bias, time_bias, times, causal, scale, float(normaliser)
    )
    return result


def hstu_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    normaliser: float,
    causal: bool = True,
    scale: float | None = None,
    bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """The definition of :func:`hstu_attention` in plain torch, any floating dtype and device."""
    _check(q, k, v, offsets, normaliser, bias, time_bias, times)
    scale = max(int(q.shape[2]), 1) ** -0.5 if scale is None else scale
    return _reference(q, k, v, offsets, bias, time_bias, times, causal, scale, float(normaliser))


def time_bucket_bounds(buckets: int) -> list[int]:
    """The least time difference of each bucket: what defines the buckets exactly.

    ``bounds[b]`` is the least whole ``d >= 1`` with ``floor(log(d) / 0.301) >= b``, the logarithm
    in float64, or ``2**63 - 1`` where there is none below; ``bounds[0]`` is 0.
    """
    bounds = [0]
    for bucket in range(1, buckets):
        exponent = _LOG_STEP * bucket
        least = math.ceil(math.exp(exponent)) if exponent < 43.0 else 2**63 - 1
        while least < 2**62 and math.log(least) / _LOG_STEP < bucket:
            least += 1
        while 1 < least < 2**62 and math.log(least - 1) / _LOG_STEP >= bucket:
            least -= 1
        bounds.append(least)
    return bounds


@cache
def _bounds_tensor(buckets: int) -> Tensor:
    return torch.tensor(time_bucket_bounds(buckets), dtype=torch.int64)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    normaliser: float,
    bias: Tensor | None,
    time_bias: Tensor | None,
    times: Tensor | None,
) -> None:
    check_heads(q, k, v)
    check_offsets(offsets)
    if not (math.isfinite(normaliser) and normaliser != 0):
        raise InputError(f"normaliser: expected a finite number other than 0, found {normaliser}")
    for name, table in (("bias", bias), ("time_bias", time_bias)):
        if table is not None and (
            table.ndim != 2 or table.shape[0] != q.shape[1] or table.shape[1] < 1
        ):
            what = "distances" if name == "bias" else "buckets"
            raise InputError(f"{name}: expected [{q.shape[1]}, {what}], found {tuple(table.shape)}")
    if (time_bias is None) != (times is None):
        raise InputError("time_bias, times: are needed together")
    if times is not None and (times.shape != q.shape[:1] or times.dtype != torch.int64):
        raise InputError(
            f"times: expected int64 [{q.shape[0]}], found {times.dtype} {tuple(times.shape)}"
        )
    check_like("q", q, k=k, v=v, bias=bias, time_bias=time_bias)
    check_device("q", q, offsets=offsets, times=times)


def _reference(
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
    check_jagged("q", q, offsets)
    parts = []
    for run in equal_runs(offsets):
        inside = slice(run.begin, run.end)
        dense = [
            t[inside].reshape(run.rows, run.length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v)
        ]
        scores = scale * (dense[0] @ dense[1].transpose(2, 3))  # [rows, heads, queries, keys]
        place = torch.arange(run.length, device=q.device)
        distance = place[:, None] - place
        if bias is not None:
            scores = scores + bias[:, distance.abs().clamp(max=bias.shape[1] - 1)]
        if time_bias is not None and times is not None:
            moment = times[inside].view(run.rows, run.length)
            apart = moment[:, :, None] - moment[:, None, :]
            earlier = moment[:, :, None] < moment[:, None, :]
            apart = torch.where(earlier, -apart, apart)
            # what does not fit in 64 bits with a sign has wrapped around
            apart = torch.where(apart < 0, torch.iinfo(torch.int64).max, apart)
            bounds = _bounds_tensor(time_bias.shape[1])[1:].to(q.device)
            bucket = torch.bucketize(apart, bounds, right=True)
            scores = scores + time_bias[:, bucket].transpose(0, 1)
        weights = torch.nn.functional.silu(scores) / normaliser
        if causal:
            weights = weights.masked_fill(distance < 0, 0.0)
        out = weights @ dense[2]
        parts.append(out.transpose(1, 2).reshape(run.end - run.begin, *q.shape[1:]))
    return torch.cat(parts) if parts else torch.zeros_like(q)


# ------------------------------------------------------------------------------- native


_Sizes = tuple[int, int, int, int, int, int]
_Tables = tuple[int, int, int, int, int]


def _tables(
    q: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    time_bias: Tensor | None,
    times: Tensor | None,
) -> tuple[list[Tensor | None], _Sizes, _Tables]:
    """What the binding calls sizes and tables, and the tensors to keep alive during the call."""
    bounds = None if time_bias is None else _bounds_tensor(time_bias.shape[1])
    kept = [
        None if t is None else t.contiguous() for t in (offsets, bias, time_bias, times, bounds)
    ]
    tokens, heads, width = q.shape
    distances, buckets = (0 if t is None else t.shape[1] for t in (bias, time_bias))
    sizes = (tokens, offsets.shape[0] - 1, heads, width, distances, buckets)
    a, b, c, d, e = map(address, kept)
    return kept, sizes, (a, b, c, d, e)


def _forward(
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
    q, k, v = dense_width(q), dense_width(k), dense_width(v)
    kept, sizes, tables = _tables(q, offsets, bias, time_bias, times)
    out = torch.empty(q.shape)
    _C.hstu_attention(
        view_of(q),
        view_of(k),
        view_of(v),
        sizes,
        tables,
        causal,
        scale,
        normaliser,
        out.data_ptr(),
    )
    del kept
    return out


def _backward(
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
    d_out, q, k, v = dense_width(d_out), dense_width(q), dense_width(k), dense_width(v)
    kept, sizes, tables = _tables(q, offsets, bias, time_bias, times)
    d_q, d_k, d_v, d_bias, d_time = _gradients(
        q, bias if wants_bias else None, time_bias if wants_time_bias else None
    )
    _C.hstu_attention_backward(
        view_of(d_out),
        view_of(q),
        view_of(k),
        view_of(v),
        sizes,
        tables,
        causal,
        scale,
        normaliser,
        (d_q.data_ptr(), d_k.data_ptr(), d_v.data_ptr(), address(d_bias), address(d_time)),
    )
    del kept
    return d_q, d_k, d_v, d_bias, d_time


def _gradients(
    q: Tensor, bias: Tensor | None, time_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients of q, k, v and the tables; empty for a table that wants none."""
    tables = [q.new_empty(0 if table is None else table.shape) for table in (bias, time_bias)]
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape), tables[0], tables[1]


def _fake_forward(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


def _fake_backward(
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
    return _gradients(q, bias if wants_bias else None, time_bias if wants_time_bias else None)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[7:]


def _autograd(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    wants_bias, wants_time_bias = ctx.needs_input_grad[4:6]
    d_q, d_k, d_v, d_bias, d_time_bias = _BACKWARD(
        d_out, *ctx.saved_tensors, *ctx.options, wants_bias, wants_time_bias
    )
    return (
        d_q,
        d_k,
        d_v,
        None,
        d_bias if wants_bias else None,
        d_time_bias if wants_time_bias else None,
        *[None] * 4,
    )


_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? bias, Tensor? time_bias, Tensor? times, "
    "bool causal, float scale, float normaliser"
)
_BACKWARD = register(
    f"hstu_attention_backward(Tensor d_out, {_INPUTS}, bool wants_bias, bool wants_time_bias)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_FORWARD = register(
    f"hstu_attention({_INPUTS}) -> Tensor",
    _forward,
    _fake_forward,
    backward=_autograd,
    setup_context=_setup_context,
)
