# SPDX-License-Identifier: Apache-2.0
"""Exact search: every query against every item, by the fused native kernel.

What is added or changed lies beside the other items in a small table of its own, which is searched
as well and merged; it is folded in when it has grown. So a change costs what it changes, not a copy
of all items or a table of bytes made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import native
from seqrec_fast._native_filters import score_topk_filtered
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.filters import Filters
from seqrec_fast.retrieval.index import Float, Found, Index, Metric, Rows, first_not_finite
from seqrec_fast.retrieval.options import ExactOptions
from seqrec_fast.retrieval.parts import filters_at, filters_between, merge, without

__all__ = ["ExactIndex"]

# An array that has to grow grows by this share, so that adding one by one costs little each.
_GROWTH = 8
# Items that were added or changed lie beside the others until they are more than this share.
_FOLD_SHARE = 8
# Up to so many items in all are laid out anew at each change; that takes about a millisecond.
_SMALL = 4096


class _Side(NamedTuple):
    """Items that were added or changed since the others were laid out.

    Attributes:
        ids: int64 ``[n]``, ascending.
        items: float32 ``[n, dim]``.
        moved: bool, true for those of the others that are found here; ``None``: none.
        hidden: the same, and what is removed of the others; ``None``: none.
    """

    ids: NDArray[np.int64]
    items: Float
    moved: NDArray[np.bool_] | None
    hidden: NDArray[np.bool_] | None


class _State(NamedTuple):
    """What a search holds on to: the items at some moment. Arrays in it never change.

    Attributes:
        size: ids that were given out.
        removed: bool ``[size]`` or ``None``.
        items: float32: the vectors of ids 0 to ``len(items) - 1``, but for those beside.
        table: the same as bytes, or ``None``.
        side: all others, or ``None`` where there are none.
    """

    size: int
    removed: NDArray[np.bool_] | None
    items: Float
    table: native.QuantizedItems | None
    side: _Side | None


class ExactIndex(Index):
    """Compares every item; the native kernel filters while it scores."""

    kind: ClassVar[str] = "exact"

    def __init__(
        self, items: Float, metric: Metric = "ip", options: ExactOptions | None = None
    ) -> None:
        """Takes checked rows; :func:`seqrec_fast.retrieval.build` checks them."""
        super().__init__(items.shape[1], metric, Rows(len(items), None, len(items)))
        self._options = ExactOptions() if options is None else options
        # What the items beside lie in; has room at its end.
        self._room = np.empty(0, np.int64), np.empty((0, items.shape[1]), np.float32)
        self._current = _State(len(items), None, items, self._table(items), None)

    @property
    def exact(self) -> bool:
        """True."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors, and of the table of bytes where there is one."""
        state = self._current
        beside = 0 if state.side is None else state.side.items.nbytes + state.side.ids.nbytes
        return state.items.nbytes + (0 if state.table is None else state.table.nbytes) + beside

    def options(self) -> dict[str, Any]:
        """``dtype``."""
        return self._options.to_dict()

    @classmethod
    def facts(cls, metric: Metric, dim: int, size: int, options: ExactOptions) -> dict[str, Any]:
        """The facts that the file of such an index holds."""
        return {
            "kind": cls.kind,
            "metric": metric,
            "dim": dim,
            "size": size,
            "options": options.to_dict(),
        }

    # ---------------------------------------------------------------- private

    @classmethod
    def _build(cls, vectors: Float, metric: Metric, options: Mapping[str, Any]) -> ExactIndex:
        return cls(vectors, metric, ExactOptions(**options))

    @classmethod
    def _restore(
        cls, meta: Mapping[str, Any], rows: Rows, tensors: Mapping[str, NDArray[Any]]
    ) -> ExactIndex:
        dim, items = meta["dim"], tensors.get("items")
        ids = tensors.get("side.ids", np.empty(0, np.int64))
        beside = tensors.get("side.items", np.empty((0, dim), np.float32))
        for name, found in (("items", items), ("side.items", beside)):
            if found is None or found.dtype != np.float32 or found.shape[1:] != (dim,):
                raise InputError(f"its tensor {name!r} is not float32 [items, {dim}]")
            bad = first_not_finite(found)
            if bad is not None:
                raise InputError(f"vector {bad} of its tensor {name!r} is not finite")
        assert items is not None
        if (
            len(items) > rows.size
            or ids.dtype != np.int64
            or ids.shape != (len(beside),)
            or (len(ids) and (ids[0] < 0 or (np.diff(ids) <= 0).any()))
            or not np.array_equal(ids[ids >= len(items)], np.arange(len(items), rows.size))
        ):
            raise InputError(f"its vectors do not fit its {rows.size} ids; it was altered")
        made = cls(items, meta["metric"], ExactOptions(**meta["options"]))
        made._put(made._current, ids, beside, rows)
        return made

    def _tensors(self) -> dict[str, NDArray[Any]]:
        state = self._current
        if state.side is None:
            return {"items": state.items}
        return {"items": state.items, "side.ids": state.side.ids, "side.items": state.side.items}

    def _table(self, items: Float) -> native.QuantizedItems | None:
        return native.QuantizedItems(items) if self._options.dtype == "int8" else None

    def _state(self) -> _State:
        return self._current

    def _put(
        self, state: _State, ids: NDArray[np.int64], beside: Float, rows: Rows, fold: bool = False
    ) -> None:
        """Puts the items of ``state`` in place, with others beside them or folded in."""
        items, table = state.items, state.table
        if fold and len(ids) and (rows.size <= _SMALL or len(ids) > len(items) // _FOLD_SHARE):
            whole = np.empty((rows.size, self.dim), dtype=np.float32)
            whole[: len(items)] = items
            whole[ids] = beside
            items, table, ids, beside = whole, self._table(whole), ids[:0], beside[:0]
        side: _Side | None = None
        if len(ids):
            removed = None if rows.removed is None else rows.removed[: len(items)]
            moved: NDArray[np.bool_] | None = None
            if ids[0] < len(items):
                moved = np.zeros(len(items), dtype=np.bool_)
                moved[ids[ids < len(items)]] = True
            side = _Side(ids, beside, moved, _either(moved, removed))
        self._rows = rows
        self._current = _State(rows.size, rows.removed, items, table, side)

    def _beside(self) -> tuple[NDArray[np.int64], Float]:
        side = self._current.side
        if side is None:
            return np.empty(0, np.int64), np.empty((0, self.dim), np.float32)
        return side.ids, side.items

    def _append(self, vectors: Float, rows: Rows) -> None:
        ids, beside = self._beside()
        count = len(ids) + len(vectors)
        room_ids, room = self._room
        # Searches see the first rows of the room only, so what lies behind them may be written.
        if beside.base is not room or len(room) < count:
            room_ids = np.empty(count + max(64, count // _GROWTH), dtype=np.int64)
            room = np.empty((len(room_ids), self.dim), dtype=np.float32)
            room_ids[: len(ids)], room[: len(ids)] = ids, beside
            self._room = room_ids, room
        room_ids[len(ids) : count] = np.arange(rows.size - len(vectors), rows.size)
        room[len(ids) : count] = vectors
        self._put(self._current, room_ids[:count], room[:count], rows, fold=True)

    def _replace(self, ids: NDArray[np.int64], vectors: Float, rows: Rows) -> None:
        # Copies: a search that runs must see the items as they were.
        old, beside = self._beside()
        merged = np.union1d(old, ids)
        items = np.empty((len(merged), self.dim), dtype=np.float32)
        items[np.searchsorted(merged, old)] = beside
        items[np.searchsorted(merged, ids)] = vectors
        self._put(self._current, merged, items, rows, fold=True)

    def _erase(self, ids: NDArray[np.int64], rows: Rows) -> None:
        self._put(self._current, *self._beside(), rows)

    def _gather(self, state: _State, ids: NDArray[np.int64]) -> Float:
        if state.side is None:
            return state.items[ids]
        place = np.searchsorted(state.side.ids, ids)
        place[place == len(state.side.ids)] = 0
        there = state.side.ids[place] == ids
        found: Float = np.empty((len(ids), self.dim), dtype=np.float32)
        found[there] = state.side.items[place[there]]
        found[~there] = state.items[ids[~there]]
        return found

    def _search(
        self, state: _State, queries: Float, k: int, filters: Filters, threads: int | None
    ) -> Found:
        side = state.side
        if side is None:
            return _search_rows(state.items, state.table, queries, k, filters, threads)
        if filters.unfiltered:  # the common case needs no mask made for it
            those = Filters(side.hidden, None, None)
        else:
            cut = filters_between(filters, 0, len(state.items))
            allowed = cut.allowed
            if allowed is not None and side.moved is not None:
                allowed = without(allowed, side.moved)
            those = Filters(_either(cut.blocked, side.moved), cut.excluded, allowed)
        found = _search_rows(state.items, state.table, queries, k, those, threads)
        beside = _search_rows(
            side.items, None, queries, min(k, len(side.ids)), filters_at(filters, side.ids), threads
        )
        ids = np.where(beside.ids >= 0, side.ids[beside.ids], -1)
        return merge((found, Found(beside.scores, ids)), k)


def _either(
    first: NDArray[np.bool_] | None, second: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    if first is None or second is None:
        return first if second is None else second
    return first | second


def _search_rows(
    items: Float,
    table: native.QuantizedItems | None,
    queries: Float,
    k: int,
    filters: Filters,
    threads: int | None,
) -> Found:
    """The search of vectors that lie in one piece, whose ids are their places."""
    whole = items if table is None else table
    return Found(
        *score_topk_filtered(
            queries,
            whole,
            k,
            open=filters.open,
            hidden=filters.hidden,
            allowed=filters.only,
            threads=threads,
        )
    )
