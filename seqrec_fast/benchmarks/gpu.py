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
from seqrec_fast.benchmarks.gpu_timing import set_beside, times
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
#: types in the order in which they are timed
_TIMED_FIRST = ("bfloat16", "float32", "float16", "tf32")


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
                calls = case.calls(self.device.device, row["errors"], without)
                found = times(calls, row, self.device, self.budget)
                if "contenders" in found:
                    found |= set_beside(found["contenders"], case.cost(), row["dtype"], ceilings)
                return {**row, **found}
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
