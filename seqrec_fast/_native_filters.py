# SPDX-License-Identifier: Apache-2.0
"""The native top-k search behind sets and lists of items, as the indexes use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import _C
from seqrec_fast._arguments import MOST_PLACES, thread_count
from seqrec_fast._C import ItemSet
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.native import CompactItems, QuantizedItems

__all__ = ["ItemSet", "score_topk_filtered"]


def score_topk_filtered(
    queries: NDArray[np.float32],
    items: NDArray[np.float32] | QuantizedItems | CompactItems,
    k: int,
    *,
    open: ItemSet | None = None,
    hidden: Sequence[JaggedBatch[Any]] = (),
    allowed: JaggedBatch[Any] | None = None,
    threads: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """:func:`seqrec_fast.native.score_topk` with every filter there is, all of which hold.

    Args:
        queries: float32 ``[queries, dim]``, contiguous.
        items: float32 ``[items, dim]``, contiguous, or a table of bytes or a compact one.
        k: at least 1.
        open: the only items that any query may find; ``None``: all.
        hidden: batches of int32 ids, one row a query, in any order: what it may not find.
        allowed: int32 ids, one row a query, in any order: what alone it may find; ``None``: all.
        threads: cores to use at most; ``None`` takes the default of the library.

    Raises:
        InputError: rows or sets that do not fit, or more places than there is memory for.
    """
    rows: Any = items
    bias, table = None, None
    if isinstance(items, QuantizedItems):
        rows, bias, table = items.items, items.bias, items._table
    elif isinstance(items, CompactItems):
        rows = items.native
    try:
        if k * len(queries) >= MOST_PLACES:
            raise MemoryError
        return _C.score_topk_filtered(
            queries,
            rows,
            bias,
            table,
            open,
            [(batch.values, batch.offsets) for batch in hidden],
            None if allowed is None else (allowed.values, allowed.offsets),
            k,
            0 if threads is None else thread_count(threads),
        )
    except MemoryError:
        raise InputError(
            f"k: {k:,} places for each of {len(queries):,} queries take more memory than there is; "
            f"the {len(items):,} items are enough"
        ) from None
