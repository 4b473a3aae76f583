# SPDX-License-Identifier: Apache-2.0
"""Which items a search may find: exclude, allow and deny, checked and brought to one form."""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast._native_filters import ItemSet
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

__all__ = ["Filter", "Filters", "Indices", "item_ids", "merge_rows", "read_filters"]


class Filter:
    """Items that may be found, checked and laid out once for any number of searches.

    Made by :meth:`seqrec_fast.retrieval.Index.filter`; a search takes it as ``allow``.
    """

    __slots__ = ("_open",)

    def __init__(self, open: ItemSet) -> None:
        """Takes the set, which must not change any more."""
        self._open = open

    def __len__(self) -> int:
        """How many items may be found."""
        return self._open.count

    @property
    def size(self) -> int:
        """Ids of the index that it was made for."""
        return self._open.size

    def mask(self) -> NDArray[np.bool_]:
        """Bool ``[size]``: true where the item may be found."""
        return self._open.flags()

    def __and__(self, other: Filter) -> Filter:
        """What both let through."""
        if self.size != other.size:
            raise InputError(f"filters of {self.size} and of {other.size} ids do not combine")
        both = self._open.copy()
        both.intersect(other._open)
        return Filter(both)

    def __repr__(self) -> str:
        return f"Filter({len(self)} of {self.size} items)"


#: what allow and deny take: a list of ids, a bool mask, a filter, or one row of ids a query
Indices = ArrayLike | JaggedBatch[Any] | Filter


