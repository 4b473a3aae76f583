# SPDX-License-Identifier: Apache-2.0
"""What bad input has in common: how a case is written down, and what every refusal must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.support import TINY, Ran, World

Arguments = list[Any]
Case = Callable[[World, Path], Arguments]

CASES: dict[str, tuple[Case, tuple[str, ...]]] = {}


def case(*named: str) -> Callable[[Case], Case]:
    """Registers a case; the line on standard error must hold each of ``named``."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = (function, named)
        return function

    return register


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def check_refused(done: Ran, named: tuple[str, ...]) -> None:
    assert done.code == 2, done
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("seqrec-fast: error: "), lines[0]
    assert "Traceback" not in done.err
    for text in named:
        assert text in lines[0], f"{text!r} is not named in: {lines[0]}"


def train(log: object, folder: Path, *more: object) -> Arguments:
    return ["train", log, "--out", folder / "out", *TINY, *more]


def text_log(folder: Path, text: str | bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def recommend(bundle: object, *more: object) -> Arguments:
    return ["recommend", bundle, "--history", "i1,i2", *more]
