# SPDX-License-Identifier: Apache-2.0
"""The Triton linear + cross-entropy in the interpreter: against float64, inside guarded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.triton.guards import MISSING, Guards

pytest.importorskip("triton", reason=MISSING)

from seqrec_fast.errors import InputError
from seqrec_fast.ops._backend import GPU_WIDTHS
from seqrec_fast.ops.cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    sampled_cross_entropy,
    sampled_cross_entropy_reference,
)
from seqrec_fast.ops.triton import cross_entropy as kernels
from seqrec_fast.ops.triton import feed_forward, layer_norm
from tests.ops.judge import worst
from tests.ops.triton.exactness import EPSILON

TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton")


def case(tokens: int, items: int, dim: int, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(tokens * 31 + items)
    hidden = torch.randn(tokens, dim, generator=generator) * (scale * dim**-0.5)
    weight = torch.randn(items, dim, generator=generator)
    bias = torch.randn(items, generator=generator)
    return [hidden, weight, bias], torch.randint(items, (tokens,), generator=generator)


def outputs(function: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype) -> Any:
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    loss = function(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def judge(
    mine: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    tensors: list[Tensor],
    dtype: torch.dtype = torch.float32,
    share: float = 1.0,
) -> None:
    """Twice torch's error, five times for gradients in float32, and a few roundings.

    The roundings are of the result, and of the target's part in a gradient, which may cancel nearly
    all of it.
    """
    given = [t.to(dtype) for t in tensors]
    exact = outputs(reference, given, torch.float64)
    theirs = outputs(reference, given, dtype)
    found = outputs(mine, given, dtype)
    weight, hidden = (float(given[i].abs().max()) if given[i].numel() else 0.0 for i in (1, 0))
    parts = (0.0, share * weight, share * hidden, share)
    for number, (e, t, m, part) in enumerate(zip(exact, theirs, found, parts, strict=False)):
        assert m.dtype == t.dtype
        factor = 5.0 if number and dtype == torch.float32 else 2.0
        largest = max(float(e.abs().max()) if e.numel() else 0.0, part)
        error, limit = worst(m, e), factor * worst(t, e) + 8 * EPSILON[m.dtype] * largest
        assert error <= limit, f"{number}: error {error:.3g}, allowed {limit:.3g}"


def full(targets: Tensor, weights: Tensor | None = None) -> list[Callable[..., Tensor]]:
    return [
        lambda h, w, b=None, f=f: f(h, w, targets, b, token_weights=weights)
        for f in (linear_cross_entropy, linear_cross_entropy_reference)
    ]


def sampled(targets: Tensor, negatives: Tensor, **options: Any) -> list[Callable[..., Tensor]]:
    return [
        lambda h, w, b=None, f=f: f(h, w, targets, negatives, b, **options)
        for f in (sampled_cross_entropy, sampled_cross_entropy_reference)
    ]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.sampled_from([1, 15, 16, 17, 33]),
    items=st.sampled_from([1, 2, 16, 17, 50]),
    dim=st.sampled_from([1, 16, 33]),
    bias=st.booleans(),
    weighted=st.booleans(),
)
def test_every_size(tokens: int, items: int, dim: int, bias: bool, weighted: bool) -> None:
    tensors, targets = case(tokens, items, dim)
    weights = torch.rand(tokens) if weighted else None
    judge(*full(targets, weights), tensors[: 2 + bias])


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.sampled_from([1, 16, 33]),
    items=st.sampled_from([2, 5, 40]),
    samples=st.sampled_from([1, 7, 16, 33]),
    bias=st.booleans(),
    corrected=st.sampled_from(["no", "negatives", "both"]),
)
def test_every_size_sampled(
    tokens: int, items: int, samples: int, bias: bool, corrected: str
) -> None:
    """Few items: samples are drawn many times and are targets."""
    tensors, targets = case(tokens, items, 8)
    generator = torch.Generator().manual_seed(2)
    negatives = torch.randint(items, (samples,), generator=generator)
    log_q = torch.randn(items, generator=generator)
    options = {
        "log_q_negatives": None if corrected == "no" else log_q[negatives],
        "log_q_targets": log_q[targets] if corrected == "both" else None,
    }
    judge(*sampled(targets, negatives, **options), tensors[: 2 + bias])


@pytest.mark.parametrize("dtype", TYPES)
def test_types_and_shares(
    dtype: torch.dtype, guards: Guards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several shares of the columns and of the tokens, none of them even."""
    monkeypatch.setattr(kernels, "_LEAST_COLUMNS", 60)
    monkeypatch.setattr(kernels, "_LEAST_TOKENS", 40)
    monkeypatch.setattr(kernels, "processors", lambda _: 8)
    tensors, targets = case(90, 150, 20)
    weights = torch.rand(90)
    judge(*full(targets, weights), tensors, dtype, share=2 / 90)
    negatives = torch.arange(0, 150, 2).repeat(2)
    judge(*sampled(targets, negatives, token_weights=weights), tensors, dtype, share=2 / 90)