class Filters:
    """What a search leaves out, as it was given and in the form that a kind of index reads.

    The first three are computed when they are asked for.

    Attributes:
        blocked: bool ``[size]``, true where no query may find the item; ``None``: nowhere.
        excluded: int32 ids hidden from each query, in any order; ``None``: none.
        allowed: int32 ids, ascending and each once, that alone each query may find, without those
            that are blocked or excluded; ``None``: all that are not blocked. Where it is given,
            ``blocked`` and ``excluded`` have done their work already and may be left aside.
        open: the items that any query may find, as a native set; ``None``: all. It holds the same
            as ``blocked``.
        hidden: int32 ids hidden from each query, some batches of them: all of ``excluded``.
        only: int32 ids that alone each query may find, as they were given.
        unfiltered: whether nothing but what was removed is left out.
    """

    unfiltered = False

    def __init__(
        self,
        blocked: NDArray[np.bool_] | None,
        excluded: JaggedBatch[Any] | None,
        allowed: JaggedBatch[Any] | None,
    ) -> None:
        """Filters in their computed form."""
        self.open: ItemSet | None = None
        if blocked is not None:
            self.open = ItemSet(len(blocked))
            self.open.apply_flags("blocked", blocked, False)
        self.hidden: tuple[JaggedBatch[Any], ...] = () if excluded is None else (excluded,)
        self.only = allowed
        self.__dict__ |= {"blocked": blocked, "excluded": excluded, "allowed": allowed}

    @classmethod
    def given(
        cls,
        open: ItemSet | None,
        hidden: tuple[JaggedBatch[Any], ...],
        only: JaggedBatch[Any] | None,
    ) -> Filters:
        """Filters as they were given, of which the other forms are made when needed."""
        made = cls.__new__(cls)
        made.open, made.hidden, made.only = open, hidden, only
        return made

    @cached_property
    def blocked(self) -> NDArray[np.bool_] | None:
        """See the class."""
        return None if self.open is None else ~self.open.flags()

    @cached_property
    def excluded(self) -> JaggedBatch[Any] | None:
        """See the class."""
        found: JaggedBatch[Any] | None = None
        for batch in self.hidden:
            found = merge_rows(found, batch)
        return found

    @cached_property
    def allowed(self) -> JaggedBatch[Any] | None:
        """See the class."""
        return None if self.only is None else _left(self.only, self.blocked, self.excluded)


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
        removed: bool ``[size]``: items that are gone. An array that never changes.
        exclude: as in :meth:`seqrec_fast.retrieval.Index.search`, and so are the others.
        allow: as there.
        deny: as there.

    Raises:
        InputError: not integers, an id out of range, or not one row a query.
    """
    there = None if removed is None else _without(removed)
    if exclude is None and allow is None and deny is None:
        plain = Filters.given(there, (), None)
        plain.unfiltered = True
        plain.__dict__["blocked"] = removed  # the same in every search: kinds know it by that
        return plain
    hidden: tuple[JaggedBatch[Any], ...] = ()
    if exclude is not None:
        if not isinstance(exclude, JaggedBatch):
            raise InputError("exclude: expected a JaggedBatch of one row a query; see deny")
        hidden = (_rows("exclude", exclude, queries, size),)
    only = None
    if isinstance(allow, JaggedBatch):
        only = _rows("allow", allow, queries, size)
        allow = None
    if isinstance(deny, JaggedBatch):
        hidden = (*hidden, _rows("deny", deny, queries, size))
        deny = None
    return Filters.given(common_set(size, there, allow, deny), hidden, only)


def common_set(
    size: int, there: ItemSet | None, allow: ArrayLike | Filter | None, deny: Any
) -> ItemSet | None:
    """The items that filters of all queries leave; ``None``: all.

    Args:
        size: ids that were given out.
        there: items that were not removed, or ``None``; not changed.
        allow: ids, a mask or a filter, or ``None``; not one row a query.
        deny: likewise.

    Raises:
        InputError: as :func:`read_filters`.
    """
    if allow is None and deny is None:
        return there
    if isinstance(allow, Filter) and deny is None and there is None:
        return _fitting("allow", allow, size)
    found = ItemSet(size) if there is None else there.copy()
    for name, listed, keep in (("allow", allow, True), ("deny", deny, False)):
        if listed is not None:
            _apply(found, name, listed, keep)
    return found


_last_removed: tuple[weakref.ref[NDArray[np.bool_]], ItemSet] | None = None


def _without(removed: NDArray[np.bool_]) -> ItemSet:
    """All items but those; remembers the last answer, as removals are fewer than searches."""
    global _last_removed
    known = _last_removed
    if known is not None and known[0]() is removed:
        return known[1]
    found = ItemSet(len(removed))
    found.apply_flags("removed", removed, False)
    _last_removed = weakref.ref(removed), found
    return found


def _fitting(name: str, given: Filter, size: int) -> ItemSet:
    if given.size != size:
        raise InputError(
            f"{name}: the filter was made when the index had {given.size} ids, now it has {size}; "
            f"make it again by index.filter"
        )
    return given._open


def _apply(found: ItemSet, name: str, given: Any, keep: bool) -> None:
    """Leaves what a list, mask or filter holds, or takes it out."""
    if isinstance(given, Filter):
        other = _fitting(name, given, found.size)
        if keep:
            found.intersect(other)
        else:
            found.apply_flags(name, other.flags(), False)
        return
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
        found.apply_flags(name, np.ascontiguousarray(array), keep)
        return
    if array.size and array.dtype.kind not in "iu":
        raise InputError(
            f"{name}: expected whole item ids, found {array.dtype} of shape {array.shape}"
        )
    if array.dtype not in (np.int32, np.int64):
        array = array.astype(np.int64)
    found.apply_ids(name, np.ascontiguousarray(array), keep)


def _rows(name: str, given: JaggedBatch[Any], queries: int, size: int) -> JaggedBatch[Any]:
    """Checked rows of int32 ids, one a query."""
    batch = given.to_numpy()
    if len(batch) != queries:
        raise InputError(f"{name}: expected one row a query ({queries}), found {len(batch)} rows")
    values = _checked(name, batch.values, size).astype(np.int32, copy=False)
    offsets = np.ascontiguousarray(batch.offsets, dtype=np.int64)
    return JaggedBatch(np.ascontiguousarray(values), offsets)


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
    return _checked(name, array, size).astype(np.int64)


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
    return values
