# SPDX-License-Identifier: Apache-2.0
"""Every operation on a GPU: first its errors against float64, then its times beside others.

A case is one shape in one type and direction. Ours is *wrong* where its error exceeds twice that of
torch in the same type (five times for gradients in float32), and *failed* where it raises, or the
process that runs it ends or answers no more; either makes the case red, and it gets no times. What
torch itself cannot compute here is *unjudged*, what has no kernels here *missing*.

Contenders are timed in turn. Their work is recorded into a CUDA graph where it can be, and replayed
with the last-level cache warm and emptied: the time of the device. ``called_ms`` is the time of
calls from Python, one after another, as a program without graphs has it. Medians count. Bandwidth
(with the cache emptied) and operations a second (with it warm) are those that the result needs
(:mod:`gpu_model`), beside what the device reached in the same run. A rival whose work cannot be
recorded is compared by calls, and ours too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from seqrec_fast.benchmarks import gpu_model
from seqrec_fast.benchmarks.case import OURS, why
from seqrec_fast.benchmarks.gpu_cases import Calls, OursFailed
from seqrec_fast.benchmarks.gpu_device import Ceilings, Device
from seqrec_fast.benchmarks.gpu_layouts import math_of
from seqrec_fast.benchmarks.gpu_workers import Lost, here

__all__ = [
    "HEADER",
    "Answers",
    "Case",
    "Plan",
    "ceilings_lines",
    "cells",
    "counted",
    "describe",
    "group_of",
    "measure",
]

Row = dict[str, Any]
HEADER = (
    *("operation", "case", "ms", "cold ms", "called ms", "GB/s", "of copy"),
    *("GFLOP/s", "of product", "best rival", "its ms", "ratio", "error", "verdict"),
)
LEAST_SAMPLES, MOST_SAMPLES = 5, 50
#: a warm sample is at least so long, so that the events' own resolution does not count
SAMPLE_SECONDS = 1e-3
#: types in the order in which they are timed
_TIMED_FIRST = ("bfloat16", "float32", "float16", "tf32")
#: calls in one graph where one alone would be no longer than the start of a graph
_AT_ONCE, _SHORT = 16, 5e-5


class Case(Protocol):
    """What is measured; can be handed to another process."""

    @property
    def operation(self) -> str:
        """Its name."""

    @property
    def name(self) -> str:
        """Shape, type and direction."""

    @property
    def dtype_name(self) -> str:
        """A key of ``gpu_layouts.DTYPES``."""

    def facts(self) -> Row:
        """What is known before measuring."""

    def lacks(self, device: torch.device) -> str | None:
        """Why ours cannot run here."""

    def errors(self, device: torch.device) -> dict[str, dict[str, float]]:
        """Our error, torch's and what is allowed, by output."""

    def calls(
        self, device: torch.device, errors: dict[str, dict[str, float]], without: Sequence[str]
    ) -> Calls:
        """What is timed."""

    def cost(self) -> gpu_model.Work | None:
        """Bytes and operations that it takes at least; None where they are not counted."""


