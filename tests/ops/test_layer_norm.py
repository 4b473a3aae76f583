# SPDX-License-Identifier: Apache-2.0
"""Layer norm, alone and after a residual sum, against float64 on every instruction set."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from seqrec_fast import native
from seqrec_fast.errors import InputError
from seqrec_fast.ops import add_layer_norm, layer_norm
from seqrec_fast.ops.layer_norm import add_layer_norm_reference, layer_norm_reference
from tests.ops.judge import judge, judge_over_inputs

DIMS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100]


def tensors(rows: int, dim: int, seed: int = 0) -> list[torch.Tensor]:
    """x, residual, weight, bias."""
    generator = torch.Generator().manual_seed(rows * 131 + dim + 7919 * seed)
    shapes = [(rows, dim), (rows, dim), (dim,), (dim,)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("dim", DIMS)
def test_is_as_exact_as_torch(isa: str, dim: int) -> None:
    """Over several inputs: the deviations of two columns are opposite, so that gradients cancel."""
    for rows in (0, 1, 7, 600):
        inputs = [tensors(rows, dim, seed) for seed in range(12)]
        alone = [[x, weight, bias] for x, _, weight, bias in inputs]
        judge_over_inputs(layer_norm, layer_norm_reference, alone)
        for p in (0.0, 0.4):
            judge_over_inputs(
                partial(add_layer_norm, dropout=p, seed=4),
                partial(add_layer_norm_reference, dropout=p, seed=4),
                inputs,
            )


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("weight", "bias"), [(True, False), (False, True), (False, False)])
def test_weight_and_bias_may_be_missing(rows: int, dim: int, weight: bool, bias: bool) -> None:
    inputs = [
        [x, residual, w if weight else None, b if bias else None]
        for x, residual, w, b in (tensors(rows, dim, seed) for seed in range(12))
    ]
    alone = [[x, w, b] for x, _, w, b in inputs]
    judge_over_inputs(layer_norm, layer_norm_reference, alone)
    judge_over_inputs(add_layer_norm, add_layer_norm_reference, inputs)


def test_gradients_where_only_one_output_is_used() -> None:
    for take in (lambda s, n: s, lambda s, n: n):
        judge(
            lambda *t: take(*add_layer_norm(*t, dropout=0.2, seed=1)),  # noqa: B023
            lambda *t: take(*add_layer_norm_reference(*t, dropout=0.2, seed=1)),  # noqa: B023
            tensors(9, 20)[:2],
        )


def test_extremes(isa: str) -> None:
    base = torch.randn(6, 40)
    for x in (base * 1e4, base + 1e4, base * 1e-30, torch.full((2, 40), 1e-40), base * 0):
        judge(layer_norm, layer_norm_reference, [x])
    broken = base.clone()
    broken[2, 3] = torch.nan
    rows = layer_norm(broken).isnan().all(1)
    assert rows.tolist() == [False, False, True, False, False, False]
    assert not layer_norm(base[[0, 1]]).isnan().any()


def test_result_does_not_depend_on_the_threads() -> None:
    inputs = [t.requires_grad_() for t in tensors(5000, 64)]
    threads = native.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            native.set_num_threads(count)
            out = add_layer_norm(*inputs, dropout=0.3, seed=2)
            results.append([*out, *torch.autograd.grad([o.square().sum() for o in out], inputs)])
    finally:
        native.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_other_axes_and_strides() -> None:
    x = torch.randn(3, 4, 10)
    torch.testing.assert_close(layer_norm(x), layer_norm_reference(x))
    columns = torch.randn(10, 6).T
    torch.testing.assert_close(layer_norm(columns), layer_norm_reference(columns))


def test_reference_in_double_and_registered_operators() -> None:
    wide = [t.double().requires_grad_() for t in tensors(4, 5)]
    assert torch.autograd.gradcheck(lambda *t: add_layer_norm(*t, dropout=0.3, seed=1), wide)
    x, residual, weight, bias = (t.requires_grad_() for t in tensors(9, 5))
    seed = torch.tensor([1])
    library = torch.ops.seqrec_fast
    torch.library.opcheck(library.layer_norm.default, (x, weight, bias, 1e-5))
    torch.library.opcheck(library.layer_norm.default, (x, None, None, 1e-5))
    both = (x, residual, weight, bias, 1e-5)
    torch.library.opcheck(library.add_layer_norm.default, (*both, 0.5, seed))
    torch.library.opcheck(library.add_layer_norm.default, (*both, 0.0, None))


def test_compiles_and_refuses_second_derivatives() -> None:
    x, residual, weight, bias = tensors(9, 5)
    compiled = torch.compile(
        lambda x, r: add_layer_norm(x, r, weight, bias, dropout=0.5, seed=1), fullgraph=True
    )
    for mine, want in zip(
        compiled(x, residual),
        add_layer_norm(x, residual, weight, bias, dropout=0.5, seed=1),
        strict=True,
    ):
        torch.testing.assert_close(mine, want)
    x.requires_grad_()
    (first,) = torch.autograd.grad(layer_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(InputError, match="no gradients of gradients"):
        first.sum().backward()


def test_clear_errors() -> None:
    x, residual, weight, bias = tensors(2, 3)
    with pytest.raises(InputError, match=r"weight: expected torch\.float32 \[3\]"):
        layer_norm(x, weight[:2], bias)
    with pytest.raises(InputError, match=r"bias: expected torch\.float32 \[3\]"):
        layer_norm(x, weight, bias.double())
    with pytest.raises(InputError, match=r"x: expected .* at least one column"):
        layer_norm(x[:, :0])
    with pytest.raises(InputError, match="residual: expected"):
        add_layer_norm(x, residual[:1], weight, bias)
    with pytest.raises(InputError, match="dropout: must be at least 0"):
        add_layer_norm(x, residual, weight, bias, dropout=1.5)
