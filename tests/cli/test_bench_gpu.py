# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast bench gpu``: the refusal without a GPU, and its path against a stand-in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import RESULTS, arguments
from seqrec_fast import ops
from seqrec_fast.benchmarks import (
    gpu_cases,
    gpu_device,
    gpu_models,
    gpu_rivals,
    gpu_workers,
)
from seqrec_fast.benchmarks import gpu_indexes as gpu
from tests.benchmarks.gpu_small import small
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
    lines = run("bench", "gpu", "--list", "--dtype", "tf32").out.splitlines()
    assert lines
    assert all(", tf32" in line for line in lines)
    lines = run("bench", "gpu", "--list", "--operation", "recommend").out.splitlines()
    assert lines[0].startswith("recommend: sasrec 1 x 50")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small case, and measuring in this process."""
    case = small("layer_norm")
    monkeypatch.setattr(gpu_rivals, "compiled", lambda function: function)
    monkeypatch.setattr(gpu_cases, "cases", lambda operations, match, dtypes: [case])
    monkeypatch.setattr(gpu_models, "model_cases", lambda operations, match, dtypes: [])
    monkeypatch.setattr(gpu_device, "check_gpu", lambda: None)
    monkeypatch.setattr(gpu_device, "open_gpu", StubDevice)
    monkeypatch.setattr(
        gpu_workers, "children", lambda start, jobs, **options: gpu_workers.here(start, jobs)
    )
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
    assert written["complete"]
    assert written["machine"]["device"] == {"gpu": "a stub", "driver": "none"}
    assert written["rows"][0]["ceilings"]["clocks"] == {"sm_mhz": "1755"}
    assert "of product" in ran.out
    assert "ceilings: copy: 1000 GB/s" in ran.out
    assert "ceilings: product, bfloat16: 100000 GFLOP/s" in ran.out
    assert "ceilings: under load, sm_mhz: 1755" in ran.out
    assert "1 cases: 1 right" in ran.out


@pytest.mark.usefixtures("tiny")
def test_without_indexes_on_a_gpu_the_operations_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real_faiss, gpus=0))
    found = json.loads(run("bench", "gpu", "--budget", "0.01", "--json").out)
    assert "sees no GPU" in found["faiss"]["missing"]
    assert len(found["rows"]) == 1


@pytest.mark.usefixtures("tiny")
def test_a_wrong_kernel_is_told_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = ops.layer_norm
    monkeypatch.setattr(ops, "layer_norm", lambda *given: right(*given) * 1.001)
    ran = run("bench", "gpu", "--operation", "layer_norm", "--out", tmp_path)
    assert ran.code == 1
    assert "1 cases: 1 wrong" in ran.out
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert (row["verdict"], "contenders" in row) == ("wrong", False)


@pytest.mark.usefixtures("tiny")
def test_what_was_measured_stays_where_the_command_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = [small("layer_norm"), small("embedding"), small("dropout")]
    monkeypatch.setattr(gpu_cases, "cases", lambda operations, match, dtypes: cases)
    seconds, calls = StubDevice.seconds, []

    def ended(self: StubDevice, *given: object) -> float:
        calls.append(given)
        if len(calls) > 60:
            raise KeyboardInterrupt
        return seconds(self, *given)

    monkeypatch.setattr(StubDevice, "seconds", ended)
    ran = run("bench", "gpu", "--budget", "0.001", "--out", tmp_path)
    assert ran.code != 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert not written["complete"]
    assert [row["verdict"] for row in written["rows"]] == ["right"] * 3
    assert "contenders" in written["rows"][0]
    assert "contenders" not in written["rows"][-1]


@pytest.mark.usefixtures("tiny")
def test_a_run_without_kernels_has_shown_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cases.GpuCase, "lacks", lambda self, device: "no kernels: no nvcc")
    ran = run("bench", "gpu", "--operation", "layer_norm")
    assert ran.code == 1
    assert "missing: no kernels: no nvcc" in ran.out


@pytest.mark.usefixtures("tiny")
def test_cases_that_are_not_measured_again_keep_their_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(operation: str) -> list[str]:
        monkeypatch.setattr(gpu_cases, "cases", lambda *given: [small(operation)])
        ran = run("bench", "gpu", "--operation", operation, "--budget", "0.01", "--out", tmp_path)
        assert ran.code == 0, ran.err
        assert "1 cases: 1 right" in ran.out
        written = json.loads((tmp_path / "gpu.json").read_text())
        assert all("contenders" in row for row in written["rows"])
        return [row["operation"] for row in written["rows"]]

    assert measured("layer_norm") == ["layer_norm"]
    assert measured("dropout") == ["layer_norm", "dropout"]
    assert measured("layer_norm") == ["layer_norm", "dropout"]
    monkeypatch.setattr(StubDevice, "facts", lambda self: {"gpu": "another"})
    assert measured("dropout") == ["dropout"]
    (tmp_path / "gpu.json").write_text('{"rows": 3}')
    ran = run("bench", "gpu", "--operation", "dropout", "--out", tmp_path)
    assert ran.code == 2
    assert "is not a file of results" in ran.err


@pytest.mark.usefixtures("tiny")
def test_a_folder_that_cannot_be_written_is_found_out_before(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    ran = run("bench", "gpu", "--operation", "dropout", "--out", tmp_path / "out")
    assert ran.code != 0
    assert "comparing" not in ran.out


@pytest.mark.usefixtures("tiny")
def test_errors_alone_take_no_times(tmp_path: Path) -> None:
    ran = run("bench", "gpu", "--operation", "layer_norm", "--errors", "--out", tmp_path)
    assert ran.code == 0, ran.err
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert (row["verdict"], "contenders" in row) == ("right", False)


@pytest.mark.usefixtures("tiny")
def test_pictures_are_written_beside_the_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = run("bench", "gpu", "--operation", "layer_norm", "--out", tmp_path, "--plot")
    assert ran.code == 0, ran.err
    names = ["gpu-layer_norm.svg", "gpu-roofline.svg", "gpu.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_cases_are_measured_in_a_process_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_cases, "cases", lambda operations, match, dtypes: [small("dropout")])
    monkeypatch.setattr(gpu_device, "check_gpu", lambda: None)
    monkeypatch.setattr(gpu_device, "open_gpu", StubDevice)
    ran = run("bench", "gpu", "--operation", "dropout", "--errors", "--out", tmp_path)
    assert ran.code == 0, ran.err
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert row["verdict"] == "right"


def test_the_folder_of_benchmarks_has_the_same_command() -> None:
    assert arguments(["--errors"]) == ["bench", "gpu", "--errors", "--out", str(RESULTS), "--plot"]
    given = ["--operation", "topk", "--out", "elsewhere"]
    assert arguments(given) == ["bench", "gpu", *given]
    assert RESULTS.parent.is_dir()
