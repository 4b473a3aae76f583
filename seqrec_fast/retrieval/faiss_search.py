# SPDX-License-Identifier: Apache-2.0
"""From what an approximate search offers to a full answer: filters, order, and no places left open.

A search is asked for more than ``k`` where some of what it offers may be hidden, and for more
again as long as an answer is short. What is short even then (lists that were not looked into, a
graph that a narrow filter cuts apart) is answered exactly by the native kernel, so that ``k`` items
come back wherever ``k`` are left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import native
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.exact import ExactIndex
from seqrec_fast.retrieval.filters import Filters
from seqrec_fast.retrieval.index import Float, Found

__all__ = ["NARROW", "Plan", "exact_search", "filtered_search"]

#: where fewer than one item in so many is allowed, those are copied together and compared all
NARROW = 16
# How much more is asked for when an answer was short.
_MORE = 4

#: ``(queries, k, blocked, threads)`` to scores and ids ``[queries, k]``, -1 where there is none
Probe = Callable[[Float, int, "NDArray[np.bool_] | None", "int | None"], Found]


class Plan(NamedTuple):
    """How one kind of index is searched.

    Attributes:
        probe: the search of the library.
        exact: it finds the best for sure: then also which of equal scores come is settled.
        selects: it takes a mask; otherwise what it masks is asked for and left out.
        limit: the most it can be asked for; ``None``: all.
        refine: candidates for each place that are ranked again by their vectors; 0: none.
    """

    probe: Probe
    exact: bool
    selects: bool
    limit: int | None
    refine: int


def exact_search(
    items: Float, queries: Float, k: int, filters: Filters, threads: int | None
) -> Found:
    """Every allowed item compared by the native kernel."""
    blocked = filters.blocked
    if filters.allowed is None and blocked is not None:
        listed = np.flatnonzero(~blocked)
        if len(listed) * NARROW < len(items):
            excluded = filters.excluded
            scores, places = native.score_topk(
                queries,
                items[listed],
                k,
                seen=None if excluded is None else _among(excluded, listed),
                threads=threads,
            )
            if not len(listed):
                return Found(scores, places)
            return Found(scores, np.where(places >= 0, listed[places], -1))
    whole = ExactIndex(items)
    return whole._search(whole._state(), queries, k, filters, threads)


def filtered_search(
    plan: Plan, items: Float, queries: Float, k: int, filters: Filters, threads: int | None
) -> tuple[Found, int]:
    """The answer of an index, and how many queries the native kernel answered."""
    size, blocked = len(items), filters.blocked
    room = size if blocked is None else size - int(np.count_nonzero(blocked))
    want = min(k, room)
    if not want or not len(queries) or filters.allowed is not None or room * NARROW < size:
        return exact_search(items, queries, k, filters, threads), len(queries) if want else 0
    excluded = filters.excluded
    most_hidden = 0 if excluded is None else int(np.diff(excluded.offsets).max())
    selects = plan.selects or blocked is None
    cap = room if selects else size
    if plan.limit is not None:
        cap = min(cap, plan.limit)
    ask = want * max(1, plan.refine) + min(most_hidden, want) + int(plan.exact)
    if not selects:
        ask = int(ask * 1.1 * size / room) + 16
    answer = Found(
        np.full((len(queries), k), -np.inf, dtype=np.float32),
        np.full((len(queries), k), -1, dtype=np.int64),
    )
    left = np.arange(len(queries))
    by_kernel: list[NDArray[np.int64]] = []
    while len(left):
        ask = min(ask, cap)
        offered = plan.probe(queries[left], ask, blocked if selects else None, threads)
        there = offered.ids >= 0
        if not selects:
            assert blocked is not None
            there &= ~blocked[offered.ids]
        all_seen = there.sum(axis=1) == room
        if excluded is not None:
            _hide(there, offered.ids, excluded, left, size)
        if plan.refine:
            found = _ranked_again(items, queries[left], offered.ids, there, want, threads)
        else:
            found = _ordered(offered, there, want)
        full = all_seen | (found.ids[:, -1] >= 0)
        if plan.exact and ask > want:
            # The last place ties with the last that was offered: others may tie with it too.
            last = np.where(there, offered.scores, np.inf).min(axis=1)
            open_end = full & ~all_seen & (found.scores[:, -1] == last)
            by_kernel.append(left[open_end])
            full &= ~open_end
        else:
            open_end = np.zeros(len(left), dtype=np.bool_)
        answer.scores[left[full], :want] = found.scores[full]
        answer.ids[left[full], :want] = found.ids[full]
        left = left[~full & ~open_end]
        if ask == cap:
            by_kernel.append(left)
            break
        ask *= _MORE
    short = np.concatenate(by_kernel) if by_kernel else left[:0]
    if len(short):
        hidden = None if excluded is None else excluded.select(short)
        own = Filters(filters.blocked, hidden, filters.allowed)
        found = exact_search(items, queries[short], k, own, threads)
        answer.scores[short], answer.ids[short] = found
    return answer, len(short)


def _ordered(offered: Found, there: NDArray[np.bool_], want: int) -> Found:
    """The best that are there, by descending score, equal ones by ascending id."""
    scores = np.where(there, offered.scores, -np.inf).astype(np.float32, copy=False)
    ids = np.where(there, offered.ids, np.iinfo(np.int64).max)
    order = np.lexsort((ids, -scores), axis=-1)[:, :want]
    scores = np.take_along_axis(scores, order, axis=1)
    ids = np.where(np.isneginf(scores), -1, np.take_along_axis(ids, order, axis=1))
    short = ((0, 0), (0, want - order.shape[1]))
    return Found(
        np.pad(scores, short, constant_values=-np.inf), np.pad(ids, short, constant_values=-1)
    )


def _ranked_again(
    items: Float,
    queries: Float,
    ids: NDArray[np.int64],
    there: NDArray[np.bool_],
    want: int,
    threads: int | None,
) -> Found:
    scores = np.full((len(queries), want), -np.inf, dtype=np.float32)
    best = np.full((len(queries), want), -1, dtype=np.int64)
    for row in range(len(queries)):
        # Ascending ids keep the rule for equal scores.
        listed = np.sort(ids[row][there[row]])
        if len(listed):
            found, places = native.score_topk(
                queries[row : row + 1], items[listed], want, threads=threads
            )
            scores[row] = found[0]
            best[row] = np.where(places[0] >= 0, listed[places[0]], -1)
    return Found(scores, best)


def _hide(
    there: NDArray[np.bool_],
    ids: NDArray[np.int64],
    excluded: JaggedBatch[Any],
    rows: NDArray[np.int64],
    size: int,
) -> None:
    """Strikes each query's own excluded items out of what it was offered."""
    mark = np.zeros(size, dtype=np.bool_)
    for at, row in enumerate(rows):
        values = excluded[int(row)]
        if len(values):
            mark[values] = True
            there[at] &= ~mark[ids[at]]
            mark[values] = False


def _among(excluded: JaggedBatch[Any], listed: NDArray[np.int64]) -> JaggedBatch[Any]:
    """Excluded ids as places in a list of ids; those that are not in it fall away."""
    places = np.searchsorted(listed, excluded.values)
    there = places < len(listed)
    there[there] = listed[places[there]] == excluded.values[there]
    owners = np.repeat(np.arange(len(excluded)), excluded.lengths)[there]
    return JaggedBatch.from_lengths(
        places[there].astype(np.int32), np.bincount(owners, minlength=len(excluded))
    )
