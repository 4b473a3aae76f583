# SPDX-License-Identifier: Apache-2.0
"""Exact search: every query against every item, by the fused native kernel.

What is added or changed lies beside the other items in a small table of its own, which is searched
as well and merged; it is folded in when it has grown. So a change costs what it changes, not a copy
of all items or a table of bytes made anew. A file holds the items as they are searched, the table
of bytes too, so that nothing is made when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import native
from seqrec_fast._native_filters import score_topk_filtered
from seqrec_fast._native_items import LAYOUT
from seqrec_fast._rounding import bfloat16_bits, round_to_bfloat16
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.filters import Filters
from seqrec_fast.retrieval.index import Float, Found, Index, Metric, Rows, first_not_finite
from seqrec_fast.retrieval.options import ExactOptions
from seqrec_fast.retrieval.parts import filters_at, filters_between, merge, without

__all__ = ["ExactIndex", "rounded_rows"]

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
        items: float32 ``[n, dim]``: numbers that the type of the others can hold.
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
        table: the vectors of ids 0 to ``len(table) - 1``, but for those beside.
        side: all others, or ``None`` where there are none.
    """

    size: int
    removed: NDArray[np.bool_] | None
    table: native.ItemTable
    side: _Side | None


class ExactIndex(Index):
    """Compares every item; the native kernel filters while it scores."""

    kind: ClassVar[str] = "exact"

    def __init__(
        self,
        items: native.ItemTable,
        metric: Metric = "ip",
        options: ExactOptions | None = None,
    ) -> None:
        """Takes checked rows; :func:`seqrec_fast.retrieval.build` checks them.

        Args:
            items: float32 rows, of which the table that is searched is made; or that table.
            metric: ``"ip"`` or ``"cosine"``.
            options: of the kind.
        """
        self._options = ExactOptions() if options is None else options
        table = self._table(items) if isinstance(items, np.ndarray) else items
        dim = table.shape[1] if isinstance(table, np.ndarray) else table.dim
        super().__init__(dim, metric, Rows(len(table), None, len(table)))
        # What the items beside lie in; has room at its end.
        self._room = np.empty(0, np.int64), np.empty((0, dim), np.float32)
        self._current = _State(len(table), None, table, None)

    @property
    def exact(self) -> bool:
        """Whether the vectors are held as they were given: all but ``"bfloat16"``."""
        return self._options.dtype != "bfloat16"

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors, and of the table of bytes where there is one."""
        table, side = self._current.table, self._current.side
        beside = 0 if side is None else side.items.nbytes + side.ids.nbytes
        rows = table.items.nbytes if isinstance(table, native.QuantizedItems) else 0
        return rows + table.nbytes + beside

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
            **({"layout": LAYOUT} if options.dtype == "int8" else {}),
        }

    # ---------------------------------------------------------------- private

    @classmethod
    def _build(cls, vectors: Float, metric: Metric, options: Mapping[str, Any]) -> ExactIndex:
        chosen = ExactOptions(**options)
        if chosen.dtype != "bfloat16":
            return cls(vectors, metric, chosen)
        table = native.CompactItems(vectors, "bfloat16")
        bad = first_not_finite(table.values)
        if bad is not None:
            raise _beyond("vectors", bad)
        return cls(table, metric, chosen)

    @classmethod
    def _restore(
        cls, meta: Mapping[str, Any], rows: Rows, tensors: Mapping[str, NDArray[Any]]
    ) -> ExactIndex:
        dim, items = meta["dim"], tensors.get("items")
        options = ExactOptions(**meta["options"])
        held = np.dtype(np.uint16 if options.dtype == "bfloat16" else np.float32)
        ids = tensors.get("side.ids", np.empty(0, np.int64))
        beside = tensors.get("side.items", np.empty((0, dim), np.float32))
        for name, found, dtype in (
            ("items", items, held),
            ("side.items", beside, np.dtype(np.float32)),
        ):
            if found is None or found.dtype != dtype or found.shape[1:] != (dim,):
                raise InputError(f"its tensor {name!r} is not {dtype} [items, {dim}]")
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
        table: native.ItemTable = items
        stored = tensors.get("table.blocks"), tensors.get("table.bounds")
        if options.dtype == "bfloat16":
            table = native.CompactItems.from_arrays(items)
            beside = rounded_rows("side.items", beside)
        elif options.dtype == "int8" and meta.get("layout") == LAYOUT and stored[0] is not None:
            if stored[1] is None:
                raise InputError("its tensor 'table.bounds' is missing; it was altered")
            table = native.QuantizedItems.from_arrays(items, stored[0], stored[1])
        made = cls(table, meta["metric"], options)
        made._put(made._current, ids, beside, rows)
        return made

    def _meta(self) -> dict[str, Any]:
        facts = self.facts(self.metric, self.dim, self._rows.size, self._options)
        return {**super()._meta(), **facts}

    def _tensors(self) -> dict[str, NDArray[Any]]:
        table, side = self._current.table, self._current.side
        found: dict[str, NDArray[Any]] = {}
        if isinstance(table, native.QuantizedItems):
            found["items"] = table.items
            found["table.blocks"], found["table.bounds"] = table.arrays()
        else:
            found["items"] = table if isinstance(table, np.ndarray) else table.values
        if side is not None:
            found["side.ids"], found["side.items"] = side.ids, side.items
        return found

    def _table(self, items: Float) -> native.ItemTable:
        """What is searched, of vectors that the type can hold."""
        if self._options.dtype == "int8":
            return native.QuantizedItems(items)
        if self._options.dtype == "bfloat16":
            return native.CompactItems(items, "bfloat16")
        return items

    def _held(self, vectors: Float) -> Float:
        """Vectors as they will be searched; refuses those that cannot be held."""
        return rounded_rows("vectors", vectors) if self._options.dtype == "bfloat16" else vectors

    def _state(self) -> _State:
        return self._current

    def _put(
        self, state: _State, ids: NDArray[np.int64], beside: Float, rows: Rows, fold: bool = False
    ) -> None:
        """Puts the items of ``state`` in place, with others beside them or folded in."""
        table = state.table
        if fold and len(ids) and (rows.size <= _SMALL or len(ids) > len(table) // _FOLD_SHARE):
            table = self._folded(table, ids, beside, rows.size)
            ids, beside = ids[:0], beside[:0]
        side: _Side | None = None
        if len(ids):
            removed = None if rows.removed is None else rows.removed[: len(table)]
            moved: NDArray[np.bool_] | None = None
            if ids[0] < len(table):
                moved = np.zeros(len(table), dtype=np.bool_)
                moved[ids[ids < len(table)]] = True
            side = _Side(ids, beside, moved, _either(moved, removed))
        self._rows = rows
        self._current = _State(rows.size, rows.removed, table, side)

    def _folded(
        self, table: native.ItemTable, ids: NDArray[np.int64], beside: Float, size: int
    ) -> native.ItemTable:
        """One table of ``size`` items, of which ``ids`` are those beside."""
        if isinstance(table, native.CompactItems):
            bits = np.empty((size, self.dim), dtype=np.uint16)
            bits[: len(table)] = table.values
            bits[ids] = bfloat16_bits(beside)
            return native.CompactItems.from_arrays(bits)
        whole = np.empty((size, self.dim), dtype=np.float32)
        whole[: len(table)] = table if isinstance(table, np.ndarray) else table.items
        whole[ids] = beside
        return self._table(whole)

    def _beside(self) -> tuple[NDArray[np.int64], Float]:
        side = self._current.side
        if side is None:
            return np.empty(0, np.int64), np.empty((0, self.dim), np.float32)
        return side.ids, side.items

    def _append(self, vectors: Float, rows: Rows) -> None:
        vectors = self._held(vectors)
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
        vectors = self._held(vectors)
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
            return native.item_rows(state.table, ids)
        place = np.searchsorted(state.side.ids, ids)
        place[place == len(state.side.ids)] = 0
        there = state.side.ids[place] == ids
        found: Float = np.empty((len(ids), self.dim), dtype=np.float32)
        found[there] = state.side.items[place[there]]
        found[~there] = native.item_rows(state.table, ids[~there])
        return found

    def _search(
        self, state: _State, queries: Float, k: int, filters: Filters, threads: int | None
    ) -> Found:
        side = state.side
        if side is None:
            return _search_rows(state.table, queries, k, filters, threads)
        if filters.unfiltered:  # the common case needs no mask made for it
            those = Filters(side.hidden, None, None)
        else:
            cut = filters_between(filters, 0, len(state.table))
            allowed = cut.allowed
            if allowed is not None and side.moved is not None:
                allowed = without(allowed, side.moved)
            those = Filters(_either(cut.blocked, side.moved), cut.excluded, allowed)
        found = _search_rows(state.table, queries, k, those, threads)
        beside = _search_rows(
            side.items, queries, min(k, len(side.ids)), filters_at(filters, side.ids), threads
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
    table: native.ItemTable, queries: Float, k: int, filters: Filters, threads: int | None
) -> Found:
    """The search of vectors that lie in one piece, whose ids are their places."""
    return Found(
        *score_topk_filtered(
            queries,
            table,
            k,
            open=filters.open,
            hidden=filters.hidden,
            allowed=filters.only,
            threads=threads,
        )
    )


def rounded_rows(name: str, vectors: Float, first: int = 0) -> Float:
    """The nearest vectors of bfloat16 numbers, as float32.

    Args:
        name: of the vectors, for messages.
        vectors: float32 ``[rows, dim]``, finite.
        first: the number of their first row, for messages.

    Raises:
        InputError: a number that none is near to.
    """
    found = round_to_bfloat16(vectors)
    bad = first_not_finite(found)
    if bad is not None:
        raise _beyond(name, first + bad)
    return found


def _beyond(name: str, row: int) -> InputError:
    return InputError(
        f"{name}: row {row} holds a number beyond 3.39e38, the largest of bfloat16; scale the "
        f"vectors or take dtype float32"
    )
