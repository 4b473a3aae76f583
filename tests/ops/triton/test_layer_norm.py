# SPDX-License-Identifier: Apache-2.0
"""The Triton layer norm in the interpreter: against float64, inside guarded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.triton.guards import MISSING, Guards

pytest.importorskip("triton", reason=MISSING)

from seqrec_fast.ops.layer_norm import (
    add_layer_norm,
    add_layer_norm_reference,
    layer_norm,
    layer_norm_reference,
)
from tests.ops.triton.exactness import judge

TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton")


def case(rows: int, dim: int, mean: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 31 + dim)
    shapes = ((rows, dim), (rows, dim), (dim,), (dim,))
    x, residual, weight, bias = (torch.randn(s, generator=generator) for s in shapes)
    return [x + mean, residual, weight, bias]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "dim"), [(0, 5), (1, 1), (3, 16), (65, 17), (130, 64), (3, 300)])
def test_every_size(rows: int, dim: int, dtype: torch.dtype, guards: Guards) -> None:
    x, residual, weight, bias = case(rows, dim)
    judge(layer_norm, layer_norm_reference, [x, weight, bias], dtype)
    for p in (0.0, 0.3):
        options: Any = {"dropout": p, "seed": -5}
        judge(
            lambda *t, o=options: add_layer_norm(*t, **o),
            lambda *t, o=options: add_layer_norm_reference(*t, **o),
            [x, residual, weight, bias],
            dtype,
        )


def test_left_out_and_large_means(guards: Guards) -> None:
    x, residual, weight, _ = case(9, 33, mean=1e4)
    judge(layer_norm, layer_norm_reference, [x], torch.float32)
    judge(layer_norm, layer_norm_reference, [x, weight], torch.float32)
    judge(add_layer_norm, add_layer_norm_reference, [x, residual], torch.float32)


def test_nan_stays_in_its_row() -> None:
    x, _, weight, bias = case(5, 8)
    x[2, 3] = torch.nan
    found = layer_norm(x, weight, bias).isnan()
    assert found[2].all()
    assert found.sum() == 8


def test_operators_are_registered_as_torch_expects() -> None:
    tensors = [t.requires_grad_() for t in case(3, 8)]
    torch.library.opcheck(torch.ops.seqrec_fast.layer_norm.default, (tensors[0], None, None, 1e-5))
    operator = torch.ops.seqrec_fast.add_layer_norm.default
    torch.library.opcheck(operator, (*tensors, 1e-5, 0.5, torch.tensor([3])))
