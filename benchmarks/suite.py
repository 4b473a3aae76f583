# SPDX-License-Identifier: Apache-2.0
"""The cases of ``seqrec-fast bench kernels`` under pytest-benchmark, a test each contender."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest

from seqrec_fast import benchmarks
from seqrec_fast.benchmarks.case import OURS, STANDARD, Case, Prepared
from seqrec_fast.benchmarks.harness import pin_threads

__all__ = ["suite"]

THREADS = int(os.environ.get("SEQREC_BENCH_THREADS", "1"))


@lru_cache(maxsize=1)  # the contenders of a case follow one another
def _prepared(operation: str, name: str) -> Prepared:
    case = next(c for c in benchmarks.cases(operation) if c.name == name)
    pin_threads(THREADS)
    return case.prepare(THREADS, ())


def suite(operation: str, rivals: tuple[str, ...] = ()) -> Callable[..., None]:
    """A test function: every case of an operation by every contender, on one thread.

    ``SEQREC_BENCH_THREADS`` sets another number of threads.

    Args:
        operation: one of ``benchmarks.OPERATIONS``.
        rivals: names of the contenders beside ours and eager torch.
    """

    @pytest.mark.parametrize("contender", [OURS, STANDARD, *rivals])
    @pytest.mark.parametrize("case", benchmarks.cases(operation), ids=lambda case: case.name)
    def test(case: Case, contender: str, benchmark: Any) -> None:
        try:
            prepared = _prepared(operation, case.name)
        except (ImportError, AttributeError) as error:
            pytest.skip(str(error))
        found = next((c for c in prepared.contenders if c.name == contender), None)
        if found is None:
            pytest.skip(prepared.missing.get(contender, "does not compute this case"))
        benchmark.group = case.name
        benchmark.extra_info |= {"flops": case.flops, "bytes": case.bytes, "threads": THREADS}
        benchmark(found.run)

    return test
