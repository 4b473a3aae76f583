# SPDX-License-Identifier: Apache-2.0
"""The choice among kinds whose recall and time are made up, and among the real ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from seqrec_fast import retrieval
from seqrec_fast.errors import InputError, MissingExtraError
from seqrec_fast.retrieval import factory, tuning
from seqrec_fast.retrieval.candidates import Candidate, Walk, candidates
from seqrec_fast.retrieval.exact import ExactIndex
from seqrec_fast.retrieval.index import Found
from seqrec_fast.retrieval.parts import filters_between

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((400, 8)).astype(np.float32)
QUERIES = RNG.standard_normal((60, 8)).astype(np.float32)


class Partial(ExactIndex):
    """Looks at ``effort`` percent of the items, and takes as long as it is told."""

    kind = "partial"
    effort = 1
    delay = 0.0
    tried: ClassVar[list[int]] = []

    @property
    def exact(self) -> bool:
        return False

    @classmethod
    def _build(cls, vectors: Any, metric: Any, options: Any) -> Partial:
        if "fails" in options:
            raise options["fails"]
        made = cls(vectors, metric)
        made.delay = options.get("delay", 0.0)
        return made

    def tuned(self, **search_options: Any) -> Partial:
        made = type(self)(self._current.table, self.metric)
        made.effort, made.delay = int(search_options["effort"]), self.delay
        made._rows, made._current = self._rows, self._current
        if made.effort > 100:
            raise InputError("effort: at most 100")
        self.tried.append(made.effort)
        return made

    def _search(self, state: Any, queries: Any, k: int, filters: Any, threads: Any) -> Found:
        time.sleep(self.delay)
        part = max(k, len(state.table) * self.effort // 100)
        cut = state._replace(size=part, table=state.table[:part])
        return super()._search(cut, queries, k, filters_between(filters, 0, part), threads)


@pytest.fixture(autouse=True)
def kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(factory._CLASSES, "partial", (__name__, "Partial"))
    monkeypatch.setattr(factory, "KINDS", (*factory.KINDS, "partial"))
    monkeypatch.setattr(factory, "import_module", lambda name: _modules(name))
    monkeypatch.setattr(tuning, "_SECONDS", 0.02)
    monkeypatch.setattr(Partial, "tried", [])


def _modules(name: str) -> Any:
    import importlib
    import sys

    return sys.modules[name] if name == __name__ else importlib.import_module(name)


def slow_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ExactIndex._search

    def slow(self: Any, *arguments: Any) -> Found:
        if type(self) is ExactIndex:
            time.sleep(0.0006)
        return plain(self, *arguments)

    monkeypatch.setattr(ExactIndex, "_search", slow)


def walked(high: int = 100, **build: Any) -> Candidate:
    return Candidate("partial", build, (Walk("effort", 1, high),))


def test_the_quickest_that_finds_enough_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_exact(monkeypatch)
    found = tuning.tune(VECTORS, QUERIES, 10, 0.8, tried=[walked()])
    assert found.chosen.kind == "partial"
    assert found.best.kind == "partial"
    assert found.chosen.recall_chosen >= 0.8
    assert found.queries == (30, 30)
    # The least value: one less does not reach the recall, as the walk found out.
    effort = found.chosen.search["effort"]
    by_value = {step["value"]: step["recall"] for step in found.chosen.curve}
    assert by_value[effort] == found.chosen.recall_chosen
    assert max(value for value in by_value if value < effort) >= effort - max(1, effort // 16)
    assert sorted(set(Partial.tried)) == sorted(by_value)
    assert len(by_value) < 15  # a bisection and no grid
    assert {trial.kind for trial in found.trials} == {"exact", "partial"}
    json.dumps(found.to_dict())


def test_recall_is_told_of_queries_that_the_choice_did_not_see() -> None:
    found = tuning.tune(VECTORS, QUERIES, 10, 0.5, tried=[walked()])
    trial = next(trial for trial in found.trials if trial.kind == "partial")
    order = np.random.default_rng(0).permutation(60)
    index = retrieval.build(VECTORS, "partial").tuned(**trial.search)
    for rows, told in ((order[:30], trial.recall_chosen), (order[30:], trial.recall)):
        mine = index.search(QUERIES[rows], 10).ids
        truth = np.argsort(-(QUERIES[rows] @ VECTORS.T), axis=1)[:, :10]
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(mine, truth, strict=True)]
        assert told == pytest.approx(np.mean(shares))


def test_the_same_arguments_choose_the_same() -> None:
    first, second = (tuning.tune(VECTORS, QUERIES, 10, 0.5, tried=[walked()]) for _ in range(2))
    for one, other in zip(
        *(sorted(found.trials, key=lambda t: t.kind) for found in (first, second)), strict=True
    ):
        assert (one.search, one.recall, one.recall_chosen) == (
            other.search,
            other.recall,
            other.recall_chosen,
        )


def test_exact_wins_where_no_other_finds_enough() -> None:
    found = tuning.tune(VECTORS, QUERIES, 10, 0.99, tried=[walked(high=8)])
    assert found.best.exact
    assert found.chosen.recall == 1.0
    lost = next(trial for trial in found.trials if trial.kind == "partial")
    assert not lost.reached
    assert lost.recall < 0.99


def test_exact_wins_where_all_others_are_slower() -> None:
    found = tuning.tune(VECTORS, QUERIES, 10, 0.3, tried=[walked(delay=0.0006)])
    assert found.best.exact


def test_of_equally_quick_ones_the_smaller_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_TIE", 1e9)
    monkeypatch.setattr(tuning, "_OUT_OF_RACE", 1e9)
    found = tuning.tune(VECTORS, QUERIES, 10, kinds=["exact"])
    assert found.best.options() == {"dtype": "float32"}
    assert {trial.build["dtype"] for trial in found.trials} == {"float32", "int8"}


def test_a_walk_ends_where_the_index_does(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_exact(monkeypatch)
    found = tuning.tune(VECTORS, QUERIES, 10, 1.0, tried=[walked(high=1000)])
    lost = next(trial for trial in found.trials if trial.kind == "partial")
    assert lost.search == {"effort": 64}  # the next step would have been 128


def test_a_kind_is_built_once_for_all_its_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_exact(monkeypatch)
    built: list[int] = []
    plain = Partial._build.__func__  # type: ignore[attr-defined]
    count = classmethod(lambda cls, *given: built.append(1) or plain(cls, *given))
    monkeypatch.setattr(Partial, "_build", count)
    walks = Walk("effort", 1, 100), Walk("effort", 1, 2000, unit=0.5, fixed={})
    found = tuning.tune(VECTORS, QUERIES, 10, 0.8, tried=[Candidate("partial", {}, walks)])
    assert len(built) == 1
    assert len([trial for trial in found.trials if trial.kind == "partial"]) == 2
    assert Walk("reach", 5, 60, unit=0.1, fixed={"nprobe": None}).search(7) == {
        "nprobe": None,
        "reach": 0.7,
    }


def test_what_cannot_be_built_is_named_with_its_reason() -> None:
    missing, small = MissingExtraError("faiss is not installed"), InputError("too few items")
    told: list[str] = []
    found = tuning.tune(
        VECTORS,
        QUERIES,
        10,
        tried=[walked(fails=missing), walked(fails=small)],
        say=told.append,
    )
    assert [one.reason for one in found.skipped] == ["faiss is not installed", "too few items"]
    assert found.best.exact
    assert any("faiss is not installed" in line for line in told)


def test_nothing_is_begun_after_the_budget() -> None:
    found = tuning.tune(VECTORS, QUERIES, 10, budget=1e-9, tried=[Candidate("exact"), walked()])
    assert [one.kind for one in found.skipped] == ["partial"]
    assert "the budget of 1e-09 s was spent" in found.skipped[0].reason


def test_what_was_measured_stays_with_the_index(tmp_path: Path) -> None:
    best = tuning.tune(VECTORS, QUERIES, 10, metric="cosine").best
    best.save(tmp_path / "index")
    again = retrieval.load(tmp_path / "index")
    assert again.measured == best.measured
    assert again.measured is not None
    assert again.measured["recall"] == 1.0
    assert {"k", "target", "threads", "median_us", "bytes", "queries_measured_on"} <= set(
        again.measured
    )


def test_removed_items_are_neither_wanted_nor_found() -> None:
    gone = np.unique(np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :5])  # the best of all queries
    left = np.setdiff1d(np.arange(400), gone)
    found = tuning.tune(
        VECTORS, QUERIES, 10, 0.8, removed=gone, tried=[Candidate("exact"), walked()]
    )
    assert len(found.best) == len(left)
    assert not set(gone) & set(found.best.search(QUERIES, 10).ids.ravel().tolist())
    trial = next(trial for trial in found.trials if trial.kind == "partial")
    index = retrieval.build(VECTORS, "partial").tuned(**trial.search)
    index.remove(gone)
    rows = np.random.default_rng(0).permutation(60)[:30]
    mine = index.search(QUERIES[rows], 10).ids
    truth = left[np.argsort(-(QUERIES[rows] @ VECTORS[left].T), axis=1)[:, :10]]
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(mine, truth, strict=True)]
    assert trial.recall_chosen == pytest.approx(np.mean(shares))
    exact = retrieval.build(VECTORS)
    exact.remove(gone)
    assert tuning.measure(exact, VECTORS, QUERIES, 10, removed=gone)["recall"] == 1.0
    assert tuning.measure(exact, VECTORS, QUERIES, 10)["recall"] < 0.6
    few = tuning.tune(VECTORS, QUERIES, 10, removed=np.arange(397), kinds=["exact"])
    assert (few.k, few.chosen.recall) == (3, 1.0)
    for removed, message in (([400], "removed: found item 400"), (range(400), "vectors: there is")):
        with pytest.raises(InputError, match=f"^{message}"):
            tuning.tune(VECTORS, QUERIES, 10, removed=removed)


def test_more_asked_than_there_is() -> None:
    found = tuning.tune(VECTORS[:30], QUERIES, 100, kinds=["exact"])
    assert (found.k, found.chosen.recall) == (30, 1.0)


def test_one_index_alone_is_measured() -> None:
    index = retrieval.build(VECTORS, "partial").tuned(effort=50)
    found = tuning.measure(index, VECTORS, QUERIES, 10)
    assert 0.3 < found["recall"] < 0.7
    assert found["queries_measured_on"] == 60
    assert found["p99_us"] >= found["median_us"] > 0
    assert tuning.measure(retrieval.build(VECTORS), VECTORS, QUERIES)["recall"] == 1.0


def test_recall_counts_only_items() -> None:
    truth = np.array([[1, 2], [3, -1], [-1, -1]])
    found = np.array([[2, 7], [3, -1], [-1, -1]])
    assert tuning.recall_of(found, truth).tolist() == [0.5, 1.0, 1.0]


def test_every_kind_is_tried_in_some_way() -> None:
    for kind in retrieval.KINDS:
        assert all(one.kind == kind for one in candidates(10_000, 100, [kind]))
        assert candidates(10_000, 100, [kind])
    assert {one.kind for one in candidates(1000, 10)} == {
        kind
        for kind in retrieval.KINDS
        if not kind.startswith("gpu-") and kind not in ("sharded", "qdrant")
    }


@pytest.mark.parametrize(
    ("kind", "option"), [("ivf", "nprobe"), ("ivfpq", "nprobe"), ("hnsw", "ef_search")]
)
def test_kinds_of_faiss_are_walked(kind: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(tuning, "_OUT_OF_RACE", 1e9)
    slow_exact(monkeypatch)
    found = tuning.tune(VECTORS, QUERIES, 5, 0.8, kinds=[kind])
    trial = next(trial for trial in found.trials if trial.kind == kind)
    assert set(trial.search) == {option}
    assert trial.reached
    assert trial.search[option] in [step["value"] for step in trial.curve]
    assert not found.skipped


def test_a_kind_without_search_options_cannot_be_tuned() -> None:
    with pytest.raises(InputError, match="'exact': it has none that act in a search alone, found"):
        retrieval.build(VECTORS).tuned(nprobe=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recall": 0}, "recall: expected above 0 and at most 1, found 0"),
        ({"recall": 1.5}, "recall: expected above 0 and at most 1, found 1.5"),
        ({"recall": "high"}, "recall: expected a number, found 'high'"),
        ({"k": 0}, "k: expected a whole number of at least 1, found 0"),
        ({"threads": 0}, "threads: expected a whole number of at least 1"),
        ({"budget": 0}, "budget: expected seconds above 0, found 0"),
        ({"kinds": ["tree"]}, "kinds: found 'tree'; choose one of exact"),
        ({"queries": QUERIES[:1]}, "queries: expected at least 2"),
        ({"queries": QUERIES[:, :3]}, "queries: expected 8 columns like the index, found 3"),
        ({"vectors": np.empty((0, 8))}, "vectors: there is none"),
        ({"metric": "l2"}, "metric: found 'l2'"),
    ],
)
def test_tune_names_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        tuning.tune(**({"vectors": VECTORS, "queries": QUERIES} | arguments))
