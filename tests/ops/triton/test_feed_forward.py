# SPDX-License-Identifier: Apache-2.0
"""The Triton feed-forward layer in the interpreter: against float64, inside guarded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ops.triton.guards import MISSING, Guards

pytest.importorskip("triton", reason=MISSING)

from seqrec_fast.ops.feed_forward import feed_forward, feed_forward_reference
from seqrec_fast.ops.triton import feed_forward as kernels
from tests.ops.triton.exactness import judge


@pytest.fixture(autouse=True)
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton")


def case(rows: int, inputs: int, inner: int, outputs: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 31 + inner)
    shapes = ((rows, inputs), (inner, inputs), (inner,), (outputs, inner), (outputs,))
    x, up, up_bias, down, down_bias = (torch.randn(s, generator=generator) for s in shapes)
    return [x, up / inputs**0.5, up_bias, down / inner**0.5, down_bias]


def check(tensors: list[torch.Tensor], dtype: torch.dtype, **options: Any) -> None:
    judge(
        lambda *t: feed_forward(*t, **options),
        lambda *t: feed_forward_reference(*t, **options),
        tensors,
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu", "silu"])
def test_activations_and_types(activation: str, dtype: torch.dtype, guards: Guards) -> None:
    check(case(35, 20, 70, 12), dtype, activation=activation, dropout=0.3, seed=7)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.sampled_from([0, 1, 15, 16, 17, 40]),
    inputs=st.sampled_from([1, 16, 33]),
    inner=st.sampled_from([1, 16, 33]),
    outputs=st.sampled_from([1, 17]),
    p=st.sampled_from([0.0, 0.5]),
)
def test_every_size(rows: int, inputs: int, inner: int, outputs: int, p: float) -> None:
    check(case(rows, inputs, inner, outputs), torch.float32, dropout=p, seed=3)


def test_shares_of_rows_add_up(monkeypatch: pytest.MonkeyPatch, guards: Guards) -> None:
    monkeypatch.setattr(kernels, "_LEAST_ROWS", 10)
    check(case(45, 16, 16, 16), torch.float32)


def test_operator_is_registered_as_torch_expects() -> None:
    tensors = [t.requires_grad_() for t in case(3, 4, 5, 6)]
    operator = torch.ops.seqrec_fast.feed_forward.default
    torch.library.opcheck(operator, (*tensors, 4, 0.5, torch.tensor([3]), True))
