# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast bench``: lists, refusals, tables and files. The harness has tests of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from seqrec_fast.benchmarks import OPERATIONS, harness
from seqrec_fast.cli.main import main
from seqrec_fast.cli.main import run as entry_point

Capture = pytest.CaptureFixture[str]


def test_list_names_the_cases(capsys: Capture) -> None:
    assert main(["bench", "kernels", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "linear: 512 x 512 x 512, forward" in lines
    assert {line.partition(":")[0] for line in lines} == set(OPERATIONS)
    assert main(["bench", "kernels", "--list", "--json", "--operation", "linear"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["linear"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--match", "no such case"], "--match: no case has 'no such case' in its name"),
        (["--plot"], "--plot: needs a folder; give --out FOLDER"),
        (["--budget", "0"], "--budget: must be above 0"),
        (["--threads", "0"], "--threads: expected a whole number of at least 1"),
        (["--threads", "9999"], "--threads: 9999 is more than 4 for each"),
        (["--operation", "sorting"], "--operation: invalid choice: 'sorting'"),
    ],
)
def test_refusals(options: list[str], said: str, capsys: Capture) -> None:
    assert main(["bench", "kernels", *options]) == 2
    assert said in capsys.readouterr().err


def row_of(case: Any, threads: int, red: bool) -> dict[str, Any]:
    return {
        **case.facts(), "threads": threads, "red": red, "ratio": 1.5, "best_rival": "torch",
        "contenders": {"seqrec_fast": {"median_ms": 2.0}, "torch": {"median_ms": 3.0}},
        "missing": {"openvino": "openvino is not installed"}, "extra_bytes": {},
        "gflops": 10.0, "share_of_peak": 0.5, "share_of_roof": 0.5,
        "peak_gflops": 20.0, "peak_gigabytes": 5.0,
        "errors": {"y": {"ours": 1e-7, "torch": 1e-7, "allowed": 2e-7}},
        "bar": {"ratio": 1.2, "against": None, "reached": 1.5, "share_of_peak": None,
                "extra_bytes": None},
    }  # fmt: skip


@pytest.mark.parametrize("red", [False, True])
def test_tables_files_and_exit_code(
    red: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(harness, "measure", lambda case, threads, **o: row_of(case, threads, red))
    words = ["bench", "kernels", "--operation", "linear", "--match", "512", "--threads", "1", "2"]
    assert main([*words, "--out", str(tmp_path), "--plot"]) == (1 if red else 0)
    shown = capsys.readouterr().out
    assert shown.count("linear: without openvino: openvino is not installed") == 1
    assert ("red" if red else "reached") in shown
    assert "1.50x" in shown
    found = json.loads((tmp_path / "linear.json").read_text())
    assert [row["threads"] for row in found["rows"]] == [1, 2]
    assert found["machine"]["cpu"]
    assert (tmp_path / "roofline-2.svg").is_file()
    assert main([*words, "--json"]) == (1 if red else 0)
    assert len(json.loads(capsys.readouterr().out)["operations"]["linear"]) == 2


def test_other_libraries_keep_their_own_way_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["seqrec-fast", "bench", "--help"])
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # what the entry point might set is undone after the test
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit):
        entry_point()
    import os

    assert "GOMP_SPINCOUNT" not in os.environ
