# SPDX-License-Identifier: Apache-2.0
"""Decode attention on a GPU, of caches end to end and of caches in pages.

One launch, or two where there are so few rows and heads that a row's cache is shared out among
blocks (``csrc/cuda/decode_attention.cu``). A head may have at most 256 numbers; beyond, the
reference computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops._library import address
from seqrec_fast.ops.attention import dense_width
from seqrec_fast.ops.cuda._module import kernels_for, number, stream

__all__ = ["decode_attention", "paged_decode_attention"]


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, lengths: Tensor | None, scale: float
) -> Tensor:
    """The operator ``decode_attention``; see :func:`seqrec_fast.ops.decode_attention`."""
    return _attend(q, keys[None], values[None], offsets, lengths, None, scale)


def paged_decode_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """The operator of :func:`seqrec_fast.ops.paged_decode_attention`."""
    return _attend(q, key_pages, value_pages, None, lengths, page_table, scale)


def _attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    table: Tensor | None,
    scale: float,
) -> Tensor:
    """Of ``[pages, tokens, heads, width]``; caches end to end are one page."""
    rows, heads, width = q.shape
    out = q.new_empty(q.shape)
    if not out.numel():
        return out
    q, keys, values = dense_width(q), dense_width(keys), dense_width(values)
    offsets = None if offsets is None else offsets.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    pages, page_tokens = keys.shape[:2]
    row_pages = 0
    view = (0, 0, False)
    if table is not None:
        table = dense_width(table)
        row_pages = table.shape[1]
        view = (table.data_ptr(), table.stride(0), table.dtype == torch.int64)
    module, kind = kernels_for(q), number(q.dtype)
    places = page_tokens if table is None else row_pages * page_tokens
    size = module.decode_attention_parts_size(rows, heads, width, places, table is not None, kind)
    if size < 0:
        raise InputError(
            f"q: expected heads of at most 256 numbers, found {width}; compute with "
            "SEQREC_FAST_BACKEND=reference"
        )
    parts = torch.empty(size, dtype=torch.float32, device=q.device)
    module.decode_attention(
        (q.data_ptr(), 0, q.stride(0), q.stride(1)),
        (keys.data_ptr(), *keys.stride()[:3]),
        (values.data_ptr(), *values.stride()[:3]),
        address(offsets),
        address(lengths),
        view,
        row_pages,
        page_tokens,
        pages,
        rows,
        heads,
        width,
        keys.shape[1] if table is None else 0,
        scale,
        kind,
        out.data_ptr(),
        parts.data_ptr(),
        size,
        stream(q),
    )
    return out
