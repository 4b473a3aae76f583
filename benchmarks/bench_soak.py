# SPDX-License-Identifier: Apache-2.0
"""Many minutes of mixed work on one Recommender and its Sessions: leaks, errors, wrong answers.

    python -m benchmarks.bench_soak --minutes 10    # a table, and benchmarks/results/soak.json

Eight threads draw at random from ``observe``, ``observe_many``, ``recommend``, ``forget``,
``Recommender.recommend`` and ``swap``. The models are SASRec and GRU, over one catalogue and over
another that shares most of its items; a swap goes to any of them. Two stores of sessions live
beside one another: one with room for all, and one that evicts all the time.

Some answers, drawn at random, are computed again from the history by a Recommender of its own for
each model, which is never swapped; ``Recommendation.version`` says which of them it has to be. What
a store keeps of a user is compared with the events that the thread knows it has sent, so that a
lost, doubled or foreign event counts as a wrong answer too.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from benchmarks.random_bundles import item_names, random_bundle
from seqrec_fast.bundle import Bundle
from seqrec_fast.engine import Recommendation, Recommender, Sessions

RESULT = Path(__file__).parent / "results" / "soak.json"
THREADS, ITEMS, WINDOW, K = 8, 12_101, 50, 20
FIRST_OF_OTHER = 1_000  # items 0 … 999 are in the first catalogue only
USERS = 150  # a thread's own, in the store with room for all
SHARED = 100
PASSING = 1_000  # users of the store that evicts, and how many of them have room
ROOM = 400
REMEMBER = 200
CHECKED = 0.02  # share of requests that are checked
GROWTH = 1.02  # resident memory at the end, of that after the first minute, model by model
# Steps from state to state and whole histories differ by rounding alone; another model differs by
# about the whole score.
TOLERANCE = 1e-3

#: operations and how often they are drawn; a swap makes every live user be encoded anew
WEIGHTS = {
    "observe": 0.44,
    "observe_many": 0.08,
    "recommend": 0.3,
    "recommend_history": 0.14,
    "forget": 0.0397,
    "swap": 0.0003,
}


class Histogram:
    """Counts of durations in fixed memory, in steps of 2 %."""

    STEP = np.log(1.02)

    def __init__(self) -> None:
        self.counts = np.zeros(1300, dtype=np.int64)  # up to 100 s

    def add(self, nanoseconds: int) -> None:
        """One duration."""
        self.counts[min(int(np.log(max(nanoseconds, 1)) / self.STEP), len(self.counts) - 1)] += 1

    def quantile(self, q: float) -> float:
        """In microseconds."""
        place = int(np.searchsorted(self.counts.cumsum(), q * self.counts.sum()))
        return float(np.exp((place + 0.5) * self.STEP) / 1e3)


@dataclass
class Findings:
    """What one thread has seen."""

    times: dict[str, Histogram] = field(default_factory=lambda: {n: Histogram() for n in WEIGHTS})
    checked: int = 0
    moved: int = 0  # not checked, because the user changed meanwhile
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    error_count: int = 0
    wrong_count: int = 0

    def error(self, text: str) -> None:
        """Something was raised."""
        self.error_count += 1
        if len(self.errors) < 5:
            self.errors.append(text)

    def fault(self, text: str) -> None:
        """An answer was wrong."""
        self.wrong_count += 1
        if len(self.wrong) < 5:
            self.wrong.append(text)


class Judge:
    """What is right: one Recommender a model, never swapped."""

    def __init__(self, bundles: list[Bundle]) -> None:
        self.models = {(rec := Recommender(bundle, threads=1)).version: rec for bundle in bundles}
        catalogues = [set(rec.item_ids.tolist()) for rec in self.models.values()]
        self.everywhere = set.intersection(*catalogues)

    def answer(self, found: Recommendation, history: list[Any]) -> str:
        """What is wrong with the answer to a history; empty if nothing."""
        rec = self.models.get(found.version)
        if rec is None:
            return f"version {found.version} is none of the models"
        right = rec.recommend([history], K)[0]
        if found.fallback != right.fallback:
            return f"fallback {found.fallback}, expected {right.fallback}, {len(history)} events"
        if len(found) != len(right):
            return f"{len(found)} items, expected {len(right)}"
        if len(set(found.items.tolist())) != len(found) or set(found.items) & set(history):
            return "an item is there twice, or was seen"
        off = TOLERANCE * float(np.abs(right.scores).max())
        if not np.allclose(found.scores, right.scores, rtol=0, atol=off):
            return f"scores differ by {np.abs(found.scores - right.scores).max():.1e}"
        scores = rec.score(history, found.items)
        if not np.allclose(found.scores, scores, rtol=0, atol=off):
            return f"items have other scores, by {np.nanmax(np.abs(found.scores - scores)):.1e}"
        return ""

    def kept(self, history: list[Any], sent: list[Any]) -> str:
        """What is wrong with the items kept of a user, given the events since they are known.

        Models drop items that they do not know, now or at a swap; all others must be there, in
        order.
        """
        mine = [item for item in history if item in self.everywhere]
        theirs = [item for item in sent if item in self.everywhere]
        if mine != theirs:
            return f"{len(mine)} of {len(theirs)} items that all models know are kept"
        rest = iter(sent)
        if not all(item in rest for item in history):
            return "items are kept that were not sent, or in another order"
        return ""


class Worker(threading.Thread):
    """One client."""

    def __init__(
        self,
        number: int,
        judge: Judge,
        bundles: list[Bundle],
        rec: Recommender,
        stores: tuple[Sessions, Sessions],
        stop: threading.Event,
    ) -> None:
        super().__init__(daemon=True)
        self.random = np.random.default_rng(number)
        self.judge, self.bundles, self.rec, self.stop = judge, bundles, rec, stop
        self.roomy, self.narrow = stores
        self.sent: dict[Any, list[Any]] = {f"{number}:{n}": [] for n in range(USERS)}
        self.own = list(self.sent)
        self.found = Findings()
        self.ids = item_names(0, ITEMS + FIRST_OF_OTHER)

    def run(self) -> None:
        """Until told to stop."""
        names, weights = list(WEIGHTS), np.cumsum(list(WEIGHTS.values()))
        calls: dict[str, Callable[[], None]] = {name: getattr(self, name) for name in names}
        while not self.stop.is_set():
            for draw in self.random.random(256):
                name = names[int(np.searchsorted(weights, draw * weights[-1], side="right"))]
                try:
                    calls[name]()
                except Exception as error:
                    self.found.error(f"{name}: {error!r}")
                if self.stop.is_set():
                    break

    def timed(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter_ns()
        answer = call(*arguments)
        self.found.times[name].add(time.perf_counter_ns() - began)
        return answer

    def whom(self) -> tuple[Sessions, Any]:
        """A store and a user: one of mine, one who is shared, or one of those who are evicted."""
        draw, n = self.random.random(), int(self.random.integers(1 << 30))
        if draw < 0.7:
            return self.roomy, self.own[n % USERS]
        return (self.roomy, n % SHARED) if draw < 0.85 else (self.narrow, n % PASSING)

    def items(self, count: int) -> list[Any]:
        return [self.ids[n] for n in self.random.integers(0, len(self.ids), count)]

    # ------------------------------------------------------------------ operations

    def observe(self) -> None:
        """One event."""
        sessions, user = self.whom()
        item = self.items(1)[0]
        self.timed("observe", sessions.observe, user, item)
        self.note([user], [item])

    def observe_many(self) -> None:
        """Events of several users, also of shared ones, some of them more than once."""
        users = [self.own[n] for n in self.random.integers(0, USERS, 12)]
        users += self.random.integers(0, SHARED, 4).tolist() + users[:4]
        items = self.items(len(users))
        self.timed("observe_many", self.roomy.observe_many, users, items)
        self.note(users, items)

    def note(self, users: list[Any], items: list[Any]) -> None:
        for user, item in zip(users, items, strict=True):
            if user in self.sent:
                self.sent[user].append(item)
        for user in users:  # before old events are dropped, which a check could not tell
            if len(self.sent.get(user, ())) > REMEMBER - 20:
                self.drop(self.roomy, user)

    def forget(self) -> None:
        """A user begins anew."""
        self.drop(*self.whom())

    def drop(self, sessions: Sessions, user: Any) -> None:
        self.timed("forget", sessions.forget, user)
        if user in self.sent:
            self.sent[user] = []

    def recommend(self) -> None:
        """A live user; now and then the answer is computed again."""
        sessions, user = self.whom()
        if self.random.random() >= CHECKED:
            self.timed("recommend", sessions.recommend, user, K)
            return
        before = sessions.events(user), sessions.history(user).tolist()
        found = self.timed("recommend", sessions.recommend, user, K)
        after = sessions.events(user), sessions.history(user).tolist()
        if user in self.sent:
            for _, history in (before, after):
                self.judged(f"{user}", self.judge.kept(history, self.sent[user]))
        # Where others observe, or a swap drops items, it is not known what was answered to. The
        # state of a GRU goes back further than the items that are kept.
        if before != after or len(before[1]) >= REMEMBER:
            self.found.moved += 1
            return
        self.judged(f"user {user!r}", self.judge.answer(found, before[1]))

    def recommend_history(self) -> None:
        """Whole histories, one or several."""
        users = 1 if self.random.random() < 0.8 else 8
        rows = [self.items(int(n)) for n in self.random.integers(1, 90, users)]
        found = self.timed("recommend_history", self.rec.recommend, rows, K)
        if len({answer.version for answer in found}) != 1:
            self.found.fault("one request was answered by two models")
        if self.random.random() < CHECKED:
            at = int(self.random.integers(users))
            self.judged("history", self.judge.answer(found[at], rows[at]))

    def swap(self) -> None:
        """Any of the models takes over."""
        bundle = self.bundles[int(self.random.integers(len(self.bundles)))]
        self.timed("swap", self.rec.swap, bundle)

    def judged(self, what: str, fault: str) -> None:
        self.found.checked += 1
        if fault:
            self.found.fault(f"{what}: {fault}")


def resident() -> int:
    """Bytes of this process in memory."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of(samples: NDArray[np.float64], seconds: float) -> dict[str, Any]:
    """Growth after the warm-up; ``samples`` [n, 3] are seconds, bytes, and which model served.

    A sample holds two models where it falls into a swap, so that medians of minutes are compared
    for growth, beside single samples. The models differ in size by more than the growth that is
    looked for, and which of them served most in a minute is chance: ``rss_growth_like_models``
    compares the samples of each model with those of the same model, and takes the largest growth.
    """
    warm = samples[samples[:, 0] >= min(60.0, seconds / 4)]
    span = min(60.0, (warm[-1, 0] - warm[0, 0]) / 2)
    first = warm[warm[:, 0] <= warm[0, 0] + span, 1]
    last = warm[warm[:, 0] >= warm[-1, 0] - span, 1]
    slope = np.polyfit(warm[:, 0], warm[:, 1], 1)[0]
    early = warm[warm[:, 0] <= warm[0, 0] + 2 * span]
    late = warm[warm[:, 0] >= warm[-1, 0] - 2 * span]
    like = [
        float(np.median(late[late[:, 2] == kind, 1]) / np.median(early[early[:, 2] == kind, 1]))
        for kind in np.intersect1d(early[:, 2], late[:, 2])
    ]
    mib = 1 << 20
    return {
        "rss_first_mib": float(warm[0, 1]) / mib,
        "rss_last_mib": float(warm[-1, 1]) / mib,
        "rss_max_mib": float(warm[:, 1].max()) / mib,
        "rss_median_first_minute_mib": float(np.median(first)) / mib,
        "rss_median_last_minute_mib": float(np.median(last)) / mib,
        "rss_growth": float(np.median(last) / np.median(first)),
        "rss_growth_like_models": max(like),
        "rss_slope_mib_a_minute": float(slope) * 60 / mib,
    }


