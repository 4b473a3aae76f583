# SPDX-License-Identifier: Apache-2.0
"""Requests to the serving engine, beside the same weights in ONNX Runtime and OpenVINO.

    python -m benchmarks.bench_engine               # a table, and benchmarks/results/engine.json
    python -m benchmarks.bench_engine --case sasrec-1x50

A request is a call of ``Recommender.recommend`` with raw ids in and out; the rivals get item
indices and return item indices, which spares them the lookup. Seen items are left out by neither.
Contenders are called in turn, in short bursts, so that a change of the machine's load meets them
all. Before a time counts, embeddings and scores must agree.

Start-up and clients that call at once are measured in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.random_bundles import item_names, random_bundle
from seqrec_fast import bundle as bundles
from seqrec_fast.benchmarks.engine_rivals import RivalStack, rival_stacks
from seqrec_fast.benchmarks.harness import SETTLE_SECONDS, settle
from seqrec_fast.benchmarks.shapes import Lengths, row_lengths
from seqrec_fast.engine import Recommender

RESULT = Path(__file__).parent / "results" / "engine.json"
ITEMS, K = 12_101, 100  # the catalogue of Amazon Beauty
OURS = "seqrec_fast"


class Case(NamedTuple):
    """Users of one request and their histories; ``bar`` is ours / best rival at most."""

    model: str
    users: int
    longest: int
    lengths: Lengths
    bar: float

    @property
    def name(self) -> str:
        """Such as ``sasrec-256xbeauty``."""
        return f"{self.model}-{self.users}x" + (
            str(self.longest) if self.lengths == "equal" else self.lengths
        )


CASES = (
    Case("sasrec", 1, 50, "equal", 0.38),
    Case("gru", 1, 200, "equal", 0.5),
    Case("lstm", 1, 200, "equal", 0.5),
    Case("sasrec", 256, 50, "beauty", 1 / 8),
    Case("sasrec", 256, 50, "equal", 1 / 2.5),
)


def histories_of(case: Case) -> list[list[int]]:
    """Item indices, one list a user."""
    random = np.random.default_rng(1)
    lengths = row_lengths(case.lengths, case.users, case.longest)
    return [random.integers(0, ITEMS, length).tolist() for length in lengths]


def agree(rec: Recommender, stack: RivalStack, rows: list[list[int]], raw: list[list[str]]) -> None:
    """Raises unless embeddings and items of both are the same up to rounding."""
    mine, theirs = rec.embed(raw)[:, 0], stack.embed(rows)
    if not np.allclose(mine, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max()):
        raise SystemExit(f"{stack.name}: embeddings differ by {np.abs(mine - theirs).max():.1e}")
    scores, _ = stack(rows, K)
    found = rec.recommend(raw, k=K, exclude_seen=False)
    for row, answer in enumerate(found):
        if not np.allclose(answer.scores, scores[row], rtol=1e-3, atol=1e-3):
            raise SystemExit(f"{stack.name}: scores of user {row} differ")


def time_in_turn(
    runs: dict[str, Callable[[], Any]], seconds: float, threads: int
) -> dict[str, Any]:
    """Microseconds of every call, by contender.

    With several threads the workers of one library spin for a while after a call and would take the
    processors of the next one: they are waited for.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(10):
            run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in runs.items():
            if threads > 1:
                settle(SETTLE_SECONDS)
            until = time.perf_counter() + 0.02
            run()  # finds its caches again, and wakes its threads
            while True:
                begin = time.perf_counter()
                run()
                done = time.perf_counter()
                times[name].append(1e6 * (done - begin))
                if done > until:
                    break
    return {
        name: {
            "p50": float(np.percentile(found, 50)),
            "p99": float(np.percentile(found, 99)),
            "calls": len(found),
        }
        for name, found in times.items()
    }