#: takes a function that makes one answer of one job, and jobs; gives each job's answer in order
Answers = Callable[[Callable[[], Callable[[Any], Any]], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True)
class Plan:
    """How cases are measured.

    Attributes:
        open_device: makes the device, in whichever process measures.
        budget: seconds of timed calls of a case, all contenders together.
        without: beginnings of names of rivals that are not wanted.
        only_errors: whether to stop after the errors.
        answers: in this process, or in others (``gpu_workers.children``).
    """

    open_device: Callable[[], Device]
    budget: float = 3.0
    without: Sequence[str] = ()
    only_errors: bool = False
    answers: Answers = here


def describe(plan: Plan) -> Row:
    """What the device is, its driver and versions; or the reason why nothing can be told."""
    (found,) = plan.answers(partial(_Worker, plan.open_device, plan.budget), [("facts",)])
    return {"gpu": "unknown", "reason": found.reason} if isinstance(found, Lost) else found


def group_of(job: tuple[Any, ...]) -> str:
    """The operation of a job, for ``gpu_workers.children``."""
    return job[1].operation if len(job) > 1 else ""


def measure(cases: Sequence[Case], plan: Plan) -> Iterator[Row]:
    """Rows of plain values: each case's errors, then once more all of it for those with times."""
    # whoever measures holds the device, and none of its memory between two cases
    start = partial(_Worker, plan.open_device, plan.budget)
    rows: list[Row] = []
    judging: list[Any] = [("errors", case) for case in cases]
    for case, answer in zip(cases, plan.answers(start, judging), strict=True):
        rows.append(_lost(case, answer) if isinstance(answer, Lost) else answer)
        yield rows[-1]
    right = [(c, row) for c, row in zip(cases, rows, strict=True) if row["verdict"] == "right"]
    # who has to end a run early has some times of every operation
    right.sort(key=lambda one: _TIMED_FIRST.index(one[0].dtype_name))
    if plan.only_errors or not right:
        return
    (ceilings,) = plan.answers(start, [("ceilings",)])
    if isinstance(ceilings, Lost):
        ceilings = Ceilings(0.0, {}, missing={"all": ceilings.reason})
    todo = right
    without, reasons = tuple(plan.without), list[str]()
    # a rival may end the process as well as ours: what was lost is timed once more without them
    for again in (False, True):
        timing = [("times", case, row, ceilings, without) for case, row in todo]
        lost: dict[int, str] = {}
        for place, answer in enumerate(plan.answers(start, timing)):
            case, row = todo[place]
            if not isinstance(answer, Lost):
                yield _with_losses(answer, reasons[place]) if again else answer
            elif again:
                yield _lost(case, answer, row)
            else:
                lost[place] = answer.reason
        todo, reasons = [todo[place] for place in lost], list(lost.values())
        without = ("",)


def _with_losses(row: Row, reason: str) -> Row:
    missing = dict.fromkeys(row.get("missing", {}), f"with the rivals, {reason}")
    return {**row, "missing": missing}


def _lost(case: Case, lost: Lost, row: Row | None = None) -> Row:
    return {**(row or case.facts()), "verdict": "failed", "red": True, "reason": lost.reason}


@dataclass
class _Worker:
    """Answers jobs on a device."""

    open_device: Callable[[], Device]
    budget: float
    device: Device = field(init=False)

    def __post_init__(self) -> None:
        self.device = self.open_device()

    def __call__(self, job: tuple[Any, ...]) -> Any:
        kind, *given = job
        try:
            if kind in ("facts", "ceilings"):
                return getattr(self.device, kind)()
            return _judge(given[0], self.device) if kind == "errors" else self._time(*given)
        finally:
            self.device.settle()

    def is_usable(self) -> bool:
        """False after an error that the device does not recover from."""
        return self.device.is_alive()

    def _time(self, case: Case, row: Row, ceilings: Ceilings, without: tuple[str, ...]) -> Row:
        try:
            with math_of(case.dtype_name):
                return {**row, **_times(case, row, self.device, ceilings, self.budget, without)}
        except Exception as error:
            red = not isinstance(error, torch.OutOfMemoryError)
            verdict = "failed" if red else "unjudged"
            return {**row, "verdict": verdict, "red": red, "reason": why(error)}


def _judge(case: Case, device: Device) -> Row:
    row: Row = {**case.facts(), "red": False}
    try:
        lacking = case.lacks(device.device)
        if lacking is not None:
            return {**row, "verdict": "missing", "reason": lacking}
        row["errors"] = case.errors(device.device)
    except OursFailed as failure:
        cause = failure.__cause__ or failure
        # what does not fit into this GPU is not wrong
        red = not isinstance(cause, torch.OutOfMemoryError)
        return {**row, "verdict": "failed" if red else "unjudged", "red": red, "reason": why(cause)}
    except Exception as error:
        return {**row, "verdict": "unjudged", "reason": f"torch, or the judge: {why(error)}"}
    row["red"] = any(not e["ours"] <= e["allowed"] for e in row["errors"].values())
    row["verdict"] = "wrong" if row["red"] else "right"
    return row


class _Contender:
    """A call, its work as it can be replayed, and its times in seconds a call."""

    def __init__(self, run: Callable[[], Any], device: Device) -> None:
        self.run = self.replay = self.replay_one = run
        self.at_once = 1
        self.many = _enough(device.seconds(run, 1))
        self.recorded = False
        self.warm: list[float] = []
        self.cold: list[float] = []
        self.called: list[float] = []

    def record(self, device: Device) -> None:
        """Records the work; as it was where that raises."""
        single = device.recorded(self.run, 1)
        at_once = _AT_ONCE if device.seconds(single, 1) < _SHORT else 1
        several = device.recorded(self.run, at_once) if at_once > 1 else single
        self.replay, self.replay_one, self.at_once = several, single, at_once
        self.many = _enough(device.seconds(several, 1))
        self.recorded = True

    def sample_calls(self, device: Device) -> float:
        """One sample of calls from Python; returns the seconds that it took."""
        few = min(self.many, 10)
        whole = device.seconds(self.run, few)
        self.called.append(whole / few)
        return whole

    def sample(self, device: Device) -> float:
        """One sample with the cache emptied and one with it warm."""
        device.flush()
        self.cold.append(device.seconds(self.replay_one, 1))
        self.replay()
        whole = device.seconds(self.replay, self.many)
        self.warm.append(whole / self.many / self.at_once)
        return whole + self.cold[-1]

    def facts(self) -> Row:
        """The medians."""
        kinds = (("warm_ms", self.warm), ("cold_ms", self.cold), ("called_ms", self.called))
        medians = {name: statistics.median(times) * 1e3 for name, times in kinds}
        return {**medians, "samples": len(self.warm), "recorded": self.recorded}


def _enough(seconds: float) -> int:
    """How many calls of this length make a sample."""
    return max(1, min(1000, int(SAMPLE_SECONDS / max(seconds, 1e-9))))


class _Field:
    """The contenders of a case; a rival that raises leaves it, ours ends the case."""

    def __init__(self, calls: Calls) -> None:
        self.left: dict[str, _Contender] = {}
        self._calls = calls

    def attempt(self, name: str, what: Callable[[], Any]) -> Any:
        """What it returns; None where a rival raised."""
        try:
            return what()
        except Exception as error:
            if name == OURS:
                raise
            self._calls.missing[name] = why(error)
            self.left.pop(name, None)
            return None

    def in_turn(self, sample: Callable[[_Contender], float], budget: float) -> None:
        """A sample of each in every round."""
        spent = 0.0
        for number in range(MOST_SAMPLES):
            if number >= LEAST_SAMPLES and spent >= budget:
                break
            for name, contender in list(self.left.items()):
                spent += self.attempt(name, partial(sample, contender)) or 0.0


def _times(
    case: Case,
    row: Row,
    device: Device,
    ceilings: Ceilings,
    budget: float,
    without: Sequence[str],
) -> Row:
    calls = case.calls(device.device, row["errors"], without)
    those = _Field(calls)
    extra: dict[str, int] = {}
    for name, run in calls.run.items():
        made = those.attempt(name, partial(_Contender, run, device))
        if made is not None:
            those.left[name] = made
            extra[name] = those.attempt(name, partial(device.extra_bytes, run))
    # graphs keep their memory: what is called, and needs as much, is called before
    those.in_turn(lambda one: one.sample_calls(device), budget / 2)
    notes: dict[str, str] = {}
    for name, contender in those.left.items():
        if name in calls.whole:
            notes[name] = "waits for the device"
            continue
        try:
            contender.record(device)
        except Exception as error:
            notes[name] = why(error)
    mine = those.left[OURS]
    if calls.repeats and mine.recorded and not _replays(mine, row):
        return {"verdict": "wrong", "red": True, "reason": "its CUDA graph gives other results"}
    those.in_turn(lambda one: one.sample(device), budget / 2)
    medians = {
        name: {**one.facts(), "extra_bytes": extra[name]} for name, one in those.left.items()
    }
    found: Row = {"contenders": medians, "missing": calls.missing, "not_recorded": notes}
    called = medians[OURS]["called_ms"] / 1e3
    found["each_second"] = {n: count / called for n, count in row.get("counts", {}).items()}
    return found | _set_beside(case, medians, ceilings)


def _replays(ours: _Contender, row: Row) -> bool:
    """Whether a replay leaves what a call returns, but for what either may err."""
    called = _tensors(ours.run())
    replayed = _tensors(ours.replay_one())
    for tensor in replayed:
        tensor.zero_()
    ours.replay_one()
    allowed = [error["allowed"] for error in row["errors"].values()]
    for one, other, bound in zip(called, replayed, allowed, strict=True):
        if one.is_floating_point():
            if not float((one.double() - other.double()).abs().max()) <= 2 * bound:
                return False
        elif not torch.equal(one, other):
            return False
    return True


def _tensors(found: tuple[tuple[torch.Tensor, ...], ...]) -> list[torch.Tensor]:
    return [tensor.detach() for part in found for tensor in part]


def _set_beside(case: Case, medians: dict[str, Row], ceilings: Ceilings) -> Row:
    """What the times say: the best rival, and shares of what the device reached."""
    mine, cold = (medians[OURS][kind] / 1e3 for kind in ("warm_ms", "cold_ms"))
    rivals = {name: _ratio(medians[OURS], row) for name, row in medians.items() if name != OURS}
    best = min(rivals, key=lambda name: rivals[name][0]) if rivals else None
    found: Row = {
        "best_rival": best,
        "ratio": rivals[best][0] if best else None,
        "compared": rivals[best][1] if best else None,
        "ceilings": ceilings._asdict(),
        **dict.fromkeys(("gigabytes", "gflops", "share_of_copy", "share_of_product")),
    }
    work = case.cost()
    if work is not None:
        peak = ceilings.gflops.get(case.dtype_name)
        found["gigabytes"] = gigabytes = work.bytes / cold / 1e9
        found["gflops"] = gflops = work.flops / mine / 1e9
        found["share_of_copy"] = gigabytes / ceilings.gigabytes if ceilings.gigabytes else None
        found["share_of_product"] = gflops / peak if peak else None
    return found


def _ratio(mine: Row, other: Row) -> tuple[float, str]:
    """How many times as fast ours is, and by which time: recorded where both are, else called."""
    kind = "warm_ms" if mine["recorded"] and other["recorded"] else "called_ms"
    return other[kind] / mine[kind], kind


# ------------------------------------------------------------------------------------ report


def counted(rows: Sequence[Row]) -> str:
    """How many cases got which verdict, in words."""
    verdicts = [row["verdict"] for row in rows]
    told = [
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in ("right", "wrong", "failed", "unjudged", "missing")
        if verdict in verdicts
    ]
    return f"{len(rows)} cases: {', '.join(told)}"


def ceilings_lines(ceilings: Mapping[str, Any]) -> list[str]:
    """What the device reached, in words."""
    lines = [f"copy: {ceilings['gigabytes']:.0f} GB/s"]
    lines += [
        f"product, {name}: {reached:.0f} GFLOP/s" for name, reached in ceilings["gflops"].items()
    ]
    lines += [f"under load, {name}: {value}" for name, value in ceilings["clocks"].items()]
    lines += [f"not measured, {name}: {reason}" for name, reason in ceilings["missing"].items()]
    return [f"ceilings: {line}" for line in lines]


def cells(row: Row) -> list[str]:
    """A row of the table below :data:`HEADER`."""
    start = [row["operation"], row["case"]]
    verdict = row["verdict"] + (f": {row['reason']}" if "reason" in row else "")
    if not row.get("errors"):
        return [*start, *["-"] * (len(HEADER) - 3), verdict]
    worst = max(row["errors"].values(), key=lambda e: e["ours"] / max(e["allowed"], 1e-300))
    error = f"{worst['ours']:.1e} ({worst['torch']:.1e})"
    if "contenders" not in row:
        return [*start, *["-"] * (len(HEADER) - 4), error, verdict]
    mine, best = row["contenders"][OURS], row["best_rival"]
    return [
        *start,
        *(f"{mine[kind]:.4f}" for kind in ("warm_ms", "cold_ms", "called_ms")),
        _figure(row["gigabytes"], ".0f"),
        _figure(row["share_of_copy"], ".0%"),
        _figure(row["gflops"], ".0f"),
        _figure(row["share_of_product"], ".0%"),
        best or "-",
        f"{row['contenders'][best][row['compared']]:.4f}" if best else "-",
        f"{row['ratio']:.2f}x" if best else "-",
        error,
        verdict + "".join(f", {n:,.0f} {unit}/s" for unit, n in row["each_second"].items()),
    ]


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
