# SPDX-License-Identifier: Apache-2.0
"""Vectors of items that no user has met yet, predicted from what the item table tells of them.

A ridge regression from features (the words of every text column, weighted by how rare they are, and
numbers) to the trained vectors. It is fitted on the items that have both. A tenth of them is held
out first: on it the strength of the regularisation is chosen, and it is told how far predictions
can be relied on. No random numbers but a fixed seed: equal input gives equal vectors.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.data.items import ItemTable
from seqrec_fast.errors import InputError

__all__ = ["BOOST", "ItemRegression", "Quality"]

Float = NDArray[np.float32]

MAX_WORDS = 2048
#: how far a predicted vector lies from the mean of all, where a trained one is at 1
BOOST = 0.8
#: items that a fit looks at, those with the most events first: theirs are the best vectors
MAX_FITTED = 50_000
_LEAST_ITEMS = 20
_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
_NEIGHBOURS = 10
_ROWS = 4096
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Quality:
    """How well the vectors of held-out items were predicted.

    Attributes:
        r2: share of the variance of their vectors that is explained; 0 is what their mean gives.
        recall: share of an item's 10 true neighbours (by cosine) that its predicted vector finds.
        chance: what a random vector finds on average.
        items: how many were held out.
    """

    r2: float
    recall: float
    chance: float
    items: int


class ItemRegression:
    """A fitted regression from the columns of an item table to vectors.

    Attributes:
        quality: figures on the items that were held out of the first fit.
    """

    def __init__(
        self, table: ItemTable, vectors: Float, popularity: NDArray[np.int64], seed: int = 0
    ) -> None:
        """Fits.

        Args:
            table: what is known of the items.
            vectors: float32 ``[items, dim]``, the trained ones.
            popularity: int64 ``[items]``; what was never seen has no trained vector and is left
                out.
            seed: chooses what is held out.

        Raises:
            InputError: too few items, or nothing in the table that could tell them apart.
        """
        order = np.argsort(-popularity, kind="stable")
        chosen = order[popularity[order] > 0][:MAX_FITTED]
        if len(chosen) < _LEAST_ITEMS:
            raise InputError(
                f"item table: {len(chosen)} items with events, which is too few to predict vectors "
                f"from it; give vectors, or similar items"
            )
        part = table.select(chosen)
        self._features = _Features(part)
        goal = vectors[chosen].astype(np.float64)
        rows = self._features.rows(part)
        held = np.zeros(len(chosen), dtype=np.bool_)
        count = max(2, len(chosen) // 10)
        held[np.random.default_rng(seed).permutation(len(chosen))[:count]] = True
        first = _Normal(rows, goal, ~held)
        errors = []
        for strength in _STRENGTHS:
            weights, offset = first.solve(strength)
            errors.append(float(((rows.product(weights, held) + offset - goal[held]) ** 2).sum()))
        best = _STRENGTHS[int(np.argmin(errors))]
        weights, offset = first.solve(best)
        self.quality = _quality(rows.product(weights, held) + offset, goal[held], goal[~held])
        self._weights, self._offset = _Normal(rows, goal, np.ones(len(goal), np.bool_)).solve(best)
        self._centre = goal.mean(axis=0)
        self._length = float(np.median(np.linalg.norm(goal - self._centre, axis=1)))

    def predict(self, table: ItemTable, boost: float = BOOST) -> Float:
        """Vectors of other items.

        A regression shrinks what it is not sure of towards the mean, and an item at the mean is
        never recommended. What the vectors of all items have in common shifts the scores of all by
        the same; so only the difference from the mean is made longer.

        Args:
            table: their rows; columns that the first table did not have are not looked at.
            boost: length of that difference, in median lengths of the trained vectors.

        Returns:
            float32 ``[items, dim]``.
        """
        found = self._features.rows(table).product(self._weights) + self._offset
        found -= self._centre
        length = np.linalg.norm(found, axis=1, keepdims=True)
        scale = np.divide(self._length * boost, length, out=np.zeros_like(length), where=length > 0)
        scaled: Float = (self._centre + found * scale).astype(np.float32)
        return scaled


class _Rows:
    """Sparse rows: features ``places`` of each item with ``values``, bounded by ``offsets``."""

    def __init__(self, lists: list[tuple[list[int], list[float]]], width: int) -> None:
        lengths = [len(places) for places, _ in lists]
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.places = np.fromiter((p for one, _ in lists for p in one), np.int64)
        self.values = np.fromiter((v for _, one in lists for v in one), np.float64)
        self.width = width

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def dense(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Some rows with all their zeros."""
        found = np.zeros((len(rows), self.width))
        for at, row in enumerate(rows.tolist()):
            part = slice(self.offsets[row], self.offsets[row + 1])
            found[at, self.places[part]] = self.values[part]
        return found

    def product(
        self, weights: NDArray[np.float64], mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """The rows (of a mask) times ``weights [features, dim]``."""
        chosen = np.arange(len(self)) if mask is None else np.flatnonzero(mask)
        parts = [
            self.dense(chosen[at : at + _ROWS]) @ weights for at in range(0, len(chosen), _ROWS)
        ]
        return np.concatenate(parts) if parts else np.empty((0, weights.shape[1]))


class _Features:
    """Which words and numbers of a table are features."""

    def __init__(self, table: ItemTable) -> None:
        counts: Counter[tuple[str, str]] = Counter()
        self._numbers: dict[str, tuple[float, float]] = {}
        for name, column in table.columns.items():
            if isinstance(column, np.ndarray):
                values = column[np.isfinite(column.astype(np.float64))].astype(np.float64)
                if len(values) and values.std() > 0:
                    self._numbers[name] = float(values.mean()), float(values.std())
                continue
            for text in column:
                counts.update({(name, word) for word in _words(text)})
        items = len(table)
        # A word of one item tells nothing of another, and a word of all does not tell them apart.
        common = [(n, key) for key, n in counts.items() if 2 <= n < items]
        common.sort(key=lambda found: (-found[0], found[1]))
        self._words = {key: place for place, (_, key) in enumerate(common[:MAX_WORDS])}
        self._rarity = [float(np.log((1 + items) / (1 + n))) for n, _ in common[:MAX_WORDS]]
        self.width = len(self._words) + len(self._numbers)
        if not self.width:
            raise InputError(
                "item table: it has no word or number that two items share, so that no vector can "
                "be predicted from it; give vectors, or similar items"
            )

    def rows(self, table: ItemTable) -> _Rows:
        """The features of the items of a table."""
        found: list[tuple[list[int], list[float]]] = [([], []) for _ in range(len(table))]
        for name, column in table.columns.items():
            if isinstance(column, np.ndarray):
                continue
            for text, (places, values) in zip(column, found, strict=True):
                keys = sorted({(name, word) for word in _words(text)} & self._words.keys())
                places += [self._words[key] for key in keys]
                values += [self._rarity[self._words[key]] for key in keys]
        for at, (places, values) in enumerate(found):
            length = float(np.linalg.norm(values))
            found[at] = places, [value / length for value in values]
        for place, (name, (mean, deviation)) in enumerate(self._numbers.items()):
            column = table.columns.get(name, [])
            if not isinstance(column, np.ndarray):
                continue
            numbers = (column.astype(np.float64) - mean) / deviation
            for number, (places, values) in zip(numbers.tolist(), found, strict=True):
                if np.isfinite(number):
                    places.append(len(self._words) + place)
                    values.append(float(np.clip(number, -3.0, 3.0)))
        return _Rows(found, self.width)


class _Normal:
    """Normal equations of a ridge regression around the means, which several strengths share."""

    def __init__(self, rows: _Rows, goal: NDArray[np.float64], mask: NDArray[np.bool_]) -> None:
        chosen = np.flatnonzero(mask)
        self._goal_mean = goal[chosen].mean(axis=0)
        self._gram = np.zeros((rows.width, rows.width))
        self._moment = np.zeros((rows.width, goal.shape[1]))
        total = np.zeros(rows.width)
        for at in range(0, len(chosen), _ROWS):
            part = chosen[at : at + _ROWS]
            x = rows.dense(part)
            self._gram += x.T @ x
            self._moment += x.T @ (goal[part] - self._goal_mean)
            total += x.sum(axis=0)
        self._mean = total / len(chosen)
        self._gram -= len(chosen) * np.outer(self._mean, self._mean)

    def solve(self, strength: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights ``[features, dim]`` and what is added to every prediction ``[dim]``."""
        matrix = self._gram + strength * np.eye(len(self._gram))
        weights: Any = np.linalg.solve(matrix, self._moment)
        offset: Any = self._goal_mean - self._mean @ weights
        return weights, offset


def _quality(
    found: NDArray[np.float64], truth: NDArray[np.float64], others: NDArray[np.float64]
) -> Quality:
    spread = float(((truth - truth.mean(axis=0)) ** 2).sum())
    near = min(_NEIGHBOURS, len(others))
    hits = 0
    base = _unit(others).T
    for at in range(0, len(truth), 512):
        mine, real = (_nearest(_unit(a[at : at + 512]) @ base, near) for a in (found, truth))
        hits += sum(len(np.intersect1d(a, b)) for a, b in zip(mine, real, strict=True))
    return Quality(
        r2=1.0 - float(((found - truth) ** 2).sum()) / spread if spread > 0 else 0.0,
        recall=hits / (len(truth) * near),
        chance=near / len(others),
        items=len(truth),
    )


def _nearest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    return np.argpartition(-scores, count - 1, axis=1)[:, :count]


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float64] = np.zeros_like(rows)
    np.divide(rows, length, out=found, where=length > 0)
    return found


def _words(text: Any) -> list[str]:
    return [] if text is None else _WORD.findall(str(text).lower())
