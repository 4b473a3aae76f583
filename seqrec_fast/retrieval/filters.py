# SPDX-License-Identifier: Apache-2.0
"""Lists of items that a search may or may not find, for all queries or for each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

__all__ = ["Filter", "allowed_mask", "merge_rows", "read_filter"]


class Filter(NamedTuple):
    """One list for all queries (int64), or one row a query (int32), or neither."""

    common: NDArray[np.int64] | None
    rows: JaggedBatch[Any] | None


def read_filter(
    name: str, value: ArrayLike | JaggedBatch[Any] | None, queries: int, items: int
) -> Filter:
    """Checks a filter argument.

    Args:
        name: the argument, for messages.
        value: item indices, or a batch of one row a query, or ``None``.
        queries: number of queries.
        items: number of items.

    Raises:
        InputError: not integers, an index out of range, or not one row a query.
    """
    if value is None:
        return Filter(None, None)
    if isinstance(value, JaggedBatch):
        batch = value.to_numpy()
        if len(batch) != queries:
            raise InputError(
                f"{name}: expected one row a query ({queries}), found {len(batch)} rows"
            )
        values = _indices(name, batch.values, items).astype(np.int32)
        return Filter(None, JaggedBatch(values, batch.offsets))
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim != 1:
        raise InputError(
            f"{name}: expected one list of item indices or a JaggedBatch of one row a query, "
            f"found {type(value).__name__}"
        )
    return Filter(_indices(name, array, items), None)


def _indices(name: str, values: NDArray[Any], items: int) -> NDArray[np.int64]:
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise InputError(
            f"{name}: expected integer item indices, found {values.dtype} of shape {values.shape}"
        )
    if values.size:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= items:
            raise InputError(
                f"{name}: found item {low if low < 0 else high}, but the items are 0 to {items - 1}"
            )
    return values.astype(np.int64)


def allowed_mask(allowed: NDArray[np.int64] | None, items: int) -> NDArray[np.bool_] | None:
    """Bool ``[items]``, true for the items that are not allowed; ``None`` where all are."""
    if allowed is None:
        return None
    mask = np.ones(items, dtype=np.bool_)
    mask[allowed] = False
    return mask


def merge_rows(
    first: JaggedBatch[Any] | None, second: JaggedBatch[Any] | None
) -> JaggedBatch[Any] | None:
    """The rows of two batches joined, row by row, each in ascending order."""
    if first is None or second is None:
        return first if second is None else second
    rows = np.concatenate(
        [np.repeat(np.arange(len(batch)), batch.lengths) for batch in (first, second)]
    )
    values = np.concatenate([first.values, second.values])
    order = np.lexsort((values, rows))
    return JaggedBatch.from_lengths(values[order], first.lengths + second.lengths)
