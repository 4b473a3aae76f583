# SPDX-License-Identifier: Apache-2.0
"""The device of ``bench gpu``, its calls of torch answered by a stand-in for CUDA."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from seqrec_fast.benchmarks import gpu_device  # noqa: E402
from seqrec_fast.errors import DeviceError  # noqa: E402

CPU = torch.device("cpu")


class Event:
    """Ticks two milliseconds at every record."""

    clock = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.clock += 2.0
        self._at = Event.clock

    def synchronize(self) -> None:
        assert self._at

    def elapsed_time(self, last: Event) -> float:
        return last._at - self._at


class Graph:
    replayed = 0

    def replay(self) -> None:
        Graph.replayed += 1


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


class OnCpu(gpu_device.CudaDevice):
    """Its tensors lie in the memory of the host."""

    device = property(lambda self: CPU, lambda self, given: None)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A ``CudaDevice`` over the CPU: names that torch has not are refused."""
    peak = iter(range(1000, 100_000, 1000))
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_properties": lambda device: SimpleNamespace(
            name="NVIDIA H100 80GB HBM3",
            total_memory=80 << 30,
            major=9,
            minor=0,
            multi_processor_count=132,
            L2_cache_size=1 << 20,
            uuid="6bd1c9b0-0000-0000-0000-000000000000",
        ),
        "Event": Event,
        "Stream": Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device: Stream(),
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: (0, 1),
        "graph": lambda graph, *, pool: nullcontext(),
        "synchronize": lambda device: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device: 500,
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_allocated": lambda device: next(peak),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(gpu_device, "COPIED", (1 << 16, 1 << 12))
    monkeypatch.setattr(gpu_device, "MULTIPLIED", (64, 16))
    monkeypatch.setattr(gpu_device.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(gpu_device.subprocess, "run", smi)
    return OnCpu()


def smi(command: list[str], **options: Any) -> Any:
    """nvidia-smi's answer to the fields that it is asked for."""
    asked = command[1].removeprefix("--query-gpu=").split(",")
    assert command[2:] == [
        "--format=csv,noheader,nounits",
        "--id=GPU-6bd1c9b0-0000-0000-0000-000000000000",
    ]
    assert options["timeout"] > 0
    known = {"driver_version": "570.86.15", "clocks.sm": "1755"}
    line = ", ".join(known.get(name, "[N/A]") for name in asked)
    return subprocess.CompletedProcess(command, 0, line + "\n", "")


def test_time_is_that_between_two_events(device: Any) -> None:
    calls: list[int] = []
    assert device.seconds(lambda: calls.append(1), 3) == pytest.approx(2e-3)
    assert len(calls) == 3


def test_flush_writes_twice_the_cache(device: Any) -> None:
    device._sweep.fill_(1)
    device.flush()
    assert device._sweep.numel() == 2 << 20
    assert not device._sweep.any()


def test_what_is_recorded_is_replayed(device: Any) -> None:
    calls: list[int] = []
    replay = device.recorded(lambda: calls.append(1), 5)
    assert len(calls) == 2 + 5  # two before, in which kernels are chosen
    before = Graph.replayed
    replay()
    assert Graph.replayed == before + 1
    assert len(calls) == 7
    assert device._pool is not None
    device.settle()
    assert device._pool is None


def test_extra_memory_is_the_peak_beyond_what_was_there(device: Any) -> None:
    assert device.extra_bytes(lambda: None) == 500


def test_ceilings_are_measured_in_every_type(device: Any) -> None:
    found = device.ceilings()
    assert set(found.gflops) == {"float32", "tf32", "float16", "bfloat16"}
    assert found.gigabytes == pytest.approx(2e-9 * (1 << 16) / (2e-3 / 5))
    assert found.gflops["tf32"] == pytest.approx(2e-9 * 64**3 / (2e-3 / 5))
    assert found.clocks["sm_mhz"] == "1755"
    assert found.missing == {}


def test_ceilings_take_less_memory_where_there_is_less(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, product = device._copy, device._product

    def small_alone(of: Any, limit: int) -> Any:
        def run(*given: Any) -> Any:
            if given[-1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return of(*given)

        return run

    monkeypatch.setattr(device, "_copy", small_alone(copy, 1 << 12))
    monkeypatch.setattr(device, "_product", small_alone(product, 16))
    found = device.ceilings()
    assert found.gigabytes > 0
    assert set(found.gflops) == {"float32", "tf32", "float16", "bfloat16"}
    monkeypatch.setattr(device, "_copy", small_alone(copy, 0))
    monkeypatch.setattr(device, "_product", small_alone(product, 0))
    found = device.ceilings()
    assert (found.gigabytes, found.gflops) == (0.0, {})
    assert "out of memory" in found.missing["copy"]


def test_facts_name_the_gpu_and_every_version(device: Any) -> None:
    facts = device.facts()
    assert facts["gpu"] == "NVIDIA H100 80GB HBM3"
    assert facts["capability"] == "9.0"
    assert facts["driver"] == "570.86.15"
    assert facts["sm_mhz"] == "1755"
    assert facts["torch"] == torch.__version__
    assert {"triton", "cuda", "cudnn", "kernels", "multiprocessors", "cache"} <= set(facts)


@pytest.mark.parametrize(
    ("ran", "told"),
    [
        (subprocess.CompletedProcess([], 9, "", "NVIDIA-SMI has failed\n"), "has failed"),
        (subprocess.CompletedProcess([], 0, "", ""), "no answer"),
        (subprocess.TimeoutExpired("nvidia-smi", 30), "TimeoutExpired"),
    ],
)
def test_what_nvidia_smi_does_not_tell_is_told(
    ran: Any, told: str, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*given: Any, **options: Any) -> Any:
        if isinstance(ran, Exception):
            raise ran
        return ran

    monkeypatch.setattr(gpu_device.subprocess, "run", answer)
    assert told in device.facts()["nvidia_smi"]
    monkeypatch.setattr(gpu_device.shutil, "which", lambda name: None)
    assert device.facts()["nvidia_smi"] == "not found"


def test_a_spoilt_device_is_not_alive(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.is_alive()

    def spoilt(given: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", spoilt)
    assert not device.is_alive()
    device.settle()  # does not raise


def test_without_a_gpu_one_error_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"^bench gpu: "):
        gpu_device.check_gpu()
    with pytest.raises(DeviceError, match=r"^bench gpu: "):
        gpu_device.open_gpu()
