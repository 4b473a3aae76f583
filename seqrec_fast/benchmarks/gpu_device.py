# SPDX-License-Identifier: Apache-2.0
"""A GPU as the benchmarks see it: events, a cache that can be emptied, ceilings that are measured.

The tests give :func:`seqrec_fast.benchmarks.gpu.measure` a device of their own with the same
methods, which computes on the CPU and tells invented times.
"""

from __future__ import annotations

import functools
import gc
import shutil
import subprocess
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch

from seqrec_fast.benchmarks.case import why
from seqrec_fast.benchmarks.gpu_layouts import DTYPES, math_of
from seqrec_fast.errors import DeviceError
from seqrec_fast.ops._backend import GPU_BACKENDS, unavailable

__all__ = ["Ceilings", "CudaDevice", "Device", "check_gpu", "open_gpu"]

#: bytes of the copy and rows of the matrices, smaller where memory ends
COPIED, MULTIPLIED = (1 << 30, 1 << 27), (8192, 2048)

#: what nvidia-smi is asked for: name there -> name here
_ASKED = {
    "driver_version": "driver",
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "clocks.max.sm": "most_sm_mhz",
    "clocks.max.mem": "most_memory_mhz",
    "power.draw": "watts",
    "power.limit": "most_watts",
    "temperature.gpu": "celsius",
    "pstate": "state",
    "ecc.mode.current": "ecc",
    "mig.mode.current": "mig",
}


class Ceilings(NamedTuple):
    """What the device reached in the same run.

    Attributes:
        gigabytes: copied a second, read and written bytes counted both.
        gflops: of a large product of matrices, by name of the type.
        clocks: what nvidia-smi told while products ran.
        missing: what could not be measured, and why.
    """

    gigabytes: float
    gflops: dict[str, float]
    clocks: dict[str, str] = {}  # noqa: RUF012  (nobody changes it)
    missing: dict[str, str] = {}  # noqa: RUF012


class Device(Protocol):
    """What measuring needs of a device."""

    device: torch.device

    def flush(self) -> None:
        """Empties the last-level cache."""

    def seconds(self, run: Callable[[], Any], calls: int) -> float:
        """The time of so many calls on the device, from one event to another."""

    def recorded(self, run: Callable[[], Any], calls: int) -> Callable[[], Any]:
        """What so many calls give the device to do, to be repeated without the host.

        Returns:
            Repeats it, and returns what the last of the calls does.

        Raises:
            RuntimeError: it cannot be recorded.
        """

    def extra_bytes(self, run: Callable[[], Any]) -> int:
        """The most memory that a call takes, its results among it."""

    def ceilings(self) -> Ceilings:
        """Measures what the device can reach."""

    def facts(self) -> dict[str, Any]:
        """Name, memory, driver, clocks and versions, as plain values."""

    def settle(self) -> None:
        """Gives memory back between two cases."""

    def is_alive(self) -> bool:
        """False after an error that no later call recovers from."""


def check_gpu() -> None:
    """Looks whether torch finds a GPU, without taking it.

    Raises:
        DeviceError: it finds none; says why.
    """
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = (
            "torch finds no GPU or no driver"
            if built
            else f"torch {torch.__version__} is a build for the CPU; install one for CUDA"
        )
        raise DeviceError(f"bench gpu: {reason}")


def open_gpu() -> CudaDevice:
    """The current CUDA device.

    Raises:
        DeviceError: torch finds none; says why.
    """
    check_gpu()
    return CudaDevice()


