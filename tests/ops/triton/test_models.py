# SPDX-License-Identifier: Apache-2.0
"""A step of a transformer by the Triton kernels, interpreted, against the same by plain torch."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models import ModelOptions, build_model
from seqrec_fast.ops import linear_cross_entropy
from seqrec_fast.ops._backend import GPU_BACKENDS, unavailable
from tests.ops.triton.guards import MISSING
from tests.training.test_backends import judge_steps


def test_a_step_is_as_exact_as_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [name for name, backend in GPU_BACKENDS.items() if backend == "triton"]
    for operation in kernels:
        if (reason := unavailable(operation, "cpu")) is not None:
            pytest.skip(f"{operation}: {reason}")
    judge_steps("triton,native", "sasrec", True, 1, monkeypatch)


def scaled_step(
    backend: str, narrow: torch.dtype | None, patch: pytest.MonkeyPatch
) -> list[Tensor]:
    """Loss and gradients, by autocast and a scaled loss, or in float64."""
    patch.setenv("SEQREC_FAST_BACKEND", backend)
    torch.manual_seed(2)
    options = ModelOptions(dim=24, heads=1, layers=1, max_length=9, dropout=0.2, item_bias=True)
    model = build_model(options, 10)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if narrow is None:
        model.double()
    batch = JaggedBatch.from_lists([[1, 2, 3, 4, 5, 6, 7], [3, 3, 3], [9]], np.int64).to_torch()
    torch.manual_seed(4)
    with torch.autocast("cpu", narrow) if narrow else nullcontext():
        hidden = model(batch)
        loss = linear_cross_entropy(
            hidden, model.output_table, batch.values.flip(0), model.output_bias
        )
    (loss * 1024.0).backward()  # type: ignore[no-untyped-call]
    found = [p.grad / 1024.0 for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *found]


@pytest.mark.skipif(unavailable("attention", "cpu") is not None, reason=MISSING)
@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_a_step_in_mixed_precision(narrow: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = scaled_step("reference", None, monkeypatch)
    theirs = scaled_step("reference", narrow, monkeypatch)
    mine = scaled_step("triton,native", narrow, monkeypatch)
    step = torch.finfo(narrow).eps
    for place, (m, t, e) in enumerate(zip(mine, theirs, exact, strict=True)):
        assert m.dtype == t.dtype == torch.float32
        limit = 2.0 * (t - e).norm() + 4.0 * step * e.norm()
        assert (m - e).norm() <= limit, place
