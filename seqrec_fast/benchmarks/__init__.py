# SPDX-License-Identifier: Apache-2.0
"""The speed of the kernels beside other libraries, for ``seqrec-fast bench kernels``.

:mod:`~seqrec_fast.benchmarks.shapes` says what is measured, ``operations`` how (a module an
operation), :mod:`~seqrec_fast.benchmarks.rivals` runs the other libraries,
:mod:`~seqrec_fast.benchmarks.harness` times and judges, :mod:`~seqrec_fast.benchmarks.report`
prints and writes, :mod:`~seqrec_fast.benchmarks.plots` draws.
"""

from __future__ import annotations

from importlib import import_module

from seqrec_fast.benchmarks.case import Case
from seqrec_fast.errors import InputError

__all__ = ["OPERATIONS", "cases"]

#: operations that are measured; each is a module of ``seqrec_fast.benchmarks.operations``
OPERATIONS = ("gemm", "recurrent", "attention", "hstu_attention", "cross_entropy")


def cases(operation: str) -> list[Case]:
    """The cases of an operation; imports torch.

    Raises:
        InputError: there is no such operation.
    """
    if operation not in OPERATIONS:
        raise InputError(
            f"operation: unknown operation {operation!r}; choose one of {', '.join(OPERATIONS)}"
        )
    found: list[Case] = import_module(f"seqrec_fast.benchmarks.operations.{operation}").cases()
    return found
