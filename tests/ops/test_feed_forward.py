# SPDX-License-Identifier: Apache-2.0
"""The feed-forward layer against float64 on every instruction set, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError
from seqrec_fast.nn import FeedForward
from seqrec_fast.ops import feed_forward
from seqrec_fast.ops.feed_forward import feed_forward_reference
from tests.ops.judge import ISAS, allowed, judge, worst

ACTIVATIONS = ["gelu_tanh", "gelu", "relu", "silu"]
SIZES = [1, 2, 3, 5, 12, 16, 17, 31, 33, 48, 49]


def tensors(rows: int, inputs: int, inner: int, outputs: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + 7 * inputs + 31 * inner)
    shapes = [(rows, inputs), (inner, inputs), (inner,), (outputs, inner), (outputs,)]
    x, up, up_bias, down, down_bias = (torch.randn(s, generator=generator) for s in shapes)
    return [x, up / inputs**0.5, up_bias, down / inner**0.5, down_bias]


def bound(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda *t: function(*t, **options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_as_exact_as_torch(isa: str, activation: str) -> None:
    for sizes in [(1, 5, 9, 3), (150, 64, 100, 64), (50, 33, 130, 17)]:
        for dropout in (0.0, 0.5):
            options = {"activation": activation, "dropout": dropout, "seed": 3}
            judge(
                bound(feed_forward, **options),
                bound(feed_forward_reference, **options),
                tensors(*sizes),
            )


@given(
    rows=st.sampled_from([0, *SIZES, 97]),
    inputs=st.sampled_from(SIZES),
    inner=st.sampled_from(SIZES),
    outputs=st.sampled_from(SIZES),
)
def test_every_size(rows: int, inputs: int, inner: int, outputs: int) -> None:
    given_tensors = tensors(rows, inputs, inner, outputs)
    exact = feed_forward_reference(*(t.double() for t in given_tensors), dropout=0.3, seed=1)
    theirs = feed_forward_reference(*given_tensors, dropout=0.3, seed=1)
    limit = allowed(worst(theirs, exact), exact, 2.0)
    before = native.build_info()["isa"]
    try:
        for name in ISAS:
            _C.use_isa(name)
            assert worst(feed_forward(*given_tensors, dropout=0.3, seed=1), exact) <= limit
    finally:
        _C.use_isa(before)


def test_many_tokens_pass_in_chunks_and_threads_change_nothing() -> None:
    """More hidden elements than one backward chunk holds."""
    inputs = [t.requires_grad_() for t in tensors(3000, 20, 300, 24)]
    judge(
        bound(feed_forward, dropout=0.2, seed=5),
        bound(feed_forward_reference, dropout=0.2, seed=5),
        inputs,
    )
    threads = native.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            native.set_num_threads(count)
            out = feed_forward(*inputs, dropout=0.2, seed=5)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    finally:
        native.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_extremes() -> None:
    x, up, up_bias, down, down_bias = tensors(6, 8, 16, 4)
    for activation in ACTIVATIONS:
        for scale in (1e4, 1e-30, 0.0):
            judge(
                bound(feed_forward, activation=activation),
                bound(feed_forward_reference, activation=activation),
                [x * scale, up, up_bias, down, down_bias],
            )
    x[1, 2] = torch.nan
    assert feed_forward(x, up, up_bias, down, down_bias).isnan().all(1).sum() == 1


def test_gradients_that_are_not_wanted_and_other_layouts() -> None:
    x, up, up_bias, down, down_bias = tensors(12, 5, 7, 3)
    down.requires_grad_()
    y = feed_forward(x.view(3, 4, 5), up, up_bias, down, down_bias)
    assert y.shape == (3, 4, 3)
    y.sum().backward()
    want = feed_forward_reference(x, up, up_bias, torch.ones(1, 7), torch.zeros(1))
    assert down.grad is not None
    torch.testing.assert_close(down.grad.sum(1)[0], want.detach().sum())
    wide = torch.randn(5, 12).T
    weights = (up, up_bias, down.detach(), down_bias)
    torch.testing.assert_close(feed_forward(wide, *weights), feed_forward_reference(wide, *weights))


def test_reference_in_double_and_registered_operator() -> None:
    wide = [t.double().requires_grad_() for t in tensors(3, 4, 5, 2)]
    assert torch.autograd.gradcheck(bound(feed_forward, dropout=0.3, seed=1), wide)
    given_tensors = [t.requires_grad_() for t in tensors(9, 5, 8, 4)]
    operator = torch.ops.seqrec_fast.feed_forward.default
    torch.library.opcheck(operator, (*given_tensors, 4, 0.5, torch.tensor([1]), True))
    torch.library.opcheck(operator, (*given_tensors, 1, 0.0, None, True))


def test_module() -> None:
    torch.manual_seed(0)
    module = FeedForward(6, 10, dropout=0.5)
    assert set(module.state_dict()) == {"up.weight", "up.bias", "down.weight", "down.bias"}
    x = torch.randn(7, 6)
    compiled = torch.compile(module.eval(), fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    module.train()
    torch.manual_seed(1)
    first = module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first)
    assert not torch.equal(module(x), first)


def test_clear_errors() -> None:
    x, up, up_bias, down, down_bias = tensors(2, 3, 4, 5)
    with pytest.raises(InputError, match="activation: unknown 'tanh'; choose one of gelu_tanh"):
        feed_forward(x, up, up_bias, down, down_bias, activation="tanh")
    with pytest.raises(InputError, match=r"x, up_weight: expected \[\.\.\., inputs\]"):
        feed_forward(x[:, :2], up, up_bias, down, down_bias)
    with pytest.raises(InputError, match=r"down_weight: expected \[outputs, 4\]"):
        feed_forward(x, up, up_bias, down[:, :2], down_bias)
    with pytest.raises(InputError, match=r"up_bias, down_bias: expected \[4\] and \[5\]"):
        feed_forward(x, up, up_bias[:1], down, down_bias)
    with pytest.raises(InputError, match=r"down_bias: expected torch\.float32"):
        feed_forward(x, up, up_bias, down, down_bias.double())
