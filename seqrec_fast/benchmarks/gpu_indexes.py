# SPDX-License-Identifier: Apache-2.0
"""The kinds of index on a GPU beside the quickest exact and graph searches of faiss on the CPU.

Recall comes first: an index that does not find what it should is not worth a time. Every size is
measured by itself, so that one catalogue at a time lies in memory.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from seqrec_fast.benchmarks.case import why
from seqrec_fast.benchmarks.gpu_workers import Lost, here
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
    answers: Callable[[Any, Any], Iterator[Any]] = here,
) -> Iterator[dict[str, Any]]:
    """One row a size and kind.

    Args:
        sizes: numbers of items.
        dim: length of a vector.
        k: items that a query has to find.
        threads: cores for the kinds on the CPU; ``None`` takes those of the library.
        seconds: timed calls of one kind and batch.
        say: told what is being built.
        answers: in this process, or in others (``gpu_workers.children``).

    Returns:
        Plain values: ``items, dim, k, kind``, and ``missing`` (why it cannot run) or ``recall``,
        ``red``, ``build_seconds``, ``by_kernel`` (share of the queries which the native kernel
        answered) and ``median_ms`` by number of queries; none where the recall is too small. What
        raises, or ends its process, is ``missing`` and ``red``.
    """
    reasons = faiss_library.abilities()["kinds"]
    jobs = [(size, kind) for size in sizes for kind in KINDS if reasons.get(kind) is None]

    def told() -> Iterator[tuple[int, str]]:
        for size, kind in jobs:
            say(f"{size:,} items: {kind}")
            yield size, kind

    found = answers(functools.partial(_Worker, dim, k, threads, seconds), told())
    for size in sizes:
        for kind in KINDS:
            row: dict[str, Any] = {"items": size, "dim": dim, "k": k, "kind": kind}
            if reasons.get(kind) is not None:
                yield {**row, "missing": reasons[kind]}
                continue
            answer = next(found)
            lost = isinstance(answer, Lost)
            yield row | ({"missing": answer.reason, "red": True} if lost else answer)


class _Worker:
    """Builds and measures one index at a time."""

    def __init__(self, dim: int, k: int, threads: int | None, seconds: float) -> None:
        self._dim, self._k, self._threads, self._seconds = dim, k, threads, seconds
        self._items = 0
        self._vectors = self._queries = np.zeros((0, dim), np.float32)
        self._truth: Any = None

    def __call__(self, job: tuple[int, str]) -> dict[str, Any]:
        items, kind = job
        if items != self._items:
            self._vectors, self._queries = _data(items, self._dim)
            self._truth = build(self._vectors, "exact").search(self._queries, self._k).ids
            self._items = items
        try:
            return self._measured(kind)
        except DeviceError as error:  # such as too little memory
            return {"missing": str(error)}
        except Exception as error:
            return {"missing": why(error), "red": True}

    def _measured(self, kind: str) -> dict[str, Any]:
        queries, k, threads = self._queries, self._k, self._threads
        started = time.perf_counter()
        index: Any = build(self._vectors, kind)
        built = time.perf_counter() - started
        ids = index.search(queries, k, threads=threads).ids
        recall = float(recall_of(ids, self._truth).mean())
        red = recall < KINDS[kind]
        counts = () if red else BATCHES
        return {
            "build_seconds": built,
            "recall": recall,
            "by_kernel": index.by_kernel / len(queries),
            "red": red,
            "median_ms": {
                n: _median(index, queries[:n], k, threads, self._seconds) for n in counts
            },
        }


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
