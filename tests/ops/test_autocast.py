# SPDX-License-Identifier: Apache-2.0
"""Mixed precision by ``torch.autocast``: the type that each operation computes in; gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seqrec_fast import ops
from seqrec_fast.ops._autocast import compute_dtype
from tests.ops.test_transforms import ALL, CASES, tensors

#: norms compute in float32, as torch's do; what has no product is computed in the type it is given
UNCHANGED = ("dropout", "layer_norm", "add_layer_norm", "embedding", "sequence_embedding")
FLOAT32 = (*UNCHANGED, "linear_cross_entropy", "sampled_cross_entropy", "score_topk")


def narrowed(name: str, function: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return function(*inputs)


@pytest.mark.parametrize("name", ALL)
def test_results_are_of_the_type_that_torch_gives(name: str) -> None:
    function, shapes = ALL[name]
    inputs = tensors(shapes)
    found, exact = narrowed(name, function, inputs), function(*inputs)
    assert found.dtype == (torch.float32 if name in FLOAT32 else torch.bfloat16)
    if name in UNCHANGED and name != "dropout":
        assert torch.equal(found, exact)
    # a few roundings of 8 bits
    assert float((found - exact).abs().max()) <= 2.0**-4 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_weights_of_float32_get_gradients_of_float32(name: str) -> None:
    function, shapes = CASES[name]
    inputs = [t.requires_grad_() for t in tensors(shapes)]
    exact = torch.autograd.grad(function(*inputs).float().sum(), inputs)
    found = torch.autograd.grad(narrowed(name, function, inputs).float().sum(), inputs)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).abs().max()) <= 2.0**-4 * max(1.0, float(other.abs().max()))


def test_float64_is_left_alone_and_norms_widen() -> None:
    x = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(x.double(), torch.randn(2, 3).double()).dtype == torch.float64
        assert ops.layer_norm(x.bfloat16()).dtype == torch.float32
        total, normed = ops.add_layer_norm(x.bfloat16(), x)
        assert total.dtype == normed.dtype == torch.float32
        assert compute_dtype(x) == torch.bfloat16
        assert compute_dtype(x.double()) == torch.float64
    assert compute_dtype(x) == torch.float32


def test_half_weights_keep_small_losses_apart() -> None:
    """Weights of single tokens among very many would vanish in float16."""
    tokens = 100_000
    hidden, weight = torch.zeros(tokens, 2).half(), torch.zeros(8, 2).half()
    targets = torch.zeros(tokens, dtype=torch.int64)
    for loss in (
        ops.linear_cross_entropy(hidden, weight, targets),
        ops.sampled_cross_entropy(hidden, weight, targets, torch.arange(1, 8)),
    ):
        assert loss.item() == pytest.approx(torch.log(torch.tensor(8.0)).item(), rel=1e-3)


def test_compiled_under_autocast() -> None:
    function = torch.compile(ops.linear, fullgraph=True, backend="aot_eager")
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(x, weight), ops.linear(x, weight))
