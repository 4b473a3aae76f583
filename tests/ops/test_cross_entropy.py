# SPDX-License-Identifier: Apache-2.0
"""The plain-torch linear + cross-entropy against torch's over whole logits, and its gradients.

The native kernels are judged in test_cross_entropy_native.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast.errors import InputError
from seqrec_fast.ops import linear_cross_entropy, sampled_cross_entropy
from seqrec_fast.ops.cross_entropy import (
    linear_cross_entropy_reference,
    sampled_cross_entropy_reference,
)

F = torch.nn.functional


def case(tokens: int, items: int, dim: int, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(tokens * 31 + items)
    hidden = torch.randn(tokens, dim, dtype=dtype, requires_grad=True)
    weight = torch.randn(items, dim, dtype=dtype, requires_grad=True)
    bias = torch.randn(items, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(items, (tokens,)), bias


@given(
    tokens=st.integers(1, 9),
    items=st.integers(1, 12),
    chunk=st.integers(1, 200),
    bias=st.booleans(),
)
def test_equals_torch_whatever_the_chunk(tokens: int, items: int, chunk: int, bias: bool) -> None:
    hidden, weight, targets, b = case(tokens, items, 3)
    b = b if bias else None
    want = F.cross_entropy(F.linear(hidden, weight, b), targets)
    got = linear_cross_entropy_reference(hidden, weight, targets, b, chunk_logits=chunk)
    inputs = [hidden, weight] + ([b] if bias else [])
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_float32_error_is_at_most_twice_torchs() -> None:
    """Judged in float64; five times for the gradients."""
    hidden, weight, targets, bias = case(300, 1000, 64, torch.float32)
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    judge = F.cross_entropy(F.linear(*wide), targets)
    judge_grads = torch.autograd.grad(judge, wide)
    theirs = F.cross_entropy(F.linear(hidden, weight, bias), targets)
    mine = linear_cross_entropy_reference(hidden, weight, targets, bias, chunk_logits=70_000)
    inputs = (hidden, weight, bias)
    # one rounding of the result is the least that a float32 figure can be off
    floor = judge.item() * 2**-24
    assert abs(mine.item() - judge.item()) <= max(2 * abs(theirs.item() - judge.item()), floor)
    for a, b, j in zip(
        torch.autograd.grad(mine, inputs),
        torch.autograd.grad(theirs, inputs),
        judge_grads,
        strict=True,
    ):
        assert (a.double() - j).abs().max() <= 5 * (b.double() - j).abs().max()


def test_weights_count_tokens() -> None:
    hidden, weight, targets, bias = case(5, 7, 3)
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    each = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    got = linear_cross_entropy(hidden, weight, targets, bias, token_weights=weights)
    torch.testing.assert_close(got, (each * weights).sum() / weights.sum())
    nothing = linear_cross_entropy(
        hidden, weight, targets, bias, token_weights=torch.zeros(5, dtype=torch.float64)
    )
    assert nothing.item() == 0.0


def test_gradcheck_of_full_and_sampled() -> None:
    hidden, weight, targets, bias = case(4, 6, 3)
    weights = torch.rand(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: (
            linear_cross_entropy_reference(h, w, targets, b, token_weights=weights, chunk_logits=12)
            * 3.0
        ),
        (hidden, weight, bias),
    )
    negatives = torch.tensor([0, 2, 2, 5])
    assert torch.autograd.gradcheck(
        lambda h, w, b: sampled_cross_entropy_reference(
            h, w, targets, negatives, b, chunk_logits=8
        ),
        (hidden, weight, bias),
    )


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 1]))
    assert loss.item() == pytest.approx(1e4)
    loss.backward()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(weight.grad).all()


def test_float16_over_more_items_than_it_can_count() -> None:
    """The sum of 70,000 equal exponentials, and gradients of 1e-8, are outside of its range."""
    items, tokens = 70_000, 64
    hidden, weight = torch.ones(tokens, 2).half(), torch.zeros(items, 2).half()
    leaves = [t.requires_grad_() for t in (hidden, weight)]
    targets = torch.arange(tokens)
    loss = linear_cross_entropy_reference(*leaves, targets)
    assert loss.item() == pytest.approx(math.log(items), rel=1e-6)
    # as a loss scaler multiplies it
    _, d_weight = torch.autograd.grad(loss * 65536.0, leaves)
    assert d_weight.dtype == torch.float16
    torch.testing.assert_close(
        d_weight[tokens:].float(),
        torch.full((items - tokens, 2), 65536.0 / items),
        rtol=1e-3,
        atol=0.0,
    )
    torch.testing.assert_close(
        d_weight[:tokens].float(),
        torch.full((tokens, 2), 65536.0 * (1 / items - 1 / tokens)),
        rtol=1e-3,
        atol=0.0,
    )


def test_never_more_than_one_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix that is made on the way has at most chunk_logits entries."""
    largest = 0
    product = torch.Tensor.__matmul__

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        result = product(a, b)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    hidden, weight, targets, _ = case(50, 40, 4)
    linear_cross_entropy_reference(hidden, weight, targets, chunk_logits=200)
    assert 0 < largest <= 200


def test_sampled_equals_its_definition() -> None:
    hidden, weight, targets, bias = case(6, 9, 3)
    negatives = torch.tensor([0, 3, 3, 8])
    log_q = torch.log(torch.rand(9, dtype=torch.float64))
    got = sampled_cross_entropy_reference(
        hidden,
        weight,
        targets,
        negatives,
        bias,
        log_q_targets=log_q[targets],
        log_q_negatives=log_q[negatives],
        chunk_logits=5,
    )
    logits = F.linear(hidden, weight, bias) - log_q
    losses = []
    for token, target in enumerate(targets.tolist()):
        others = [n for n in negatives.tolist() if n != target]
        z = logits[token, [target, *others]]
        losses.append(torch.logsumexp(z, 0) - z[0])
    torch.testing.assert_close(got, torch.stack(losses).mean())


def test_sampled_with_all_items_once_is_the_full_loss() -> None:
    hidden, weight, targets, bias = case(6, 9, 3)
    full = linear_cross_entropy(hidden, weight, targets, bias)
    sampled = sampled_cross_entropy(hidden, weight, targets, torch.arange(9), bias)
    torch.testing.assert_close(sampled, full)


def test_no_tokens_is_no_loss() -> None:
    hidden, weight, targets, _ = case(1, 4, 3)
    assert linear_cross_entropy(hidden[:0], weight, targets[:0]).item() == 0.0
    assert sampled_cross_entropy(hidden[:0], weight, targets[:0], torch.tensor([1])).item() == 0.0


def test_clear_errors() -> None:
    hidden, weight, targets, bias = case(3, 4, 2)
    with pytest.raises(InputError, match="targets: must be items 0 to 3, found"):
        linear_cross_entropy(hidden, weight, targets + 4)
    with pytest.raises(InputError, match=r"targets: expected int64 \[3\]"):
        linear_cross_entropy(hidden, weight, targets.int())
    with pytest.raises(InputError, match="hidden, weight: expected"):
        linear_cross_entropy(hidden, weight[:, :1], targets)
    with pytest.raises(InputError, match="bias: expected"):
        linear_cross_entropy(hidden, weight, targets, bias[:2])
    with pytest.raises(InputError, match="corrects nothing without log_q_negatives"):
        sampled_cross_entropy(
            hidden, weight, targets, targets, log_q_targets=torch.zeros(3, dtype=torch.float64)
        )
