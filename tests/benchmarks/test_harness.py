# SPDX-License-Identifier: Apache-2.0
"""The harness with contenders and a clock of its own: turns, budgets, errors, verdicts, files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from seqrec_fast import native  # noqa: E402
from seqrec_fast.benchmarks import harness, plots, report  # noqa: E402
from seqrec_fast.benchmarks.case import OURS, STANDARD, Bar, Case, Contender, Prepared  # noqa: E402


class Shape(NamedTuple):
    size: int


class FakeClock:
    """Time passes only while a contender runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, seconds: Callable[[int], float]) -> Contender:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds(self.calls.count(name))

        return Contender(name, run, lambda result: {})


def test_contenders_take_turns_until_the_median_is_known() -> None:
    clock = FakeClock()
    contenders = [clock.contender(name, lambda n: 0.004) for name in ("a", "b")]
    times = harness.time_in_turn(contenders, 100.0, clock=clock)
    assert {name: len(t) for name, t in times.items()} == dict.fromkeys("ab", 5)
    assert times["a"] == pytest.approx([0.004] * 5)
    rounds = "".join(clock.calls[2:])  # after the calibration
    assert rounds == "aabb" * 5  # each sample after an untimed call


def test_short_calls_are_timed_many_at_a_time() -> None:
    clock = FakeClock()
    times = harness.time_in_turn([clock.contender("a", lambda n: 1e-5)], 10.0, clock=clock)
    assert times["a"] == pytest.approx([1e-5] * 5)
    assert len(clock.calls) > 5 * harness.SAMPLE_SECONDS / 1e-5


def test_unsteady_times_get_more_samples_up_to_the_budget() -> None:
    clock = FakeClock()
    unsteady = clock.contender("a", lambda n: 0.01 * (1 + n % 7))
    few = harness.time_in_turn([unsteady], 0.5, clock=clock)
    assert harness.FEWEST_SAMPLES <= len(few["a"]) < 20
    assert clock.now < 0.8
    clock = FakeClock()
    unsteady = clock.contender("a", lambda n: 0.01 * (1 + n % 7))
    many = harness.time_in_turn([unsteady], 1e9, clock=clock)
    assert len(many["a"]) == harness.MOST_SAMPLES


def test_a_call_longer_than_the_budget_is_made_once() -> None:
    clock = FakeClock()
    contenders = [clock.contender("slow", lambda n: 50.0), clock.contender("b", lambda n: 0.01)]
    times = harness.time_in_turn(contenders, 2.0, clock=clock)
    assert times["slow"] == [50.0]
    assert clock.calls.count("slow") == 1
    assert len(times["b"]) == 5


def test_a_call_longer_than_its_share_gets_three_samples() -> None:
    clock = FakeClock()
    contenders = [clock.contender("slow", lambda n: 1.5), clock.contender("b", lambda n: 0.01)]
    times = harness.time_in_turn(contenders, 2.0, clock=clock)
    assert times["slow"] == pytest.approx([1.5] * 3)
    # the calibration, an untimed call before the first sample, three samples
    assert clock.calls.count("slow") == 5


def test_largest_error_sees_shapes_and_nan() -> None:
    truth = np.array([1.0, 2.0])
    assert harness.largest_error(np.array([1.0, 2.5], np.float32), truth) == 0.5
    assert harness.largest_error(np.array([1.0]), truth) == math.inf
    assert harness.largest_error(np.array([1.0, np.nan]), truth) == math.inf
    assert harness.largest_error(np.empty(0), np.empty(0)) == 0.0


def test_gradients_may_err_more_and_exact_results_a_little() -> None:
    truth = {"y": np.array([8.0]), "d_x": np.array([8.0])}
    allowed = harness.allowed_errors({"y": 1e-5, "d_x": 1e-5}, truth)
    assert allowed == pytest.approx({"y": 2e-5, "d_x": 5e-5})
    unit = float(np.finfo(np.float32).eps)
    exact = harness.allowed_errors({"y": 0.0, "d_x": 0.0}, truth)
    assert exact == pytest.approx({"y": 32 * unit, "d_x": 32 * unit})


# ------------------------------------------------------------------------------- whole cases


def fake_case(
    *, mine: float = 0.0, rival: Callable[[], float] | None = None, bar: Bar | None = None
) -> Case:
    """A case whose contenders return 1 and errors as told; the rival may fail."""

    def prepare(threads: int, without: tuple[str, ...]) -> Prepared:
        found = Prepared(lambda: {"y": np.ones(3)}, without)

        def constant(error: float) -> Any:
            value = np.full(3, 1 + error)
            return lambda: (lambda: value, lambda y: {"y": y})

        found.offer(OURS, constant(mine))
        found.offer(STANDARD, constant(1e-6))
        if rival is not None:
            found.offer("other", lambda: (rival, lambda y: {"y": np.full(3, y)}), padded=True)
        return found

    return Case("linear", Shape(3), "forward", 1e3, 1e2, prepare, bar or Bar(ratio=1e-9))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "measure_peak", lambda threads: native.Peak(100.0, 10.0))


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    before = torch.get_num_threads(), native.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    native.set_num_threads(before[1])


