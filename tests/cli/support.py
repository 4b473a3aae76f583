# SPDX-License-Identifier: Apache-2.0
"""Running the command line in this process, and a small log for it."""

from __future__ import annotations

import contextlib
import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqrec_fast.cli.main import main

USERS, ITEMS, LENGTH = 40, 30, 8

#: hyper-parameters of a model that trains in a moment
TINY = ("--dim", "8", "--heads", "2", "--epochs", "2", "--max-length", "10", "--threads", "1")


@dataclass(frozen=True)
class Ran:
    """What one run of the command line left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Ran:
    """Runs the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def write_log(path: Path, *, users: int = USERS, seed: int = 0) -> None:
    """A CSV log in which each item leads to the next one, with ids of text."""
    rng = np.random.default_rng(seed)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["user_id", "item_id", "timestamp", "event", "rating"])
        for user in range(users):
            item = int(rng.integers(ITEMS))
            for step in range(LENGTH):
                event = "buy" if step % 3 == 2 else "view"
                moment = 1_700_000_000 + 1000 * step + user
                writer.writerow([f"u{user}", f"i{item}", moment, event, 1 + step % 5])
                item = (item + (1 if rng.random() < 0.8 else int(rng.integers(ITEMS)))) % ITEMS


@dataclass(frozen=True)
class World:
    """Paths of the shared log, its item table, the bundle, and what training printed as JSON."""

    log: Path
    items: Path
    bundle: Path
    printed: str
