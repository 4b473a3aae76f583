# SPDX-License-Identifier: Apache-2.0
"""From user embeddings to the best items that the filters leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.engine.requests import Filter
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.native import CompactItems, item_rows, score_topk
from seqrec_fast.retrieval.interests import best_of_interests, diversified, repeat_rows

if TYPE_CHECKING:
    from seqrec_fast.engine.served import ServedModel

__all__ = [
    "Scorer",
    "best",
    "best_scores",
    "common_mask",
    "most_similar",
    "row_blocks",
    "select",
    "select_for_all",
]

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]

# A user's own allow list of up to this share of the catalogue is scored by gathering its items;
# a longer one by a mask over all of them, which needs one byte an item instead of a vector.
_GATHER_SHARE = 8

_ROWS_AT_ONCE = 1 << 15  # of a compact table, as float32


class Scorer(NamedTuple):
    """Scores are ``queries @ items.T + bias``: float32 ``[n, dim]`` and ``[n]`` or ``None``.

    Items may be compact; they then hold the same bias.
    ``rank`` is that of an engine that holds the same items, or ``None`` where there is none.
    """

    items: NDArray[np.float32] | CompactItems
    bias: NDArray[np.float32] | None
    rank: Callable[..., tuple[Scores, Ids]] | None = None


def select(
    scorer: Scorer,
    queries: NDArray[np.float32],
    k: int,
    seen: JaggedBatch[Any] | None,
    allowed: Filter,
    denied: Filter,
    users: NDArray[np.int64],
    threads: int | None,
) -> tuple[Scores, Ids]:
    """The best ``k`` items of each query.

    Args:
        scorer: items to choose from.
        queries: float32 ``[rows, dim]``, or ``[rows, interests, dim]``: an item's score is then the
            best of them.
        k: at most the number of items.
        seen: int32 item indices to leave out, one row a query, or ``None``.
        allowed: allow lists of the whole request.
        denied: deny lists of the whole request.
        users: int64 ``[rows]``, each query's place in the request (for lists of one user).
        threads: cores to use.

    Returns:
        Scores float32 ``[rows, k]`` descending and ids int64 ``[rows, k]``; minus infinity and -1
        where nothing is left. Equal scores stand by ascending id.
    """
    blocked = common_mask(len(scorer.items), allowed.common, denied.common)
    excluded = _excluded(len(queries), seen, denied, users)
    if allowed.per_user is None:
        return _topk(scorer, queries, k, excluded, blocked, threads)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    ids = np.full((len(queries), k), -1, dtype=np.int64)
    for wanted, rows in _groups(allowed.per_user, users):
        part = queries[rows], excluded.select(rows)
        if wanted is None:
            scores[rows], ids[rows] = _topk(scorer, part[0], k, part[1], blocked, threads)
        elif len(wanted) * _GATHER_SHARE > len(scorer.items):
            mask = common_mask(len(scorer.items), wanted, None)
            if blocked is not None and mask is not None:
                mask |= blocked
            scores[rows], ids[rows] = _topk(scorer, part[0], k, part[1], mask, threads)
        else:
            if blocked is not None:
                wanted = wanted[blocked[wanted] == 0]
            found, chosen = _among(scorer, part[0], k, part[1], wanted, threads)
            scores[rows, : found.shape[1]], ids[rows, : found.shape[1]] = found, chosen
    return scores, ids


def select_for_all(
    model: ServedModel,
    has_history: NDArray[np.bool_],
    queries: NDArray[np.float32],
    k: int,
    seen: JaggedBatch[Any] | None,
    allowed: Filter,
    denied: Filter,
    users: NDArray[np.int64],
    threads: int | None,
    diversity: float = 0.0,
) -> tuple[Scores, Ids]:
    """:func:`select` by the model, and by popularity for those of whom nothing is known.

    Args:
        model: what ranks.
        has_history: bool ``[rows]``.
        queries: as in :func:`select`; of no meaning where there is no history.
        k: as in :func:`select`, and so are all others.
        seen: as there.
        allowed: as there.
        denied: as there.
        users: as there.
        threads: as there.
        diversity: above 0, the lists of users of several interests are those of
            :func:`seqrec_fast.retrieval.interests.diversified`.
    """
    ids = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    nothing = np.zeros((len(queries), 1), dtype=np.float32)
    for scorer, vectors, part in (
        (model.scorer, queries, np.flatnonzero(has_history)),
        (model.popular, nothing, np.flatnonzero(~has_history)),
    ):
        if not len(part):
            continue
        kept = None if seen is None else seen.select(part)
        choose = partial(select_diverse, diversity) if diversity and vectors.ndim == 3 else select
        scores[part], ids[part] = choose(
            scorer, vectors[part], k, kept, allowed, denied, users[part], threads
        )
    return scores, ids


def select_diverse(
    diversity: float,
    scorer: Scorer,
    queries: NDArray[np.float32],
    k: int,
    seen: JaggedBatch[Any] | None,
    allowed: Filter,
    denied: Filter,
    users: NDArray[np.int64],
    threads: int | None,
) -> tuple[Scores, Ids]:
    """:func:`select` for each interest, and of what they find a list in which all have a part."""
    rows, times, dim = queries.shape
    hidden = None if seen is None else repeat_rows(seen, times)
    each = np.ascontiguousarray(queries.reshape(-1, dim))
    owners = np.repeat(users, times)
    scores, ids = select(scorer, each, k, hidden, allowed, denied, owners, threads)
    return diversified(scores.reshape(rows, times, k), ids.reshape(rows, times, k), k, diversity)


def row_blocks(
    items: NDArray[np.float32] | CompactItems,
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """All rows as float32 and their places; of a compact table, some thousands at a time."""
    if not isinstance(items, CompactItems):
        yield slice(0, len(items)), items
        return
    for begin in range(0, len(items), _ROWS_AT_ONCE):
        end = min(begin + _ROWS_AT_ONCE, len(items))
        yield slice(begin, end), items.rows(np.arange(begin, end))


def most_similar(model: ServedModel, index: int, k: int) -> tuple[Scores, Ids]:
    """The items whose vectors point most nearly the way of one item's, by cosine.

    Args:
        model: whose items are compared; removed ones are left out.
        index: the item, which is left out itself.
        k: how many; fewer come back where fewer are left.
    """
    scale = model.norms * model.norms[index]
    vector = item_rows(model.scorer.items, [index])[0]
    products = np.empty_like(scale)
    for part, vectors in row_blocks(model.scorer.items):
        products[part] = vectors @ vector
    # A vector of length 0 points nowhere: its cosine is 0.
    cosine = np.divide(products, scale, out=np.zeros_like(scale), where=scale > 0)
    np.clip(cosine, -1.0, 1.0, out=cosine)
    cosine[index] = -np.inf
    if model.removed is not None:
        cosine[model.removed] = -np.inf
    found = best(cosine, min(k, int(np.count_nonzero(cosine > -np.inf))))
    return cosine[found], found


def best_scores(
    scorer: Scorer, embedding: NDArray[np.float32], wanted: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Scores of chosen items for one user.

    Args:
        scorer: the items.
        embedding: float32 ``[dim]``, or ``[interests, dim]``: an item's score is the best of them.
        wanted: int32 ``[n]``.
    """
    scores: NDArray[np.float32] = item_rows(scorer.items, wanted) @ embedding.T
    if scores.ndim == 2:
        scores = scores.max(axis=1)
    return scores if scorer.bias is None else scores + scorer.bias[wanted]


