# SPDX-License-Identifier: Apache-2.0
"""The entry point: help, version, exit codes, and how errors are told."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from seqrec_fast import __version__
from seqrec_fast.cli import console, recommend
from seqrec_fast.cli.main import COMMANDS, main
from seqrec_fast.cli.main import run as entry_point
from seqrec_fast.errors import InputError, TrainingError

Capture = pytest.CaptureFixture[str]


def test_help_lists_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command, summary in COMMANDS.items():
        assert command in shown
        assert summary.split(",")[0] in shown


def test_no_command_prints_the_help(capsys: Capture) -> None:
    assert main([]) == 0
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert f"seqrec-fast {command}" in shown
    assert "--json" in shown


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"seqrec-fast {__version__}\n"


@pytest.mark.parametrize("command", ["info", "recommend", "evaluate", "demo", "bench"])
def test_help_is_quick_because_torch_is_not_loaded(command: str) -> None:
    code = (
        "import sys; from seqrec_fast.cli.main import main; "
        f"main(['{command}', '--help']); "
        "sys.stderr.write(repr(sorted({'torch', 'duckdb', 'pyarrow'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "[]"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("log.csv: no column\n  'user'"), 2, "log.csv: no column 'user'"),
        (TrainingError("loss is nan at step 7"), 1, "loss is nan at step 7"),
        (OSError(errno.ENOSPC, "No space left on device", "b/x"), 2,
         "b/x: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", b"b"), 2, "b: Permission denied"),
        (OSError("no number"), 2, "no number"),
        (MemoryError(), 2, "not enough memory: the system refused more; use --memory or less"),
    ],
)  # fmt: skip
def test_errors_become_one_line(
    error: Exception, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(recommend, "run", fail)
    assert main(["recommend", "b", "--history", "a"]) == code
    shown = capsys.readouterr()
    assert shown.err == f"seqrec-fast: error: {line}\n"
    assert shown.out == ""


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def stop(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(recommend, "run", stop)
    assert main(["recommend", "b", "--history", "a"]) == 130
    assert capsys.readouterr().err == "seqrec-fast: interrupted\n"


def test_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "seqrec_fast.cli.main", "recommend", "--help"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
        )
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "2000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_openmp_workers_sleep_after_a_moment_unless_told_otherwise(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["seqrec-fast", "--version"])
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # what the entry point sets is undone after the test
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        entry_point()
    assert stopped.value.code == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    assert os.environ.get("OMP_WAIT_POLICY") == given.get("OMP_WAIT_POLICY")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(recommend, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["recommend", "b", "--history", "a"])


# -------------------------------------------------------------------------- console


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("say which with user=", "say which with --user"),
        ("give min_rating=3, (user=0)", "give --min-rating 3, (--user 0)"),
        ("min_rating: must be a number", "--min-rating: must be a number"),
        ("/data/user=5/x.csv: no rows", "/data/user=5/x.csv: no rows"),
        ("the user: unknown", "the user: unknown"),
        ("superuser=1", "superuser=1"),
    ],
)
def test_arguments_of_the_library_become_options(message: str, told: str) -> None:
    flags = {"user": "--user", "min_rating": "--min-rating"}
    assert console.error_line(InputError(message), flags) == f"seqrec-fast: error: {told}"


def test_table_aligns_text_left_and_figures_right() -> None:
    shown = console.table(["name", "n"], [["a", "1"], ["long name", "1000"]])
    assert shown.splitlines() == [
        "name          n",
        "---------  ----",
        "a             1",
        "long name  1000",
    ]


def test_json_has_no_nan(capsys: Capture) -> None:
    import numpy as np

    console.print_json({"a": float("nan"), "b": np.float32(0.5), "c": np.arange(2), "d": (1,)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": 0.5, "c": [0, 1], "d": [1]}


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (console.whole_number(1), "0"),
        (console.whole_number(1), "1.5"),
        (console.whole_number(0), "x"),
        (console.number, "nan"),
        (console.number, "inf"),
        (console.number, ""),
        (console.cutoffs, "5,0"),
        (console.cutoffs, ""),
    ],
)
def test_argument_types_refuse(parse: Callable[[str], object], text: str) -> None:
    import argparse

    with pytest.raises(argparse.ArgumentTypeError, match="found"):
        parse(text)


def test_cutoffs_are_each_taken_once() -> None:
    assert console.cutoffs("10, 5,10") == (10, 5)
