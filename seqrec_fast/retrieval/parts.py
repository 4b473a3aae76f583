# SPDX-License-Identifier: Apache-2.0
"""Items in several parts: filters cut to a part, and partial results merged to that of the whole.

The ids of a part are numbered from 0 inside it, in the order of the ids of the whole. So the rule
for equal scores, the lower id first, holds inside a part, and :func:`merge` keeps it across parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.filters import Filters
from seqrec_fast.retrieval.index import Found

__all__ = ["filters_at", "filters_between", "merge", "shifted", "without"]


def merge(found: Sequence[Found], k: int) -> Found:
    """The best ``k`` of partial results, whose ids are those of the whole and differ.

    Equal to the search of the whole where every part brought its own best ``k`` (or all it has):
    an item that is not among the best ``k`` of its part has ``k`` before it in the whole.

    Args:
        found: at least one, each ``[queries, any number of places]``.
        k: places a query gets.
    """
    scores = np.concatenate([one.scores for one in found], axis=1)
    ids = np.concatenate([one.ids for one in found], axis=1)
    # Empty places have the lowest score of all, so they come last; 0.0 and -0.0 are equal here.
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    missing = k - ids.shape[1]
    if missing > 0:
        pad = ((0, 0), (0, missing))
        scores = np.pad(scores, pad, constant_values=-np.inf)
        ids = np.pad(ids, pad, constant_values=-1)
    return Found(scores, ids)


def shifted(found: Found, first: int) -> Found:
    """A partial result with the ids of the whole, where the part begins at ``first``."""
    return Found(found.scores, np.where(found.ids >= 0, found.ids + first, -1))


def filters_between(filters: Filters, begin: int, end: int) -> Filters:
    """Filters of the ids from ``begin`` to before ``end``, numbered from 0."""
    blocked = None if filters.blocked is None else filters.blocked[begin:end]

    def cut(batch: JaggedBatch[Any] | None) -> JaggedBatch[Any] | None:
        if batch is None:
            return None
        inside = (batch.values >= begin) & (batch.values < end)
        return _kept(batch, batch.values - begin, inside)

    return Filters(blocked, cut(filters.excluded), cut(filters.allowed))


def filters_at(filters: Filters, ids: NDArray[np.int64]) -> Filters:
    """Filters of some ids, which ascend, numbered from 0."""
    blocked = None if filters.blocked is None else filters.blocked[ids]

    def cut(batch: JaggedBatch[Any] | None) -> JaggedBatch[Any] | None:
        if batch is None or not len(ids):
            return None if batch is None else _kept(batch, batch.values, np.zeros(1, np.bool_))
        place = np.minimum(np.searchsorted(ids, batch.values), len(ids) - 1)
        return _kept(batch, place, ids[place] == batch.values)

    return Filters(blocked, cut(filters.excluded), cut(filters.allowed))


def without(batch: JaggedBatch[Any], mask: NDArray[np.bool_]) -> JaggedBatch[Any]:
    """The rows of ids without those for which ``mask`` is true."""
    return _kept(batch, batch.values, ~mask[batch.values])


def _kept(
    batch: JaggedBatch[Any], values: NDArray[Any], inside: NDArray[np.bool_]
) -> JaggedBatch[Any]:
    """Some values of a batch, in their rows and their order."""
    inside = np.broadcast_to(inside, values.shape)
    if inside.all():
        return JaggedBatch(values.astype(np.int32, copy=False), batch.offsets)
    rows = np.repeat(np.arange(len(batch)), batch.lengths)[inside]
    return JaggedBatch.from_lengths(
        values[inside].astype(np.int32, copy=False), np.bincount(rows, minlength=len(batch))
    )