def soak(minutes: float) -> dict[str, Any]:
    """Runs it; returns all figures."""
    kinds = [("sasrec", 0), ("gru", 0), ("sasrec", FIRST_OF_OTHER), ("gru", FIRST_OF_OTHER)]
    bundles = [
        random_bundle(model, item_names(first, ITEMS), WINDOW, seed=seed, norms=0.0)
        for seed, (model, first) in enumerate(kinds)
    ]
    judge = Judge(bundles)
    rec = Recommender(bundles[0], threads=2)
    everybody = THREADS * USERS + SHARED
    stores = (
        rec.sessions(2 * everybody, remember=REMEMBER),
        rec.sessions(ROOM, remember=REMEMBER),
    )
    stop = threading.Event()
    workers = [Worker(n, judge, bundles, rec, stores, stop) for n in range(THREADS)]
    names = sorted({model for model, _ in kinds})
    samples = np.zeros((int(minutes * 60) + 2, 3))
    count, began = 0, time.perf_counter()
    for worker in workers:
        worker.start()
    while (passed := time.perf_counter() - began) < minutes * 60:
        samples[count] = passed, resident(), names.index(rec.info()["model"])
        count += 1
        stop.wait(max(0.0, count - (time.perf_counter() - began)))
    stop.set()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - began
    operations = {}
    for name in WEIGHTS:
        total = Histogram()
        for worker in workers:
            total.counts += worker.found.times[name].counts
        operations[name] = {
            "count": int(total.counts.sum()),
            "p50_us": round(total.quantile(0.5), 1),
            "p99_us": round(total.quantile(0.99), 1),
        }
    found = [worker.found for worker in workers]
    return {
        "seconds": seconds,
        "threads": THREADS,
        "operations_a_second": sum(o["count"] for o in operations.values()) / seconds,
        "operations": operations,
        "checks": sum(f.checked for f in found),
        "not_checked_as_the_user_changed": sum(f.moved for f in found),
        "errors": sum(f.error_count for f in found),
        "wrong_answers": sum(f.wrong_count for f in found),
        "messages": [text for f in found for text in f.errors + f.wrong],
        "roomy": dict(stores[0].stats()),
        "narrow": dict(stores[1].stats()),
        **memory_of(samples[:count], seconds),
        "rss_mib_every_10_s": [round(float(s) / (1 << 20), 1) for s in samples[:count:10, 1]],
    }


def main() -> None:
    """Prints the figures and writes them; the exit status says whether all bars were met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found = {"machine": describe_machine(), **soak(options.minutes)}
    for name, entry in found["operations"].items():
        print(name.ljust(18), *(f"{key} {value}".rjust(20) for key, value in entry.items()))
    for name, value in found.items():
        if name not in ("operations", "machine"):
            print(f"{name:34} {value}")
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    bad = found["errors"] + found["wrong_answers"]
    raise SystemExit(
        int(bad > 0 or found["checks"] == 0 or found["rss_growth_like_models"] > GROWTH)
    )


if __name__ == "__main__":
    main()
