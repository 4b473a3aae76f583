# SPDX-License-Identifier: Apache-2.0
"""Bad input through the real command line: one clear line, exit code 2, nothing left behind.

The cases are in ``bad_logs.py`` and ``bad_options.py``: each is a small function that prepares what
is wrong in an empty folder and returns the arguments; beside it stands what the line must name. All
of them go through the same checks here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import bad_logs, bad_options
from tests.cli.refusals import CASES, check_refused, recommend, snapshot, train
from tests.cli.support import Ran, World, run

ROOT = Path(__file__).resolve().parents[2]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60
    for module in (bad_logs, bad_options):
        assert any(function.__module__ == module.__name__ for function, _ in CASES.values())


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name: str, world: World, tmp_path: Path) -> None:
    function, named = CASES[name]
    arguments = function(world, tmp_path)
    before = snapshot(tmp_path)
    done = run(*arguments)
    check_refused(done, named)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["log_binary", "learning_rate_nan", "bundle_missing", "k_negative"]
)
def test_bad_input_in_a_process_of_its_own(name: str, world: World, tmp_path: Path) -> None:
    """Warnings, import errors and what libraries print themselves show only here."""
    function, named = CASES[name]
    arguments = [str(argument) for argument in function(world, tmp_path)]
    before = snapshot(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "seqrec_fast.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    check_refused(Ran(done.returncode, done.stdout, done.stderr), named)
    assert snapshot(tmp_path) == before


def test_with_json_nothing_is_printed_on_standard_output(world: World, tmp_path: Path) -> None:
    for arguments in (train(tmp_path / "no.csv", tmp_path), recommend(tmp_path / "no")):
        assert run(*arguments, "--json").out == ""
