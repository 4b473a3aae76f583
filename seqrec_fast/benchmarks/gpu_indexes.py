# SPDX-License-Identifier: Apache-2.0
"""The kinds of index on a GPU beside the quickest exact and graph searches of faiss on the CPU.

Recall comes first: an index that does not find what it should is not worth a time. Every size is
measured by itself, so that one catalogue at a time lies in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from seqrec_fast.errors import DeviceError
from seqrec_fast.retrieval import build, faiss_library
from seqrec_fast.retrieval.index import Float, Index
from seqrec_fast.retrieval.tuning import recall_of

__all__ = ["BATCHES", "HEADER", "SIZES", "cells", "measure", "require_gpu"]

SIZES = (100_000, 1_000_000)
BATCHES = (1, 16, 256)
DIM = 64
K = 100
#: kinds, and the recall below which one is red; what is exact may only miss equal scores
KINDS = {
    "gpu-flat": 0.9999,
    "gpu-ivf": 0.8,
    "gpu-ivfpq": 0.8,
    "gpu-cagra": 0.8,
    "flat": 0.9999,
    "hnsw": 0.8,
}
HEADER = ["items", "index", "recall", *(f"{count} queries" for count in BATCHES), "by kernel"]

_REPEATS = 30
_LEAST = 3


def require_gpu() -> dict[str, Any]:
    """What faiss can do here.

    Raises:
        DeviceError: no kind can run on a GPU; says why.
    """
    found = faiss_library.abilities()
    if all(found["kinds"].values()):
        raise DeviceError(f"bench gpu: {found['reason'] or found['kinds']['gpu-flat']}")
    return found


def measure(
    sizes: Sequence[int] = SIZES,
    *,
    dim: int = DIM,
    k: int = K,
    threads: int | None = None,
    seconds: float = 3.0,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[dict[str, Any]]:
    """One row a size and kind.

    Args:
        sizes: numbers of items.
        dim: length of a vector.
        k: items that a query has to find.
        threads: cores for the kinds on the CPU; ``None`` takes those of the library.
        seconds: timed calls of one kind and batch.
        say: told what is being built.

    Returns:
        Plain values: ``items, dim, k, kind``, and ``missing`` (why it cannot run) or ``recall``,
        ``red``, ``build_seconds``, ``by_kernel`` (share of the queries which the native kernel
        answered) and ``median_ms`` by number of queries; none where the recall is too small.
    """
    reasons = faiss_library.abilities()["kinds"]
    for size in sizes:
        vectors, queries = _data(size, dim)
        truth = build(vectors, "exact").search(queries, k).ids
        for kind, least in KINDS.items():
            row: dict[str, Any] = {"items": size, "dim": dim, "k": k, "kind": kind}
            if reasons.get(kind) is not None:
                yield {**row, "missing": reasons[kind]}
                continue
            say(f"{size:,} items: {kind}")
            started = time.perf_counter()
            try:
                index: Any = build(vectors, kind)
                row["build_seconds"] = time.perf_counter() - started
                row["recall"] = float(
                    recall_of(index.search(queries, k, threads=threads).ids, truth).mean()
                )
                row["by_kernel"] = index.by_kernel / len(queries)
                row["red"] = row["recall"] < least
                row["median_ms"] = (
                    {}
                    if row["red"]
                    else {n: _median(index, queries[:n], k, threads, seconds) for n in BATCHES}
                )
            except DeviceError as error:  # such as too little memory
                yield {**row, "missing": str(error)}
                continue
            yield row


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table below :data:`HEADER`."""
    start = [f"{row['items']:,}", row["kind"]]
    if "missing" in row:
        return [*start, *["-"] * (len(HEADER) - 2)]
    times = row["median_ms"]
    return [
        *start,
        f"{row['recall']:.4f}{' too small' if row['red'] else ''}",
        *(f"{times[n]:.3f} ms" if n in times else "-" for n in BATCHES),
        f"{row['by_kernel']:.1%}",
    ]


def _data(items: int, dim: int) -> tuple[Float, Float]:
    """Vectors around centres, as trained ones are, and queries around the same."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, items // 200), dim), dtype=np.float32)

    def around(count: int) -> Float:
        noise = rng.standard_normal((count, dim), dtype=np.float32)
        found: Float = centres[rng.integers(0, len(centres), count)] + np.float32(0.5) * noise
        return found

    return around(items), around(max(BATCHES))


def _median(index: Index, queries: Float, k: int, threads: int | None, seconds: float) -> float:
    """Milliseconds of a search."""
    for _ in range(2):
        index.search(queries, k, threads=threads)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _LEAST or (len(times) < _REPEATS and time.perf_counter() - began < seconds):
        start = time.perf_counter()
        index.search(queries, k, threads=threads)
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))
