# SPDX-License-Identifier: Apache-2.0
"""A step of whole models by the CUDA kernels, run on the CPU, against the same by plain torch."""

from __future__ import annotations

import pytest

from seqrec_fast.ops._backend import GPU_BACKENDS, unavailable
from tests.training.test_backends import judge_steps


@pytest.mark.parametrize("model", ["gru", "lstm", "rnn", "sasrec"])
def test_a_step_is_as_exact_as_plain_torch(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [name for name, backend in GPU_BACKENDS.items() if backend == "cuda"]
    for operation in kernels:
        if (reason := unavailable(operation, "cpu")) is not None:
            pytest.skip(f"{operation}: {reason}")
    # dropout between recurrent layers is torch's own, drawn anew in each type
    judge_steps("cuda,native", model, model == "sasrec", 3, monkeypatch)
