# SPDX-License-Identifier: Apache-2.0
"""What a Recommender answers for one user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from seqrec_fast.engine.requests import Filter, Histories
    from seqrec_fast.engine.served import ServedModel

__all__ = ["Recommendation", "answers", "told"]


class Recommendation:
    """The answer for one user, best item first.

    Attributes:
        items: raw ids ``[n]`` (int64, or object array of ``str``); ``n`` is ``k``, or less where
            fewer items are left.
        scores: float32 ``[n]``, descending. Logits of the model (event counts where ``fallback``
            is ``"popularity"``, cosines from ``similar_items``).
        unknown: ids of the history that the model does not know; they were ignored.
        fallback: ``"popularity"`` where the history holds no known id, so that the most popular
            items were ranked instead; otherwise ``None``.
        unknown_filters: ids of the allow and deny lists that the model does not know; ignored.
    """

    __slots__ = ("_indices", "_model", "fallback", "items", "scores", "unknown", "unknown_filters")

    def __init__(
        self,
        model: ServedModel,
        indices: NDArray[np.int64],
        scores: NDArray[np.float32],
        items: NDArray[Any],
        unknown: tuple[Any, ...] = (),
        fallback: str | None = None,
        unknown_filters: tuple[Any, ...] = (),
    ) -> None:
        self.items = items
        self.scores = scores
        self.unknown = unknown
        self.fallback = fallback
        self.unknown_filters = unknown_filters
        self._model = model
        self._indices = indices

    @classmethod
    def of(
        cls,
        model: ServedModel,
        indices: NDArray[np.int64],
        scores: NDArray[np.float32],
        unknown: tuple[Any, ...] = (),
        fallback: str | None = None,
        unknown_filters: tuple[Any, ...] = (),
    ) -> Recommendation:
        """The answer of the items at ``indices``, which are looked up."""
        items = model.items.ids[indices]
        return cls(model, indices, scores, items, unknown, fallback, unknown_filters)

    @property
    def version(self) -> str:
        """Names the model that answered; see :attr:`Recommender.version`."""
        return self._model.version

    @property
    def titles(self) -> tuple[str | None, ...]:
        """Title of each item, ``None`` where there is none."""
        return self._model.titles(self._indices)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        shown = ", ".join(repr(item) for item in self.items[:3].tolist())
        more = ", …" if len(self) > 3 else ""
        return f"Recommendation({len(self)} items: {shown}{more})"


def answers(
    model: ServedModel, ids: NDArray[np.int64], scores: NDArray[np.float32], complete: bool
) -> list[Recommendation]:
    """One answer a row of ``ids`` and ``scores`` ``[users, k]``; -1 ends a row unless complete."""
    if complete:
        items = model.items.ids.take(ids)
        return [Recommendation(model, *row) for row in zip(ids, scores, items, strict=True)]
    left = (ids >= 0).sum(axis=1).tolist()
    return [
        Recommendation.of(model, row[:n], of_row[:n])
        for row, of_row, n in zip(ids, scores, left, strict=True)
    ]


def told(
    model: ServedModel,
    histories: Histories,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    ids: NDArray[np.int64],
    filters: tuple[Filter, Filter],
) -> list[Recommendation]:
    """Answers that tell what was not known and who got the most popular items.

    Args:
        model: what ranked.
        histories: of the whole request.
        rows: int64 ``[users]``: the users' places in the request.
        scores: float32 ``[users, k]``.
        ids: int64 ``[users, k]``, -1 where nothing was left.
        filters: allow and deny lists of the whole request.
    """
    allowed, denied = filters
    has_history = histories.known.lengths[rows] > 0
    return [
        Recommendation.of(
            model,
            ids[at][ids[at] >= 0],
            scores[at][ids[at] >= 0],
            histories.unknown[row],
            None if has_history[at] else "popularity",
            allowed.unknown[row] + denied.unknown[row],
        )
        for at, row in enumerate(rows.tolist())
    ]