def test_row_holds_times_ratios_and_shares(quick: None) -> None:
    row = harness.measure(fake_case(rival=lambda: 1.0), 1, budget=0.2)
    assert set(row["contenders"]) == {OURS, STANDARD, "other"}
    mine = row["contenders"][OURS]["median_ms"]
    best = row["contenders"][row["best_rival"]]["median_ms"]
    assert row["ratio"] == pytest.approx(best / mine)
    assert row["best_padded_rival"] == "other"
    assert row["gflops"] == pytest.approx(1e3 / mine / 1e6)
    assert row["share_of_peak"] == pytest.approx(row["gflops"] / 100.0)
    assert row["peak_gflops"] == 100.0
    assert json.loads(json.dumps(row)) == row
    assert report.verdict(row) == ("reached", 1e-9)
    assert len(report.cells(row)) == len(report.HEADER)


def test_too_great_an_error_is_red(quick: None) -> None:
    row = harness.measure(fake_case(mine=1e-5), 1, budget=0.1)
    assert row["red"]
    assert report.verdict(row)[0] == "red"
    assert report.cells(row)[-1] == "red"
    assert not harness.measure(fake_case(mine=1.9e-6), 1, budget=0.1)["red"]
    assert harness.measure(fake_case(mine=math.nan), 1, budget=0.1)["red"]


def test_rivals_that_fail_or_compute_something_else_are_told(quick: None) -> None:
    def failing() -> float:
        raise RuntimeError("no kernel\nfor this")

    row = harness.measure(fake_case(rival=failing), 1, budget=0.1)
    assert row["missing"] == {"other": "RuntimeError: no kernel"}
    assert row["best_rival"] == STANDARD
    row = harness.measure(fake_case(rival=lambda: 2.0), 1, budget=0.1)
    assert "something else" in row["missing"]["other"]
    row = harness.measure(fake_case(rival=lambda: 1.0), 1, budget=0.1, without=["oth"])
    assert row["missing"] == {"other": "not wanted"}


def test_a_failure_of_ours_is_no_missing_rival(quick: None) -> None:
    found = Prepared(lambda: {})
    with pytest.raises(ZeroDivisionError):
        found.offer(OURS, lambda: 1 / 0)  # type: ignore[return-value]
    found.offer("other", lambda: __import__("no_such_module"))
    assert found.missing == {"other": "no_such_module is not installed"}


def test_an_operation_that_does_not_exist_is_a_row_with_a_reason(quick: None) -> None:
    def prepare(threads: int, without: tuple[str, ...]) -> Prepared:
        raise ModuleNotFoundError("no module", name="seqrec_fast.ops.new")

    row = harness.measure(Case("linear", Shape(1), "forward", 1.0, 1.0, prepare), 1)
    assert report.verdict(row) == ("missing", None)
    assert report.cells(row)[-1] == "seqrec_fast.ops.new is not installed"


def test_memory_is_measured_where_it_is_asked(quick: None) -> None:
    def prepare(threads: int, without: tuple[str, ...]) -> Prepared:
        found = Prepared(lambda: {"y": np.ones(1)}, without)

        def hungry() -> Any:
            return np.ones(8 << 20).mean(keepdims=True)

        found.offer(OURS, lambda: (hungry, lambda y: {"y": y}))
        found.offer(STANDARD, lambda: (lambda: np.ones(1), lambda y: {"y": y}))
        return found

    bar = Bar(extra_bytes=1 << 20)
    row = harness.measure(
        Case("linear", Shape(1), "forward", 1.0, 1.0, prepare, bar), 1, budget=0.1
    )
    if not row["extra_bytes"]:
        pytest.skip("the system does not tell its peak of memory")
    assert 50 << 20 < row["extra_bytes"][OURS] < 200 << 20
    assert row["extra_bytes"][STANDARD] < 20 << 20
    assert report.verdict(row)[0] == "missed"


def test_memory_of_results_is_not_extra(quick: None) -> None:
    def prepare(threads: int, without: tuple[str, ...]) -> Prepared:
        found = Prepared(lambda: {"y": np.ones(8 << 20)}, without)
        for name in (OURS, STANDARD):
            found.offer(name, lambda: (lambda: np.ones(8 << 20), lambda y: {"y": y}))
        return found

    bar = Bar(extra_bytes=1 << 20)
    row = harness.measure(
        Case("linear", Shape(1), "forward", 1.0, 1.0, prepare, bar), 1, budget=0.1
    )
    if not row["extra_bytes"]:
        pytest.skip("the system does not tell its peak of memory")
    assert row["extra_bytes"][OURS] < 16 << 20


# ----------------------------------------------------------------------------------- verdicts


