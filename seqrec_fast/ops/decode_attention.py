# SPDX-License-Identifier: Apache-2.0
"""Attention of one query a row against cached keys and values: one step of decoding.

``softmax(scale * q K^T) V`` for each row and head, over the keys and values that the row has
cached; a row that has cached nothing gets zeros. The caches lie end to end
(:func:`decode_attention`) or in pages of equal size, in any order (:func:`paged_decode_attention`).
The kernels are for inference: where a gradient is asked for, the reference computes. Without torch,
see :func:`seqrec_fast.native.decode_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops._autocast import narrow
from seqrec_fast.ops._backend import choose_backend, forced_kernels
from seqrec_fast.ops._checks import check_device, check_jagged, check_offsets, check_values
from seqrec_fast.ops._library import address, needs_gradient, register
from seqrec_fast.ops.attention import dense_width, view_of

__all__ = [
    "decode_attention",
    "decode_attention_reference",
    "paged_decode_attention",
    "paged_decode_attention_reference",
]

_MOST_WIDTH_ON_GPU = 256  # of a head


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
    if not _runs_kernels(q, keys, values):
        return decode_attention_reference(q, keys, values, offsets, lengths=lengths, scale=scale)
    out: Tensor = _DECODE(q, keys, values, offsets, lengths, _factor(q, scale))
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
    factor = _factor(q, scale)
    starts = offsets[:-1].tolist()
    counts = (offsets.diff() if lengths is None else lengths).tolist()
    out = []
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        here = slice(start, start + count)
        out.append(_attend(q[row] * factor, keys[here], values[here]))
    return torch.stack(out) if out else q.new_zeros(q.shape)


def paged_decode_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attends from one query a row to the row's cache, which lies in pages.

    Token ``t`` of a row is token ``t % page_tokens`` of the page ``page_table[row, t //
    page_tokens]``. Rows may share pages, and caches grow by a page without being moved. On a GPU
    the kernels read the pages where they lie; on the CPU the caches are put together first, for the
    native kernel.

    Args:
        q: ``[rows, heads, width]``.
        key_pages: ``[pages, page_tokens, heads, width]``; views with any strides but a dense width
            are read where they lie.
        value_pages: as ``key_pages``.
        page_table: int32 or int64 ``[rows, pages of a row]``: the pages of each row in the order of
            its tokens. Entries beyond those that the row's length needs may hold anything.
        lengths: int64 ``[rows]``: tokens that each row has cached.
        scale: factor of the scores; ``1 / sqrt(width)`` where None.

    Returns:
        ``[rows, heads, width]``; zeros for a row with nothing cached. On a GPU, where the host does
        not look at the numbers of ``page_table`` and ``lengths``, a page that does not exist makes
        its row NaN, and a length beyond the pages of the row ends with them.

    Raises:
        InputError: shapes or dtypes do not fit, a page does not exist or a length is out of range
            (on the CPU), or a backend is forced where it cannot run.
    """
    q, key_pages, value_pages = narrow(q, key_pages, value_pages)
    _check_paged(q, key_pages, value_pages, page_table, lengths)
    if not _runs_kernels(q, key_pages, value_pages):
        return paged_decode_attention_reference(
            q, key_pages, value_pages, page_table, lengths, scale
        )
    out: Tensor = _PAGED(q, key_pages, value_pages, page_table, lengths, _factor(q, scale))
    return out


