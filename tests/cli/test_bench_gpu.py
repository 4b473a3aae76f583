# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast bench gpu``: the refusal without a GPU, and its path against a stand-in."""

from __future__ import annotations

import json
import sys

import pytest

from seqrec_fast.benchmarks import gpu_indexes as gpu
from tests.cli.support import run
from tests.retrieval import fake_faiss_gpu

real_faiss = pytest.importorskip("faiss")


def test_without_a_gpu_one_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(real_faiss, "StandardGpuResources"):
        ran = run("bench", "gpu")
        assert (ran.code, ran.out) == (2, "")
        assert "bench gpu: faiss-cpu" in ran.err
        assert "is a build for the CPU" in ran.err
        assert len(ran.err.strip().splitlines()) == 1
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real_faiss, gpus=0))
    ran = run("bench", "gpu", "--json")
    assert (ran.code, ran.out) == (2, "")
    assert "sees no GPU" in ran.err
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install 'seqrec-fast[retrieval]'" in run("bench", "gpu").err


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
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
    rows = {row["kind"]: row for row in found["rows"]}
    assert rows["gpu-flat"]["recall"] == 1.0
    assert rows["gpu-flat"]["by_kernel"] == 0.0
    assert set(rows["gpu-flat"]["median_ms"]) == {"1", "2", "8"}
    assert "missing" in rows["gpu-cagra"]
    assert found["faiss"]["gpus"] == 1


@pytest.mark.usefixtures("tiny")
def test_what_finds_too_little_gets_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "KINDS", {"gpu-flat": 1.1})
    ran = run("bench", "gpu", "--json")
    row = json.loads(ran.out)["rows"][0]
    assert (ran.code, row["red"], row["median_ms"]) == (1, True, {})
    assert "too small" in run("bench", "gpu").out
