# SPDX-License-Identifier: Apache-2.0
"""Every operation on a GPU: first its errors against float64, then its times beside others.

A case is one shape in one type and direction. Ours is red where its error exceeds twice that of
torch in the same type (five times for gradients in float32), and then gets no times. The others are
timed in turn with ours, with the last-level cache warm and emptied before each call. The median
counts. Bandwidth and operations a second are those that the result needs (:mod:`gpu_model`),
beside what the device reached in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from seqrec_fast.benchmarks import gpu_model
from seqrec_fast.benchmarks.case import OURS, STANDARD, why
from seqrec_fast.benchmarks.gpu_cases import GpuCase, Layout
from seqrec_fast.benchmarks.gpu_device import Ceilings, Device

__all__ = ["HEADER", "cells", "measure"]

HEADER = (
    *("operation", "case", "warm ms", "cold ms", "GB/s", "of copy", "GFLOP/s", "of product"),
    *("best rival", "its ms", "ratio", "error", "verdict"),
)
LEAST_SAMPLES, MOST_SAMPLES = 5, 50
#: a warm sample is at least so long, so that the events' own resolution does not count
SAMPLE_SECONDS = 1e-3


def measure(
    cases: Sequence[GpuCase],
    device: Device,
    *,
    budget: float = 3.0,
    without: Sequence[str] = (),
    only_errors: bool = False,
) -> Iterator[dict[str, Any]]:
    """One row a case, plain values: errors of all first, then times.

    Args:
        cases: what to measure.
        device: where.
        budget: seconds of timed calls of a case, all contenders together.
        without: beginnings of names of rivals that are not wanted.
        only_errors: whether to stop after the errors.
    """
    checked = [(case, _errors(case, device)) for case in cases]
    ceilings = None if only_errors else device.ceilings()
    for case, row in checked:
        if ceilings is not None and "reason" not in row and not row["red"]:
            row |= _times(case, device, ceilings, budget, tuple(without))
        yield row


def _errors(case: GpuCase, device: Device) -> dict[str, Any]:
    row: dict[str, Any] = case.facts()
    try:
        layouts = case.build(device.device)
        truth = _outputs(layouts[STANDARD], torch.float64, case.backward)
        errors = {
            name: _worst(_outputs(layouts[name], case.dtype, case.backward), truth)
            for name in (OURS, STANDARD)
        }
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as failure:
        return {**row, "reason": why(failure), "red": False}
    unit = torch.finfo(case.dtype).eps
    row["errors"] = {}
    for name, error in errors[STANDARD].items():
        loose = 5.0 if name.startswith("d_") and case.dtype == torch.float32 else 2.0
        largest = float(truth[name].abs().max()) if truth[name].numel() else 0.0
        # where torch is all but exact, a few units in the last place of the largest value
        allowed = max(loose * error, 4 * unit * largest)
        row["errors"][name] = {"ours": errors[OURS][name], "torch": error, "allowed": allowed}
    row["red"] = any(not e["ours"] <= e["allowed"] for e in row["errors"].values())
    return row


def _call(layout: Layout, dtype: torch.dtype, backward: bool) -> Callable[[], Any]:
    given = {
        name: t.detach().to(dtype) if t.is_floating_point() else t
        for name, t in layout.inputs.items()
    }
    if not backward:

        def infer() -> Any:
            with torch.no_grad():
                return layout.function(*given.values())

        return infer
    leaves = [t.requires_grad_() for t in given.values() if t.is_floating_point()]
    upstream: list[Tensor] = []

    def train() -> Any:
        result = layout.function(*given.values())
        if not upstream:
            generator = torch.Generator().manual_seed(1)
            draw = torch.randn(layout.back("y", result).shape, generator=generator)
            upstream.append(layout.forth(draw.to(result.device, dtype), result))
        return result, torch.autograd.grad(result, leaves, upstream[0])

    return train


def _outputs(layout: Layout, dtype: torch.dtype, backward: bool) -> dict[str, Tensor]:
    result = _call(layout, dtype, backward)()
    if not backward:
        return {"y": layout.back("y", result).double()}
    names = [name for name, t in layout.inputs.items() if t.is_floating_point()]
    found = {"y": layout.back("y", result[0]).detach().double()}
    for name, gradient in zip(names, result[1], strict=True):
        found[f"d_{name}"] = layout.back(name, gradient).double()
    return found


def _worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    worst = {}
    for name, exact in truth.items():
        if found[name].shape != exact.shape:
            worst[name] = float("inf")
            continue
        error = float((found[name] - exact).abs().max()) if exact.numel() else 0.0
        worst[name] = error if error == error else float("inf")
    return worst


def _times(
    case: GpuCase, device: Device, ceilings: Ceilings, budget: float, without: tuple[str, ...]
) -> dict[str, Any]:
    missing: dict[str, str] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, layout in case.build(device.device).items():
        if name != OURS and any(name.startswith(word) for word in without):
            missing[name] = "not wanted"
            continue
        try:
            call = _call(layout, case.dtype, case.backward)
            for _ in range(3):
                call()
        except Exception as error:
            if name == OURS:
                raise
            missing[name] = why(error)
            continue
        calls[name] = call
    warm, cold = _in_turn(calls, device, budget)
    mine = statistics.median(warm[OURS])
    rivals = {name: statistics.median(t) for name, t in warm.items() if name != OURS}
    best = min(rivals, key=rivals.__getitem__) if rivals else None
    work = gpu_model.work(case.operation, case.shape, case.dtype_name, case.backward)
    peak = ceilings.gflops.get(case.dtype_name)
    gigabytes, gflops = work.bytes / mine / 1e9, work.flops / mine / 1e9
    return {
        "contenders": {
            name: {
                "warm_ms": statistics.median(warm[name]) * 1e3,
                "cold_ms": statistics.median(cold[name]) * 1e3,
                "samples": len(warm[name]),
            }
            for name in calls
        },
        "missing": missing,
        "best_rival": best,
        "ratio": rivals[best] / mine if best else None,
        "gigabytes": gigabytes,
        "gflops": gflops,
        "share_of_copy": gigabytes / ceilings.gigabytes,
        "share_of_product": gflops / peak if peak else None,
        "ceilings": ceilings._asdict(),
    }


def _in_turn(
    calls: dict[str, Callable[[], Any]], device: Device, budget: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds a call with the cache warm and cold, a sample of each contender in every round."""
    warm: dict[str, list[float]] = {name: [] for name in calls}
    cold: dict[str, list[float]] = {name: [] for name in calls}
    many = {
        name: max(1, min(1000, int(SAMPLE_SECONDS / max(device.seconds(call, 1), 1e-9))))
        for name, call in calls.items()
    }
    spent = 0.0
    for number in range(MOST_SAMPLES):
        if number >= LEAST_SAMPLES and spent >= budget:
            break
        for name, call in calls.items():
            device.flush()
            cold[name].append(device.seconds(call, 1))
            call()
            whole = device.seconds(call, many[name])
            warm[name].append(whole / many[name])
            spent += whole + cold[name][-1]
    return warm, cold


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table below :data:`HEADER`."""
    start = [row["operation"], row["case"]]
    if "reason" in row:
        return [*start, *["-"] * 10, row["reason"]]
    worst = max(row["errors"].values(), key=lambda e: e["ours"] / max(e["allowed"], 1e-300))
    error = f"{worst['ours']:.1e} ({worst['torch']:.1e})"
    if "contenders" not in row:
        return [*start, *["-"] * 9, error, "red" if row["red"] else "right"]
    mine, best = row["contenders"][OURS], row["best_rival"]
    share = row["share_of_product"]
    return [
        *start,
        f"{mine['warm_ms']:.4f}",
        f"{mine['cold_ms']:.4f}",
        f"{row['gigabytes']:.0f}",
        f"{row['share_of_copy']:.0%}",
        f"{row['gflops']:.0f}",
        f"{share:.0%}" if share is not None else "-",
        best or "-",
        f"{row['contenders'][best]['warm_ms']:.4f}" if best else "-",
        f"{row['ratio']:.2f}x" if best else "-",
        error,
        "right",
    ]