@pytest.mark.parametrize("dtype", TYPES)
def test_widest(dtype: torch.dtype, guards: Guards) -> None:
    tensors, targets = case(17, 40, kernels.WIDEST - 3)
    judge(*full(targets), tensors, dtype, share=2 / 17)


def test_wider_is_refused() -> None:
    tensors, targets = case(2, 3, kernels.WIDEST + 1)
    with pytest.raises(InputError, match="up to a width of 256, found 257"):
        linear_cross_entropy(*tensors[:2], targets)
    rest = (None, targets, torch.ones(2), *[None] * 3, True, True, True)
    with pytest.raises(InputError, match="width up to 256, found 257"):
        kernels.cross_entropy(*tensors[:2], *rest)


def test_widths_are_those_that_the_backend_is_chosen_by() -> None:
    found = {
        "cross_entropy": kernels.WIDEST,
        "feed_forward": feed_forward.WIDEST,
        "layer_norm": layer_norm.WIDEST,
    }
    assert found == GPU_WIDTHS


def test_small_gradients_of_float16_live_until_the_loss_is_scaled() -> None:
    """Those of the light tokens, of about 1e-6, have two digits or fewer in float16."""
    tensors, targets = case(20, 40, 8)
    half = [t.half() for t in tensors]
    weights = torch.ones(20)
    weights[0] = 1e6
    mine, reference = full(targets, weights)
    found = outputs(lambda *t: mine(*t) * 4096.0, half, torch.float16)[1]
    exact = outputs(lambda *t: reference(*t) * 4096.0, half, torch.float64)[1]
    assert found.dtype == torch.float16
    assert worst(found[1:], exact[1:]) < 2.0**-9 * float(exact[1:].abs().max())


@pytest.mark.parametrize("scale", [1e-3, 300.0, 3000.0])
def test_targets_far_below_the_largest_logit(scale: float) -> None:
    tensors, targets = case(20, 40, 8, scale)
    judge(*full(targets), tensors)


def test_extremes() -> None:
    ones, targets = torch.ones(3, 3), torch.tensor([0, 5, 39])
    for value in (1e4, -1e4, 0.0):
        equal = torch.full((40, 3), value, requires_grad=True)
        loss = linear_cross_entropy(ones, equal, targets)
        assert loss.item() == pytest.approx(3.6888795, rel=1e-6)
        assert torch.isfinite(torch.autograd.grad(loss, equal)[0]).all()
    tensors, targets = case(7, 30, 4)
    hidden = torch.arange(30) % 3 == 0
    tensors[2] = tensors[2].masked_fill(hidden, -torch.inf)
    judge(*full(targets // 3 * 3 + 1), tensors)
    weight = tensors[1].requires_grad_()
    loss = linear_cross_entropy(tensors[0], weight, targets // 3 * 3, tensors[2])
    assert loss.item() == torch.inf
    assert torch.isfinite(torch.autograd.grad(loss, weight)[0]).all()
    for which in range(3):
        tensors, targets = case(5, 20, 8)
        tensors[which].view(-1)[-1] = torch.nan
        assert linear_cross_entropy(*tensors[:2], targets, tensors[2]).isnan()


def test_nothing_to_do_and_single_gradients(guards: Guards) -> None:
    tensors, targets = case(9, 20, 8)
    none = targets[:0]
    for call in (full(none)[0], sampled(none, targets)[0]):
        found = outputs(call, [tensors[0][:0], *tensors[1:]], torch.float32)
        assert not any(t.any() for t in found)
    loss = linear_cross_entropy(*tensors[:2], targets, token_weights=torch.zeros(9))
    assert loss.item() == 0.0
    for call in (full(targets)[0], sampled(targets, targets + 1 - 2 * (targets > 0))[0]):
        want = outputs(call, tensors, torch.float32)
        for which in range(3):
            alone = [t.detach().clone().requires_grad_(i == which) for i, t in enumerate(tensors)]
            (gradient,) = torch.autograd.grad(call(*alone) * 3.0, alone[which])
            torch.testing.assert_close(gradient, want[1 + which] * 3.0, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("dtype", "is_sampled"), [(torch.float32, False), (torch.float16, True)])
def test_operator_is_registered_as_torch_expects(dtype: torch.dtype, is_sampled: bool) -> None:
    tensors, targets = case(5, 20, 4)
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    weights = torch.full((5,), 0.2)
    extra = (torch.tensor([1, 2, 2]), torch.zeros(3), torch.zeros(5))
    more = extra if is_sampled else (None, None, None)
    operator = torch.ops.seqrec_fast.cross_entropy.default
    torch.library.opcheck(operator, (*leaves, targets, weights, *more, True, True, True))
