# SPDX-License-Identifier: Apache-2.0
"""Sums of partial results in the interpreter: against float64, inside guarded memory."""

from __future__ import annotations

import pytest
import torch

from tests.ops.triton.guards import MISSING, Guards

pytest.importorskip("triton", reason=MISSING)

from seqrec_fast.ops.triton import _numbers as numbers
from seqrec_fast.ops.triton import dropout, feed_forward, layer_norm

PARTS, BLOCK = numbers.ADD_UP["PARTS"], numbers.ADD_UP["BLOCK"]


@pytest.mark.parametrize("parts", [1, PARTS - 1, PARTS, PARTS + 1, 3 * PARTS + 2])
@pytest.mark.parametrize(
    ("first", "second"), [(5, 0), (0, 7), (BLOCK, 1), (BLOCK - 1, 2), (2 * BLOCK + 3, BLOCK)]
)
def test_parts_are_added_up_into_two_tensors(
    parts: int, first: int, second: int, guards: Guards
) -> None:
    generator = torch.Generator().manual_seed(parts)
    partial = torch.randn(parts, first + second, generator=generator)
    found = partial.new_empty(first), partial.new_empty(second)
    numbers.add_up(guards.among_nan(partial), *found)
    exact = partial.double().sum(0)
    # a sum in any order errs by no more than its terms' magnitudes times the roundings on the way
    limit = partial.abs().double().sum(0) * (parts + 4) * 2.0**-24
    assert ((torch.cat(found) - exact).abs() <= limit).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_sums_are_rounded_once(dtype: torch.dtype, guards: Guards) -> None:
    partial = torch.randn(40, 9, generator=torch.Generator().manual_seed(1))
    found = torch.empty(6, dtype=dtype), torch.empty(3, dtype=dtype)
    numbers.add_up(partial, *found)
    exact = partial.double().sum(0)
    limit = torch.finfo(dtype).eps / 2 * exact.abs() + 44 * 2.0**-24 * partial.abs().sum(0)
    assert ((torch.cat(found).double() - exact).abs() <= limit).all()


@pytest.mark.parametrize(
    "kernel",
    [
        dropout._dropout.fn,
        layer_norm._forward,
        layer_norm._backward,
        feed_forward._forward,
        feed_forward._backward_rows,
        feed_forward._backward_weights,
    ],
)
def test_a_kernel_is_compiled_once_for_all_seeds(kernel: object) -> None:
    """Seeds drawn together lie 8 bytes apart: every other one begins at a multiple of 16."""
    assert kernel.kwargs["do_not_specialize_on_alignment"] == ["seed"]  # type: ignore[attr-defined]
