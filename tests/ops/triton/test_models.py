# SPDX-License-Identifier: Apache-2.0
"""A step of a transformer by the Triton kernels, interpreted, against the same by plain torch."""

from __future__ import annotations

import pytest

from seqrec_fast.ops._backend import GPU_BACKENDS, unavailable
from tests.training.test_backends import judge_steps


def test_a_step_is_as_exact_as_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [name for name, backend in GPU_BACKENDS.items() if backend == "triton"]
    for operation in kernels:
        if (reason := unavailable(operation, "cpu")) is not None:
            pytest.skip(f"{operation}: {reason}")
    judge_steps("triton,native", "sasrec", True, 1, monkeypatch)
