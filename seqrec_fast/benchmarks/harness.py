# SPDX-License-Identifier: Apache-2.0
"""Times the contenders of a case in turn, judges their errors, and says what the figures mean.

* Every contender is warmed up, and a sample of each is taken in every round, so that a change of
  the machine's load meets them all. A sample is several calls where one is short; one untimed call
  before it brings back what another contender has pushed out of the caches.
* The median counts, the quartiles are kept. A case ends when each median is known to about a
  hundredth, or when the case has used up its budget.
* The multiply-add peak and the memory bandwidth are measured beside the case.
* No time counts where our error against float64 exceeds twice that of torch's float32 (five times
  for gradients): such a case is red.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqrec_fast import native
from seqrec_fast.benchmarks.case import OURS, STANDARD, Case, Contender, Outputs, Prepared, why
from seqrec_fast.errors import InputError

__all__ = [
    "SETTLE_SECONDS",
    "allowed_errors",
    "measure",
    "pin_threads",
    "settle",
    "summarise",
    "time_in_turn",
]

#: a sample is at least so long, in seconds
SAMPLE_SECONDS = 2e-3
LEAST_SAMPLES, MOST_SAMPLES = 5, 60
#: samples that a contender gets though its part of the budget is used up
FEWEST_SAMPLES = 3
#: a call so long needs no other before it to bring its data into the caches
LONG_SECONDS = 0.05
#: half the width of the interval in which the median lies, relative to it, that is enough
ENOUGH = 0.01
#: with several threads, the workers of one library spin before they sleep, and would take the
#: processors of the next one: OpenMP's for 7 ms, ONNX Runtime's for 44 ms. They are waited for, at
#: least and at most so long.
SETTLE_SECONDS, LONGEST_SETTLE_SECONDS = 0.01, 0.2

Clock = Callable[[], float]


def pin_threads(threads: int) -> None:
    """Gives torch and the native kernels so many threads; the other rivals take it when built."""
    import torch

    torch.set_num_threads(threads)
    native.set_num_threads(threads)


def measure(
    case: Case,
    threads: int,
    *,
    budget: float = 3.0,
    without: Sequence[str] = (),
    judged: dict[str, Outputs] | None = None,
) -> dict[str, Any]:
    """Measures one case.

    Args:
        case: what to measure.
        threads: for every contender.
        budget: seconds of timed calls, shared by the contenders; see :func:`time_in_turn`.
        without: beginnings of the names of rivals that are not wanted.
        judged: outputs in float64 by name of the case, kept for the next number of threads.

    Returns:
        One row of the results, plain values; ``reason`` alone beside the facts of the case where
        our own operation does not exist or cannot run.
    """
    pin_threads(threads)
    row: dict[str, Any] = {
        **case.facts(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.date.today().isoformat(),
    }
    try:
        prepared = case.prepare(threads, tuple(without))
    except (ImportError, InputError, AttributeError) as error:
        return {**row, "reason": why(error)}
    peak = native.measure_peak(threads)
    row |= {"peak_gflops": peak.gflops, "peak_gigabytes": peak.gigabytes}
    judged = {} if judged is None else judged
    truth = judged.setdefault(case.name, {})
    if not truth:
        truth.update(prepared.judge())
    errors, memory = _examine(prepared, truth, case.bar.extra_bytes is not None)
    allowed = allowed_errors(errors[STANDARD], truth)
    row["errors"] = {
        name: {"ours": ours, "torch": errors[STANDARD][name], "allowed": allowed[name]}
        for name, ours in errors[OURS].items()
    }
    row["red"] = any(not e["ours"] <= e["allowed"] for e in row["errors"].values())
    row["extra_bytes"] = memory
    pause = SETTLE_SECONDS if threads > 1 else 0.0
    times = time_in_turn(prepared.contenders, budget, pause=pause)
    return row | summarise(case, threads, prepared, times, peak)


# ---------------------------------------------------------------------------------- errors


def _examine(
    prepared: Prepared, truth: Outputs, with_memory: bool
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Largest errors of every contender by output, and memory beyond arguments and results.

    A rival whose call fails or whose result is something else is moved to the missing ones.
    """
    errors: dict[str, dict[str, float]] = {}
    memory: dict[str, int] = {}
    for contender in list(prepared.contenders):
        try:
            before = _reset_peak_memory() if with_memory else None
            result = contender.run()
            peak = _peak_memory() if before is not None else 0
            outputs = contender.read(result)
            if before is not None:
                results = sum(outputs[name].nbytes for name in truth)
                memory[contender.name] = max(0, peak - before - results)
            found = {name: largest_error(outputs[name], truth[name]) for name in truth}
        except Exception as error:
            if contender.name in (OURS, STANDARD):
                raise
            reason = why(error)
        else:
            sizes = {name: float(np.abs(t).max(initial=0.0)) for name, t in truth.items()}
            strange = [n for n in truth if not found[n] <= 0.01 * sizes[n] + 1e-6]
            if not strange or contender.name in (OURS, STANDARD):
                errors[contender.name] = found
                continue
            reason = f"computes something else: error {found[strange[0]]:.1g} in {strange[0]}"
        prepared.contenders.remove(contender)
        prepared.missing[contender.name] = reason
    gc.collect()
    return errors, memory


def largest_error(found: Any, truth: Any) -> float:
    """The largest absolute difference; infinite where the shapes differ or one is NaN."""
    if found.shape != truth.shape:
        return math.inf
    worst = float(np.abs(found.astype(np.float64, copy=False) - truth).max(initial=0.0))
    return worst if math.isfinite(worst) else math.inf


