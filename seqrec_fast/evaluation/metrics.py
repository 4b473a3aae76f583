# SPDX-License-Identifier: Apache-2.0
"""Figures computed from ranks and from lists of recommended items.

Definitions (``docs/evaluation.md`` gives the sources): for a user with targets ``T`` of ranks
``r_1 <= r_2 <= ...`` and a cut-off ``k``, ``hits = #{r <= k}``:

* HR@k = 1 if hits > 0, else 0
* Recall@k = hits / |T|
* Precision@k = hits / k
* NDCG@k = sum over r <= k of 1 / log2(r + 1), divided by the same sum over 1 .. min(k, |T|)
* MRR@k = 1 / r_1 if r_1 <= k, else 0; MRR is the same without a cut-off

each averaged over users. Coverage and novelty look at the lists alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.errors import InputError

__all__ = ["Metrics", "checked_cutoffs", "coverage", "metrics_from_ranks", "novelty"]


@dataclass(frozen=True)
class Metrics:
    """Figures of one evaluation, with what they mean.

    Attributes:
        values: name to figure, for instance ``"NDCG@10"``; all are shares between 0 and 1 but
            ``Novelty@k``, which is in bits.
        users: number of users averaged over.
        protocol: how the figures were obtained, for instance ``"leave-one-out, strict, full
            ranking, seen excluded, ties against"``.
    """

    values: dict[str, float]
    users: int
    protocol: str

    def __getitem__(self, name: str) -> float:
        if name not in self.values:
            raise InputError(f"no figure named {name!r}; there are {', '.join(self.values)}")
        return self.values[name]

    def to_dict(self) -> dict[str, Any]:
        """``{"values": ..., "users": ..., "protocol": ...}``, ready for JSON."""
        return {"values": dict(self.values), "users": self.users, "protocol": self.protocol}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Metrics:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a key is missing or of another type.
        """
        try:
            values = {str(name): float(value) for name, value in given["values"].items()}
            return cls(values, int(given["users"]), str(given["protocol"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"metrics: expected the keys values, users and protocol as Metrics.to_dict() "
                f"writes them ({type(error).__name__}: {error})"
            ) from None

    def __str__(self) -> str:
        cells: dict[str, dict[str, str]] = {}
        cutoffs: list[str] = []
        for name, value in self.values.items():
            metric, _, cutoff = name.partition("@")
            column = f"@{cutoff}" if cutoff else "all ranks"
            if column not in cutoffs:
                cutoffs.append(column)
            figure = f"{value:.2f}" if metric == "Novelty" else f"{value:.4f}"
            cells.setdefault(metric, {})[column] = figure
        table = [["metric", *cutoffs]]
        table += [[metric, *(row.get(c, "-") for c in cutoffs)] for metric, row in cells.items()]
        widths = [max(len(line[i]) for line in table) for i in range(len(cutoffs) + 1)]
        lines = [
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
                ]
            ).rstrip()
            for line in table
        ]
        return "\n".join([f"{self.users:,} users; {self.protocol}", *lines])


