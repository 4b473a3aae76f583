# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast bench gpu``: the refusal without a GPU, and its path against a stand-in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from seqrec_fast.benchmarks import gpu_cases, gpu_device, shapes
from seqrec_fast.benchmarks import gpu_indexes as gpu
from tests.benchmarks.stub_device import StubDevice
from tests.cli.support import run
from tests.retrieval import fake_faiss_gpu

torch = pytest.importorskip("torch")
real_faiss = pytest.importorskip("faiss")


def test_without_a_gpu_one_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = run("bench", "gpu")
    assert (ran.code, ran.out) == (2, "")
    assert "bench gpu: torch " in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_the_cases_can_be_listed_without_a_gpu() -> None:
    lines = run("bench", "gpu", "--list", "--operation", "topk").out.splitlines()
    assert "topk: top 100, 256 x 12000 x 64, bfloat16, forward" in lines


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shapes.LayerNormShape(12, 16)
    case = gpu_cases.GpuCase(
        *("layer_norm", shape, "float32", False),
        lambda device: gpu_cases._layer_norm(shape, device),
    )
    monkeypatch.setattr(gpu_cases, "cases", lambda operations, match: [case])
    monkeypatch.setattr(gpu_device, "require_gpu", StubDevice)
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real_faiss, cagra=False))
    monkeypatch.setattr(gpu, "SIZES", (400,))
    monkeypatch.setattr(gpu, "BATCHES", (1, 2, 8))
    monkeypatch.setattr(gpu, "_REPEATS", 3)


@pytest.mark.usefixtures("tiny")
def test_recall_first_then_times() -> None:
    ran = run("bench", "gpu", "--budget", "0.01")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    for kind in gpu.KINDS:
        assert any(line.split()[:2] == ["400", kind] for line in lines), kind
    assert "gpu-cagra: " in ran.out
    assert "without GpuIndexCagra" in ran.out
    found = json.loads(run("bench", "gpu", "--budget", "0.01", "--json").out)
    assert found["rows"][0]["contenders"]["torch"]["cold_ms"] > 0
    rows = {row["kind"]: row for row in found["indexes"]}
    assert rows["gpu-flat"]["recall"] == 1.0
    assert rows["gpu-flat"]["by_kernel"] == 0.0
    assert set(rows["gpu-flat"]["median_ms"]) == {"1", "2", "8"}
    assert "missing" in rows["gpu-cagra"]
    assert found["faiss"]["gpus"] == 1


@pytest.mark.usefixtures("tiny")
def test_what_finds_too_little_gets_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "KINDS", {"gpu-flat": 1.1})
    ran = run("bench", "gpu", "--json")
    row = json.loads(ran.out)["indexes"][0]
    assert (ran.code, row["red"], row["median_ms"]) == (1, True, {})
    assert "too small" in run("bench", "gpu").out


@pytest.mark.usefixtures("tiny")
def test_one_operation_leaves_the_indexes_out(tmp_path: Path) -> None:
    out = tmp_path / "results"
    ran = run("bench", "gpu", "--operation", "layer_norm", "--budget", "0.01", "--out", str(out))
    assert ran.code == 0, ran.err
    written = json.loads((out / "gpu.json").read_text())
    assert ("rows" in written, "indexes" in written) == (True, False)


@pytest.mark.usefixtures("tiny")
def test_without_indexes_on_a_gpu_the_operations_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real_faiss, gpus=0))
    found = json.loads(run("bench", "gpu", "--budget", "0.01", "--json").out)
    assert "sees no GPU" in found["faiss"]["missing"]
    assert len(found["rows"]) == 1
