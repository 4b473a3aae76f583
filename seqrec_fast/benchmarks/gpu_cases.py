# SPDX-License-Identifier: Apache-2.0
"""A case of ``bench gpu``: one operation, shape, type and direction, judged and then timed.

:mod:`~seqrec_fast.benchmarks.gpu_operations` says how each operation is computed by ours and by the
others. Cases hold no tensors, so that they can be handed to another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seqrec_fast.benchmarks import gpu_model
from seqrec_fast.benchmarks.case import OURS, STANDARD, why
from seqrec_fast.benchmarks.gpu_layouts import (
    DTYPES,
    TF32,
    Layout,
    call,
    compare,
    math_of,
    outputs,
    rounding,
)
from seqrec_fast.benchmarks.gpu_operations import JUDGE, OPERATIONS
from seqrec_fast.ops._backend import choose_backend, unavailable

__all__ = ["Calls", "GpuCase", "cases", "operations"]

Errors = dict[str, dict[str, float]]


@dataclass
class Calls:
    """What is timed of a case.

    Attributes:
        run: by name of the contender.
        missing: contender -> why it is left out.
        whole: names of those whose work cannot be recorded into a CUDA graph.
        repeats: whether every call of ours returns the same tensors, in the order of the errors.
    """

    run: dict[str, Callable[[], Any]]
    missing: dict[str, str]
    whole: frozenset[str] = frozenset()
    repeats: bool = False


@dataclass(frozen=True)
class GpuCase:
    """One row of the table of figures.

    Attributes:
        operation: a key of ``gpu_operations.OPERATIONS``.
        shape: of :mod:`seqrec_fast.benchmarks.shapes`.
        dtype_name: a key of ``gpu_layouts.DTYPES``.
        backward: whether gradients are computed too.
    """

    operation: str
    shape: Any
    dtype_name: str
    backward: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors."""
        return DTYPES[self.dtype_name]

    @property
    def name(self) -> str:
        """Shape, type and direction."""
        return f"{self.shape}, {self.dtype_name}, forward{'+backward' if self.backward else ''}"

    def build(self, device: torch.device) -> dict[str, Layout]:
        """The layouts, their inputs on the device."""
        return OPERATIONS[self.operation].make(self.shape, device)

    def facts(self) -> dict[str, Any]:
        """What is known before measuring, as plain values."""
        return {
            "operation": self.operation,
            "case": self.name,
            "shape": dict(self.shape._asdict()),
            "dtype": self.dtype_name,
            "backward": self.backward,
        }

    def backend(self, device: torch.device) -> str:
        """What computes ours on the device: a kind of kernels, or ``"reference"``."""
        return choose_backend(OPERATIONS[self.operation].kernel, device, self.dtype)

    def lacks(self, device: torch.device) -> str | None:
        """Why ours has no kernels on this GPU and would be plain torch; None where it has."""
        if device.type != "cuda":
            return None
        reason = unavailable(OPERATIONS[self.operation].kernel)
        if reason is None and self.backend(device) == "reference":
            reason = "SEQREC_FAST_BACKEND chooses plain torch"
        return None if reason is None else f"no kernels: {reason}"

    def cost(self) -> gpu_model.Work:
        """What it costs at least."""
        return gpu_model.work(self.operation, self.shape, self.dtype_name, self.backward)

    def errors(self, device: torch.device) -> Errors:
        """By output: our error and torch's against float64, and how much ours may err.

        Raises:
            Exception: what torch raised, in this type or in float64, such as for want of memory.
            OursFailed: ours raised.
        """
        layouts = self.build(device)
        with math_of(self.dtype_name):
            judge = layouts.get(JUDGE, layouts[STANDARD])
            truth = outputs(judge, torch.float64, self.backward, judged=True)
            theirs = compare(
                outputs(layouts[STANDARD], self.dtype, self.backward, judged=True), truth
            )
            try:
                ours = compare(outputs(layouts[OURS], self.dtype, self.backward), truth)
            except Exception as failure:
                raise OursFailed from failure
        found: Errors = {}
        for name, error in theirs.items():
            loose = 5.0 if name.startswith("d_") and self.dtype == torch.float32 else 2.0
            largest = float(truth[name].abs().max()) if truth[name].numel() else 0.0
            allowed = max(loose * error, rounding(self.dtype_name) * largest)
            found[name] = {"ours": ours[name], "torch": error, "allowed": allowed}
        return found

    def calls(self, device: torch.device, errors: Errors, without: Sequence[str]) -> Calls:
        """The calls of all contenders, each warmed up; what computes something else is left out.

        Args:
            device: where.
            errors: from :meth:`errors`.
            without: beginnings of names of rivals that are not wanted.
        """
        found = Calls({}, {}, repeats=True)
        layouts = self.build(device)
        layouts.pop(JUDGE, None)
        standard: dict[str, Any] | None = None
        for name, layout in layouts.items():
            if name != OURS and any(name.startswith(word) for word in without):
                found.missing[name] = "not wanted"
                continue
            try:
                if name not in (OURS, STANDARD) and layout.compared:
                    if standard is None:
                        standard = outputs(layouts[STANDARD], self.dtype, False)
                    difference = compare(outputs(layout, self.dtype, False), standard)
                    if any(d > 10 * errors[n]["allowed"] for n, d in difference.items()):
                        worst = max(difference.values())
                        found.missing[name] = f"computes something else, {worst:.1e} from torch"
                        continue
                run = call(layout, self.dtype, self.backward)
                for _ in range(3):
                    run()
            except Exception as error:
                if name == OURS:
                    raise
                found.missing[name] = why(error)
                continue
            found.run[name] = run
        found.whole = frozenset(name for name, layout in layouts.items() if not layout.replays)
        return found


class OursFailed(Exception):
    """Ours raised; the reason is its cause."""


def cases(
    operations: Sequence[str] = (), match: str = "", dtypes: Sequence[str] = ()
) -> list[GpuCase]:
    """All cases of these operations and types (of all where none is named).

    Args:
        operations: keys of ``gpu_operations.OPERATIONS``.
        match: text that the name of a case has to have in it.
        dtypes: keys of ``gpu_layouts.DTYPES``.
    """
    found = [
        GpuCase(name, shape, dtype, backward)
        for name, operation in OPERATIONS.items()
        if not operations or name in operations
        for shape in operation.shapes
        for dtype in DTYPES
        if (not dtypes or dtype in dtypes) and (operation.products or dtype != TF32)
        for backward in ((False, True) if operation.trains else (False,))
    ]
    return [case for case in found if match in case.name]


def operations() -> Iterator[str]:
    """Names of what is measured."""
    yield from OPERATIONS
