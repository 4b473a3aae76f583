# SPDX-License-Identifier: Apache-2.0
"""Exact top-100: the native kernel beside torch.mm + topk and faiss IndexFlatIP, in one run.

    python -m benchmarks.bench_topk             # a table, and benchmarks/results/topk.json
    pytest benchmarks --benchmark-enable        # the native kernel under pytest-benchmark

Every contender is warmed up and timed in turn, so that a change of the machine's load meets them
all. faiss is given the best of several BLAS thresholds. The lists must agree before a time counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.machine import describe_machine
from benchmarks.shapes import TOPK, TopkShape
from seqrec_fast import native

_RESULT = Path(__file__).parent / "results" / "topk.json"
_BLAS_THRESHOLDS = (1, 20, 128_000)


def vectors(shape: TopkShape) -> tuple[Any, Any]:
    """float32 queries and items, drawn around a few centres as trained item vectors are."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((64, shape.dim))
    items = centres[random.integers(64, size=shape.items)]
    items = items + 0.5 * random.standard_normal((shape.items, shape.dim))
    queries = random.standard_normal((shape.queries, shape.dim))
    return queries.astype(np.float32), items.astype(np.float32)


def contenders(shape: TopkShape, threads: int) -> dict[str, Callable[[], Any]]:
    """Item ids ``[queries, k]`` by contender; rivals that are not installed are left out."""
    queries, items = vectors(shape)
    found: dict[str, Callable[[], Any]] = {
        "seqrec_fast": lambda: native.score_topk(queries, items, shape.k, threads=threads)[1]
    }
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(threads)
        q, x = torch.from_numpy(queries), torch.from_numpy(items)
        found["torch.mm + topk"] = lambda: torch.topk(q @ x.t(), shape.k).indices.numpy()
    try:
        import faiss
    except ImportError:
        pass
    else:
        index = faiss.IndexFlatIP(shape.dim)
        index.add(items)

        def search(threshold: int) -> Any:
            faiss.omp_set_num_threads(threads)
            faiss.cvar.distance_compute_blas_threshold = threshold
            return index.search(queries, shape.k)[1]

        for threshold in _BLAS_THRESHOLDS:
            found[f"faiss IndexFlatIP, threshold {threshold}"] = lambda t=threshold: search(t)
    return found


def measure(shape: TopkShape, threads: int, repeats: int) -> dict[str, Any]:
    """Median and spread of each contender, in milliseconds, and the ratio to the best rival."""
    entries = contenders(shape, threads)
    lists = {name: run() for name, run in entries.items()}
    mine = lists["seqrec_fast"]
    # near ties may swap between orders of summation: the sets are compared, all but a handful
    for name, other in lists.items():
        same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(mine, other, strict=True)])
        if same < shape.k - 0.5:
            raise SystemExit(f"{shape}: {name} finds other items ({same:.1f} of {shape.k} agree)")
    times: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(repeats):
        for name, run in entries.items():
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) * 1e3)
    medians = {name: statistics.median(t) for name, t in times.items()}
    rivals = {n: m for n, m in medians.items() if n != "seqrec_fast"}
    best = min(rivals, key=rivals.__getitem__) if rivals else None
    return {
        "shape": shape._asdict(),
        "threads": threads,
        "median_ms": medians,
        "quartiles_ms": {n: statistics.quantiles(t, n=4)[::2] for n, t in times.items()},
        "best_rival": best,
        "ratio": rivals[best] / medians["seqrec_fast"] if best else None,
    }


@pytest.mark.parametrize("shape", TOPK, ids=str)
def test_topk(shape: TopkShape, benchmark: Any) -> None:
    """The native kernel on one thread."""
    queries, items = vectors(shape)
    benchmark(native.score_topk, queries, items, shape.k, threads=1)


def main() -> None:
    """Prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    before = describe_machine()
    print(f"{before['cpu']}, load {os.getloadavg()[0]:.2f}, {native.build_info()}")
    rows = []
    for threads in given.threads:
        for shape in TOPK:
            row = measure(shape, threads, given.repeats)
            rows.append(row)
            mine = row["median_ms"]["seqrec_fast"]
            print(f"{threads} threads  {shape}  {mine:9.3f} ms", end="")
            print(f"  {row['ratio']:.2f}x {row['best_rival']}" if row["ratio"] else "", flush=True)
    result = {"machine": before, "build": native.build_info(), "repeats": given.repeats}
    result["rows"] = rows
    _RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
