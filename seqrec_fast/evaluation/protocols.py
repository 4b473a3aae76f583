# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a scorer on held-out events, and of the popularity baseline, on one path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.evaluation.metrics import (
    Metrics,
    checked_cutoffs,
    coverage,
    metrics_from_ranks,
    novelty,
)
from seqrec_fast.evaluation.ranking import checked_mask, checked_scorer, rank_targets
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.native import score_topk
from seqrec_fast.retrieval import Found
from seqrec_fast.retrieval.interests import best_of_interests

if TYPE_CHECKING:
    from seqrec_fast.data import Holdout, Split

__all__ = ["describe_protocol", "evaluate", "evaluate_popularity"]


def describe_protocol(split: Split, *, refit: bool | None = None) -> str:
    """The part of a protocol's name that the split decides, for instance ``"by-time, strict"``.

    *Strict* means that the validation events were never trained on; *refit* that the model was
    trained again with them before the test. Figures of the two can't be compared.

    Args:
        split: the split that the model was trained on.
        refit: overrides what the split says about itself.
    """
    again = split.refitted if refit is None else refit
    return f"{split.protocol}, {'refit' if again else 'strict'}"


def evaluate(
    queries: ArrayLike,
    items: ArrayLike,
    bias: ArrayLike | None,
    holdout: Holdout,
    *,
    k: int | Sequence[int] = (5, 10, 20),
    popularity: ArrayLike | None,
    exclude_seen: bool = True,
    blocked: ArrayLike | None = None,
    protocol: str = "",
    threads: int | None = None,
) -> Metrics:
    """Full-ranking figures of a scorer ``queries @ items.T + bias`` on held-out events.

    Args:
        queries: float32 ``[users, dim]`` or ``[users, interests, dim]``, aligned with the rows of
            ``holdout``.
        items: float32 ``[items, dim]``.
        bias: float32 ``[items]`` or ``None``.
        holdout: histories (what to mask) and targets (what to rank), as item indices.
        k: cut-offs.
        popularity: number of training events of each item, for the novelty; ``None`` leaves the
            novelty out.
        exclude_seen: mask the whole history of a user with minus infinity.
        blocked: bool ``[items]``, true for items that nobody may get, such as those that were
            removed from the catalogue: they are not ranked. A target among them is a miss unless
            there are hardly any items.
        protocol: what the split decides, see :func:`describe_protocol`; the rest is added here.
        threads: cores to use; ``None`` takes all that this process may use.

    Returns:
        ``HR, NDCG, MRR, Recall, Precision`` at each cut-off, ``MRR``, then ``Coverage`` and
        ``Novelty`` at each cut-off, averaged over the users that have a target.

    Raises:
        InputError: no target, shapes that do not fit, or a model that produced NaN.
    """
    cutoffs = checked_cutoffs(k)
    q, x, b = checked_scorer(queries, items, bias)
    if popularity is not None and np.shape(popularity) != (len(x),):
        raise InputError(
            f"popularity: expected one count for each of the {len(x)} items, found shape "
            f"{np.shape(popularity)}"
        )
    seen = holdout.histories if exclude_seen else None
    hidden = checked_mask(blocked, len(x))
    ranks = rank_targets(
        q, x, b, targets=holdout.targets, seen=seen, blocked=hidden, threads=threads
    )
    values = metrics_from_ranks(ranks, holdout.targets.offsets, cutoffs)
    counted = np.flatnonzero(np.diff(holdout.targets.offsets))
    lists = _top_lists(q, x, b, holdout, counted, max(cutoffs), exclude_seen, hidden, threads)
    for cutoff in cutoffs:
        values[f"Coverage@{cutoff}"] = coverage(lists[:, :cutoff], len(x), hidden)
        if popularity is not None:
            values[f"Novelty@{cutoff}"] = novelty(lists[:, :cutoff], popularity)
    parts = [protocol] if protocol else []
    parts += ["full ranking", f"seen {'excluded' if exclude_seen else 'included'}", "ties against"]
    return Metrics(values, len(counted), ", ".join(parts))


def evaluate_popularity(
    holdout: Holdout,
    popularity: ArrayLike,
    *,
    k: int | Sequence[int] = (5, 10, 20),
    exclude_seen: bool = True,
    blocked: ArrayLike | None = None,
    protocol: str = "",
    threads: int | None = None,
) -> Metrics:
    """The baseline that every model has to beat: all users get the most popular items.

    The same path as :func:`evaluate`, with the counts as scores. Items of equal count tie, and
    ties count against the baseline as they do against a model.

    Args:
        holdout: histories and targets.
        popularity: ``[items]`` number of *training* events of each item.
        k: cut-offs.
        exclude_seen: mask the whole history of a user.
        blocked: as in :func:`evaluate`.
        protocol: as in :func:`evaluate`.
        threads: as in :func:`evaluate`.
    """
    counts = np.asarray(popularity)
    if counts.ndim != 1 or not len(counts):
        raise InputError(f"popularity: expected one count an item, found shape {counts.shape}")
    # The order of the counts, not the counts: exact in float32 whatever their size, ties kept.
    order = np.unique(counts, return_inverse=True)[1].reshape(-1).astype(np.float32)
    nothing = np.zeros((len(holdout.targets), 1), dtype=np.float32)
    return evaluate(
        nothing,
        np.zeros((len(counts), 1), dtype=np.float32),
        order,
        holdout,
        k=k,
        popularity=counts,
        exclude_seen=exclude_seen,
        blocked=blocked,
        protocol=protocol,
        threads=threads,
    )


def _top_lists(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    holdout: Holdout,
    users: NDArray[np.int64],
    k: int,
    exclude_seen: bool,
    blocked: NDArray[np.bool_] | None,
    threads: int | None,
) -> NDArray[np.int64]:
    """int64 ``[users, k]``: the items that would be shown, -1 where there is none."""
    seen = holdout.histories.select(users) if exclude_seen else None
    best = min(k, len(items))

    def search(rows: NDArray[np.float32], hidden: JaggedBatch[Any] | None) -> Found:
        return Found(
            *score_topk(rows, items, best, bias=bias, seen=hidden, blocked=blocked, threads=threads)
        )

    if queries.ndim == 3:
        return best_of_interests(queries[users], best, seen, search)[1]
    return search(queries[users], seen).ids
