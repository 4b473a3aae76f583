# SPDX-License-Identifier: Apache-2.0
"""Exact search of a table that is mapped from the disk: time, and memory of the process's own.

``python -m benchmarks.bench_large_index --items 10000000`` writes a file of 2.6 GB to a temporary
folder and searches it. Vectors are clustered, as trained item embeddings are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from seqrec_fast import native, retrieval

_CHUNK = 100_000
_CLUSTERS = 1000


def chunks(items: int, dim: int, centres: Any) -> Iterator[Any]:
    """Vectors around cluster centres, some at a time."""
    rng = np.random.default_rng(1)
    for begin in range(0, items, _CHUNK):
        count = min(_CHUNK, items - begin)
        rows = rng.standard_normal((count, dim), dtype=np.float32)
        rows *= np.float32(0.5)
        rows += centres[rng.integers(0, len(centres), count)]
        yield rows


def own_memory() -> dict[str, float]:
    """MiB of the process now: its own, and pages of mapped files."""
    found: dict[str, float] = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            found[name] = int(value.split()[0]) / 1024
    return found


def median_ms(index: retrieval.Index, queries: Any, repeats: int) -> float:
    """Median time of a search for the best 100, in milliseconds."""
    index.search(queries, 100)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        index.search(queries, 100)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def main() -> None:
    """Runs the benchmark and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", default=None, help="where the file is written")
    args = parser.parse_args()
    native.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((_CLUSTERS, args.dim), dtype=np.float32)
    queries = centres[rng.integers(0, _CLUSTERS, 256)]
    queries = queries + 0.5 * rng.standard_normal(queries.shape, dtype=np.float32)
    out: dict[str, Any] = {"items": args.items, "dim": args.dim, "threads": args.threads}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for dtype in ("float32", "int8"):
            path = Path(folder) / dtype
            before = own_memory()
            begin = time.perf_counter()
            retrieval.write_exact(path, chunks(args.items, args.dim, centres), dtype=dtype)
            written = time.perf_counter() - begin
            writing = own_memory()["RssAnon"] - before["RssAnon"]
            begin = time.perf_counter()
            index = retrieval.load(path, verify=False)
            loaded = time.perf_counter() - begin
            one = median_ms(index, queries[:1], 7)
            many = median_ms(index, queries, 1)
            now = own_memory()
            out[dtype] = {
                "file_bytes": path.stat().st_size,
                "write_s": written,
                "load_s": loaded,
                "one_query_ms": one,
                "256_queries_ms": many,
                "own_mib_after_writing": writing,
                "own_mib": now["RssAnon"] - before["RssAnon"],
                "mapped_mib": now["RssFile"] - before["RssFile"],
            }
            del index
            path.unlink()
    print(json.dumps({"machine": describe_machine(), **out}, indent=2))


if __name__ == "__main__":
    main()
