# SPDX-License-Identifier: Apache-2.0
"""Times of the contenders of a case of ``bench gpu``, in turn, as calls and as CUDA graphs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from seqrec_fast.benchmarks.case import OURS, why
from seqrec_fast.benchmarks.gpu_cases import Calls
from seqrec_fast.benchmarks.gpu_device import Ceilings, Device
from seqrec_fast.benchmarks.gpu_model import Work

__all__ = ["set_beside", "times"]

Row = dict[str, Any]
LEAST_SAMPLES, MOST_SAMPLES = 5, 50
#: a warm sample is at least so long, so that the events' own resolution does not count
SAMPLE_SECONDS = 1e-3
#: calls in one graph where one alone would be no longer than the start of a graph
_AT_ONCE, _SHORT = 16, 5e-5


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


def times(calls: Calls, row: Row, device: Device, budget: float) -> Row:
    """The times of all contenders.

    Args:
        calls: what is timed.
        row: of the case, with its errors.
        device: where.
        budget: seconds of timed calls, about.

    Returns:
        What is added to the row: ``contenders``, or the verdict where a graph of ours is wrong.

    Raises:
        Exception: what ours raised.
    """
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
    return found


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


def set_beside(
    medians: dict[str, Row], work: Work | None, dtype_name: str, ceilings: Ceilings
) -> Row:
    """What the times say: the best rival, and shares of what the device reached.

    Args:
        medians: by contender, from :func:`times`.
        work: what the case costs at least; None where that is not counted.
        dtype_name: its type.
        ceilings: of the device.
    """
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
    if work is not None:
        peak = ceilings.gflops.get(dtype_name)
        found["gigabytes"] = gigabytes = work.bytes / cold / 1e9
        found["gflops"] = gflops = work.flops / mine / 1e9
        found["share_of_copy"] = gigabytes / ceilings.gigabytes if ceilings.gigabytes else None
        found["share_of_product"] = gflops / peak if peak else None
    return found


def _ratio(mine: Row, other: Row) -> tuple[float, str]:
    """How many times as fast ours is, and by which time: recorded where both are, else called."""
    kind = "warm_ms" if mine["recorded"] and other["recorded"] else "called_ms"
    return other[kind] / mine[kind], kind