def allowed_errors(standard: dict[str, float], truth: Outputs) -> dict[str, float]:
    """What ours may err: twice torch's float32 error, five times for gradients.

    Where torch is all but exact, four units in the last place of the largest value are allowed.
    """
    unit = float(np.finfo(np.float32).eps)
    return {
        name: max(
            (5.0 if name.startswith("d_") else 2.0) * error,
            4.0 * unit * float(np.abs(truth[name]).max(initial=0.0)),
        )
        for name, error in standard.items()
    }


def _reset_peak_memory() -> int | None:
    """Bytes resident now; None where the system does not tell or cannot forget its peak."""
    gc.collect()
    # what was freed but is still held by the allocator would hide what is taken next
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _peak_memory() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


# ----------------------------------------------------------------------------------- times


def time_in_turn(
    contenders: Sequence[Contender],
    budget: float,
    *,
    pause: float = 0.0,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call, a list of samples by contender.

    Each gets the same part of ``budget``, but at least three samples; those that are done early
    leave the others alone. A contender whose first call takes the whole budget is not called again.
    """
    share = budget / max(len(contenders), 1)
    calls: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    spent: dict[str, float] = {}
    for contender in contenders:
        first = _time(contender.run, 1, clock)
        calls[contender.name] = max(1, math.ceil(SAMPLE_SECONDS / max(first, 1e-9)))
        times[contender.name] = [first] if first >= budget else []
        spent[contender.name] = first
        if calls[contender.name] > 1:  # the first call may have been slow: count again
            many = _time(contender.run, calls[contender.name], clock)
            calls[contender.name] = max(1, math.ceil(SAMPLE_SECONDS / max(many, 1e-9)))
    running = [c for c in contenders if not times[c.name]]
    collecting = gc.isenabled()
    gc.disable()
    try:
        while running:
            for contender in list(running):
                if pause:
                    settle(pause)
                name = contender.name
                began = clock()
                if times[name] == [] or max(times[name]) < LONG_SECONDS:
                    contender.run()
                times[name].append(_time(contender.run, calls[name], clock))
                spent[name] += clock() - began
                used_up = spent[name] >= share and len(times[name]) >= FEWEST_SAMPLES
                if used_up or _settled(times[name]):
                    running.remove(contender)
    finally:
        if collecting:
            gc.enable()
    return times


def settle(least: float) -> None:
    """Sleeps until no other thread of this process is at work, where the system tells."""
    deadline = time.monotonic() + LONGEST_SETTLE_SECONDS
    time.sleep(least)
    while time.monotonic() < deadline and _others_run():
        time.sleep(least / 4)


def _others_run() -> bool:
    """Whether a thread of this process, other than the calling one, runs or waits to run."""
    own = str(threading.get_native_id())
    for task in Path("/proc/self/task").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # a thread may end at any time
            state = task.read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            if state == "R" and task.parent.name != own:
                return True
    return False


def _time(run: Callable[[], Any], calls: int, clock: Clock) -> float:
    began = clock()
    for _ in range(calls):
        run()
    return (clock() - began) / calls


def _settled(times: list[float]) -> bool:
    """Whether the median is known well enough: the notches of a box plot (McGill et al. 1978)."""
    if len(times) >= MOST_SAMPLES:
        return True
    if len(times) < LEAST_SAMPLES:
        return False
    low, middle, high = statistics.quantiles(times, n=4)
    return 1.57 * (high - low) / math.sqrt(len(times)) <= ENOUGH * middle


# --------------------------------------------------------------------------------- meaning


def summarise(
    case: Case,
    threads: int,
    prepared: Prepared,
    times: dict[str, list[float]],
    peak: native.Peak,
) -> dict[str, Any]:
    """Medians, ratios to the rivals, shares of the peak, and what the bar asks of them."""
    medians = {name: statistics.median(t) for name, t in times.items()}
    mine = medians[OURS]
    rivals = {name: t for name, t in medians.items() if name != OURS}
    padded = {c.name: medians[c.name] for c in prepared.contenders if c.padded}
    gflops = case.flops / mine / 1e9
    # under the roof: the time that arithmetic or memory needs at least, whichever is more
    least = max(case.flops / peak.gflops, case.bytes / peak.gigabytes) / 1e9
    bar = case.bar
    best = _best("", rivals, mine)
    return {
        "contenders": {
            c.name: {
                "median_ms": medians[c.name] * 1e3,
                "quartiles_ms": _quartiles(times[c.name]),
                "samples": len(times[c.name]),
                "padded": c.padded,
            }
            for c in prepared.contenders
        },
        "missing": prepared.missing,
        **best,
        **_best("_padded", padded, mine),
        "gflops": gflops,
        "gigabytes": case.bytes / mine / 1e9,
        "share_of_peak": gflops / peak.gflops,
        "share_of_roof": least / mine,
        "bar": {
            "ratio": bar.ratio_on(threads),
            "against": bar.against,
            "reached": best["ratio"]
            if bar.against is None
            else rivals[bar.against] / mine
            if bar.against in rivals
            else None,
            "share_of_peak": bar.share_of_peak,
            "extra_bytes": bar.extra_bytes,
        },
    }


def _best(suffix: str, rivals: dict[str, float], mine: float) -> dict[str, Any]:
    best = min(rivals, key=rivals.__getitem__) if rivals else None
    return {f"best{suffix}_rival": best, f"ratio{suffix}": rivals[best] / mine if best else None}


def _quartiles(times: list[float]) -> list[float]:
    if len(times) < 2:
        return [times[0] * 1e3] * 2
    low, _, high = statistics.quantiles(times, n=4)
    return [low * 1e3, high * 1e3]
