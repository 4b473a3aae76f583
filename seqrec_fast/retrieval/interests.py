# SPDX-License-Identifier: Apache-2.0
"""Candidates of users with several interests: each interest searches, and the lists are merged.

The score of an item is the best of a user's interests, as in MIND (Li et al. 2019,
arXiv:1904.08030). A list may also be made more diverse: the knob is the controllable aggregation
of ComiRec (Cen et al. 2020, arXiv:2005.09347), which takes one item after the other and values
what differs from the items taken before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.filters import Indices
from seqrec_fast.retrieval.index import Found, Index

__all__ = ["best_of_interests", "diversified", "repeat_rows", "search_interests"]

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]
#: queries ``[rows, dim]`` and the items hidden from each to scores and ids ``[rows, k]``
Search = Callable[[Scores, "JaggedBatch[Any] | None"], tuple[Scores, Ids]]


def search_interests(
    index: Index,
    interests: ArrayLike,
    k: int,
    *,
    diversity: float = 0.0,
    categories: ArrayLike | None = None,
    exclude: JaggedBatch[Any] | None = None,
    allow: Indices | None = None,
    deny: Indices | None = None,
    threads: int | None = None,
) -> Found:
    """The ``k`` best items of users with several interests.

    Args:
        index: any index over the item vectors.
        interests: float ``[users, interests, dim]``.
        k: items a user.
        diversity: 0 ranks by the best score alone; see :func:`diversified`.
        categories: int ``[index.size]``: the category of each item, for ``diversity``; ``None``
            counts the interest that found an item as its category.
        exclude: item ids to leave out, one row a user.
        allow: as in :meth:`Index.search`; a batch has one row a user.
        deny: likewise.
        threads: cores to use at most.

    Returns:
        Scores float32 and ids int64 ``[users, k]``; an item stands there once, with the best score
            of the interests among whose ``k`` best it is.

    Raises:
        InputError: an argument has the wrong type, shape or range.
    """
    try:
        vectors = np.asarray(interests)
    except ValueError:
        raise InputError("interests: expected [users, interests, dim], found uneven rows") from None
    if vectors.ndim != 3 or not vectors.shape[1]:
        raise InputError(
            f"interests: expected [users, interests, dim], found shape {vectors.shape}"
        )
    times = vectors.shape[1]
    for name, rows in (("allow", allow), ("deny", deny), ("exclude", exclude)):
        if isinstance(rows, JaggedBatch) and len(rows) != len(vectors):
            raise InputError(
                f"{name}: expected one row a user ({len(vectors)}), found {len(rows)} rows"
            )
    _check_diversity(diversity)

    def each(rows: Indices | None) -> Indices | None:
        return repeat_rows(rows, times) if isinstance(rows, JaggedBatch) else rows

    def search(queries: Scores, hidden: JaggedBatch[Any] | None) -> tuple[Scores, Ids]:
        return index.search(
            queries, k, exclude=hidden, allow=each(allow), deny=each(deny), threads=threads
        )

    if diversity == 0.0:
        return Found(*best_of_interests(vectors, k, exclude, search))
    hidden = None if exclude is None else repeat_rows(exclude, times)
    scores, ids = search(vectors.reshape(-1, vectors.shape[2]), hidden)
    shape = (len(vectors), times, scores.shape[1])
    kinds = None if categories is None else np.asarray(categories)
    if kinds is not None and kinds.shape != (index.size,):
        raise InputError(
            f"categories: expected one number an item ({index.size}), found shape {kinds.shape}"
        )
    return Found(*diversified(scores.reshape(shape), ids.reshape(shape), k, diversity, kinds))


def best_of_interests(
    interests: NDArray[Any], k: int, seen: JaggedBatch[Any] | None, search: Search
) -> tuple[Scores, Ids]:
    """The ``k`` best items of each user by the best score of their interests.

    An item that is among a user's ``k`` best is among the ``k`` best of the interest that scores
    it best, so ``k`` candidates an interest are enough.

    Args:
        interests: float32 ``[users, interests, dim]``.
        k: items a user.
        seen: items to leave out, one row a user.
        search: finds the ``k`` best of each query.
    """
    users, times, dim = interests.shape
    hidden = None if seen is None else repeat_rows(seen, times)
    scores, ids = search(np.ascontiguousarray(interests.reshape(-1, dim)), hidden)
    width = times * scores.shape[1]
    scores, ids = scores.reshape(users, width), ids.reshape(users, width)
    # By item and then by falling score: of each item the first stays.
    order = np.lexsort((-scores, ids), axis=1)
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    again = np.zeros(ids.shape, dtype=np.bool_)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    scores = np.where(again, -np.inf, scores).astype(np.float32, copy=False)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # ids ascend, so ties keep the rule
    best = np.take_along_axis(scores, order, 1)
    chosen = np.where(best > -np.inf, np.take_along_axis(ids, order, 1), -1)
    if best.shape[1] == k:
        return best, chosen
    room = ((0, 0), (0, k - best.shape[1]))
    return (
        np.pad(best, room, constant_values=-np.inf),
        np.pad(chosen, room, constant_values=-1),
    )


def diversified(
    scores: Scores, ids: Ids, k: int, diversity: float, categories: NDArray[Any] | None = None
) -> tuple[Scores, Ids]:
    """Chooses ``k`` items a user one by one: score plus a bonus for being different.

    The next item is the one of largest ``score + diversity * share``, where ``share`` is that of
    the items chosen so far that are of another category (1 for the first). Equal values go to
    the item of the higher score, then of the lower id.

    Args:
        scores: float32 ``[users, interests, found]``.
        ids: int64 of the same shape; -1 where nothing was found.
        k: items a user.
        diversity: weight of the bonus in units of the score, at least 0.
        categories: int ``[items]``; ``None`` takes the interest that scores an item best.

    Returns:
        The items in the order in which they were chosen, and their scores.

    Raises:
        InputError: ``diversity`` is negative or not finite.
    """
    _check_diversity(diversity)
    users, times, found = scores.shape
    out_scores = np.full((users, k), -np.inf, dtype=np.float32)
    out_ids = np.full((users, k), -1, dtype=np.int64)
    owner = np.repeat(np.arange(times), found)
    for user in range(users):
        flat_ids, flat = ids[user].reshape(-1), scores[user].reshape(-1)
        there = flat_ids >= 0
        order = np.lexsort((flat_ids[there], -flat[there]))
        candidates, values = flat_ids[there][order], flat[there][order]
        _, first = np.unique(candidates, return_index=True)
        first.sort()
        candidates, values = candidates[first], values[first].astype(np.float64)
        kinds = owner[there][order][first] if categories is None else categories[candidates]
        _, kinds = np.unique(kinds, return_inverse=True)
        counts = np.zeros(int(kinds.max(initial=-1)) + 1)
        left = np.ones(len(candidates), dtype=np.bool_)
        for place in range(min(k, len(candidates))):
            share = 1.0 - counts[kinds] / max(place, 1)
            at = int(np.argmax(np.where(left, values + diversity * share, -np.inf)))
            left[at] = False
            counts[kinds[at]] += 1
            out_ids[user, place], out_scores[user, place] = candidates[at], values[at]
    return out_scores, out_ids


def _check_diversity(given: object) -> None:
    numbers = int, float, np.integer, np.floating
    if isinstance(given, bool) or not isinstance(given, numbers) or not 0.0 <= given < np.inf:
        raise InputError(f"diversity: must be a number of at least 0, found {given!r}")


def repeat_rows(batch: JaggedBatch[Any], times: int) -> JaggedBatch[Any]:
    """Each row ``times`` times, one after the other."""
    return batch.select(np.repeat(np.arange(len(batch)), times))
