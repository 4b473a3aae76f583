# SPDX-License-Identifier: Apache-2.0
"""Attention of one query a row against cached keys and values: one step of decoding.

``softmax(scale * q K^T) V`` for each row and head, over the keys and values that the row has
cached; a row that has cached nothing gets zeros. The kernels are for inference: where a gradient is
asked for, the reference computes. Without torch, see :func:`seqrec_fast.native.decode_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops._autocast import narrow
from seqrec_fast.ops._backend import choose_backend, forced_kernels
from seqrec_fast.ops._checks import check_device, check_jagged, check_offsets
from seqrec_fast.ops._library import address, needs_gradient, register
from seqrec_fast.ops.attention import dense_width, view_of

__all__ = ["decode_attention", "decode_attention_reference"]


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor,
    *,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attends from one query a row to the row's cache, native for float32 on the CPU.

    Args:
        q: ``[rows, heads, width]``.
        keys: ``[cached tokens, heads, width]``, the caches of the rows end to end.
        values: as ``keys``.
        offsets: int64 ``[rows + 1]``: where each row's cache begins and ends.
        lengths: int64 ``[rows]``: how many of a row's places are filled, from its start; all of
            them where None.
        scale: factor of the scores; ``1 / sqrt(width)`` where None.

    Returns:
        ``[rows, heads, width]``; zeros for a row with nothing cached.

    Raises:
        InputError: shapes or dtypes do not fit, or the native backend is forced where it cannot
            run.
    """
    q, keys, values = narrow(q, keys, values)
    _check(q, keys, values, offsets, lengths)
    kernels = choose_backend("decode_attention", q.device, q.dtype) != "reference"
    if kernels and needs_gradient(q, keys, values):
        if forced := forced_kernels():
            raise InputError(
                f"SEQREC_FAST_BACKEND={forced}: the kernels of decode_attention have no gradient; "
                "call it under torch.no_grad() or unset the variable"
            )
        kernels = False
    if not kernels:
        return decode_attention_reference(q, keys, values, offsets, lengths=lengths, scale=scale)
    factor = float(scale) if scale is not None else max(int(q.shape[2]), 1) ** -0.5
    out: Tensor = _DECODE(q, keys, values, offsets, lengths, factor)
    return out


def decode_attention_reference(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor,
    *,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The definition of :func:`decode_attention` in plain torch, any floating dtype and device."""
    _check(q, keys, values, offsets, lengths)
    factor = scale if scale is not None else max(q.shape[2], 1) ** -0.5
    starts = offsets[:-1].tolist()
    counts = (offsets.diff() if lengths is None else lengths).tolist()
    out = []
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        k, v = keys[start : start + count], values[start : start + count]
        weights = torch.einsum("hw,khw->hk", q[row] * factor, k).softmax(1)
        out.append(torch.einsum("hk,khw->hw", weights, v))
    return torch.stack(out) if out else q.new_zeros(q.shape)


def _check(
    q: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, lengths: Tensor | None
) -> None:
    if q.ndim != 3 or keys.ndim != 3 or keys.shape[1:] != q.shape[1:] or values.shape != keys.shape:
        raise InputError(
            "q, keys, values: expected [rows, heads, width] and twice [cached tokens, heads, "
            f"width], found {tuple(q.shape)}, {tuple(keys.shape)}, {tuple(values.shape)}"
        )
    if not q.dtype == keys.dtype == values.dtype or not q.device == keys.device == values.device:
        raise InputError(
            f"q, keys, values: expected one dtype and device, found {q.dtype} on {q.device}, "
            f"{keys.dtype} on {keys.device}, {values.dtype} on {values.device}"
        )
    if offsets.device != q.device or lengths is not None:
        check_device("q", q, offsets=offsets, lengths=lengths)
    # under torch.compile the values are not known yet; the kernels check them again
    if torch.compiler.is_compiling():
        check_offsets(offsets)
    else:
        check_jagged("keys", keys, offsets)
    if offsets.shape[0] != q.shape[0] + 1:
        raise InputError(
            f"offsets: expected {q.shape[0] + 1} for {q.shape[0]} rows of q, found "
            f"{offsets.shape[0]}"
        )
    if lengths is None:
        return
    if lengths.shape != q.shape[:1] or lengths.dtype != torch.int64:
        raise InputError(
            f"lengths: expected int64 [{q.shape[0]}], found {lengths.dtype} {tuple(lengths.shape)}"
        )
    # nor may the host wait for those of a GPU
    if torch.compiler.is_compiling() or lengths.is_cuda:
        return
    if bool(((lengths < 0) | (lengths > offsets.diff())).any()):
        raise InputError("lengths: must be from 0 to the tokens of each row in offsets")


def _decode(
    q: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, lengths: Tensor | None, scale: float
) -> Tensor:
    q, keys, values = dense_width(q), dense_width(keys), dense_width(values)
    offsets = offsets.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    out = q.new_empty(q.shape)
    _C.decode_attention(
        view_of(q),
        view_of(keys),
        view_of(values),
        offsets.data_ptr(),
        address(lengths),
        keys.shape[0],
        q.shape[0],
        q.shape[1],
        q.shape[2],
        scale,
        view_of(out),
    )
    return out


def _fake(
    q: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, lengths: Tensor | None, scale: float
) -> Tensor:
    return q.new_empty(q.shape)


_DECODE = register(
    "decode_attention(Tensor q, Tensor keys, Tensor values, Tensor offsets, Tensor? lengths, "
    "float scale) -> Tensor",
    _decode,
    _fake,
)