def row_of(**changes: Any) -> dict[str, Any]:
    bar = {"ratio": None, "against": None, "reached": 2.0, "share_of_peak": None}
    row: dict[str, Any] = {
        "case": "a", "threads": 1, "equal": None, "padding": 1.0, "red": False, "ratio": 2.0,
        "share_of_peak": 0.5, "share_of_roof": 0.5, "extra_bytes": {}, "best_rival": "torch",
        "gflops": 50.0, "flops": 10.0, "bytes": 1.0, "peak_gflops": 100.0, "peak_gigabytes": 10.0,
        "contenders": {OURS: {"median_ms": 1.0}, "torch": {"median_ms": 2.0}},
        "errors": {"y": {"ours": 1e-7, "torch": 1e-7, "allowed": 2e-7}},
        "bar": {**bar, "extra_bytes": None, **changes.pop("bar", {})},
    }  # fmt: skip
    return row | changes


def test_verdicts() -> None:
    assert report.verdict(row_of()) == ("-", None)
    assert report.verdict(row_of(bar={"ratio": 2.0})) == ("reached", 2.0)
    assert report.verdict(row_of(bar={"ratio": 2.1})) == ("missed", 2.1)
    assert report.verdict(row_of(bar={"ratio": 1.0, "share_of_peak": 0.6})) == ("missed", 1.0)
    assert report.verdict(row_of(red=True, bar={"ratio": 1.0})) == ("red", 1.0)


def test_ragged_rows_are_held_to_the_ratio_at_equal_lengths() -> None:
    equal = row_of(case="equal", ratio=1.5, bar={"ratio": 1.25})
    ragged = row_of(case="ragged", equal="equal", padding=5.0)
    assert report.verdict(ragged, [equal, ragged]) == ("missed", pytest.approx(6.0))
    assert report.verdict(ragged | {"padding": 1.5}, [equal])[0] == "reached"
    assert report.verdict(ragged, [row_of(case="equal", threads=2)]) == ("-", None)
    # an equal case that misses its own bar does not make the ragged one easy
    slow = row_of(case="equal", ratio=0.5, bar={"ratio": 1.25})
    assert report.verdict(ragged, [slow])[1] == pytest.approx(5.0)


def test_files_keep_the_rows_of_the_same_machine(tmp_path: Path) -> None:
    machine = {"cpu": "A", "versions": {"torch": "1"}}
    report.write_results(tmp_path, "linear", machine, [row_of(), row_of(case="b")])
    report.write_results(tmp_path, "linear", machine, [row_of(ratio=9.0)])
    rows = json.loads((tmp_path / "linear.json").read_text())["rows"]
    assert {(row["case"], row["ratio"]) for row in rows} == {("a", 9.0), ("b", 2.0)}
    more = {**machine, "versions": {"torch": "1", "faiss-cpu": "2"}}
    report.write_results(tmp_path, "linear", more, [row_of(case="c")])
    assert len(json.loads((tmp_path / "linear.json").read_text())["rows"]) == 3
    for other in ({**more, "cpu": "B"}, {"cpu": "B", "versions": {"torch": "2"}}):
        report.write_results(tmp_path, "linear", machine, [row_of(case="old"), row_of()])
        report.write_results(tmp_path, "linear", other, [row_of()])
        found = report.read_results(tmp_path, "linear")
        assert found is not None
        assert len(found["rows"]) == 1
    assert report.read_results(tmp_path, "attention") is None


def test_plots_are_drawn_from_the_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    machine = {"cpu": "A", "versions": {}}
    rows = [row_of(), row_of(case="b", red=True), row_of(case="c", threads=2)]
    report.write_results(tmp_path, "linear", machine, [*rows, {**rows[0], "reason": "none"}])
    written = plots.draw(tmp_path, tmp_path / "pictures")
    names = {path.name for path in written}
    assert names == {"linear-1.svg", "linear-2.svg", "roofline-1.svg", "roofline-2.svg"}
    first = written[0].read_bytes()
    assert b"<svg" in first
    assert plots.draw(tmp_path, tmp_path / "pictures")[0].read_bytes() == first


def test_tables_of_the_pages_come_from_the_files(tmp_path: Path) -> None:
    from benchmarks.kernel_figures import NOTHING, kernel_table

    assert kernel_table("linear", tmp_path, "p") == NOTHING
    machine = {"cpu": "A", "versions": {"torch": "1"}, "build": {"isa": "avx2"}, "date": "today"}
    rows = [row_of(bar={"ratio": 3.0}) | {"load": 0.5}]
    rows += [row_of(threads=2, ratio=4.0, bar={"ratio": 3.0, "reached": 4.0}) | {"load": 1.5}]
    report.write_results(tmp_path, "linear", machine, rows)
    text = kernel_table("linear", tmp_path, "p")
    assert "| a | 1.0 | 50 | 50% | torch 2.0 | 2.00 (missed) / 4.00 | 3.00 |" in text
    assert "A, avx2; torch 1; today; threads 1 / 2" in text
    assert "(p/linear-2.svg)" in text
    shape = {"cell": "gru", "rows": 64, "time": 50, "hidden": 64, "lengths": "equal"}
    wide = [row | {"shape": shape, "direction": "forward"} for row in rows]
    report.write_results(tmp_path, "recurrent", machine, wide)
    text = kernel_table("recurrent", tmp_path, "p")
    assert "| gru | 64 × 50 | equal | forward | 2.00 (missed) / 4.00, 50% | 3.00 |" in text
