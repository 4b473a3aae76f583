# SPDX-License-Identifier: Apache-2.0
"""Inverted lists on the native scan of bytes: most of the best items, from a few percent of all.

Items are grouped around centres. A query visits lists as long as they promise something better than
what it has, reads one byte a dimension there, and scores what is left exactly from the float32
rows, which stay in the order of their ids. Items that are added or changed lie in a tail that every
query scans; when it has grown, they move to the lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import _C, native
from seqrec_fast._arguments import thread_count
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.clusters import Clusters, cluster, nearest
from seqrec_fast.retrieval.filters import Filters
from seqrec_fast.retrieval.index import (
    Float,
    Found,
    Index,
    Metric,
    Rows,
    first_not_finite,
)
from seqrec_fast.retrieval.options import IvfNativeOptions

__all__ = ["IvfNativeIndex"]

_PLACES = 16  # items of a block of the native table
_GROWTH = 8  # an array that has to grow grows by this share
_TAIL_LEAST, _TAIL_SHARE = 1024, 64  # the tail may hold that many, or one in so many items
_FEW = 16  # where fewer than one in so many items may be found, all of those are compared
_ALL = 2**31  # more lists than there can be
_SEARCHED = ("nprobe", "reach")


class _State(NamedTuple):
    """What a search holds on to. Arrays in it never change."""

    size: int
    removed: NDArray[np.bool_] | None
    items: Float
    clusters: Clusters
    trained: int  # items that there were when the centres were made
    own: NDArray[np.int32]  # [size]: the list of each item, -1 where it is in none
    names: NDArray[np.int32]  # [places]: the item at each place of the table, -1 for none
    lists: _C.Lists
    table: _C.NamedItems
    tail: _C.NamedItems | None


class IvfNativeIndex(Index):
    """Lists around centres, visited as far as they promise better items."""

    kind: ClassVar[str] = "ivf-native"
    options_class = IvfNativeOptions

    def __init__(self, metric: Metric, options: IvfNativeOptions, rows: Rows, state: _State):
        """Takes what `build` or `load` has made."""
        super().__init__(state.items.shape[1], metric, rows)
        self._options = options
        self._buffer = state.items  # may have room at its end
        self._current = state

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors and of the tables of bytes."""
        state = self._current
        tail = 0 if state.tail is None else state.tail.nbytes
        return state.items.nbytes + state.table.nbytes + state.lists.nbytes + tail

    def options(self) -> dict[str, Any]:
        """``nlist, nprobe, reach, seed, train_size``."""
        return self._options.to_dict()

    def tuned(self, **options: Any) -> IvfNativeIndex:
        """The same items with other search options; shares all memory.

        Later changes of either index are not seen by the other.

        Args:
            options: ``nprobe`` and ``reach``, see
                :class:`seqrec_fast.retrieval.options.IvfNativeOptions`.

        Raises:
            InputError: another option, or a value out of range.
        """
        for name in options:
            if name not in _SEARCHED:
                raise InputError(f"{name}: only {' and '.join(_SEARCHED)} can be tuned; build anew")
        with self._writing:
            made = IvfNativeIndex(
                self._metric, replace(self._options, **options), self._rows, self._current
            )
        made._buffer = made._buffer.view()
        made._buffer.flags.writeable = False  # what lies behind its rows is not its own
        return made

    # ---------------------------------------------------------------- made, kept

    @classmethod
    def _build(cls, vectors: Float, metric: Metric, options: Mapping[str, Any]) -> IvfNativeIndex:
        chosen = IvfNativeOptions(**options)
        rows = Rows(len(vectors), None, len(vectors))
        return cls(metric, chosen, rows, _clustered(vectors, rows, chosen))

    @classmethod
    def _restore(
        cls, meta: Mapping[str, Any], rows: Rows, tensors: Mapping[str, NDArray[Any]]
    ) -> IvfNativeIndex:
        options, dim = IvfNativeOptions(**meta["options"]), meta["dim"]
        items = _typed(tensors, "items", np.float32, (rows.size, dim))
        if (bad := first_not_finite(items)) is not None:
            raise InputError(f"vector {bad} is not finite")
        trained = _typed(tensors, "trained", np.int64, (1,))
        centres = _typed(tensors, "centres", np.float32, (None, dim))
        spread = _typed(tensors, "spread", np.float32, (len(centres),))
        side = 1 if tensors["covariance"].size == 1 else dim
        covariance = _typed(tensors, "covariance", np.float32, (side, side))
        own = _typed(tensors, "lists", np.int32, (rows.size,))
        if not len(centres) or int(trained[0]) < 0:
            raise InputError("it has no lists; it was altered")
        if len(own) and not -1 <= int(own.min()) <= int(own.max()) < len(centres):
            raise InputError("it names a list that is not there; it was altered")
        clusters = Clusters(centres, spread, covariance)
        state = _laid_out(items, rows, clusters, int(trained[0]), own)
        return cls(meta["metric"], options, rows, state)

    def _tensors(self) -> dict[str, NDArray[Any]]:
        state = self._current
        return {
            "items": state.items,
            "centres": state.clusters.centres,
            "spread": state.clusters.spread,
            "covariance": state.clusters.covariance,
            "lists": state.own,
            "trained": np.array([state.trained], np.int64),
        }

    # ---------------------------------------------------------------- changes

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
            buffer = np.empty((rows.size + rows.size // _GROWTH, self.dim), dtype=np.float32)
            buffer[: old.size] = old.items
        buffer[old.size : rows.size] = vectors
        self._buffer = buffer
        own = np.concatenate([old.own, np.full(len(vectors), -1, np.int32)])
        self._put(self._changed(buffer[: rows.size], rows, own, old.names), rows)

    def _replace(self, ids: NDArray[np.int64], vectors: Float, rows: Rows) -> None:
        # Copies: a search that runs must see the items as they were.
        old = self._current
        items = old.items.copy()
        items[ids] = vectors
        own, names = old.own.copy(), old.names.copy()
        own[ids] = -1
        gone = np.zeros(old.size + 1, np.bool_)
        gone[ids] = True
        names[gone[names]] = -1  # the last flag stands for -1
        self._buffer = items
        self._put(self._changed(items, rows, own, names), rows)

    def _erase(self, ids: NDArray[np.int64], rows: Rows) -> None:
        self._put(self._current._replace(removed=rows.removed), rows)

    def _changed(
        self, items: Float, rows: Rows, own: NDArray[np.int32], names: NDArray[np.int32]
    ) -> _State:
        """The state after a change: with a longer tail, or with new lists."""
        old = self._current
        tail = _tail(own, rows)
        if rows.live > 2 * max(old.trained, _TAIL_LEAST // 2):
            return _clustered(items, rows, self._options)
        if len(tail) > max(_TAIL_LEAST, rows.size // _TAIL_SHARE):
            own = own.copy()
            own[tail] = nearest(items[tail], old.clusters.centres)
            if rows.removed is not None:
                own[rows.removed] = -1
            return _laid_out(items, rows, old.clusters, old.trained, own)
        return old._replace(
            size=rows.size,
            removed=rows.removed,
            items=items,
            own=own,
            names=names,
            table=old.table if names is old.names else old.table.renamed(names),
            tail=_named(items, tail),
        )

    def _gather(self, state: _State, ids: NDArray[np.int64]) -> Float:
        return state.items[ids]

    # ---------------------------------------------------------------- search

    def _search(
        self, state: _State, queries: Float, k: int, filters: Filters, threads: int | None
    ) -> Found:
        blocked = filters.blocked
        if filters.allowed is None:
            if blocked is not None and blocked is not state.removed and _few(blocked):
                return Found(
                    *native.score_topk(
                        queries,
                        state.items,
                        k,
                        seen=filters.excluded,
                        blocked=blocked,
                        threads=threads,
                    )
                )
            return self._search_lists(state, queries, k, blocked, filters.excluded, threads)
        # One search of no queries checks k and threads even if no query follows.
        native.score_topk(queries[:0], state.items[:0], k, threads=threads)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        for row, listed in enumerate(filters.allowed):
            query = queries[row : row + 1]
            if not len(listed):
                continue
            if len(listed) * _FEW < state.size:
                # Ascending order keeps the rule for equal scores.
                found, place = native.score_topk(
                    query, state.items[listed], min(k, len(listed)), threads=threads
                )
                ids[row, : place.shape[1]] = np.where(place >= 0, listed[place], -1)[0]
                scores[row, : place.shape[1]] = found[0]
            else:
                mask = np.ones(state.size, dtype=np.bool_)
                mask[listed] = False
                one = self._search_lists(state, query, k, mask, None, threads)
                scores[row], ids[row] = one.scores[0], one.ids[0]
        return Found(scores, ids)

    def _search_lists(
        self,
        state: _State,
        queries: Float,
        k: int,
        blocked: NDArray[np.bool_] | None,
        excluded: Any,
        threads: int | None,
    ) -> Found:
        options = self._options
        try:
            return Found(
                *_C.score_topk_lists(
                    queries,
                    state.items,
                    state.lists,
                    state.table,
                    state.tail,
                    None if excluded is None else excluded.values,
                    None if excluded is None else excluded.offsets,
                    None if blocked is None else np.ascontiguousarray(blocked).view(np.uint8),
                    k,
                    _ALL if options.nprobe is None else options.nprobe,
                    np.inf if options.reach is None else options.reach,
                    0 if threads is None else thread_count(threads),
                )
            )
        except (MemoryError, ValueError):
            # sizes beyond the memory: the exact search refuses them with its message
            native.score_topk(queries, state.items, k, threads=threads)
            raise


def _few(blocked: NDArray[np.bool_]) -> bool:
    return (len(blocked) - int(np.count_nonzero(blocked))) * _FEW < len(blocked)


def _typed(
    tensors: Mapping[str, NDArray[Any]], name: str, dtype: Any, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    found = tensors[name]
    fits = len(found.shape) == len(shape) and all(
        wanted is None or wanted == there for wanted, there in zip(shape, found.shape, strict=True)
    )
    if found.dtype != dtype or not fits:
        raise InputError(f"{name!r} is {found.dtype} of shape {found.shape}; it was altered")
    return found


def _clustered(items: Float, rows: Rows, options: IvfNativeOptions) -> _State:
    """New centres and lists for all items that are left."""
    left = items if rows.removed is None else items[~rows.removed]
    lists = options.nlist
    if lists is None:
        lists = max(1, min(2 * int(len(left) ** 0.5), len(left) // 32))
    clusters, nearest_ = cluster(left, lists, options.seed, options.train_size)
    own = np.full(rows.size, -1, np.int32)
    own[slice(None) if rows.removed is None else ~rows.removed] = nearest_
    return _laid_out(items, rows, clusters, len(left), own)


def _laid_out(
    items: Float, rows: Rows, clusters: Clusters, trained: int, own: NDArray[np.int32]
) -> _State:
    """Items list after list, each from a block on."""
    listed = np.flatnonzero(own >= 0)
    counts = np.bincount(own[listed], minlength=len(clusters.centres))
    blocks = -(-counts // _PLACES)
    starts = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
    order = listed[np.argsort(own[listed], kind="stable")]
    lists = own[order]
    first = np.cumsum(counts) - counts  # of each list among the ordered items
    places = _PLACES * starts[lists] + np.arange(len(order)) - first[lists]
    names = np.full(_PLACES * starts[-1], -1, np.int32)
    names[places] = order
    covariance: Float | None = clusters.covariance
    spread = clusters.spread
    if clusters.covariance.shape != (items.shape[1],) * 2:
        # One variance for all directions: the kernel takes 1, so that the spread carries it.
        spread, covariance = spread * np.sqrt(clusters.covariance[0, 0]), None
    return _State(
        rows.size,
        rows.removed,
        items,
        clusters,
        trained,
        own,
        names,
        _C.Lists(starts, clusters.centres, spread, covariance),
        _C.NamedItems(items, names, native.get_num_threads()),
        _named(items, _tail(own, rows)),
    )


def _tail(own: NDArray[np.int32], rows: Rows) -> NDArray[np.int64]:
    """Items that are in no list."""
    out = own < 0
    return np.flatnonzero(out if rows.removed is None else out & ~rows.removed)


def _named(items: Float, ids: NDArray[np.int64]) -> _C.NamedItems | None:
    if not len(ids):
        return None
    names = np.full(-(-len(ids) // _PLACES) * _PLACES, -1, np.int32)
    names[: len(ids)] = ids
    return _C.NamedItems(items, names, native.get_num_threads())
