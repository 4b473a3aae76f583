# SPDX-License-Identifier: Apache-2.0
"""What ``evaluate`` tells of a bundle's index: what is found through it, and what is missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from seqrec_fast.errors import DeviceError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from seqrec_fast.data import Holdout
    from seqrec_fast.engine.index_ranker import IndexRanker
    from seqrec_fast.jagged import JaggedBatch

__all__ = ["IndexRanks", "open_index", "ranks_through"]

_USERS = 4096  # searched at once: bounds the lists in memory


class IndexRanks(NamedTuple):
    """What was found through the index.

    Attributes:
        scores: float32 ``[users, n]`` of :attr:`ids`.
        ids: int64 ``[users, n]``, one more than the largest cut-off where there are so many.
        recall: ``recall@k`` against the exact lists, averaged over the users that have a history.
    """

    scores: NDArray[np.float32]
    ids: NDArray[np.int64]
    recall: dict[str, float]


def open_index(
    stored: Mapping[str, NDArray[Any]] | None,
    items: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    removed: NDArray[np.bool_] | None,
    *,
    wanted: bool,
) -> IndexRanker | str | None:
    """The bundle's index; ``None`` if there is none, a text where it cannot be used here.

    Raises:
        InputError: it is damaged; or ``wanted`` and there is none.
        DeviceError, MissingExtraError: it is ``wanted``, and its kind needs a GPU or a library that
            is not there.
    """
    from seqrec_fast.engine.index_ranker import IndexRanker

    if stored is None and not wanted:
        return None
    try:
        return IndexRanker.of(stored, items, bias, removed)
    except (DeviceError, MissingExtraError) as error:
        if wanted:
            raise
        return str(error)


def ranks_through(
    ranker: IndexRanker,
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    known: Holdout,
    cutoffs: Sequence[int],
    *,
    blocked: NDArray[np.bool_] | None,
    exclude_seen: bool,
    threads: int | None,
) -> IndexRanks:
    """Lists of all users through the index, compared with the exact ones.

    Args:
        ranker: the index.
        queries: float32 ``[users, dim]``, or ``[users, interests, dim]``.
        items: float32 ``[items, dim]``.
        bias: float32 ``[items]`` or ``None``.
        known: histories, one row a user.
        cutoffs: where the recall is told.
        blocked: bool ``[items]``, true for the items that nobody may get, or ``None``.
        exclude_seen: leave out what is in the history.
        threads: cores to use.
    """
    import numpy as np

    from seqrec_fast.native import score_topk
    from seqrec_fast.retrieval.interests import best_of_interests
    from seqrec_fast.retrieval.tuning import recall_of

    def search(vectors: Any, hidden: JaggedBatch[Any] | None) -> Any:
        return score_topk(
            vectors, items, count, bias=bias, seen=hidden, blocked=blocked, threads=threads
        )

    def best_of(vectors: Any, hidden: JaggedBatch[Any] | None) -> Any:
        if vectors.ndim == 3:
            return best_of_interests(vectors, count, hidden, search)
        return search(vectors, hidden)

    mask = None if blocked is None else blocked.view(np.uint8)
    count = min(max(cutoffs) + 1, len(items))
    scores = np.full((len(queries), count), -np.inf, dtype=np.float32)
    ids = np.full((len(queries), count), -1, dtype=np.int64)
    shares: dict[int, list[NDArray[np.float64]]] = {cutoff: [] for cutoff in cutoffs}
    for begin in range(0, len(queries), _USERS):
        rows = np.arange(begin, min(begin + _USERS, len(queries)))
        seen = known.histories.select(rows)
        values, offsets = (seen.values, seen.offsets) if exclude_seen else (None, None)
        scores[rows], ids[rows] = ranker.rank(
            queries[rows], values, offsets, mask, count, threads or 0
        )
        exact = best_of(queries[rows], seen if exclude_seen else None)[1]
        there = np.diff(seen.offsets) > 0
        for cutoff in cutoffs:
            mine, wanted = ids[rows][there, :cutoff], exact[there, :cutoff]
            shares[cutoff].append(recall_of(mine, wanted))
    recall = {
        f"recall@{cutoff}": float(np.concatenate(found).mean()) if sum(map(len, found)) else 1.0
        for cutoff, found in shares.items()
    }
    return IndexRanks(scores, ids, recall)
