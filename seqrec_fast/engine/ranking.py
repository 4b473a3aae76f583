# SPDX-License-Identifier: Apache-2.0
"""Ranks items for some users of a request: in one native call where nothing stands against it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.engine.requests import Filter
from seqrec_fast.engine.selection import common_mask, select_for_all
from seqrec_fast.engine.served import ServedModel
from seqrec_fast.jagged import JaggedBatch

__all__ = ["rank_users"]


def rank_users(
    model: ServedModel,
    known: JaggedBatch[Any],
    k: int,
    exclude_seen: bool,
    allowed: Filter,
    denied: Filter,
    rows: NDArray[np.int64],
    threads: int | None,
    diversity: float = 0.0,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best items of users with and without a history.

    Args:
        model: encodes and ranks.
        known: item indices of each user's history, unknown ids left out.
        k: places.
        exclude_seen: whether the items of a history are left out.
        allowed: a filter.
        denied: a filter.
        rows: int64 ``[users]``, the users' places in the request, by which filters go.
        threads: cores; ``None`` takes the default of the native pool.
        diversity: as in :meth:`seqrec_fast.Recommender.recommend`.

    Returns:
        Scores and item indices ``[users, k]``, minus infinity and -1 where there are no more.
    """
    has_history = known.lengths > 0
    common = allowed.per_user is None and denied.per_user is None and not diversity
    if common and model.ranker is None and has_history.all():
        blocked = common_mask(len(model.items), allowed.common, denied.common)
        values = known.values if exclude_seen else None
        offsets = known.offsets if exclude_seen else None
        return model.encoder.engine.recommend(
            known.values, known.offsets, values, offsets, blocked, k, threads or 0
        )
    queries = np.zeros((len(known), *model.encoder.embedding_shape), dtype=np.float32)
    part = np.flatnonzero(has_history)
    if len(part):
        queries[part] = model.encoder.encode(known.select(part), threads=threads)
    seen = known if exclude_seen else None
    return select_for_all(
        model, has_history, queries, k, seen, allowed, denied, rows, threads, diversity
    )
