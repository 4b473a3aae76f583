# SPDX-License-Identifier: Apache-2.0
"""Dropout by a seed: equal to its definition bit by bit, and as random as it should be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError
from seqrec_fast.ops import dropout
from seqrec_fast.ops.dropout import dropout_reference
from tests.ops.judge import ISAS


@given(
    rows=st.integers(0, 9),
    columns=st.sampled_from([0, 1, 3, 4, 7, 8, 15, 16, 17, 33, 64]),
    p=st.sampled_from([1e-9, 0.1, 0.5, 0.999999, 1 - 1e-12]),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_equals_its_definition_on_every_instruction_set(
    rows: int, columns: int, p: float, seed: int
) -> None:
    before = native.build_info()["isa"]
    x = torch.randn(rows, columns)
    want = dropout_reference(x, p, seed=seed)
    for name in ISAS:
        _C.use_isa(name)
        assert torch.equal(dropout(x, p, seed=seed), want), name
    _C.use_isa(before)


def test_neither_threads_nor_shape_before_the_rows_matter() -> None:
    x = torch.randn(4000, 64)
    threads = native.get_num_threads()
    try:
        native.set_num_threads(1)
        one = dropout(x, 0.3, seed=1)
        native.set_num_threads(3)
        assert torch.equal(dropout(x, 0.3, seed=1), one)
        assert torch.equal(dropout(x.view(40, 100, 64), 0.3, seed=1).view(4000, 64), one)
    finally:
        native.set_num_threads(threads)


def test_gradient_repeats_the_draw() -> None:
    x = torch.randn(50, 20, requires_grad=True)
    out = dropout(x, 0.4, seed=9)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, dropout(torch.ones(50, 20), 0.4, seed=9))
    wide = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: dropout(t, 0.4, seed=9), (wide,))
    torch.library.opcheck(torch.ops.seqrec_fast.dropout.default, (x, 0.4, torch.tensor([9])))


def test_draws_are_uniform_and_independent() -> None:
    """Every frequency within five standard deviations of what independent draws give."""
    rows, columns, p = 3000, 128, 0.3
    kept = [dropout(torch.ones(rows, columns), p, seed=seed) != 0 for seed in range(4)]
    q = 1 - p
    for mask in kept:
        total = mask.numel()
        assert abs(float(mask.double().mean()) - q) < 5 * (p * q / total) ** 0.5
        for axis, count in ((0, rows), (1, columns)):
            deviation = (mask.double().mean(axis) - q).abs().max()
            assert deviation < 5 * (p * q / count) ** 0.5
    both_sd = (q**2 * (1 - q**2) / (rows * (columns - 1))) ** 0.5
    pairs = [
        (kept[0][:, 1:], kept[0][:, :-1]),
        (kept[0][1:], kept[0][:-1]),
        (kept[0][1:, 1:], kept[0][:-1, :-1]),
        (kept[0], kept[1]),
        (kept[2], kept[3]),
    ]
    for a, b in pairs:
        assert abs(float((a & b).double().mean()) - q * q) < 7 * both_sd


def test_expectation_is_the_input() -> None:
    x = torch.full((1000, 1000), 3.0)
    assert float(dropout(x, 0.25, seed=0).double().mean()) == pytest.approx(3.0, abs=0.01)


def test_seed_comes_from_torch() -> None:
    x = torch.ones(20, 20)
    torch.manual_seed(5)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)
    assert dropout(x, 0.0) is x


def test_compiles() -> None:
    x = torch.ones(20, 20)
    seed = torch.tensor([3])
    compiled = torch.compile(lambda x: dropout(x, 0.5, seed=seed) + 1, fullgraph=True)
    assert torch.equal(compiled(x), dropout(x, 0.5, seed=3) + 1)


def test_clear_errors() -> None:
    x = torch.ones(2, 2)
    with pytest.raises(InputError, match=r"dropout: must be at least 0 and below 1, found 1\.0"):
        dropout(x, 1.0)
    with pytest.raises(InputError, match="seed: expected one int64"):
        dropout(x, 0.5, seed=torch.tensor([1, 2]))
    with pytest.raises(InputError, match="seed: must fit in 64 bits"):
        dropout(x, 0.5, seed=2**63)
