# SPDX-License-Identifier: Apache-2.0
"""The native linear + cross-entropy against float64 on every instruction set, and its limits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError
from seqrec_fast.ops import linear_cross_entropy, sampled_cross_entropy
from seqrec_fast.ops.cross_entropy import (
    linear_cross_entropy_reference,
    sampled_cross_entropy_reference,
)
from tests.ops.judge import ISAS

SIZES = [1, 2, 3, 11, 12, 13, 47, 48, 49, 97]
ITEMS = [1, 2, 31, 32, 63, 64, 65, 191, 192, 193, 400]
DIMS = [1, 3, 4, 8, 15, 16, 17, 33, 64, 65, 80, 130]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = native.get_num_threads()
    yield native.set_num_threads
    native.set_num_threads(before)


def case(tokens: int, items: int, dim: int, scale: float = 1.0, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, dim, generator=generator) * scale
    weight = torch.randn(items, dim, generator=generator)
    bias = torch.randn(items, generator=generator)
    targets = torch.randint(items, (tokens,), generator=generator)
    return [t.requires_grad_() for t in (hidden, weight, bias)], targets


def outputs(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def judge(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: list[Tensor],
    weights: Tensor,
) -> None:
    """Error at most twice torch's for the loss, five times for the gradients, in float64.

    Four ulp are granted where torch happens to have none: of the result, and of the target's
    part in a gradient, which is taken off at the end and may cancel nearly all of it.
    """
    wide = [t.detach().double().requires_grad_() for t in inputs]
    exact = outputs(reference(*wide), wide)
    theirs = outputs(reference(*inputs), inputs)
    mine = outputs(function(*inputs), inputs)
    hidden, weight = (float(t.detach().abs().max()) for t in inputs[:2])
    share = weights.max().item() / weights.sum().item()
    cancels = (0.0, share * weight, share * hidden, share)
    for factor, e, t, m, part in zip((2, 5, 5, 5), exact, theirs, mine, cancels, strict=False):
        assert torch.isfinite(m).all()
        error, torchs = (float((x.double() - e).abs().max()) for x in (m, t))
        floor = 4 * 2.0**-23 * max(float(e.abs().max()), part)
        assert error <= factor * torchs + floor, (error, torchs, floor)


def judge_full(
    inputs: list[Tensor], targets: Tensor, weights: Tensor | None = None, bias: bool = True
) -> None:
    def call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda h, w, b=None: function(
            h, w, targets, b, token_weights=None if weights is None else weights.to(h.dtype)
        )

    judge(
        call(linear_cross_entropy),
        call(linear_cross_entropy_reference),
        inputs if bias else inputs[:2],
        torch.ones(len(targets)) if weights is None else weights,
    )


@given(
    tokens=st.sampled_from(SIZES),
    items=st.sampled_from(ITEMS),
    dim=st.sampled_from(DIMS),
    bias=st.booleans(),
    weighted=st.booleans(),
)
def test_every_size(tokens: int, items: int, dim: int, bias: bool, weighted: bool) -> None:
    inputs, targets = case(tokens, items, dim, dim**-0.5)
    weights = torch.rand(tokens, generator=torch.Generator().manual_seed(1)) if weighted else None
    for name in ISAS:
        _C.use_isa(name)
        judge_full(inputs, targets, weights, bias)


@given(
    tokens=st.sampled_from(SIZES),
    items=st.sampled_from([2, 5, 193]),
    samples=st.sampled_from([1, 7, 191, 192, 193, 500]),
    dim=st.sampled_from([3, 16, 65]),
    bias=st.booleans(),
    corrected=st.sampled_from(["no", "negatives", "both"]),
)
def test_every_size_sampled(
    tokens: int, items: int, samples: int, dim: int, bias: bool, corrected: str
) -> None:
    """Few items and many samples: most tokens hit their own target among the negatives."""
    inputs, targets = case(tokens, items, dim, dim**-0.5)
    generator = torch.Generator().manual_seed(2)
    negatives = torch.randint(items, (samples,), generator=generator)
    log_q = torch.randn(items, generator=generator)

    def call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda h, w, b=None: function(
            h,
            w,
            targets,
            negatives,
            b,
            log_q_negatives=None if corrected == "no" else log_q[negatives].to(h.dtype),
            log_q_targets=log_q[targets].to(h.dtype) if corrected == "both" else None,
        )

    for name in ISAS:
        _C.use_isa(name)
        judge(
            call(sampled_cross_entropy),
            call(sampled_cross_entropy_reference),
            inputs if bias else inputs[:2],
            torch.ones(tokens),
        )


@pytest.mark.parametrize(
    ("tokens", "items"), [(400, 12_000), (120, 50_000)], ids=["kept in two chunks", "recomputed"]
)
def test_large_catalogues(
    isa: str, tokens: int, items: int, threads: Callable[[int], None]
) -> None:
    inputs, targets = case(tokens, items, 12, 0.3)
    for count in (1, 3):
        threads(count)
        judge_full(inputs, targets)


@pytest.mark.parametrize("scale", [1e-3, 30.0, 300.0, 3000.0])
def test_targets_far_below_the_largest_logit(isa: str, scale: float) -> None:
    """Logits up to 1e4 above the target's: the first reference overflows."""
    inputs, targets = case(30, 300, 8, scale)
    judge_full(inputs, targets)