def run_case(case: Case, threads: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    content = random_bundle(case.model, item_names(0, ITEMS), case.longest)
    rec = Recommender(content, threads=threads)
    rows = histories_of(case)
    raw = [content.items.ids[row].tolist() for row in rows]
    fixed = (case.users, case.longest) if case.lengths == "equal" else None
    stacks, missing = rival_stacks(content, threads, shape=fixed)
    for stack in stacks.values():
        agree(rec, stack, rows, raw)
    runs: dict[str, Callable[[], Any]] = {
        OURS: lambda: rec.recommend(raw, k=K, exclude_seen=False),
        **{name: partial(stack, rows, K) for name, stack in stacks.items()},
    }
    times = time_in_turn(runs, seconds, threads)
    best = min((name for name in times if name != OURS), key=lambda n: times[n]["p50"])
    return {
        "case": case.name,
        "threads": threads,
        "tokens": sum(map(len, rows)),
        "microseconds": times,
        "missing": missing,
        "best_rival": best,
        "ratio": times[OURS]["p50"] / times[best]["p50"],
        "bar": case.bar,
    }


_START = """
import sys, time
begin = time.perf_counter()
import seqrec_fast
rec = seqrec_fast.Recommender.load(sys.argv[1], threads=1)
found = rec.recommend([[rec_id for rec_id in sys.argv[2:]]], k=100)
took = time.perf_counter() - begin
assert "torch" not in sys.modules and len(found[0]) == 100
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(took, int(status["VmRSS"].split()[0]) / 1024)
"""


def run_start(folder: Path) -> dict[str, Any]:
    """Import, load and first recommendation in a fresh process: seconds, and MiB resident."""
    found = []
    for _ in range(11):
        history = [f"B{n:09d}" for n in range(50)]
        command = [sys.executable, "-c", _START, str(folder), *history]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append([float(part) for part in text.split()])
    took, resident = np.median(np.array(found), axis=0).tolist()
    return {"milliseconds": 1e3 * took, "resident_mib": resident, "bars": [150, 120]}


def run_clients(rec: Recommender, raw: list[list[str]], seconds: float) -> dict[str, Any]:
    """Requests a second of one client thread and of two, each request on one thread."""

    def rate(clients: int) -> float:
        counts = [0] * clients
        stop = time.perf_counter() + seconds

        def work(client: int) -> None:
            while time.perf_counter() < stop:
                rec.recommend(raw, k=K)
                counts[client] += 1

        workers = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(counts) / (time.perf_counter() - begin)

    rate(2)
    pairs = [(rate(1), rate(2)) for _ in range(5)]
    ratio = float(np.median([two / one for one, two in pairs]))
    return {
        "one": float(np.median([one for one, _ in pairs])),
        "two": float(np.median([two for _, two in pairs])),
        "ratio": ratio,
        "bar": 1.8,
    }


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help="one of the cases, start or clients (nothing is recorded)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each case and thread count")
    args = parser.parse_args(argv)
    print(f"load: {os.getloadavg()[0]:.2f}")
    found: dict[str, Any] = {"machine": describe_machine(), "requests": []}
    for case in CASES:
        if args.case not in (None, case.name):
            continue
        for threads in (1, 2):
            row = run_case(case, threads, args.seconds)
            found["requests"].append(row)
            times = row["microseconds"]
            print(
                f"{case.name:18s} threads {threads}  ratio {row['ratio']:.3f} (bar {case.bar:.3f})"
            )
            for name, time_of in sorted(times.items(), key=lambda item: item[1]["p50"]):
                print(f"    {name:24s} p50 {time_of['p50']:9.1f} us   p99 {time_of['p99']:9.1f}")
    content = random_bundle("sasrec", item_names(0, ITEMS), 50)
    if args.case in (None, "start"):
        with tempfile.TemporaryDirectory() as folder:
            bundles.save(content, Path(folder) / "bundle")
            found["start"] = run_start(Path(folder) / "bundle")
        print("start", found["start"])
    if args.case in (None, "clients"):
        rows = histories_of(CASES[0])
        raw = [content.items.ids[row].tolist() for row in rows]
        found["clients"] = run_clients(Recommender(content, threads=1), raw, args.seconds / 5)
        print("clients", found["clients"])
    if args.case is None:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
