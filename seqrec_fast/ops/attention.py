# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention over jagged batches: its definition in plain torch, its kernels.

For each row and head, with ``q``, ``k``, ``v`` of the row's own tokens only (Vaswani et al. 2017):
``softmax(q k^T * scale + mask) v``, where the causal mask hides later tokens.

The native kernels take a row and head at a time in tiles that stay in the cache, skip what the mask
hides, and keep two numbers a token and head for the backward, which makes the weights again. The
reference computes rows of equal length that stand side by side as one dense batch, so that nothing
is padded; sort the rows of a batch by length to keep its number of calls low.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops._autocast import compute_dtype, narrow
from seqrec_fast.ops._backend import choose_backend, forced_kernels
from seqrec_fast.ops._checks import check_device, check_heads, check_jagged, check_offsets
from seqrec_fast.ops._library import SECOND_REMEDY, register
from seqrec_fast.ops._rows import EqualRun, equal_runs

__all__ = ["attention", "attention_reference", "packed_attention"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    dropout: float = 0.0,
    runs: list[EqualRun] | None = None,
) -> Tensor:
    """Self-attention inside each row of a jagged batch, native for float32 on the CPU.

    Args:
        q: ``[tokens, heads, width]``, rows end to end. Views with any strides between tokens and
            heads are read where they lie.
        k: as ``q``.
        v: as ``q``.
        offsets: int64 ``[rows + 1]``.
        causal: whether a token sees only itself and earlier tokens of its row.
        scale: factor of the scores; ``1 / sqrt(width)`` where None.
        dropout: probability of dropping an attention weight (training only). The kernels have no
            dropout: with any, the reference computes.
        runs: ``equal_runs(offsets)`` if it is at hand; only the reference uses it.

    Returns:
        ``[tokens, heads, width]`` in the order of ``q``.

    Raises:
        InputError: shapes do not fit one another or the offsets, or the native backend is forced
            where it cannot run.
    """
    q, k, v = narrow(q, k, v)
    _check(q, k, v, offsets)
    if not _has_kernels(q, dropout):
        return attention_reference(
            q, k, v, offsets, causal=causal, scale=scale, dropout=dropout, runs=runs
        )
    out: Tensor = _ATTENTION(q, k, v, offsets, causal, _scale(q, scale))[0]
    return out


def packed_attention(
    qkv: Tensor,
    offsets: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    dropout: float = 0.0,
    runs: list[EqualRun] | None = None,
) -> Tensor:
    """:func:`attention` on queries, keys and values in one tensor, whose gradient is one too.

    Args:
        qkv: ``[tokens, 3, heads, width]``: queries, keys, values of each token.
        offsets: int64 ``[rows + 1]``.
        causal: as in :func:`attention`.
        scale: as there.
        dropout: as there.
        runs: as there.

    Returns:
        ``[tokens, heads, width]``.

    Raises:
        InputError: as there.
    """
    if qkv.ndim != 4 or qkv.shape[1] != 3:
        raise InputError(f"qkv: expected [tokens, 3, heads, width], found {tuple(qkv.shape)}")
    (qkv,) = narrow(qkv)
    q, k, v = qkv.unbind(1)
    _check(q, k, v, offsets)
    if not _has_kernels(qkv, dropout):
        return attention_reference(
            q, k, v, offsets, causal=causal, scale=scale, dropout=dropout, runs=runs
        )
    out: Tensor = _PACKED(qkv, offsets, causal, _scale(q, scale))[0]
    return out


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    dropout: float = 0.0,
    runs: list[EqualRun] | None = None,
) -> Tensor:
    """The definition of :func:`attention` in plain torch, any floating dtype and device."""
    _check(q, k, v, offsets)
    parts = []
    for run in equal_runs(offsets) if runs is None else runs:
        dense = [
            t[run.begin : run.end].view(run.rows, run.length, *t.shape[1:]).transpose(1, 2)
            for t in (q, k, v)
        ]
        out = torch.nn.functional.scaled_dot_product_attention(
            dense[0], dense[1], dense[2], is_causal=causal, scale=scale, dropout_p=dropout
        )
        parts.append(out.transpose(1, 2).reshape(run.end - run.begin, *q.shape[1:]))
    return torch.cat(parts) if parts else q.new_zeros(q.shape)


