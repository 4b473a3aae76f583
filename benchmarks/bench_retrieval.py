# SPDX-License-Identifier: Apache-2.0
"""Indexes beside faiss and hnswlib: exact search, the choice by measurement, overhead of Python.

    python -m benchmarks.bench_retrieval exact --items 10000 100000 1000000
    python -m benchmarks.bench_retrieval overhead
    python -m benchmarks.bench_retrieval auto --items 1000000 --cache /tmp/rivals
    python -m benchmarks.bench_retrieval exact auto --table beauty=bundle

Each part renews its rows of ``benchmarks/results/retrieval.json``. Contenders are called in turn.
faiss is given the best of several BLAS thresholds. ``auto`` tunes the rivals to the same recall on
the same queries; ``--cache`` keeps the rivals' indexes, which take minutes to build, on disk.
Filters have a benchmark of their own; :data:`PARTS` is where it is hooked in.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.bench_topk import vectors
from benchmarks.machine import describe_machine
from benchmarks.shapes import TopkShape
from seqrec_fast import _C, native, retrieval
from seqrec_fast.retrieval.tuning import recall_of, tune

_RESULT = Path(__file__).parent / "results" / "retrieval.json"
K, RECALL = 100, 0.99
_BLAS_THRESHOLDS = (1, 20, 128_000)


class Data(NamedTuple):
    """Items and queries: float32 ``[items, dim]`` and ``[queries, dim]``, and what they are."""

    name: str
    items: Any
    queries: Any


def clustered(items: int, queries: int = 1000) -> Data:
    """Vectors around a few centres, as those of trained models are."""
    found, table = vectors(TopkShape(queries, items))
    return Data(f"{items} clustered", table, found)


def trained(text: str) -> Data:
    """The item vectors of a bundle, given as ``NAME=BUNDLE``, and made-up users of it."""
    from seqrec_fast import bundle as bundles
    from seqrec_fast.cli.index_queries import sampled
    from seqrec_fast.engine.encoders import build_encoder
    from seqrec_fast.engine.index_ranker import item_rows, query_rows

    name, _, path = text.partition("=")
    content = bundles.load(path, mmap=True, index=False)
    encoder = build_encoder(content.config, content.tensors)
    queries = sampled(content, encoder, 1000, 0, None).embeddings
    bias = encoder.item_bias
    return Data(name, item_rows(encoder.item_vectors, bias), query_rows(queries, bias))


def in_turn(runs: dict[str, Callable[[int], Any]], seconds: float, most: int) -> dict[str, Any]:
    """Median and 99th percentile of each contender in microseconds; they are called in turn."""
    for run in runs.values():
        run(0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for step in range(most):
        if step >= 5 and time.perf_counter() - began > seconds:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run(step)
            times[name].append((time.perf_counter() - start) * 1e6)
    return {
        name: {"median_us": statistics.median(t), "p99_us": float(np.quantile(t, 0.99))}
        for name, t in times.items()
    }


def exact(data: Data, threads: int, batch: int, seconds: float) -> dict[str, Any]:
    """Our exact indexes beside IndexFlatIP."""
    import faiss

    ours = {dtype: retrieval.build(data.items, dtype=dtype) for dtype in ("float32", "int8")}
    flat = faiss.IndexFlatIP(data.items.shape[1])
    flat.add(data.items)
    faiss.omp_set_num_threads(threads)
    k, parts = min(K, len(data.items)), max(1, len(data.queries) // batch)

    def part(step: int) -> Any:
        begin = step % parts * batch
        return data.queries[begin : begin + batch]

    def rival(threshold: int) -> Callable[[int], Any]:
        def run(step: int) -> Any:
            faiss.cvar.distance_compute_blas_threshold = threshold
            return flat.search(part(step), k)

        return run

    runs: dict[str, Callable[[int], Any]] = {
        dtype: lambda step, index=index: index.search(part(step), k, threads=threads)
        for dtype, index in ours.items()
    }
    if not np.array_equal(runs["float32"](0).ids, runs["int8"](0).ids):
        raise SystemExit(f"{data.name}: the table of bytes finds other items")
    if recall_of(rival(20)(0)[1], runs["float32"](0).ids).mean() < 0.999:  # near ties may swap
        raise SystemExit(f"{data.name}: faiss finds other items")
    runs |= {f"faiss {threshold}": rival(threshold) for threshold in _BLAS_THRESHOLDS}
    times = in_turn(runs, seconds, 500)
    best = min(found["median_us"] for name, found in times.items() if name.startswith("faiss"))
    return {
        "data": data.name,
        "items": len(data.items),
        "threads": threads,
        "batch": batch,
        "times": times,
        "faiss_to_float32": best / times["float32"]["median_us"],
        "faiss_to_int8": best / times["int8"]["median_us"],
        "float32_to_int8": times["float32"]["median_us"] / times["int8"]["median_us"],
    }


def overhead(seconds: float) -> dict[str, Any]:
    """What ``Index.search`` costs beside the call of the kernel, for one query."""
    data = clustered(1000, 64)
    index = retrieval.build(data.items)
    rows = [data.queries[n : n + 1] for n in range(64)]

    def kernel(step: int) -> Any:
        return _C.score_topk(rows[step % 64], data.items, None, None, None, None, 10, 1, None)

    runs = {
        "kernel": kernel,
        "search": lambda step: index.search(rows[step % 64], 10, threads=1),
    }
    times = in_turn(runs, seconds, 20_000)
    return {
        "times": times,
        "overhead_us": times["search"]["median_us"] - times["kernel"]["median_us"],
    }


# ---------------------------------------------------------------- auto beside rivals


class Rival(NamedTuple):
    """An index of another library; ``search(parameter)`` gives ids ``[queries, k]``."""

    search: Callable[[int, Any], Any]
    low: int
    high: int
    build_seconds: float


def rivals(data: Data, cache: Path | None) -> dict[str, Rival]:
    """HNSW and IVF-Flat of faiss, and hnswlib, by their own interfaces."""
    import faiss
    import hnswlib

    faiss.omp_set_num_threads(1)
    items, dim = data.items, data.items.shape[1]
    found: dict[str, Rival] = {}

    def stored(name: str, make: Any, write: Any, read: Any) -> tuple[Any, float]:
        place = None if cache is None else cache / f"{data.name.replace(' ', '-')}-{name}"
        took = None if place is None else place.with_suffix(".json")
        if place is not None and took is not None and took.exists():
            return read(str(place)), float(json.loads(took.read_text()))
        began = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - began
        if place is not None and took is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            write(made, str(place))
            took.write_text(json.dumps(seconds))
        return made, seconds

    def hnsw() -> Any:
        made = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efConstruction = 200
        made.add(items)
        return made

    def ivf() -> Any:
        lists = max(1, min(4 * math.isqrt(len(items)), len(items) // 39))
        made = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT
        )  # fmt: skip
        made.train(items)
        made.add(items)
        return made

    def other() -> Any:
        made = hnswlib.Index("ip", dim)
        made.init_index(len(items), ef_construction=200, M=32, random_seed=0)
        made.add_items(items, num_threads=1)
        return made

    def load_other(path: str) -> Any:
        made = hnswlib.Index("ip", dim)
        made.load_index(path)
        return made

    def of_faiss(index: Any, name: str) -> Callable[[int, Any], Any]:
        inner = index.hnsw if name == "efSearch" else index

        def search(value: int, queries: Any) -> Any:
            setattr(inner, name, value)
            return index.search(queries, K)[1]

        return search

    index, seconds = stored("faiss-hnsw", hnsw, faiss.write_index, faiss.read_index)
    found["faiss HNSW"] = Rival(of_faiss(index, "efSearch"), K, 40 * K, seconds)
    index, seconds = stored("faiss-ivf", ivf, faiss.write_index, faiss.read_index)
    found["faiss IVF"] = Rival(of_faiss(index, "nprobe"), 1, index.nlist, seconds)
    index, seconds = stored("hnswlib", other, lambda i, p: i.save_index(p), load_other)
    index.set_num_threads(1)

    def search(value: int, queries: Any, index: Any = index) -> Any:
        index.set_ef(value)
        return index.knn_query(queries, K)[0].astype(np.int64)

    found["hnswlib"] = Rival(search, K, 40 * K, seconds)
    return found


def auto(data: Data, cache: Path | None, seconds: float, kinds: list[str] | None) -> dict[str, Any]:
    """Our choice beside the rivals, each with the least parameter that reaches the recall."""
    half = len(data.queries) // 2
    chosen = tune(data.items, data.queries[:half], K, RECALL, kinds=kinds, say=print)
    judge = data.queries[half:]
    truth = retrieval.build(data.items).search(judge, K).ids
    rows: dict[str, Any] = {
        "auto": {
            "parameter": {**chosen.chosen.build, **chosen.chosen.search},
            "kind": chosen.best.kind,
            "recall": float(recall_of(chosen.best.search(judge, K).ids, truth).mean()),
            "build_seconds": chosen.chosen.build_seconds,
        }
    }
    runs: dict[str, Callable[[int], Any]] = {
        "auto": lambda step: chosen.best.search(judge[step % half][None], K, threads=1)
    }
    for name, rival in rivals(data, cache).items():
        value, recall = rival.low, 0.0
        low = 0
        while True:  # doubling, then bisection
            recall = float(recall_of(rival.search(value, judge), truth).mean())
            if recall >= RECALL or value >= rival.high:
                break
            low, value = value, min(2 * value, rival.high)
        while recall >= RECALL and value - low > max(1, value // 16) and value > rival.low:
            middle = (low + value) // 2
            if float(recall_of(rival.search(middle, judge), truth).mean()) >= RECALL:
                value = middle
            else:
                low = middle
        recall = float(recall_of(rival.search(value, judge), truth).mean())
        rows[name] = {
            "parameter": value,
            "recall": recall,
            "reached": recall >= RECALL,
            "build_seconds": rival.build_seconds,
        }
        runs[name] = lambda step, r=rival, v=value: r.search(v, judge[step % half][None])
    for name, times in in_turn(runs, seconds, 1000).items():
        rows[name] |= times
    reached = {n: r["median_us"] for n, r in rows.items() if n != "auto" and r["reached"]}
    best = min(reached, key=reached.__getitem__) if reached else None
    return {
        "data": data.name,
        "items": len(data.items),
        "recall": RECALL,
        "k": K,
        "contenders": rows,
        "best_rival": best,
        "ratio": reached[best] / rows["auto"]["median_us"] if best else None,
        "trials": [trial.to_dict() for trial in chosen.trials],
    }


def _exact_rows(given: argparse.Namespace, tables: list[Data]) -> list[Any]:
    rows = []
    for data in tables:
        for threads in given.threads:
            for batch in (1, 256):
                row = exact(data, threads, batch, given.seconds)
                rows.append(row)
                print({name: value for name, value in row.items() if name != "times"}, flush=True)
    return rows


def _auto_rows(given: argparse.Namespace, tables: list[Data]) -> list[Any]:
    cache = None if given.cache is None else Path(given.cache)
    rows = [auto(data, cache, given.seconds, given.kinds) for data in tables]
    for row in rows:
        print(row["data"], row["best_rival"], row["ratio"], row["contenders"], flush=True)
    return rows


def _overhead_rows(given: argparse.Namespace, tables: list[Data]) -> list[Any]:
    row = overhead(given.seconds)
    print(row, flush=True)
    return [row]


#: part -> its rows; a benchmark of another aspect is added here
PARTS: dict[str, Callable[[argparse.Namespace, list[Data]], list[Any]]] = {
    "exact": _exact_rows,
    "overhead": _overhead_rows,
    "auto": _auto_rows,
}


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--items", type=int, nargs="+", default=[])
    parser.add_argument("--table", action="append", default=[], metavar="NAME=BUNDLE")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure a row for")
    parser.add_argument("--cache", help="folder that keeps the rivals' indexes")
    parser.add_argument("--kinds", nargs="+", help="of auto")
    parser.add_argument("--out", type=Path, default=_RESULT)
    given = parser.parse_args()
    result = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    for name in given.parts:
        tables = [clustered(n) for n in given.items] + [trained(text) for text in given.table]
        rows = PARTS[name](given, tables)

        def key(row: dict[str, Any]) -> tuple[Any, ...]:
            return tuple(row.get(part) for part in ("data", "threads", "batch"))

        fresh = {key(row) for row in rows}
        kept = [row for row in result.get(name, {}).get("rows", []) if key(row) not in fresh]
        machine = {**describe_machine(), "build": native.build_info()}
        result[name] = {"machine": machine, "rows": kept + rows}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