def metrics_from_ranks(
    ranks: ArrayLike, offsets: ArrayLike, k: int | Sequence[int]
) -> dict[str, float]:
    """Averages the rank metrics over users.

    Args:
        ranks: int64 ``[targets]``, 1-based, of all users' targets end to end.
        offsets: int64 ``[users + 1]``, where each user's targets begin and end. Users without a
            target are left out of the averages.
        k: cut-offs.

    Returns:
        ``"HR@k"``, ``"NDCG@k"``, ``"MRR@k"``, ``"Recall@k"``, ``"Precision@k"`` for each cut-off
        in the order given, then ``"MRR"``.

    Raises:
        InputError: a cut-off or rank below 1, offsets that do not fit, or no target at all.
    """
    cutoffs = checked_cutoffs(k)
    r = np.asarray(ranks)
    ends = np.asarray(offsets, dtype=np.int64)
    if r.ndim != 1 or ends.ndim != 1 or len(ends) < 1 or ends[0] != 0 or ends[-1] != len(r):
        raise InputError(
            f"offsets: must run from 0 to the {r.size} ranks; found shape {ends.shape} and ranks "
            f"of shape {r.shape}"
        )
    counts = np.diff(ends)
    if (counts < 0).any():
        raise InputError("offsets: must not decrease; each row ends where the next begins")
    counts = counts[counts > 0]
    if not len(counts):
        raise InputError("ranks: there is no target to average over; the holdout is empty")
    if (r < 1).any():
        raise InputError(f"ranks: the best rank is 1, found {r.min()}")
    starts = np.cumsum(counts) - counts
    best = np.minimum.reduceat(r, starts)
    # Ideal gain of a user with n targets: the first n entries of this running sum.
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, int(counts.max()) + 2)))
    gain = 1.0 / np.log2(r + 1.0)
    values: dict[str, float] = {}
    for cutoff in cutoffs:
        inside = r <= cutoff
        hits = np.add.reduceat(inside.astype(np.int64), starts)
        dcg = np.add.reduceat(np.where(inside, gain, 0.0), starts)
        first = np.where(best <= cutoff, 1.0 / best, 0.0)
        values[f"HR@{cutoff}"] = float((hits > 0).mean())
        values[f"NDCG@{cutoff}"] = float((dcg / ideal[np.minimum(counts, cutoff) - 1]).mean())
        values[f"MRR@{cutoff}"] = float(first.mean())
        values[f"Recall@{cutoff}"] = float((hits / counts).mean())
        values[f"Precision@{cutoff}"] = float((hits / cutoff).mean())
    values["MRR"] = float((1.0 / best).mean())
    return values


def coverage(
    lists: NDArray[np.int64], items: int, blocked: NDArray[np.bool_] | None = None
) -> float:
    """Share of the catalogue that is in at least one list.

    Args:
        lists: int64 ``[users, k]`` item indices, -1 where there is none.
        items: size of the catalogue.
        blocked: bool ``[items]``, true for what nobody may get: no part of the catalogue then.
    """
    found = np.zeros(items, dtype=np.bool_)
    found[lists[lists >= 0]] = True
    return float(found.mean() if blocked is None else found[~blocked].mean())


def novelty(lists: NDArray[np.int64], popularity: ArrayLike) -> float:
    """Mean self-information, in bits, of the recommended items.

    ``-log2 p(i)`` with ``p(i) = (c_i + 1) / (sum of all c + items)``: the share of item ``i`` in
    the training events, one event added to each item so that an item without any has a finite
    value. After the surprisal of Zhou et al. (PNAS 107(10), 2010), who take the share of users,
    and the popularity-based novelty of Castells, Vargas and Wang (DDR 2011).

    Args:
        lists: int64 ``[users, k]`` item indices, -1 where there is none.
        popularity: ``[items]`` number of training events of each item.
    """
    counts = np.asarray(popularity, dtype=np.float64)
    information = -np.log2((counts + 1.0) / (counts.sum() + len(counts)))
    shown = lists[lists >= 0]
    return float(information[shown].mean()) if len(shown) else 0.0


def checked_cutoffs(k: int | Sequence[int]) -> list[int]:
    """The cut-offs as ints, each once, in the order given.

    Raises:
        InputError: none given, or one that is not a whole number of at least 1.
    """
    whole: Any = k
    given: list[Any] = list(whole) if isinstance(whole, Iterable) else [whole]
    if not given:
        raise InputError("k: give at least one cut-off, for instance k=(10,)")
    for one in given:
        if isinstance(one, bool) or not isinstance(one, (int, np.integer)) or one < 1:
            raise InputError(f"k: a cut-off must be a whole number of at least 1, found {one!r}")
    return list(dict.fromkeys(int(one) for one in given))
