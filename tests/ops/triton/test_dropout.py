# SPDX-License-Identifier: Apache-2.0
"""The Triton dropout in the interpreter: the draw of the definition, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.triton.guards import MISSING, Guards

pytest.importorskip("triton", reason=MISSING)

from seqrec_fast.ops.dropout import dropout, dropout_reference
from seqrec_fast.ops.triton import dropout as kernels


@settings(max_examples=25)
@given(
    rows=st.integers(0, 40),
    columns=st.sampled_from([1, 7, 127, 128, 129]),
    p=st.floats(0.0, 0.999),
    seed=st.integers(-(1 << 63), (1 << 63) - 1),
)
def test_draws_as_the_definition(rows: int, columns: int, p: float, seed: int) -> None:
    x, key = torch.randn(rows, columns), torch.tensor([seed])
    found = kernels.dropout(x, p, key)
    if p:
        assert torch.equal(found, dropout_reference(x, p, seed=seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_public_function_and_gradient(
    dtype: torch.dtype, guards: Guards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton")
    x = torch.randn(3, 5, 33).to(dtype).requires_grad_()
    found = dropout(x, 0.4, seed=3)
    want = dropout_reference(x.float(), 0.4, seed=3).to(dtype)
    assert torch.equal(found, want)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(gradient == 0, want == 0)


def test_a_row_of_any_length_fits_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA starts 65,535 programs at most along the second and third axis, 2^31 along the first."""
    grids = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            grids.append(grid({"ROWS": 16, "COLUMNS": 128}))
            return lambda *_: None

    monkeypatch.setattr(kernels, "_dropout", Kernel())
    for shape in ((70_000 * 128,), (40, 129)):
        kernels.dropout(torch.empty(1).expand(shape), 0.5, torch.tensor([1]))
    assert grids == [(70_000,), (3 * 2,)]


def test_operator_is_registered_as_torch_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton")
    x = torch.randn(3, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.seqrec_fast.dropout.default, (x, 0.5, torch.tensor([3])))