def paged_decode_attention_reference(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float | None = None,
) -> Tensor:
    """The definition of :func:`paged_decode_attention` in plain torch, any floating dtype."""
    _check_paged(q, key_pages, value_pages, page_table, lengths)
    factor = _factor(q, scale)
    out = []
    for row, count in enumerate(lengths.tolist()):
        pages = page_table[row, : -(-count // max(1, key_pages.shape[1]))].long()
        keys, values = (t[pages].flatten(0, 1)[:count] for t in (key_pages, value_pages))
        out.append(_attend(q[row] * factor, keys, values))
    return torch.stack(out) if out else q.new_zeros(q.shape)


def _attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Of one row: ``[heads, width]`` and twice ``[tokens, heads, width]``."""
    weights = torch.einsum("hw,khw->hk", q, keys).softmax(1)
    return torch.einsum("hk,khw->hw", weights, values)


def _factor(q: Tensor, scale: float | None) -> float:
    return float(scale) if scale is not None else max(int(q.shape[2]), 1) ** -0.5


def _runs_kernels(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    backend = choose_backend("decode_attention", q.device, q.dtype)
    if backend == "reference":
        return False
    forced = forced_kernels()
    if needs_gradient(q, keys, values):
        if forced:
            raise InputError(
                f"SEQREC_FAST_BACKEND={forced}: the kernels of decode_attention have no gradient; "
                "call it under torch.no_grad() or unset the variable"
            )
        return False
    # the operator refuses it where it is forced
    return bool(backend == "native" or forced or q.shape[2] <= _MOST_WIDTH_ON_GPU)


def _check(
    q: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, lengths: Tensor | None
) -> None:
    if q.ndim != 3 or keys.ndim != 3 or keys.shape[1:] != q.shape[1:] or values.shape != keys.shape:
        raise InputError(
            "q, keys, values: expected [rows, heads, width] and twice [cached tokens, heads, "
            f"width], found {tuple(q.shape)}, {tuple(keys.shape)}, {tuple(values.shape)}"
        )
    _check_alike(q, "keys", keys, "values", values)
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
    _check_lengths(q, lengths)
    # nor may the host wait for those of a GPU
    if torch.compiler.is_compiling() or lengths.is_cuda:
        return
    if bool(((lengths < 0) | (lengths > offsets.diff())).any()):
        raise InputError("lengths: must be from 0 to the tokens of each row in offsets")


def _check_alike(q: Tensor, keys_name: str, keys: Tensor, values_name: str, values: Tensor) -> None:
    if not q.dtype == keys.dtype == values.dtype or not q.device == keys.device == values.device:
        raise InputError(
            f"q, {keys_name}, {values_name}: expected one dtype and device, found {q.dtype} on "
            f"{q.device}, {keys.dtype} on {keys.device}, {values.dtype} on {values.device}"
        )


def _check_lengths(q: Tensor, lengths: Tensor) -> None:
    if lengths.shape != q.shape[:1] or lengths.dtype != torch.int64:
        raise InputError(
            f"lengths: expected int64 [{q.shape[0]}], found {lengths.dtype} {tuple(lengths.shape)}"
        )


def _check_paged(
    q: Tensor, key_pages: Tensor, value_pages: Tensor, page_table: Tensor, lengths: Tensor
) -> None:
    if (
        q.ndim != 3
        or key_pages.ndim != 4
        or key_pages.shape[2:] != q.shape[1:]
        or value_pages.shape != key_pages.shape
    ):
        raise InputError(
            "q, key_pages, value_pages: expected [rows, heads, width] and twice [pages, "
            f"page_tokens, heads, width], found {tuple(q.shape)}, {tuple(key_pages.shape)}, "
            f"{tuple(value_pages.shape)}"
        )
    _check_alike(q, "key_pages", key_pages, "value_pages", value_pages)
    check_device("q", q, page_table=page_table, lengths=lengths)
    _check_lengths(q, lengths)
    if (
        page_table.ndim != 2
        or page_table.shape[0] != q.shape[0]
        or page_table.dtype not in (torch.int32, torch.int64)
    ):
        raise InputError(
            f"page_table: expected int32 or int64 [{q.shape[0]}, pages of a row], found "
            f"{page_table.dtype} {tuple(page_table.shape)}"
        )
    # under torch.compile the values are not known yet, and the host must not wait for a GPU
    if torch.compiler.is_compiling() or lengths.is_cuda:
        return
    check_values(page_table=page_table, lengths=lengths)
    _check_pages(key_pages, page_table, lengths)


def _check_pages(key_pages: Tensor, page_table: Tensor, lengths: Tensor) -> None:
    """Refuses lengths beyond the pages of a row, and pages that do not exist."""
    pages, size = key_pages.shape[:2]
    if bool(((lengths < 0) | (lengths > page_table.shape[1] * size)).any()):
        raise InputError(
            f"lengths: must be from 0 to the {page_table.shape[1] * size} tokens that the "
            f"{page_table.shape[1]} pages of a row hold"
        )
    needed = torch.arange(page_table.shape[1]) * size < lengths[:, None]
    bad = (needed & ((page_table < 0) | (page_table >= pages))).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise InputError(
            f"page_table: row {row} names page {int(page_table[row, column])}, but the pages are 0 "
            f"to {pages - 1}"
        )


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
    gpu="cuda.decode_attention:decode_attention",
)


def _paged(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    _check_pages(key_pages, page_table, lengths)
    rows, capacity = q.shape[0], page_table.shape[1] * key_pages.shape[1]
    # entries that no length needs may hold anything
    table = page_table.long().clamp(0, max(0, key_pages.shape[0] - 1))
    offsets = torch.arange(rows + 1) * capacity
    if not capacity or not key_pages.shape[0]:
        return q.new_zeros(q.shape)
    keys, values = (t[table].flatten(0, 2) for t in (key_pages, value_pages))
    return _decode(q, keys, values, offsets, lengths, scale)


def _paged_fake(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    return q.new_empty(q.shape)


_PAGED = register(
    "paged_decode_attention(Tensor q, Tensor key_pages, Tensor value_pages, Tensor page_table, "
    "Tensor lengths, float scale) -> Tensor",
    _paged,
    _paged_fake,
    gpu="cuda.decode_attention:paged_decode_attention",
)