def _check(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> None:
    check_heads(q, k, v)
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise InputError(
            f"q, k, v: expected one dtype and device, found {q.dtype} on {q.device}, {k.dtype} on "
            f"{k.device}, {v.dtype} on {v.device}"
        )
    if offsets.device != q.device:
        check_device("q", q, offsets=offsets)
    # under torch.compile the values are not known yet; the kernels check them again
    if torch.compiler.is_compiling():
        check_offsets(offsets)
    else:
        check_jagged("q", q, offsets)


def _has_kernels(q: Tensor, dropout: float) -> bool:
    if choose_backend("attention", q.device, q.dtype) == "reference":
        return False
    if dropout > 0.0 and (forced := forced_kernels()):
        raise InputError(
            f"SEQREC_FAST_BACKEND={forced}: the kernels of attention have no dropout, found "
            f"{dropout}; set it to 0 or unset the variable"
        )
    return dropout <= 0.0


def runs_for(x: Tensor, offsets: Tensor) -> list[EqualRun] | None:
    """What layers may share as ``runs``; None where the kernels run, which need no such cut.

    Args:
        x: floating, of the device and dtype of the queries.
        offsets: int64 ``[rows + 1]``.
    """
    reads = choose_backend("attention", x.device, compute_dtype(x)) == "reference"
    return equal_runs(offsets) if reads else None


def _scale(q: Tensor, scale: float | None) -> float:
    return float(scale) if scale is not None else max(int(q.shape[2]), 1) ** -0.5


# ------------------------------------------------------------------------------- operators


def view_of(t: Tensor) -> tuple[int, int, int]:
    """Address and strides of ``[tokens, heads, width]`` whose width is dense."""
    return t.data_ptr(), t.stride(0), t.stride(1)


def dense_width(t: Tensor) -> Tensor:
    """``t``, or a copy of it where the last dimension is not dense."""
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def _forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    tokens, heads, width = q.shape
    q, k, v, offsets = dense_width(q), dense_width(k), dense_width(v), offsets.contiguous()
    out, statistics = _forward_fake(q, k, v, offsets, causal, scale)
    _C.attention(
        view_of(q),
        view_of(k),
        view_of(v),
        offsets.data_ptr(),
        tokens,
        offsets.shape[0] - 1,
        heads,
        width,
        scale,
        causal,
        view_of(out),
        statistics.data_ptr(),
    )
    return out, statistics


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    statistics = q.new_empty(2, q.shape[1], q.shape[0], dtype=torch.float32)
    return q.new_empty(q.shape), statistics


def _packed_forward(
    qkv: Tensor, offsets: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(1)
    return _forward(q, k, v, offsets, causal, scale)


def _packed_fake(qkv: Tensor, offsets: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(1)
    return _forward_fake(q, k, v, offsets, causal, scale)


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
    q, k, v = (dense_width(t) for t in inputs)
    d_out, offsets = dense_width(d_out), offsets.contiguous()
    tokens, heads, width = q.shape
    _C.attention_backward(
        view_of(q),
        view_of(k),
        view_of(v),
        offsets.data_ptr(),
        tokens,
        offsets.shape[0] - 1,
        heads,
        width,
        scale,
        causal,
        view_of(out),
        view_of(d_out),
        statistics.data_ptr(),
        view_of(gradients[0]),
        view_of(gradients[1]),
        view_of(gradients[2]),
    )


def _backward_cpu(
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
    gradients = (q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape))
    _write_gradients(d_out, (q, k, v), offsets, out, statistics, causal, scale, gradients)
    return gradients


def _backward_fake(
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
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _packed_backward_cpu(
    d_out: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    out: Tensor,
    statistics: Tensor,
    causal: bool,
    scale: float,
) -> Tensor:
    d_qkv = qkv.new_empty(qkv.shape)
    _write_gradients(d_out, qkv.unbind(1), offsets, out, statistics, causal, scale, d_qkv.unbind(1))
    return d_qkv


def _packed_backward_fake(
    d_out: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    out: Tensor,
    statistics: Tensor,
    causal: bool,
    scale: float,
) -> Tensor:
    return qkv.new_empty(qkv.shape)


_BACKWARD = register(
    "attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor out, "
    "Tensor statistics, bool causal, float scale) -> (Tensor, Tensor, Tensor)",
    _backward_cpu,
    _backward_fake,
)
_PACKED_BACKWARD = register(
    "packed_attention_backward(Tensor d_out, Tensor qkv, Tensor offsets, Tensor out, "
    "Tensor statistics, bool causal, float scale) -> Tensor",
    _packed_backward_cpu,
    _packed_backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return (None,) * 6
    gradients = _BACKWARD(d_out, *ctx.saved_tensors, ctx.causal, ctx.scale)
    return (*gradients, None, None, None)


def _packed_backward(ctx: Any, d_out: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if d_out is None:
        return (None,) * 4
    return _PACKED_BACKWARD(d_out, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None, None


_REMEDY = f"{SECOND_REMEDY}, inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
_ATTENTION = register(
    "attention(Tensor q, Tensor k, Tensor v, Tensor offsets, bool causal, float scale)"
    " -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    backward=_backward,
    setup_context=_save,
    remedy=_REMEDY,
)
_PACKED = register(
    "packed_attention(Tensor qkv, Tensor offsets, bool causal, float scale) -> (Tensor, Tensor)",
    _packed_forward,
    _packed_fake,
    backward=_packed_backward,
    setup_context=_save,
    remedy=_REMEDY,
)