class CudaDevice:
    """The current CUDA device of torch."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._properties: Any = torch.cuda.get_device_properties(self.device)
        cache = int(getattr(self._properties, "L2_cache_size", 0)) or 64 << 20
        # as much again as the cache holds, so that whichever lines it keeps are these
        self._sweep = torch.empty(2 * cache, dtype=torch.int8, device=self.device)
        self._pool: Any = None

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

    def recorded(self, run: Callable[[], Any], calls: int) -> Callable[[], Any]:
        """A CUDA graph of so many calls.

        The graphs of a case share the memory of all but their results.
        """
        self._give_back()
        aside: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            for _ in range(2):
                run()
        torch.cuda.current_stream(self.device).wait_stream(aside)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, found = torch.cuda.CUDAGraph(), None
        with torch.cuda.graph(graph, pool=self._pool):
            for _ in range(calls):
                found = run()

        def replay() -> Any:
            graph.replay()
            return found

        replay()
        torch.cuda.synchronize(self.device)
        return replay

    def extra_bytes(self, run: Callable[[], Any]) -> int:
        """By the statistics of torch's allocator."""
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.max_memory_allocated(self.device)) - before

    def ceilings(self) -> Ceilings:
        """A copy and products in every type, of the first size that fits into memory."""
        missing: dict[str, str] = {}
        copied, gflops = 0.0, dict[str, float]()
        for size in COPIED:
            try:
                copied = self._copy(size)
                break
            except torch.OutOfMemoryError as error:
                missing["copy"] = why(error)
        clocks: dict[str, str] = {}
        for name, dtype in DTYPES.items():
            for size in MULTIPLIED:
                try:
                    with math_of(name):
                        gflops[name], found = self._product(dtype, size)
                    clocks = found or clocks
                    break
                except RuntimeError as error:
                    missing[name] = why(error)
        return Ceilings(copied, gflops, clocks, missing)

    def _copy(self, size: int) -> float:
        source = torch.empty(size, dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        return 2e-9 * size / self._best(functools.partial(target.copy_, source))

    def _product(self, dtype: torch.dtype, size: int) -> tuple[float, dict[str, str]]:
        a, b = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
        run = functools.partial(torch.matmul, a, b)
        each = self._best(run)
        clocks: dict[str, str] = {}
        if dtype == torch.bfloat16:
            # half a second of work is queued, and the clocks are read meanwhile
            for _ in range(min(500, int(0.5 / each))):
                run()
            clocks = self._asked()
            torch.cuda.synchronize(self.device)
        return 2e-9 * size**3 / each, clocks

    def facts(self) -> dict[str, Any]:
        """Name, memory, capability, driver, clocks, versions, and what computes each operation."""
        properties = self._properties
        triton = getattr(_module("triton"), "__version__", None)
        cudnn: Any = torch.backends.cudnn
        return {
            "gpu": properties.name,
            "memory": int(properties.total_memory),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": int(properties.multi_processor_count),
            "cache": self._sweep.numel() // 2,
            "torch": torch.__version__,
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": cudnn.version(),
            "triton": triton,
            "kernels": {name: unavailable(name) or kind for name, kind in GPU_BACKENDS.items()},
            **self._asked(),
        }

    def settle(self) -> None:
        """Forgets the graphs' memory and empties torch's."""
        self._pool = None
        self._give_back()

    def is_alive(self) -> bool:
        """By a small computation."""
        try:
            torch.ones(1, device=self.device).add_(1)
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            return isinstance(error, torch.OutOfMemoryError)
        return True

    def _give_back(self) -> None:
        gc.collect()
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError:  # of an earlier call; is_alive tells
            pass

    def _best(self, run: Callable[[], Any]) -> float:
        self.seconds(run, 3)
        return min(self.seconds(run, 5) / 5 for _ in range(5))

    def _asked(self) -> dict[str, str]:
        """What nvidia-smi tells of this GPU; the reason where it tells nothing."""
        program = shutil.which("nvidia-smi")
        if program is None:
            return {"nvidia_smi": "not found"}
        command = [program, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"]
        number = str(getattr(self._properties, "uuid", ""))
        if number:
            command.append(f"--id={number if number.startswith('GPU-') else f'GPU-{number}'}")
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return {"nvidia_smi": why(error)}
        lines = ran.stdout.strip().splitlines()
        cells = [cell.strip() for cell in lines[0].split(",")] if lines else []
        if ran.returncode != 0 or len(cells) != len(_ASKED):
            return {"nvidia_smi": (lines or ran.stderr.strip().splitlines() or ["no answer"])[0]}
        return dict(zip(_ASKED.values(), cells, strict=True))


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None
