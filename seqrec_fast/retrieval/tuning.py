# SPDX-License-Identifier: Apache-2.0
"""The choice of an index by measurement.

How fast an index is at a given recall depends on the vectors, on the queries and on the machine, so
none of it is guessed. Each kind is built; the parameter of its search that trades time for recall
is walked by bisection to the least value that reaches the recall; then those that did are timed in
turn, query by query, so that a change of the machine's load meets them all.

The queries are split in two. Parameters are chosen on one half, where the recall has to lie a
standard error above what was asked; the recall that is told was measured on the other half, of
which the choice knew nothing. The same arguments give the same parameters and recalls, as far as
the kinds are built the same; times are what they are, and decide between the kinds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast._arguments import integer, number
from seqrec_fast.errors import InputError, MissingExtraError
from seqrec_fast.retrieval.candidates import Candidate, Walk, candidates
from seqrec_fast.retrieval.factory import build
from seqrec_fast.retrieval.filters import item_ids
from seqrec_fast.retrieval.index import Float, Index, Metric

__all__ = ["Skipped", "Trial", "Tuning", "measure", "recall_of", "tune"]

_WARM_UP = 5
_TIMED = 1000  # single queries, at most
_LEAST = 20  # and at least, however long they take
_SECONDS = 2.0  # to time one index for
# Beyond this multiple of the quickest that reached the recall a kind is out of the race and its
# memory is given back before the next one is built.
_OUT_OF_RACE = 1.5
# Medians this close differ by chance: the smaller index is taken then.
_TIE = 1.05

Ids = NDArray[np.int64]
Say = Callable[[str], None]


@dataclass
class Trial:
    """One kind as it was measured.

    Attributes:
        kind: of the index.
        build: options it was built with, apart from the defaults of the kind.
        search: what the walk chose, empty where there is nothing to choose.
        recall: share of the exact ``k`` best that are found, over queries that the choice did not
            see.
        recall_chosen: the same over the queries that the choice was made on.
        reached: whether that is enough, a standard error below it included.
        median_us: of single queries, in microseconds.
        p99_us: the time that one query in a hundred exceeds.
        bytes: memory of the index.
        build_seconds: to build it.
        exact: whether it compares every item.
        curve: the walk: value of the parameter, recall and median time of each step.
        chosen: whether it was the best.
    """

    kind: str
    build: dict[str, Any]
    search: dict[str, Any]
    recall: float
    recall_chosen: float
    reached: bool
    median_us: float
    p99_us: float
    bytes: int
    build_seconds: float
    exact: bool
    curve: list[dict[str, float]] = field(default_factory=list)
    chosen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return dict(vars(self))

    @property
    def name(self) -> str:
        """The kind and the options that tell it from others, such as ``ivf nprobe=12``."""
        options = {**self.build, **self.search}
        return " ".join([self.kind, *(f"{name}={value}" for name, value in options.items())])


@dataclass(frozen=True)
class Skipped:
    """What was not measured, and why."""

    kind: str
    build: dict[str, Any]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Tuning:
    """The outcome: the best index and all that was measured.

    Attributes:
        best: the chosen index; its ``measured`` is :meth:`to_dict` without what lost.
        trials: everything measured, quickest first among those that reached the recall.
        skipped: everything else, with the reasons.
        k: items that a query had to find.
        target: the recall that was asked for.
        queries: how many queries the choice was made on, and how many the recall is told of.
        threads: cores of one search.
        seconds: what all of it took.
    """

    best: Index
    trials: list[Trial]
    skipped: list[Skipped]
    k: int
    target: float
    queries: tuple[int, int]
    threads: int
    seconds: float

    @property
    def chosen(self) -> Trial:
        """The trial of :attr:`best`."""
        return next(trial for trial in self.trials if trial.chosen)

    def to_dict(self) -> dict[str, Any]:
        """All of it but the index, ready for JSON."""
        return {
            "k": self.k,
            "target": self.target,
            "queries_chosen_on": self.queries[0],
            "queries_measured_on": self.queries[1],
            "threads": self.threads,
            "seconds": self.seconds,
            "trials": [trial.to_dict() for trial in self.trials],
            "skipped": [one.to_dict() for one in self.skipped],
        }


def tune(
    vectors: ArrayLike,
    queries: ArrayLike,
    k: int = 100,
    recall: float = 0.99,
    *,
    metric: Metric | str = "ip",
    kinds: Sequence[str] | None = None,
    threads: int = 1,
    budget: float | None = None,
    seed: int = 0,
    removed: ArrayLike = (),
    tried: Sequence[Candidate] | None = None,
    say: Say | None = None,
) -> Tuning:
    """Builds and measures indexes, and gives back the quickest that finds enough.

    The exact index is always among them, and wins where no other reaches the recall.

    Args:
        vectors: float ``[items, dim]``, as in :func:`seqrec_fast.retrieval.build`.
        queries: float ``[queries, dim]``, such as will be searched for: at least 2, better some
            hundreds. Half of them choose, half of them judge.
        k: items that a query has to find; where there are fewer, all of them.
        recall: share of the ``k`` best items that has to be found on average, above 0, at most 1.
        metric: ``"ip"`` or ``"cosine"``.
        kinds: only these kinds beside the exact one; ``None``: all that search by
            themselves on the CPU.
        threads: cores that one search may use.
        budget: seconds after which nothing new is begun; what was begun is ended. ``None``: no
            bound.
        seed: of the split of the queries.
        removed: ids of items that are not to be found: neither by the exact search nor by any
            index, of which the best comes back without them.
        tried: what to try instead of :func:`seqrec_fast.retrieval.candidates.candidates`.
        say: is told what is under way.

    Raises:
        InputError: an argument has the wrong type, shape or range; the message names it.
    """
    began = time.perf_counter()
    share = number("recall", recall)
    if not 0 < share <= 1:
        raise InputError(f"recall: expected above 0 and at most 1, found {recall!r}")
    if budget is not None and not number("budget", budget) > 0:
        raise InputError(f"budget: expected seconds above 0, found {budget!r}")
    cores = integer("threads", threads)
    tell: Say = (lambda _: None) if say is None else say
    race = _Race(vectors, queries, integer("k", k), share, metric, cores, seed, removed)
    if tried is None:
        tried = candidates(race.exact.size, race.k, kinds)
    if not any(one.kind == "exact" and one.build.get("dtype") != "bfloat16" for one in tried):
        tried = [Candidate("exact"), *tried]
    for one in tried:
        title = _title(one)
        spent = time.perf_counter() - began
        if budget is not None and spent > budget and race.trials:
            race.skip(one, f"the budget of {budget:g} s was spent before it")
            continue
        tell(f"building {title}")
        try:
            race.enter(one, tell)
        except (InputError, MissingExtraError) as error:
            race.skip(one, str(error))
            tell(f"skipped {title}: {error}")
    tell("timing those that reached the recall in turn")
    race.finish()
    seconds = time.perf_counter() - began
    best = race.best()
    found = Tuning(
        best, race.trials, race.skipped, race.k, share, race.halves, cores, round(seconds, 3)
    )
    chosen = found.chosen.to_dict()
    del chosen["curve"], chosen["chosen"]
    best.measured = {**found.to_dict(), **chosen}
    del best.measured["trials"], best.measured["skipped"]
    return found


def measure(
    index: Index,
    vectors: ArrayLike,
    queries: ArrayLike,
    k: int = 100,
    *,
    threads: int = 1,
    removed: ArrayLike = (),
) -> dict[str, Any]:
    """Recall and times of one index, of which nothing is chosen.

    Args:
        index: what to measure.
        vectors: the vectors that it was built from.
        queries: float ``[queries, dim]``.
        k: items that a query has to find; where there are fewer, all of them.
        threads: cores that one search may use.
        removed: ids of the items that were removed from the index.

    Returns:
        ``k, queries_measured_on, threads, recall, median_us, p99_us, bytes``.

    Raises:
        InputError: as :func:`tune`.
    """
    exact = build(vectors, "exact", index.metric)
    exact.remove(item_ids("removed", removed, exact.size))
    count = min(integer("k", k), max(len(exact), 1))
    rows = exact._prepared("queries", queries)
    if not len(rows):
        raise InputError("queries: there is none; give some to measure with")
    recalls = recall_of(index.search(rows, count).ids, exact.search(rows, count).ids)
    times = _times([index], rows, count, threads)[0]
    return {
        "k": count,
        "queries_measured_on": len(rows),
        "threads": threads,
        "recall": float(recalls.mean()),
        "median_us": float(np.median(times)),
        "p99_us": float(np.quantile(times, 0.99)),
        "bytes": index.nbytes,
    }


def recall_of(found: Ids, truth: Ids) -> NDArray[np.float64]:
    """Share of each row of ``truth`` that is in the same row of ``found``; -1 is no item.

    Args:
        found: int64 ``[queries, k]``.
        truth: int64 ``[queries, k]``; a row without items counts as found.
    """
    shares = np.ones(len(truth))
    for row, (mine, wanted) in enumerate(zip(found, truth, strict=True)):
        there = wanted[wanted >= 0]
        if len(there):
            shares[row] = np.isin(there, mine, assume_unique=True).mean()
    return shares


class _Race:
    """The queries with their true answers, and what was measured so far."""

    def __init__(
        self,
        vectors: ArrayLike,
        queries: ArrayLike,
        k: int,
        share: float,
        metric: Metric | str,
        threads: int,
        seed: int,
        removed: ArrayLike,
    ) -> None:
        self.exact = build(vectors, "exact", metric)
        self.removed = item_ids("removed", removed, self.exact.size)
        self.exact.remove(self.removed)
        if not len(self.exact):
            raise InputError("vectors: there is none; give some to choose an index for")
        self.vectors, self.metric = vectors, metric
        self.k, self.share, self.threads = min(k, len(self.exact)), share, threads
        rows = self.exact._prepared("queries", queries)
        if len(rows) < 2:
            raise InputError(
                f"queries: expected at least 2, one to choose with and one to judge with, "
                f"found {len(rows)}"
            )
        order = np.random.default_rng(seed).permutation(len(rows))
        half = len(rows) // 2
        self.choose, self.judge = rows[order[:half]], rows[order[half:]]
        self.halves = len(self.choose), len(self.judge)
        self.truth = self.exact.search(self.choose, self.k).ids
        self.judged = self.exact.search(self.judge, self.k).ids
        self.trials: list[Trial] = []
        self.skipped: list[Skipped] = []
        self.kept: dict[int, Index] = {}  # by place in trials

    def skip(self, one: Candidate, reason: str) -> None:
        self.skipped.append(Skipped(one.kind, dict(one.build), reason))

    def enter(self, one: Candidate, tell: Say) -> None:
        """Builds, walks and times one candidate."""
        began = time.perf_counter()
        index = build(self.vectors, one.kind, self.metric, **one.build)
        built = time.perf_counter() - began
        index.remove(self.removed)
        if not one.walks:
            self._measured(one, index, built, {}, [], tell)
        for walk in one.walks:
            tuned, search, curve = self._walked(index, walk, tell)
            self._measured(one, tuned, built, search, curve, tell)

    def _measured(
        self,
        one: Candidate,
        index: Index,
        built: float,
        search: dict[str, Any],
        curve: list[dict[str, float]],
        tell: Say,
    ) -> None:
        """Times an index and enters it into the race."""
        mean, error = self._recall(index)
        times = _times([index], self.judge, self.k, self.threads)[0]
        trial = Trial(
            kind=one.kind,
            build=dict(one.build),
            search=search,
            recall=float(recall_of(index.search(self.judge, self.k).ids, self.judged).mean()),
            recall_chosen=mean,
            reached=index.exact or mean - error >= self.share,
            median_us=float(np.median(times)),
            p99_us=float(np.quantile(times, 0.99)),
            bytes=index.nbytes,
            build_seconds=built,
            exact=index.exact,
            curve=curve,
        )
        tell(f"{trial.name}: recall {trial.recall:.4f}, {trial.median_us:.0f} µs")
        self.trials.append(trial)
        if trial.reached:
            self.kept[len(self.trials) - 1] = index
            least = min(self.trials[place].median_us for place in self.kept)
            for place in list(self.kept):
                if self.trials[place].median_us > _OUT_OF_RACE * least:
                    del self.kept[place]

    def finish(self) -> None:
        """Times those still in the race in turn, and marks the best."""
        places = list(self.kept)
        if len(places) > 1:
            series = _times([self.kept[at] for at in places], self.judge, self.k, self.threads)
            for at, times in zip(places, series, strict=True):
                self.trials[at].median_us = float(np.median(times))
                self.trials[at].p99_us = float(np.quantile(times, 0.99))
        least = min(self.trials[at].median_us for at in places)
        close = [at for at in places if self.trials[at].median_us <= _TIE * least]
        first = min(close, key=lambda at: (self.trials[at].bytes, self.trials[at].median_us))
        self.trials[first].chosen = True
        self._best = self.kept[first]
        self.kept.clear()
        self.trials.sort(key=lambda one: (not one.chosen, not one.reached, one.median_us))

    def best(self) -> Index:
        return self._best

    def _recall(self, index: Index) -> tuple[float, float]:
        """Mean over the queries to choose with, and its standard error."""
        shares = recall_of(index.search(self.choose, self.k).ids, self.truth)
        spread = float(shares.std(ddof=1)) if len(shares) > 1 else 0.0
        return float(shares.mean()), spread / math.sqrt(len(shares))

    def _walked(
        self, index: Index, walk: Walk, tell: Say
    ) -> tuple[Index, dict[str, Any], list[dict[str, float]]]:
        """The index with the least value that reaches the recall, or with the greatest tried."""
        curve: dict[int, dict[str, float]] = {}
        quickest = min((trial.median_us for trial in self.trials if trial.exact), default=math.inf)

        def reaches(value: int) -> bool:
            made = index.tuned(**walk.search(value))
            mean, error = self._recall(made)
            times = _times([made], self.choose, self.k, self.threads, _SECONDS / 8)[0]
            step = {
                "value": walk.search(value)[walk.option],
                "recall": mean,
                "median_us": float(np.median(times)),
            }
            curve[value] = step
            tell(f"{index.kind} {walk.option}={step['value']}: recall {mean:.4f}")
            return mean - error >= self.share

        value, below = min(walk.low, walk.high), 0
        while not reaches(value):
            below = value
            # Slower than comparing everything and still not there: more would only be slower.
            if value >= walk.high or curve[value]["median_us"] > 2 * quickest:
                break
            value = min(2 * value, walk.high)
            try:
                index.tuned(**walk.search(value))
            except InputError:  # more than this index has, such as lists
                value = below
                break
        else:
            while value - below > max(1, value // 16):
                middle = (value + below) // 2
                if middle < walk.low:
                    break
                if reaches(middle):
                    value = middle
                else:
                    below = middle
        search = walk.search(value)
        return index.tuned(**search), search, [curve[at] for at in sorted(curve)]


def _times(
    indexes: Sequence[Index], queries: Float, k: int, threads: int, seconds: float = _SECONDS
) -> list[NDArray[np.float64]]:
    """Microseconds of single queries, one series an index; the indexes take turns."""
    for index in indexes:
        for row in range(min(_WARM_UP, len(queries))):
            index.search(queries[row : row + 1], k, threads=threads)
    series: list[list[float]] = [[] for _ in indexes]
    began = time.perf_counter()
    limit = seconds * len(indexes)
    for count in range(_TIMED):
        if count >= _LEAST and time.perf_counter() - began > limit:
            break
        query = queries[count % len(queries)][None]
        # Who goes first finds the caches as another left them: take turns in that too.
        for step in range(len(indexes)):
            place = (count + step) % len(indexes)
            start = time.perf_counter()
            indexes[place].search(query, k, threads=threads)
            series[place].append((time.perf_counter() - start) * 1e6)
    return [np.array(times) for times in series]


def _title(one: Candidate) -> str:
    return " ".join([one.kind, *(f"{name}={value}" for name, value in one.build.items())])
