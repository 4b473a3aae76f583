# SPDX-License-Identifier: Apache-2.0
"""A GPU as the benchmarks see it: events, a cache that can be emptied, ceilings that are measured.

The tests give :func:`seqrec_fast.benchmarks.gpu.measure` a device of their own with the same
methods, which computes on the CPU and tells invented times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from seqrec_fast.errors import DeviceError

__all__ = ["Ceilings", "CudaDevice", "Device", "require_gpu"]


class Ceilings(NamedTuple):
    """What the device reached in the same run.

    Attributes:
        gigabytes: copied a second, read and written bytes counted both.
        gflops: of a large product of matrices, by name of the dtype.
    """

    gigabytes: float
    gflops: dict[str, float]


class Device(Protocol):
    """What measuring needs of a device."""

    device: torch.device

    def flush(self) -> None:
        """Empties the last-level cache."""

    def seconds(self, run: Callable[[], Any], calls: int) -> float:
        """The time of so many calls on the device, from one event to another."""

    def ceilings(self) -> Ceilings:
        """Measures what the device can reach."""

    def facts(self) -> dict[str, Any]:
        """Name, memory, driver and versions, as plain values."""


def require_gpu() -> CudaDevice:
    """The current CUDA device.

    Raises:
        DeviceError: torch finds none; says why.
    """
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = (
            "torch finds no GPU or no driver"
            if built
            else f"torch {torch.__version__} is a build for the CPU; install one for CUDA"
        )
        raise DeviceError(f"bench gpu: {why}")
    return CudaDevice()


class CudaDevice:
    """The current CUDA device of torch."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._properties: Any = torch.cuda.get_device_properties(self.device)
        cache = int(getattr(self._properties, "L2_cache_size", 0)) or 64 << 20
        # as much again as the cache holds, so that whichever lines it keeps are these
        self._sweep = torch.empty(2 * cache, dtype=torch.int8, device=self.device)

    def flush(self) -> None:
        """Writes twice the size of the last-level cache."""
        self._sweep.zero_()

    def seconds(self, run: Callable[[], Any], calls: int) -> float:
        """The time of so many calls, by events of the current stream."""
        event: Any = torch.cuda.Event
        first, last = event(enable_timing=True), event(enable_timing=True)
        first.record()
        for _ in range(calls):
            run()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    def ceilings(self) -> Ceilings:
        """A copy of 1 GiB and products of 8192 x 8192 in every type."""
        source = torch.empty(1 << 30, dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        copied = self._best(functools.partial(target.copy_, source))
        del source, target
        gflops = {}
        size = 8192
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
            name = str(dtype).removeprefix("torch.")
            gflops[name] = 2e-9 * size**3 / self._best(functools.partial(torch.matmul, a, b))
        return Ceilings(2e-9 * (1 << 30) / copied, gflops)

    def facts(self) -> dict[str, Any]:
        """Name, memory, capability, versions."""
        return {
            "gpu": self._properties.name,
            "memory": int(self._properties.total_memory),
            "capability": f"{self._properties.major}.{self._properties.minor}",
            "cuda": torch.version.cuda or torch.version.hip,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }

    def _best(self, run: Callable[[], Any]) -> float:
        self.seconds(run, 3)
        return min(self.seconds(run, 5) / 5 for _ in range(5))