def best(scores: Scores, count: int) -> Ids:
    """Indices of the ``count`` largest entries, descending, equal ones by ascending index.

    Args:
        scores: float32 ``[n]`` without NaN.
        count: at most ``n``.
    """
    if count < 1:
        return np.empty(0, dtype=np.int64)
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= last)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:count]]


def _topk(
    scorer: Scorer,
    queries: NDArray[np.float32],
    k: int,
    excluded: JaggedBatch[Any],
    blocked: NDArray[np.uint8] | None,
    threads: int | None,
) -> tuple[Scores, Ids]:
    if scorer.rank is not None:
        return scorer.rank(queries, excluded.values, excluded.offsets, blocked, k, threads or 0)

    def search(vectors: Scores, seen: JaggedBatch[Any] | None) -> tuple[Scores, Ids]:
        return score_topk(
            vectors,
            scorer.items,
            k,
            bias=None if isinstance(scorer.items, CompactItems) else scorer.bias,
            seen=seen,
            blocked=blocked,
            threads=threads,
        )

    if queries.ndim == 3:
        return best_of_interests(queries, k, excluded, search)
    return search(queries, excluded)


def _among(
    scorer: Scorer,
    queries: NDArray[np.float32],
    k: int,
    excluded: JaggedBatch[Any],
    wanted: NDArray[np.int32],
    threads: int | None,
) -> tuple[Scores, Ids]:
    """The best of a few items, which are gathered first; ``wanted`` ascends, so ties stay."""
    if not len(wanted):
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    bias = None if scorer.bias is None else scorer.bias[wanted]
    few = Scorer(item_rows(scorer.items, wanted), bias)
    place = np.searchsorted(wanted, excluded.values)
    place[place == len(wanted)] = 0
    inside = wanted[place] == excluded.values
    owner = np.repeat(np.arange(len(excluded)), excluded.lengths)
    kept = np.bincount(owner[inside], minlength=len(excluded))
    there = JaggedBatch.from_lengths(place[inside].astype(np.int32), kept)
    scores, ids = _topk(few, queries, min(k, len(wanted)), there, None, threads)
    return scores, np.where(ids >= 0, wanted[ids].astype(np.int64), -1)


