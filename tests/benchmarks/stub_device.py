# SPDX-License-Identifier: Apache-2.0
"""A device of ``bench gpu`` that computes on the CPU and tells invented times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from seqrec_fast.benchmarks import gpu_device


class StubDevice:
    """Every call takes a microsecond with the cache warm, and three after it was emptied."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.flushed = 0
        self._cold = False

    def flush(self) -> None:
        self.flushed += 1
        self._cold = True

    def seconds(self, run: Callable[[], Any], calls: int) -> float:
        run()
        each, self._cold = (3e-6 if self._cold else 1e-6), False
        return each * calls

    def ceilings(self) -> gpu_device.Ceilings:
        return gpu_device.Ceilings(1000.0, {"float32": 1e4, "float16": 1e5, "bfloat16": 1e5})

    def facts(self) -> dict[str, Any]:
        return {"gpu": "a stub"}
