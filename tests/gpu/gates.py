# SPDX-License-Identifier: Apache-2.0
"""``make gates``: compiles the kernels for every target and renews the committed tables.

::

    python -m tests.gpu.gates [triton] [cuda] [--python PYTHON ...] [--all] [--accept] [--seconds N]

Only what differs from the table is compiled; ``--all`` compiles everything. What got worse is
printed and not written, unless ``--accept`` says that it is meant. ``--python`` names the
interpreters whose Triton is to be used, one row of the table each (this one if none is named).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gpu import compile_cuda, report, table
from tests.gpu.targets import TARGETS

__all__ = ["TRITON_TABLE", "compile_triton", "list_triton", "main", "problems", "sample"]

ROOT = Path(__file__).resolve().parents[2]
TRITON_TABLE = ROOT / "seqrec_fast" / "ops" / "triton" / "resources.json"

#: variants compiled between two writings of the table
PART = 40

Job = tuple[str, str, str]


def _process(python: str, arguments: Sequence[str], given: str | None = None) -> str:
    settings = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [python, "-m", "tests.gpu.compile_triton", *arguments],
        input=given,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=settings,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"tests.gpu.compile_triton failed: {done.stderr[-3000:]}")
    return done.stdout


def list_triton(python: str = sys.executable, modules: Iterable[str] = ()) -> dict[str, Any]:
    """``{"version", "variants": [...]}``: what ships, by the Triton of an interpreter."""
    found: dict[str, Any] = json.loads(_process(python, ["list", *modules]))
    return found


def compile_triton(
    jobs: Sequence[Job], python: str = sys.executable
) -> dict[tuple[str, str], table.Measured | str]:
    """Compiles ``(module, variant, target)``; -> by variant and target, measured or the error."""
    workers = max(1, min(len(os.sched_getaffinity(0)), len(jobs)))

    def part(number: int) -> str:
        return _process(python, ["measure"], json.dumps(jobs[number::workers]))

    with ThreadPoolExecutor(workers) as pool:
        lines = [line for text in pool.map(part, range(workers)) for line in text.splitlines()]
    found: dict[tuple[str, str], table.Measured | str] = {}
    for line in lines:
        one = json.loads(line)
        measured = table.Measured(**one["measured"]) if "measured" in one else one["error"]
        found[one["name"], one["target"]] = measured
    return found


def group(name: str) -> str:
    """What variants that differ in their configuration alone have in common."""
    return re.sub(r" \w+=\d+", "", name)


def sample(variants: Sequence[Mapping[str, Any]]) -> list[Job]:
    """Which of them are compiled by every run of the tests: each kernel, on targets in turn.

    The kernel that comes first is compiled for all targets.
    """
    kernels: dict[str, list[Mapping[str, Any]]] = {}
    for variant in variants:
        kernels.setdefault(variant["kernel"], []).append(variant)
    names = list(TARGETS)
    jobs: list[Job] = []
    for number, kernel in enumerate(sorted(kernels)):
        found = sorted(kernels[kernel], key=lambda v: (not v["sixteen"], v["name"]))
        chosen = names if number == 0 else [names[number % len(names)]]
        jobs += [(found[0]["module"], found[0]["name"], target) for target in chosen]
    return jobs


def problems(entries: Mapping[str, table.Entry]) -> list[str]:
    """What is wrong with the kernels of one version, whatever was committed.

    A configuration too large for a target is left out there by autotuning, so that is no problem as
    long as another one of the same kernel, type and width fits.
    """
    fits = {
        (group(name), target)
        for name, entry in entries.items()
        for target, one in entry.targets.items()
        if one.blocks > 0
    }
    found = []
    for name, entry in entries.items():
        for problem in table.wrong(entry):
            target = problem.partition(":")[0]
            if "no block fits" not in problem or (group(name), target) not in fits:
                found.append(f"{name}: {problem}")
    return found


def entry_of(variant: Mapping[str, Any], measured: Mapping[str, table.Measured]) -> table.Entry:
    """The row of the table of a variant."""
    stated = re.findall(r"[A-Z_]+", variant["name"])
    return table.Entry(
        fingerprint=variant["fingerprint"],
        kernel=variant["kernel"],
        constants={k: x for k, x in variant["constants"].items() if k not in stated},
        warps=variant["warps"],
        stages=variant["stages"],
        matrix=variant["matrix"] and variant["sixteen"],
        targets=measured,
    )


def renewed(
    before: Mapping[str, table.Entry],
    variants: Sequence[Mapping[str, Any]],
    measured: Mapping[tuple[str, str], table.Measured | str],
    accept: bool = False,
) -> tuple[dict[str, table.Entry], list[str]]:
    """The entries of one version after a measurement, and what got worse or failed.

    What got worse keeps its old row, unless it is accepted; what does not ship any more is dropped.
    """
    after: dict[str, table.Entry] = {}
    bad: list[str] = []
    for variant in variants:
        name = variant["name"]
        old = before.get(name)
        rows = {t: measured[name, t] for t in TARGETS if (name, t) in measured}
        if not rows:
            if old is not None:
                after[name] = entry_of(variant, old.targets)
            continue
        failed = [f"{name}: {t}: {row}" for t, row in rows.items() if isinstance(row, str)]
        good = {t: row for t, row in rows.items() if not isinstance(row, str)}
        if old is not None:
            failed += [
                f"{name}: {t}: {what}"
                for t, row in good.items()
                if t in old.targets
                for what in table.worse(old.targets[t], row)
            ]
        bad += failed
        if old is not None and failed and not accept:
            after[name] = old
        else:
            after[name] = entry_of(variant, {**(old.targets if old else {}), **good})
    return after, bad


def renew_triton(python: str, everything: bool, accept: bool, seconds: float) -> list[str]:
    """Renews the part of the table that an interpreter's Triton makes; returns what is wrong."""
    found = list_triton(python)
    version = found["version"]
    whole = table.read(TRITON_TABLE)
    before = whole.get(version, {})
    jobs: dict[str, list[Job]] = {}
    for variant in found["variants"]:
        name, old = variant["name"], before.get(variant["name"])
        fresh = old is not None and old.fingerprint == variant["fingerprint"] and not everything
        missing = [t for t in TARGETS if old is None or not fresh or t not in old.targets]
        if missing:
            jobs[name] = [(variant["module"], name, target) for target in missing]
    began, done, bad = time.monotonic(), 0, []
    shipped = {variant["name"]: variant for variant in found["variants"]}
    after = {name: entry for name, entry in before.items() if name in shipped}
    whole[version] = after
    table.write(TRITON_TABLE, whole)
    while jobs and time.monotonic() - began < seconds:
        names = list(jobs)[:PART]
        part = [job for name in names for job in jobs.pop(name)]
        chosen = [shipped[name] for name in names]
        fresh_rows, said = renewed(after, chosen, compile_triton(part, python), accept)
        # what is done stays done if the rest is interrupted
        after |= fresh_rows
        done += len(part)
        bad += said
        table.write(TRITON_TABLE, whole)
    print(
        f"Triton {version}: {done} of {len(found['variants']) * len(TARGETS)} compiled "
        f"in {time.monotonic() - began:.0f} s"
    )
    if jobs:
        bad.append(f"{len(jobs)} variants are left: run `make gates` again")
    wrong = [*bad, *problems(after)]
    every = [entry for entries in whole.values() for entry in entries.values()]
    if not jobs and all(set(entry.targets) == set(TARGETS) for entry in every):
        report.PAGE.write_text(report.page(whole), encoding="utf-8")
    return [f"Triton {version}: {line}" for line in wrong]


def main(arguments: Sequence[str]) -> int:
    """See the top of this file; 1 where anything is wrong."""
    parser = ArgumentParser(prog="make gates", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="*", choices=["triton", "cuda"], metavar="triton|cuda")
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="PYTHON")
    parser.add_argument("--all", action="store_true", help="compile what has not changed too")
    parser.add_argument("--accept", action="store_true", help="write what got worse")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="stop after so long; the next run goes on"
    )
    args = parser.parse_args(arguments)
    bad: list[str] = []
    if not args.what or "triton" in args.what:
        for python in args.python:
            bad += renew_triton(python, args.all, args.accept, args.seconds)
    if not args.what or "cuda" in args.what:
        bad += compile_cuda.renew(args.all, args.accept)
    print("\n".join(dict.fromkeys(bad)))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
