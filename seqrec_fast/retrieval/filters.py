# SPDX-License-Identifier: Apache-2.0
"""Which items a search may find: exclude, allow and deny, checked and brought to one form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

__all__ = ["Filters", "Indices", "item_ids", "merge_rows", "read_filters"]

#: item ids or a bool mask for all queries, or one row of ids a query
Indices = ArrayLike | JaggedBatch[Any]


class Filters(NamedTuple):
    """What a search leaves out.

    Attributes:
        blocked: bool ``[size]``, true where no query may find the item; ``None``: nowhere.
        excluded: int32 ids hidden from each query, in any order; ``None``: none.
        allowed: int32 ids, ascending and each once, that alone each query may find, without those
            that are blocked or excluded; ``None``: all that are not blocked. Where it is given,
            ``blocked`` and ``excluded`` have done their work already and may be left aside.
    """

    blocked: NDArray[np.bool_] | None
    excluded: JaggedBatch[Any] | None
    allowed: JaggedBatch[Any] | None


class _List(NamedTuple):
    """One argument: a mask for all queries, or a row of int32 ids a query, or neither."""

    mask: NDArray[np.bool_] | None
    rows: JaggedBatch[Any] | None


def read_filters(
    queries: int,
    size: int,
    removed: NDArray[np.bool_] | None,
    exclude: JaggedBatch[Any] | None,
    allow: Indices | None,
    deny: Indices | None,
) -> Filters:
    """Checks the filters of a search.

    Args:
        queries: number of queries.
        size: ids that were given out.
        removed: bool ``[size]``: items that are gone.
        exclude: as in :meth:`seqrec_fast.retrieval.Index.search`, and so are the others.
        allow: as there.
        deny: as there.

    Raises:
        InputError: not integers, an id out of range, or not one row a query.
    """
    if exclude is None and allow is None and deny is None:
        return Filters(removed, None, None)
    excluded = _read("exclude", exclude, queries, size)
    if excluded.mask is not None:
        raise InputError("exclude: expected a JaggedBatch of one row a query; see deny")
    allowed = _read("allow", allow, queries, size)
    denied = _read("deny", deny, queries, size)
    blocked = removed
    if allowed.mask is not None:
        closed = ~allowed.mask
        blocked = closed if blocked is None else blocked | closed
    if denied.mask is not None and denied.mask.any():
        blocked = denied.mask if blocked is None else blocked | denied.mask
    hidden = merge_rows(excluded.rows, denied.rows)
    if allowed.rows is None:
        return Filters(blocked, hidden, None)
    return Filters(blocked, hidden, _left(allowed.rows, blocked, hidden))


def item_ids(name: str, given: ArrayLike, size: int) -> NDArray[np.int64]:
    """Checked item ids.

    Args:
        name: the argument, for messages.
        given: one list of whole numbers.
        size: ids that were given out.

    Raises:
        InputError: not one list of whole numbers, or an id out of range.
    """
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim != 1:
        raise InputError(
            f"{name}: expected one list of item ids, found {type(given).__name__} of "
            f"shape {array.shape}"
        )
    return _checked(name, array, size)


def merge_rows(
    first: JaggedBatch[Any] | None, second: JaggedBatch[Any] | None
) -> JaggedBatch[Any] | None:
    """The rows of two batches joined, row by row, each in ascending order."""
    if first is None or second is None:
        return first if second is None else second
    rows = np.concatenate([_owners(first), _owners(second)])
    values = np.concatenate([first.values, second.values])
    order = np.lexsort((values, rows))
    return JaggedBatch.from_lengths(values[order], first.lengths + second.lengths)


def _owners(batch: JaggedBatch[Any]) -> NDArray[np.int64]:
    """The row of every value."""
    return np.repeat(np.arange(len(batch)), batch.lengths)


def _left(
    allowed: JaggedBatch[Any], blocked: NDArray[np.bool_] | None, hidden: JaggedBatch[Any] | None
) -> JaggedBatch[Any]:
    """What the filters leave of each query's own list: ascending, each id once."""
    values, rows = allowed.values, _owners(allowed)
    if blocked is not None:
        there = ~blocked[values]
        values, rows = values[there], rows[there]
    order = np.lexsort((values, rows))
    values, rows = values[order], rows[order]
    fresh = np.ones(len(values), dtype=np.bool_)
    fresh[1:] = (values[1:] != values[:-1]) | (rows[1:] != rows[:-1])
    values, rows = values[fresh], rows[fresh]
    if hidden is not None and len(values) and len(hidden.values):
        # Row and id as one number: both fit, as ids are int32.
        here = (rows << np.int64(32)) | values
        there = (_owners(hidden) << np.int64(32)) | hidden.values
        kept = ~np.isin(here, there)
        values, rows = values[kept], rows[kept]
    return JaggedBatch.from_lengths(
        values.astype(np.int32, copy=False), np.bincount(rows, minlength=len(allowed))
    )


def _read(name: str, given: Any, queries: int, size: int) -> _List:
    if given is None:
        return _List(None, None)
    if isinstance(given, JaggedBatch):
        batch = given.to_numpy()
        if len(batch) != queries:
            raise InputError(
                f"{name}: expected one row a query ({queries}), found {len(batch)} rows"
            )
        values = _checked(name, batch.values, size).astype(np.int32)
        return _List(None, JaggedBatch(values, batch.offsets))
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim != 1:
        raise InputError(
            f"{name}: expected one list of item ids, a bool mask of all items, or a JaggedBatch "
            f"of one row of ids a query, found {type(given).__name__}"
        )
    if array.dtype == np.bool_ and len(array):
        if len(array) != size:
            raise InputError(
                f"{name}: a mask needs one truth value for each of the {size} ids, found "
                f"{len(array)}"
            )
        return _List(array, None)
    mask = np.zeros(size, dtype=np.bool_)
    mask[_checked(name, array, size)] = True
    return _List(mask, None)


def _checked(name: str, values: NDArray[Any], size: int) -> NDArray[np.int64]:
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise InputError(
            f"{name}: expected whole item ids, found {values.dtype} of shape {values.shape}"
        )
    if values.size:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= size:
            raise InputError(
                f"{name}: found item {low if low < 0 else high}, but the items are 0 to {size - 1}"
            )
    return values.astype(np.int64)
