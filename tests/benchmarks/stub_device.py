# SPDX-License-Identifier: Apache-2.0
"""A device of ``bench gpu`` that computes on the CPU and tells invented times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from seqrec_fast.benchmarks import gpu_device


class StubDevice:
    """A recorded call takes a microsecond with the cache warm, and three after it was emptied.

    From Python it takes ten.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.flushed = self.settled = 0
        self._cold = False

    def flush(self) -> None:
        self.flushed += 1
        self._cold = True

    def seconds(self, run: Callable[[], Any], calls: int) -> float:
        run()
        each = run.each if isinstance(run, _Recorded) else 1e-5
        each, self._cold = (3 * each if self._cold else each), False
        return each * calls

    def recorded(self, run: Callable[[], Any], calls: int) -> Callable[[], Any]:
        return _Recorded(run, 1e-6 * calls)

    def extra_bytes(self, run: Callable[[], Any]) -> int:
        run()
        return 4096

    def ceilings(self) -> gpu_device.Ceilings:
        peaks = {"float32": 1e4, "tf32": 5e4, "float16": 1e5, "bfloat16": 1e5}
        return gpu_device.Ceilings(1000.0, peaks, {"sm_mhz": "1755"})

    def facts(self) -> dict[str, Any]:
        return {"gpu": "a stub", "driver": "none"}

    def settle(self) -> None:
        self.settled += 1

    def is_alive(self) -> bool:
        return True


class _Recorded:
    """Stands for a CUDA graph: its results lie where they lay at first."""

    def __init__(self, run: Callable[[], Any], each: float) -> None:
        self._run = run
        self._kept: Any = None
        self.each = each

    def __call__(self) -> Any:
        found = self._run()
        if self._kept is None:
            self._kept = found
        elif isinstance(found, tuple):
            for kept, fresh in zip(self._kept, found, strict=True):
                for place, tensor in zip(kept, fresh, strict=True):
                    place.detach().copy_(tensor.detach())
        return self._kept