def test_extremes(isa: str) -> None:
    """All logits equal, huge or tiny; one item; hidden items; a hidden target."""
    ones, targets = torch.ones(5, 3), torch.tensor([0, 1, 2, 3, 399])
    for value in (1e4, -1e4, 1e-40, 0.0):
        equal = torch.full((400, 3), value, requires_grad=True)
        loss = linear_cross_entropy(ones, equal, targets)
        assert loss.item() == pytest.approx(5.9914645, rel=1e-6)
        assert torch.isfinite(torch.autograd.grad(loss, equal)[0]).all()
    inputs, targets = case(7, 300, 4)
    hidden = torch.arange(300) % 3 == 0
    shown = targets // 3 * 3 + 1
    bias = inputs[2].detach().masked_fill(hidden, -torch.inf).requires_grad_()
    judge_full([*inputs[:2], bias], shown)
    grads = torch.autograd.grad(linear_cross_entropy(*inputs[:2], shown, bias), [*inputs[:2], bias])
    assert not grads[1][hidden].any()
    assert not grads[2][hidden].any()
    loss = linear_cross_entropy(*inputs[:2], targets // 3 * 3, bias)
    assert loss.item() == torch.inf
    assert torch.isfinite(torch.autograd.grad(loss, inputs[1])[0]).all()


def test_nan_is_not_lost(isa: str) -> None:
    for which in range(3):
        inputs, targets = case(20, 300, 8)
        with torch.no_grad():
            inputs[which].view(-1)[-1] = torch.nan
        assert linear_cross_entropy(*inputs[:2], targets, inputs[2]).isnan()


def test_nothing_to_do() -> None:
    inputs, _ = case(0, 7, 3)
    none = torch.zeros(0, dtype=torch.int64)
    for loss in (
        linear_cross_entropy(inputs[0], inputs[1], none, inputs[2]),
        sampled_cross_entropy(inputs[0], inputs[1], none, torch.tensor([1]), inputs[2]),
    ):
        value, *gradients = outputs(loss, inputs)
        assert value.item() == 0.0
        assert not any(g.any() for g in gradients)
    inputs, targets = case(3, 7, 3)
    loss = linear_cross_entropy(*inputs[:2], targets, token_weights=torch.zeros(3))
    assert loss.item() == 0.0
    assert not any(g.any() for g in torch.autograd.grad(loss, inputs[:2]))


def test_layouts_and_single_gradients() -> None:
    """Tensors that are not contiguous; gradients of some inputs only; a factor on the loss."""
    inputs, targets = case(50, 300, 16)
    want = outputs(linear_cross_entropy(*inputs[:2], targets, inputs[2]), inputs)
    turned = [t.detach().t().contiguous().t().requires_grad_() for t in inputs[:2]]
    got = outputs(linear_cross_entropy(*turned, targets, inputs[2]), [*turned, inputs[2]])
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    for which in range(3):
        alone = [t.detach().requires_grad_(i == which) for i, t in enumerate(inputs)]
        loss = linear_cross_entropy(*alone[:2], targets, alone[2]) * 3.0
        (gradient,) = torch.autograd.grad(loss, alone[which])
        torch.testing.assert_close(gradient, want[1 + which] * 3.0, rtol=1e-5, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(*inputs[:2], targets, inputs[2]), want[0])


def test_the_gradient_is_not_copied() -> None:
    """What the leaf gets is what the forward pass wrote."""
    inputs, targets = case(50, 300, 16)
    for factor in (1.0, 2.0):
        loss = linear_cross_entropy(*inputs[:2], targets, inputs[2])
        written = loss.grad_fn.saved_tensors[1].data_ptr()  # type: ignore[union-attr]
        inputs[1].grad = None
        (loss * factor).backward()
        assert inputs[1].grad.data_ptr() == written


def test_same_result_every_time_and_on_any_number_of_threads(
    threads: Callable[[int], None],
) -> None:
    inputs, targets = case(200, 2000, 32)
    found = []
    for count in (1, 1, 2, 2, 5):
        threads(count)
        found.append(outputs(linear_cross_entropy(*inputs[:2], targets), inputs[:2]))
    for a, b in ((0, 1), (2, 3)):
        assert all(torch.equal(x, y) for x, y in zip(found[a], found[b], strict=True))
    for other in found[2:]:
        for x, y in zip(other, found[0], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-8)


def test_operator_is_registered_as_torch_expects() -> None:
    inputs, targets = case(5, 20, 4)
    weights = torch.full((5,), 0.2)
    operator = torch.ops.seqrec_fast.cross_entropy.default
    sampled = (torch.tensor([1, 2, 2]), torch.zeros(3), torch.zeros(5))
    for extra in ((None, None, None), sampled):
        arguments = (*inputs, targets, weights, *extra, True, True, True)
        torch.library.opcheck(operator, arguments)


def test_compiles_into_one_graph() -> None:
    inputs, targets = case(9, 20, 4)
    negatives = torch.tensor([3, 4, 4, 19])

    def both(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        full = linear_cross_entropy(h * 2.0, w, targets, b)
        return full + 3.0 * sampled_cross_entropy(h, w, targets, negatives, b)

    want = outputs(both(*inputs), inputs)
    got = outputs(torch.compile(both, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_clear_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    (hidden, weight, _), targets = case(3, 4, 2)
    with pytest.raises(InputError, match="targets: must be items 0 to 3, found 4"):
        linear_cross_entropy(hidden, weight, torch.tensor([0, 4, 1]))
    with pytest.raises(InputError, match="negatives: must be items 0 to 3, found -1"):
        sampled_cross_entropy(hidden, weight, targets, torch.tensor([0, -1]))
    with pytest.raises(InputError, match="negatives: expected int64"):
        sampled_cross_entropy(hidden, weight, targets, torch.tensor([0], dtype=torch.int32))
    with pytest.raises(InputError, match=r"log_q_negatives: expected \[2\]"):
        sampled_cross_entropy(
            hidden, weight, targets, torch.tensor([0, 1]), log_q_negatives=torch.zeros(3)
        )
    with pytest.raises(InputError, match=r"weight: expected torch.float32 on cpu"):
        linear_cross_entropy(hidden, weight.double(), targets)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "native")
    with pytest.raises(InputError, match="cross_entropy has native kernels for float32"):
        linear_cross_entropy(hidden.double(), weight.double(), targets)


_MEMORY = """
import resource, torch
from seqrec_fast.ops import linear_cross_entropy
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
tokens, items, dim = {tokens}, {items}, 4
hidden = torch.randn(tokens, dim, requires_grad=True)
weight = torch.randn(items, dim, requires_grad=True)
targets = torch.randint(items, (tokens,))
small = [torch.randn(20, dim, requires_grad=True) for _ in range(2)]
linear_cross_entropy(*small, targets[:20] % 20).backward()
before = peak()
linear_cross_entropy(hidden, weight, targets).backward()
print(peak() - before - (items + tokens) * dim * 4 / 2**20)
"""


@pytest.mark.parametrize(("tokens", "items"), [(2000, 12_000), (500, 100_000)])
def test_extra_memory(tokens: int, items: int) -> None:
    """At most 64 MiB beyond inputs and gradients, where the logits alone take 92 and 191."""
    code = _MEMORY.format(tokens=tokens, items=items)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert float(done.stdout) <= 64
