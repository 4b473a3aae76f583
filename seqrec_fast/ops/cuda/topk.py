# SPDX-License-Identifier: Apache-2.0
"""Score + bias + exclude + top-k on a GPU: one pass over the items, and a merge.

Three launches at most: the lists of seen items are sorted, a scan leaves the best of each range of
items, a merge makes one list of them (``csrc/cuda/topk.cu``). The scan has room for ``k`` of at
most 1024 and for rows of some thousand bytes. Beyond, :func:`_in_chunks` computes with torch's own
product and sort over chunks of items, whose scores never take more than a few megabytes either.

Scores are sums in float32 that are rounded to the type of the queries, the bias is added, and the
sum is rounded again, as in the reference; so equal scores are the same ones there and here. Items
of ``seen`` that do not exist hide nothing: the host does not look at them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops._backend import allows_tf32
from seqrec_fast.ops._library import address
from seqrec_fast.ops.cuda._module import kernels_for, number, stream

__all__ = ["score_topk"]

_LISTS = 1 << 25  # of 8 bytes each: what the lists of a launch take at most
_SCORES = 1 << 24  # of a chunk of items in the form by torch's own operations
_MOST_ITEMS = 2**31 - 256


def score_topk(
    queries: Tensor,
    items: Tensor,
    bias: Tensor | None,
    seen_values: Tensor | None,
    seen_offsets: Tensor | None,
    blocked: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The operator ``score_topk``; see :func:`seqrec_fast.ops.score_topk`."""
    shape = (queries.shape[0], k)
    count, dim = items.shape
    if count >= _MOST_ITEMS:
        raise InputError(f"items: expected fewer than {_MOST_ITEMS} rows, found {count}")
    if not shape[0] or not count:
        scores = queries.new_full(shape, -torch.inf)
        return scores, torch.full(shape, -1, dtype=torch.int64, device=queries.device)
    module, kind = kernels_for(queries), number(queries.dtype)
    if not module.topk_lists_size(1, count, dim, kind, k):
        return _in_chunks(queries, items, bias, seen_values, seen_offsets, blocked, k)

    queries, items = _dense_rows(queries), _dense_rows(items)
    bias = None if bias is None else bias.contiguous()
    blocked = None if blocked is None else blocked.contiguous()
    seen, offsets = _sorted(seen_values, seen_offsets, count)
    scores = queries.new_empty(shape)
    ids = torch.empty(shape, dtype=torch.int64, device=queries.device)
    tf32 = allows_tf32()
    # a query's lists take at least 2 KiB
    step = max(64, _LISTS // max(1, module.topk_lists_size(64, 1, dim, kind, k) // 64) // 64 * 64)
    for begin in range(0, shape[0], step):
        here = slice(begin, min(begin + step, shape[0]))
        rows = here.stop - begin
        size = module.topk_lists_size(rows, count, dim, kind, k)
        lists = torch.empty(size, dtype=torch.int64, device=queries.device)
        module.topk(
            (queries[here].data_ptr(), queries.stride(0)),
            (items.data_ptr(), items.stride(0)),
            address(bias),
            address(blocked),
            address(seen),
            0 if offsets is None else offsets[begin:].data_ptr(),
            0 if seen is None else seen.shape[0],
            rows,
            count,
            dim,
            k,
            kind,
            tf32,
            lists.data_ptr(),
            size,
            scores[here].data_ptr(),
            ids[here].data_ptr(),
            stream(queries),
        )
    return scores, ids


def _dense_rows(table: Tensor) -> Tensor:
    """The table, or a copy where the numbers of a row do not lie side by side."""
    return table if table.stride(1) == 1 or table.shape[1] == 1 else table.contiguous()


def _sorted(
    values: Tensor | None, offsets: Tensor | None, items: int
) -> tuple[Tensor | None, Tensor | None]:
    """The lists of seen items, each in ascending order; None where there is nothing in them."""
    if values is None or offsets is None or not values.shape[0]:
        return None, None
    values, offsets = values.contiguous(), offsets.contiguous()
    found = torch.empty(values.shape[0], dtype=torch.int32, device=values.device)
    kernels_for(values).topk_sort_seen(
        values.data_ptr(),
        values.dtype == torch.int64,
        offsets.data_ptr(),
        found.data_ptr(),
        offsets.shape[0] - 1,
        values.shape[0],
        items,
        stream(values),
    )
    return found, offsets


def _in_chunks(
    queries: Tensor,
    items: Tensor,
    bias: Tensor | None,
    seen_values: Tensor | None,
    seen_offsets: Tensor | None,
    blocked: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The same for any ``k`` and width: the best so far and a chunk of scores, sorted and cut.

    A stable sort keeps the lower of two items with equal scores before the other, because chunks
    come in ascending order.
    """
    rows, count = queries.shape[0], items.shape[0]
    scores = queries.new_full((rows, k), -torch.inf)
    ids = torch.full((rows, k), -1, dtype=torch.int64, device=queries.device)
    at_once = min(rows, 256)
    chunk = max(1024, _SCORES // at_once)
    seen: tuple[Tensor, Tensor] | None = None
    if seen_values is not None and seen_offsets is not None and seen_values.shape[0]:
        places = torch.arange(seen_values.shape[0], device=queries.device)
        owners = torch.searchsorted(seen_offsets.contiguous(), places, right=True) - 1
        seen = owners, seen_values.long()
    for begin in range(0, rows, at_once):
        mine = slice(begin, min(begin + at_once, rows))
        for first in range(0, count, chunk):
            here = slice(first, min(first + chunk, count))
            block = queries[mine] @ items[here].T
            if bias is not None:
                block = block + bias[here]
            hidden = block.isnan()
            if blocked is not None:
                hidden = hidden | blocked[here]
            if seen is not None:
                hidden = hidden | _seen_here(seen, mine, here)
            block = block.masked_fill(hidden, -torch.inf)
            numbers = torch.arange(here.start, here.stop, device=queries.device)
            every = torch.cat([scores[mine], block], 1)
            names = torch.cat([ids[mine], numbers.expand(block.shape)], 1)
            every, order = every.sort(dim=1, descending=True, stable=True)
            scores[mine] = every[:, :k]
            ids[mine] = names.gather(1, order[:, :k])
    return scores, ids.where(scores > -torch.inf, -1)


def _seen_here(seen: tuple[Tensor, Tensor], rows: slice, items: slice) -> Tensor:
    """Which of some items some queries have seen; whatever is elsewhere goes to a spare place."""
    owners, values = seen
    height, width = rows.stop - rows.start, items.stop - items.start
    inside = (owners >= rows.start) & (owners < rows.stop)
    inside &= (values >= items.start) & (values < items.stop)
    places = (owners - rows.start) * width + (values - items.start)
    found = torch.zeros(height * width + 1, dtype=torch.bool, device=owners.device)
    found[places.where(inside, height * width)] = True
    return found[:-1].view(height, width)