def common_mask(
    items: int, allow: NDArray[np.int32] | None, deny: NDArray[np.int32] | None
) -> NDArray[np.uint8] | None:
    """uint8 ``[items]``, 1 where no user may get the item; ``None`` where nothing is blocked."""
    if allow is None and (deny is None or not len(deny)):
        return None
    mask = np.zeros(items, dtype=np.uint8)
    if allow is not None:
        mask[:] = 1
        mask[allow] = 0
    if deny is not None:
        mask[deny] = 1
    return mask


def _excluded(
    rows: int, seen: JaggedBatch[Any] | None, denied: Filter, users: NDArray[np.int64]
) -> JaggedBatch[Any]:
    """int32 items to leave out for each query: what was seen, and the user's own deny list."""
    nothing = JaggedBatch.from_lengths(np.empty(0, np.int32), np.zeros(rows, np.int64))
    seen = nothing if seen is None else seen
    if denied.per_user is None:
        return seen
    parts: list[NDArray[np.int32]] = []
    lengths = np.zeros(rows, dtype=np.int64)
    for row, (history, user) in enumerate(zip(seen, users.tolist(), strict=True)):
        own = denied.per_user[user]
        parts.append(history)
        lengths[row] = len(history)
        if own is not None:
            parts.append(own)
            lengths[row] += len(own)
    return JaggedBatch.from_lengths(np.concatenate(parts).astype(np.int32, copy=False), lengths)


def _groups(
    lists: list[NDArray[np.int32] | None], users: NDArray[np.int64]
) -> list[tuple[NDArray[np.int32] | None, NDArray[np.int64]]]:
    """Rows that share one allow list, so that each list costs one call."""
    rows: dict[bytes | None, list[int]] = {}
    which: dict[bytes | None, NDArray[np.int32] | None] = {}
    for row, user in enumerate(users.tolist()):
        wanted = lists[user]
        key = None if wanted is None else wanted.tobytes()
        rows.setdefault(key, []).append(row)
        which[key] = wanted
    return [(which[key], np.array(found, dtype=np.int64)) for key, found in rows.items()]
