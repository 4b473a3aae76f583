# SPDX-License-Identifier: Apache-2.0
"""Business limits: at most n items of a category among the results of a query.

The result is that of a walk down the whole ranking, which takes an item unless one of its
categories is full already, and ends with k items. An item without a category is never held up.
Only the head of the ranking is fetched; where it does not suffice, the search goes on behind it,
without the items that were met and those of full categories, which can't be taken any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.filters import Indices, read_filters
from seqrec_fast.retrieval.index import Found, Index, checked_k, vector_rows
from seqrec_fast.retrieval.rules import Rules

__all__ = ["Limits", "Search", "search_limited", "walk"]

#: for some queries: the best k of each but for the rows of ids (int32), which are hidden
Search = Callable[[NDArray[np.int64], int, JaggedBatch[Any]], tuple[Any, Any]]

_FIRST, _GROWTH = 3, 4  # results fetched, as a multiple of k, and how they grow


class Limits:
    """How many items of each category a result may hold."""

    def __init__(self, rules: Rules, limit: Mapping[str, Any]) -> None:
        """Reads the categories of the items.

        Args:
            rules: over the item table.
            limit: column → how many items of each of its categories, at least 1; or, where its
                texts are tags behind one another, ``{"most": 2, "separator": " "}``.

        Raises:
            InputError: a column that is not there, or a number below 1.
        """
        given: Any = limit
        if not isinstance(given, Mapping) or not given:
            raise InputError('limit: expected a mapping of columns to numbers: {"brand": 2}')
        self.most: list[int] = []
        offset = 0
        parts: list[JaggedBatch[Any]] = []
        for column, most in given.items():
            separator = None
            if isinstance(most, Mapping):
                if "most" not in most or set(most) - {"most", "separator"}:
                    raise InputError(
                        f"limit: column {column!r} needs a number, or 'most' and 'separator', "
                        f"found {most!r}"
                    )
                most, separator = most["most"], most.get("separator")
            whole = isinstance(most, (int, np.integer)) and not isinstance(most, bool)
            if not whole or most < 1:
                raise InputError(
                    f"limit: column {column!r} needs a whole number of at least 1, found {most!r}"
                )
            try:
                codes = rules.categories(column, separator)
            except InputError as error:
                raise InputError(f"limit: {error}") from None
            count = int(codes.values.max()) + 1 if len(codes.values) else 0
            parts.append(JaggedBatch(codes.values + offset, codes.offsets))
            self.most += [int(most)] * count
            offset += count
        owner = np.concatenate([np.repeat(np.arange(len(p)), p.lengths) for p in parts])
        values = np.concatenate([part.values for part in parts])
        order = np.argsort(owner, kind="stable")
        lengths = np.sum([part.lengths for part in parts], axis=0)
        #: categories of each item
        self.categories = JaggedBatch.from_lengths(values[order], lengths)
        by_category = np.argsort(values, kind="stable")
        self._members = JaggedBatch.from_lengths(
            owner[by_category].astype(np.int32), np.bincount(values, minlength=offset)
        )

    def members(self, category: int) -> NDArray[np.int32]:
        """Items of a category."""
        found: NDArray[np.int32] = self._members[category]
        return found


class _Walk:
    """What one query has taken so far."""

    def __init__(self, limits: Limits, k: int) -> None:
        self.ids: list[int] = []
        self.scores: list[float] = []
        self.hidden: list[NDArray[np.int32]] = []
        self._limits, self._k = limits, k
        self._counts: dict[int, int] = {}

    def take(self, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> bool:
        """Walks down some of the ranking; whether there is more to do behind it."""
        limits, counts = self._limits, self._counts
        there = ids >= 0
        values, offsets = limits.categories.values, limits.categories.offsets
        full: list[int] = []
        for item, score in zip(ids[there].tolist(), scores[there].tolist(), strict=True):
            own = values[offsets[item] : offsets[item + 1]].tolist()
            if any(counts.get(category, 0) >= limits.most[category] for category in own):
                continue
            for category in own:
                counts[category] = counts.get(category, 0) + 1
                if counts[category] == limits.most[category]:
                    full.append(category)
            self.ids.append(item)
            self.scores.append(score)
            if len(self.ids) == self._k:
                return False
        self.hidden.append(ids[there].astype(np.int32))
        self.hidden += [limits.members(category) for category in full]
        return bool(there.all())


def walk(
    search: Search, queries: int, k: int, size: int, limits: Limits
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best ``k`` items of each query that obey the limits.

    Args:
        search: finds the best items of some queries.
        queries: how many there are.
        k: at least 1.
        size: ids that there may be: no more than these are asked for.
        limits: what to obey.

    Returns:
        Scores float32 and ids int64, ``[queries, k]``; ``-inf`` and -1 where no more items obey.
    """
    if len(limits.categories) != size:
        raise InputError(
            f"limit: the item table has {len(limits.categories)} rows for {size} items"
        )
    walks = [_Walk(limits, k) for _ in range(queries)]
    left = np.arange(queries)
    wanted = k * _FIRST
    while len(left) and size:
        hidden = [np.concatenate([np.empty(0, np.int32), *walks[at].hidden]) for at in left]
        rows = JaggedBatch.from_lists(hidden, dtype=np.int32)
        scores, ids = search(left, min(wanted, size), rows)
        found = zip(left, ids, scores, strict=True)
        more = [walks[at].take(own_ids, own) for at, own_ids, own in found]
        left = left[np.array(more, dtype=np.bool_)]
        wanted *= _GROWTH
    found_scores = np.full((queries, k), -np.inf, dtype=np.float32)
    found_ids = np.full((queries, k), -1, dtype=np.int64)
    for at, one in enumerate(walks):
        own_ids, own = np.array(one.ids, np.int64), np.array(one.scores, np.float32)
        # An approximate search may find behind a head what it should have found in it.
        order = np.lexsort((own_ids, -own))
        found_scores[at, : len(own)], found_ids[at, : len(own)] = own[order], own_ids[order]
    return found_scores, found_ids


def search_limited(
    index: Index,
    queries: Any,
    k: int,
    limits: Limits,
    exclude: JaggedBatch[Any] | None = None,
    allow: Indices | None = None,
    deny: Indices | None = None,
    threads: int | None = None,
) -> Found:
    """:meth:`Index.search` under limits: the greedy walk down each filtered ranking.

    Args:
        index: what to search.
        queries: as in the search, and so are all others.
        k: as there.
        limits: over the items of the index, by id.
        exclude: as there.
        allow: as there.
        deny: as there.
        threads: as there.

    Raises:
        InputError: as there; or an item table of another size than the index.
    """
    vectors = vector_rows("queries", queries)
    places = checked_k(k, len(vectors), index.size)
    read_filters(len(vectors), index.size, None, exclude, allow, deny)  # before rows are taken

    def search(rows: NDArray[np.int64], wanted: int, hidden: JaggedBatch[Any]) -> Any:
        def of(listed: Any) -> Any:
            return listed.select(rows) if isinstance(listed, JaggedBatch) else listed

        both = hidden
        if exclude is not None:
            own = of(exclude)
            joined = [np.concatenate(pair) for pair in zip(own, hidden, strict=True)]
            both = JaggedBatch.from_lists(joined, dtype=np.int64)
        return index.search(vectors[rows], wanted, both, of(allow), of(deny), threads)

    return Found(*walk(search, len(vectors), places, index.size, limits))
