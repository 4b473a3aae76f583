# SPDX-License-Identifier: Apache-2.0
"""Exact search: every query against every item, by the fused native kernel."""

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

__all__ = ["ExactIndex"]

# An array that has to grow grows by this share, so that adding one by one costs little each.
_GROWTH = 8


class _State(NamedTuple):
    """What a search holds on to: the items at some moment. Arrays in it never change."""

    size: int
    removed: NDArray[np.bool_] | None
    items: Float
    table: native.QuantizedItems | None


class ExactIndex(Index):
    """Compares every item; the native kernel filters while it scores."""

    kind: ClassVar[str] = "exact"

    def __init__(
        self, items: Float, metric: Metric = "ip", options: ExactOptions | None = None
    ) -> None:
        """Takes checked rows; :func:`seqrec_fast.retrieval.build` checks them."""
        super().__init__(items.shape[1], metric, Rows(len(items), None, len(items)))
        self._options = ExactOptions() if options is None else options
        self._buffer = items  # what items lie in; may have room at its end
        self._current = self._made(items, self._rows)

    @property
    def exact(self) -> bool:
        """True."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors, and of the table of bytes where there is one."""
        state = self._current
        return state.items.nbytes + (0 if state.table is None else state.table.nbytes)

    def options(self) -> dict[str, Any]:
        """``dtype``."""
        return self._options.to_dict()

    # ---------------------------------------------------------------- private

    @classmethod
    def _build(cls, vectors: Float, metric: Metric, options: Mapping[str, Any]) -> ExactIndex:
        return cls(vectors, metric, ExactOptions(**options))

    @classmethod
    def _restore(
        cls, meta: Mapping[str, Any], rows: Rows, tensors: Mapping[str, NDArray[Any]]
    ) -> ExactIndex:
        items = tensors.get("items")
        if items is None or items.dtype != np.float32 or items.shape != (rows.size, meta["dim"]):
            raise InputError(f"its vectors are not float32 [{rows.size}, {meta['dim']}]")
        bad = first_not_finite(items)
        if bad is not None:
            raise InputError(f"vector {bad} is not finite")
        made = cls(items, meta["metric"], ExactOptions(**meta["options"]))
        made._put(made._current._replace(removed=rows.removed), rows)
        return made

    def _tensors(self) -> dict[str, NDArray[Any]]:
        return {"items": self._current.items}

    def _made(self, items: Float, rows: Rows) -> _State:
        table = native.QuantizedItems(items) if self._options.dtype == "int8" else None
        return _State(rows.size, rows.removed, items, table)

    def _state(self) -> _State:
        return self._current

    def _put(self, state: _State, rows: Rows) -> None:
        self._rows = rows
        self._current = state

    def _append(self, vectors: Float, rows: Rows) -> None:
        old = self._current
        buffer = self._buffer
        # Searches see the first rows of the buffer only, so what lies behind them may be written.
        if not buffer.flags.writeable or len(buffer) < rows.size:
            room = rows.size + rows.size // _GROWTH
            buffer = np.empty((room, self.dim), dtype=np.float32)
            buffer[: old.size] = old.items
        buffer[old.size : rows.size] = vectors
        self._buffer = buffer
        self._put(self._made(buffer[: rows.size], rows), rows)

    def _replace(self, ids: NDArray[np.int64], vectors: Float, rows: Rows) -> None:
        # A copy: a search that runs must see the items as they were.
        items = self._current.items.copy()
        items[ids] = vectors
        self._buffer = items
        self._put(self._made(items, rows), rows)

    def _erase(self, ids: NDArray[np.int64], rows: Rows) -> None:
        self._put(self._current._replace(removed=rows.removed), rows)

    def _gather(self, state: _State, ids: NDArray[np.int64]) -> Float:
        return state.items[ids]

    def _search(
        self, state: _State, queries: Float, k: int, filters: Filters, threads: int | None
    ) -> Found:
        items = state.items if state.table is None else state.table
        return Found(
            *score_topk_filtered(
                queries,
                items,
                k,
                open=filters.open,
                hidden=filters.hidden,
                allowed=filters.only,
                threads=threads,
            )
        )
