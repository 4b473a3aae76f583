# SPDX-License-Identifier: Apache-2.0
"""Exact top-100 of a million items behind filters: beside the same search without one, and faiss.

    python -m benchmarks.bench_filters --threads 1 2   # a table, benchmarks/results/filters.json

Times are those of `retrieval.Index.search`, with all that Python does for it: checks of the ids,
masks from lists. Each filter is given in the forms a caller may choose. faiss gets its fastest
selector for the same items, made beforehand, and no others; it then scores query by query (its
matrix product knows no selectors), so that of many queries it is timed on a few and scaled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import describe_machine
from seqrec_fast import retrieval
from seqrec_fast.jagged import JaggedBatch

_RESULT = Path(__file__).parent / "results" / "filters.json"
_FAISS_QUERIES = 4  # of a batch, at most, that faiss is timed on
K = 100


class Case(NamedTuple):
    """A filter: the arguments of `search`, and each query's mask of what is allowed for faiss."""

    name: str
    arguments: Callable[[Any], dict[str, Any]]
    allowed: Callable[[int], Any]


def vectors(items: int, dim: int, queries: int) -> tuple[Any, Any]:
    """float32 queries and items, drawn around a few centres as trained item vectors are."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((64, dim))
    table = centres[random.integers(64, size=items)]
    table = table + 0.5 * random.standard_normal((items, dim))
    return random.standard_normal((queries, dim)).astype(np.float32), table.astype(np.float32)


def cases(items: int, queries: int) -> list[Case]:
    """The filters that are measured."""
    random = np.random.default_rng(1)
    found: list[Case] = []

    def add(name: str, arguments: Callable[[Any], dict[str, Any]], allowed: Any) -> None:
        found.append(Case(name, arguments, allowed))

    for share in (0.01, 0.1, 0.9):
        mask = random.random(items) < share
        ids = np.flatnonzero(mask)
        title = f"{share:.0%} allowed"
        add(f"{title}, ids", lambda _, ids=ids: {"allow": ids}, lambda _, m=mask: m)
        add(f"{title}, mask", lambda _, m=mask: {"allow": m}, lambda _, m=mask: m)
        if hasattr(retrieval.Index, "filter"):
            add(
                f"{title}, prepared",
                lambda index, m=mask: {"allow": index.filter(allow=m)},
                lambda _, m=mask: m,
            )
    few = np.sort(random.choice(items, 100, replace=False))
    not_few = np.ones(items, bool)
    not_few[few] = False
    add("100 denied, ids", lambda _: {"deny": few}, lambda _: not_few)
    length = min(10_000, items // 10)
    rows = random.integers(0, items, (queries, length)).astype(np.int32)
    sorted_rows = np.sort(rows, axis=1)

    def listed(query: int) -> Any:
        mask = np.zeros(items, bool)
        mask[rows[query]] = True
        return mask

    batch, ordered = JaggedBatch.from_lists(list(rows)), JaggedBatch.from_lists(list(sorted_rows))
    title = f"{length:,}"
    add(f"{title} seen a query", lambda _: {"exclude": batch}, lambda q: ~listed(q))
    add(f"{title} seen a query, sorted", lambda _: {"exclude": ordered}, lambda q: ~listed(q))
    add(f"{title} allowed a query", lambda _: {"allow": ordered}, listed)
    add(f"{title} allowed a query, unsorted", lambda _: {"allow": batch}, listed)
    return found


def timed(run: Callable[[], Any], repeats: int) -> list[float]:
    """Milliseconds of each run."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        found.append((time.perf_counter() - began) * 1e3)
    return found


def by_faiss(items: Any, queries: Any, case: Case, threads: int) -> tuple[float, Any]:
    """Milliseconds of all queries, and the ids of those that were timed."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    count = min(len(queries), _FAISS_QUERIES)
    selectors = []
    for query in range(count):
        bits = np.packbits(case.allowed(query), bitorder="little")
        selectors.append((faiss.IDSelectorBitmap(bits), bits))
    times, ids = [], []
    for query, (selector, _) in enumerate(selectors):
        parameters = faiss.SearchParameters(sel=selector)
        one = queries[query : query + 1]
        run = partial(index.search, one, K, params=parameters)
        times.append(statistics.median(timed(run, 3)))
        ids.append(index.search(one, K, params=parameters)[1][0])
    # one query of faiss runs on one thread; many share the threads evenly at best
    return statistics.mean(times) * len(queries) / min(threads, len(queries)), np.array(ids)


def measure(
    items: Any, queries: Any, dtype: str, threads: int, seconds: float, rivals: bool
) -> list[dict[str, Any]]:
    """One row a case; the search without a filter is timed in turn with each."""
    index = retrieval.build(items, kind="exact", dtype=dtype)
    rows = []
    for case in cases(len(items), len(queries)):
        arguments = case.arguments(index)

        def ours(arguments: dict[str, Any] = arguments) -> Any:
            return index.search(queries, K, threads=threads, **arguments)

        def plain() -> Any:
            return index.search(queries, K, threads=threads)

        found = ours().ids
        once = timed(ours, 1)[0] + timed(plain, 1)[0]
        repeats = max(3, min(101, int(seconds * 1e3 / once)))
        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(repeats):
            times["ours"] += timed(ours, 1)
            times["plain"] += timed(plain, 1)
        row = {
            "case": case.name,
            "items": len(items),
            "dim": items.shape[1],
            "queries": len(queries),
            "k": K,
            "dtype": dtype,
            "threads": threads,
            "repeats": repeats,
            "median_ms": statistics.median(times["ours"]),
            "quartiles_ms": statistics.quantiles(times["ours"], n=4)[::2],
            "unfiltered_ms": statistics.median(times["plain"]),
        }
        row["to_unfiltered"] = row["median_ms"] / row["unfiltered_ms"]
        if rivals:
            row["faiss_ms"], theirs = by_faiss(items, queries, case, threads)
            row["faiss"] = row["faiss_ms"] / row["median_ms"]
            same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, theirs, strict=False)])
            if same < K - 0.5:
                raise SystemExit(f"{case.name}: faiss finds other items ({same:.1f} of {K})")
        rows.append(row)
        shown = f", faiss {row['faiss']:.1f} x as long" if rivals else ""
        print(
            f"{dtype:8} {len(queries):4} queries, {threads} threads, {case.name:32}"
            f"{row['median_ms']:9.2f} ms, {row['to_unfiltered']:.2f} of unfiltered{shown}",
            flush=True,
        )
    return rows


def main() -> None:
    """Measures and merges the rows into the file of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", nargs="+", default=["float32", "int8"])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    parser.add_argument("--no-faiss", action="store_true")
    parser.add_argument("--output", type=Path, default=_RESULT)
    given = parser.parse_args()
    fresh: list[dict[str, Any]] = []
    for queries in given.queries:
        search, items = vectors(given.items, given.dim, queries)
        for threads in given.threads:
            for dtype in given.dtype:
                fresh += measure(items, search, dtype, threads, given.seconds, not given.no_faiss)
    old = json.loads(given.output.read_text())["rows"] if given.output.exists() else []
    key = ("case", "items", "dim", "queries", "dtype", "threads")
    rows = {tuple(row[name] for name in key): row for row in [*old, *fresh]}
    result = {"machine": describe_machine(), "rows": list(rows.values())}
    given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
