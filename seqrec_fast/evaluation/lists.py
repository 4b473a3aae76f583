# SPDX-License-Identifier: Apache-2.0
"""Figures of lists of items that were found, by an index for instance, instead of full scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
from seqrec_fast.evaluation.ranking import checked_mask

if TYPE_CHECKING:
    from seqrec_fast.data import Holdout

__all__ = ["evaluate_lists", "ranks_in_lists"]


def ranks_in_lists(
    scores: NDArray[np.float32], ids: NDArray[np.int64], holdout: Holdout
) -> NDArray[np.int64]:
    """The rank of each held-out item in the list of its user; ties count against it.

    Args:
        scores: float32 ``[users, n]``, descending.
        ids: int64 ``[users, n]``; -1 is no item.
        holdout: its targets, one row a user.

    Returns:
        int64, aligned with the values of the targets; ``2^62`` where an item is not in the list.
    """
    values, offsets = holdout.targets.values, holdout.targets.offsets
    rows = np.repeat(np.arange(len(ids)), np.diff(offsets))
    ranks = np.full(len(values), 2**62, dtype=np.int64)
    step = max(1, 2**22 // max(1, ids.shape[1]))  # bounds the comparison
    for begin in range(0, len(values), step):
        part = rows[begin : begin + step]
        match = ids[part] == values[begin : begin + step, None]
        found = np.flatnonzero(match.any(axis=1))
        own = scores[part[found], match[found].argmax(axis=1)]
        ranks[begin + found] = (scores[part[found]] >= own[:, None]).sum(axis=1)
    return ranks


def evaluate_lists(
    scores: NDArray[np.float32],
    ids: NDArray[np.int64],
    holdout: Holdout,
    *,
    items: int,
    k: int | Sequence[int] = (5, 10, 20),
    popularity: ArrayLike | None = None,
    blocked: ArrayLike | None = None,
    protocol: str = "",
) -> Metrics:
    """Figures of lists, as :func:`seqrec_fast.evaluation.evaluate` has them of full scores.

    With the lists of an exact search they are the same figures. What is not in its list counts as a
    miss, so that the ``MRR`` without a cut-off, which needs all ranks, is not among them.

    Args:
        scores: float32 ``[users, n]``, descending; ``n`` one more than the largest cut-off, so that
            a tie at the cut-off is seen, or all items.
        ids: int64 ``[users, n]``; -1 is no item.
        holdout: histories and targets, aligned with the rows.
        items: size of the catalogue.
        k: cut-offs.
        popularity: number of training events of each item, for the novelty.
        blocked: as in :func:`seqrec_fast.evaluation.evaluate`; the lists hold none of them.
        protocol: names what was done.

    Raises:
        InputError: no target, or lists too short for a cut-off.
    """
    cutoffs = checked_cutoffs(k)
    if ids.shape[1] < min(max(cutoffs) + 1, items):
        raise InputError(
            f"ids: lists of {ids.shape[1]} are too short for k={max(cutoffs)}; one more is needed"
        )
    ranks = ranks_in_lists(scores, ids, holdout)
    values = metrics_from_ranks(ranks, holdout.targets.offsets, cutoffs)
    del values["MRR"]
    hidden = checked_mask(blocked, items)
    counted = np.flatnonzero(np.diff(holdout.targets.offsets))
    for cutoff in cutoffs:
        values[f"Coverage@{cutoff}"] = coverage(ids[counted, :cutoff], items, hidden)
        if popularity is not None:
            values[f"Novelty@{cutoff}"] = novelty(ids[counted, :cutoff], popularity)
    return Metrics(values, len(counted), protocol)
