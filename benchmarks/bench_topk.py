# SPDX-License-Identifier: Apache-2.0
"""Exact top-100 without 50 seen items a query: ours beside torch and faiss, in one run.

    python -m benchmarks.bench_topk             # a table, and benchmarks/results/topk.json
    pytest benchmarks --benchmark-enable        # the native kernel under pytest-benchmark

Every contender is warmed up and timed in turn, so that a change of the machine's load meets them
all. torch masks the scores of seen items; faiss, which cannot, is asked for 150 (dropping the seen
ones is not counted) and given the best of several BLAS thresholds. The lists must agree before a
time counts.
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
from seqrec_fast.jagged import JaggedBatch

_RESULT = Path(__file__).parent / "results" / "topk.json"
OURS, INT8 = "seqrec_fast", "seqrec_fast, from bytes"
_BLAS_THRESHOLDS = (1, 20, 128_000)


def vectors(shape: TopkShape) -> tuple[Any, Any]:
    """float32 queries and items, drawn around a few centres as trained item vectors are."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((64, shape.dim))
    items = centres[random.integers(64, size=shape.items)]
    items = items + 0.5 * random.standard_normal((shape.items, shape.dim))
    queries = random.standard_normal((shape.queries, shape.dim))
    return queries.astype(np.float32), items.astype(np.float32)


def seen_items(shape: TopkShape) -> JaggedBatch[Any]:
    """``shape.seen`` items of each query, ascending."""
    random = np.random.default_rng(1)
    rows = random.integers(0, shape.items, (shape.queries, shape.seen), dtype=np.int32)
    return JaggedBatch.from_lists(list(np.sort(rows, axis=1)))


def contenders(shape: TopkShape, threads: int) -> dict[str, Callable[[], Any]]:
    """Item ids by contender, best first, with seen items only where there are more than ``k``.

    Rivals that are not installed are left out.
    """
    queries, items = vectors(shape)
    seen = seen_items(shape)
    hidden = seen.values.reshape(shape.queries, shape.seen).astype(np.int64)
    table = native.QuantizedItems(items)

    def ours(searched: Any) -> Any:
        return native.score_topk(queries, searched, shape.k, seen=seen, threads=threads)[1]

    found: dict[str, Callable[[], Any]] = {OURS: lambda: ours(items), INT8: lambda: ours(table)}
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(threads)
        q, x, masked = torch.from_numpy(queries), torch.from_numpy(items), torch.from_numpy(hidden)

        def multiply() -> Any:
            scores = q @ x.t()
            scores.scatter_(1, masked, -torch.inf)
            return torch.topk(scores, shape.k).indices.numpy()

        found["torch.mm + topk"] = multiply
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
            return index.search(queries, shape.k + shape.seen)[1]

        for threshold in _BLAS_THRESHOLDS:
            found[f"faiss IndexFlatIP, threshold {threshold}"] = lambda t=threshold: search(t)
    return found


def measure(shape: TopkShape, threads: int, seconds: float) -> dict[str, Any]:
    """Median and spread of each contender, in milliseconds, and the ratios to the best rivals."""
    entries = contenders(shape, threads)
    lists, first = {}, {}
    for name, run in entries.items():
        began = time.perf_counter()
        lists[name] = run()
        first[name] = time.perf_counter() - began
        if lists[name].shape[1] > shape.k:
            hidden = zip(lists[name], seen_items(shape), strict=True)
            lists[name] = [ids[~np.isin(ids, gone)][: shape.k] for ids, gone in hidden]
    mine = lists[OURS]
    if not np.array_equal(mine, lists[INT8]):
        raise SystemExit(f"{shape}: the table of bytes finds other items")
    # near ties may swap between orders of summation: the sets are compared, all but a handful
    for name, other in lists.items():
        same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(mine, other, strict=True)])
        if same < shape.k - 0.5:
            raise SystemExit(f"{shape}: {name} finds other items ({same:.1f} of {shape.k} agree)")
    # of the faiss thresholds only the best one is timed on
    slow = sorted((t, n) for n, t in first.items() if n.startswith("faiss"))[1:]
    for seconds_of_it, name in slow:
        if seconds_of_it > 1.5 * min(t for n, t in first.items() if n.startswith("faiss")):
            del entries[name]
    repeats = max(3, min(200, int(seconds / sum(first[name] for name in entries))))
    times: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(repeats):
        for name, run in entries.items():
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) * 1e3)
    medians = {name: statistics.median(t) for name, t in times.items()}
    rivals = {n: m for n, m in medians.items() if n not in (OURS, INT8)}
    best = min(rivals, key=rivals.__getitem__) if rivals else None
    faiss_ms = min((m for n, m in rivals.items() if n.startswith("faiss")), default=None)
    torch_ms = rivals.get("torch.mm + topk")
    return {
        "shape": shape._asdict(),
        "threads": threads,
        "repeats": repeats,
        "median_ms": medians,
        "quartiles_ms": {n: statistics.quantiles(t, n=4)[::2] for n, t in times.items()},
        "best_rival": best,
        "ratio": rivals[best] / medians[OURS] if best else None,
        "gflops": 2e-6 * shape.queries * shape.items * shape.dim / medians[OURS],
        "torch": torch_ms / medians[OURS] if torch_ms else None,
        "faiss": faiss_ms / medians[OURS] if faiss_ms else None,
        "int8_to_faiss": faiss_ms / medians[INT8] if faiss_ms else None,
        "int8_to_float32": medians[OURS] / medians[INT8],
    }


@pytest.mark.parametrize("shape", TOPK, ids=str)
def test_topk(shape: TopkShape, benchmark: Any) -> None:
    """The native kernel on one thread."""
    queries, items = vectors(shape)
    benchmark(native.score_topk, queries, items, shape.k, seen=seen_items(shape), threads=1)


def main() -> None:
    """Prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--items", type=int, nargs="+", help="only these numbers of items")
    parser.add_argument("--dims", type=int, nargs="+", help="only these dimensions")
    parser.add_argument("--queries", type=int, nargs="+", help="only these numbers of queries")
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure a shape for")
    parser.add_argument("--keep", action="store_true", help="keep the other rows of the results")
    given = parser.parse_args()
    before = describe_machine()
    print(f"{before['cpu']}, load {os.getloadavg()[0]:.2f}, {native.build_info()}")
    rows: list[dict[str, Any]] = []
    for threads in given.threads:
        for shape in TOPK:
            if given.items and shape.items not in given.items:
                continue
            if given.dims and shape.dim not in given.dims:
                continue
            if given.queries and shape.queries not in given.queries:
                continue
            row = measure(shape, threads, given.seconds)
            rows.append(row)
            print(f"{threads} threads  {shape}  {row['median_ms'][OURS]:9.3f} ms", end="")
            print(f"  {row['gflops']:5.1f} GFLOP/s", end="")
            for name in ("torch", "faiss", "int8_to_faiss", "int8_to_float32"):
                print(f"  {name} {row[name]:.2f}x" if row[name] else "", end="")
            print(flush=True)
    if given.keep and _RESULT.exists():
        measured = {(tuple(row["shape"].values()), row["threads"]) for row in rows}
        old = json.loads(_RESULT.read_text(encoding="utf-8"))["rows"]
        rows += [r for r in old if (tuple(r["shape"].values()), r["threads"]) not in measured]
        rows.sort(
            key=lambda r: (r["threads"], *(r["shape"][n] for n in ("items", "dim", "queries")))
        )
    result = {"machine": before, "build": native.build_info(), "rows": rows}
    _RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
