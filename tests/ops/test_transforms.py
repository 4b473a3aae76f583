# SPDX-License-Identifier: Apache-2.0
"""What torch may do to an operation beside calling it: every case is right or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from seqrec_fast import ops
from seqrec_fast.errors import InputError

OFFSETS = torch.tensor([0, 2, 5])
IDS = torch.tensor([1, 2, 6, 0, 0])

#: an operation of tensors of the shapes beside it
CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "linear": (ops.linear, [(5, 4), (3, 4), (3,)]),
    "dropout": (lambda x: ops.dropout(x, 0.5, seed=1), [(5, 4)]),
    "layer_norm": (ops.layer_norm, [(5, 4), (4,), (4,)]),
    "add_layer_norm": (lambda *t: ops.add_layer_norm(*t)[1], [(5, 4), (5, 4), (4,), (4,)]),
    "feed_forward": (ops.feed_forward, [(5, 4), (6, 4), (6,), (3, 6), (3,)]),
    "embedding": (lambda w: ops.embedding(w, IDS), [(7, 4)]),
    "sequence_embedding": (
        lambda w, p: ops.sequence_embedding(w, IDS, p, OFFSETS),
        [(7, 4), (5, 4)],
    ),
    "rnn": (lambda *t: ops.recurrent("rnn", t[0], OFFSETS, *t[1:])[0], [(5, 4), (3, 4), (3, 3)]),
    "lstm": (
        lambda *t: ops.recurrent("lstm", t[0], OFFSETS, *t[1:])[0],
        [(5, 4), (12, 4), (12, 3)],
    ),
    "gru": (lambda *t: ops.recurrent("gru", t[0], OFFSETS, *t[1:])[0], [(5, 4), (9, 4), (9, 3)]),
    "attention": (lambda *t: ops.attention(*t, OFFSETS), [(5, 2, 4)] * 3),
    "packed_attention": (lambda t: ops.packed_attention(t, OFFSETS), [(5, 3, 2, 4)]),
    "hstu_attention": (
        lambda q, k, v, b: ops.hstu_attention(q, k, v, OFFSETS, normaliser=2.0, bias=b),
        [(5, 2, 4), (5, 2, 4), (5, 2, 4), (2, 3)],
    ),
    "linear_cross_entropy": (
        lambda h, w, b: ops.linear_cross_entropy(h, w, IDS, b),
        [(5, 4), (7, 4), (7,)],
    ),
    "sampled_cross_entropy": (
        lambda h, w, b: ops.sampled_cross_entropy(h, w, IDS, torch.tensor([3, 4]), b),
        [(5, 4), (7, 4), (7,)],
    ),
}
#: as CASES, of operations that have no native gradient
WITHOUT_GRADIENT: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "decode_attention": (
        lambda *t: ops.decode_attention(*t, OFFSETS),
        [(2, 2, 4), (5, 2, 4), (5, 2, 4)],
    ),
    "score_topk": (lambda q, i: ops.score_topk(q, i, k=3)[0], [(5, 4), (7, 4)]),
}
ALL = CASES | WITHOUT_GRADIENT
#: whose gradient does not depend on what it is the gradient with respect to
LINEAR = ("dropout", "embedding", "sequence_embedding")


def tensors(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("upstream", ["sum", "squares"])
@pytest.mark.parametrize("all_inputs", [False, True])
def test_gradients_of_gradients_are_refused(name: str, upstream: str, all_inputs: bool) -> None:
    """Also where only ``autograd.grad`` asks, which runs no more of the graph than it needs."""
    function, shapes = CASES[name]
    inputs = [t.requires_grad_() for t in tensors(shapes)]
    result = function(*inputs)
    result = result.sum() if upstream == "sum" else result.square().sum()
    first = torch.autograd.grad(result, inputs, create_graph=True)
    if upstream == "sum" and name in LINEAR:
        assert not any(g.requires_grad for g in first)
        return
    second = torch.stack([g.square().sum() for g in first]).sum()
    wanted = inputs if all_inputs else inputs[:1]
    with pytest.raises(InputError, match=r"no gradients of gradients; (compute in|use torch)"):
        torch.autograd.grad(second, wanted, allow_unused=True)


@pytest.mark.parametrize("upstream", ["sum", "squares"])
def test_the_reference_of_the_loss_refuses_them_too(upstream: str) -> None:
    function, shapes = CASES["linear_cross_entropy"]
    inputs = [t.double().requires_grad_() for t in tensors(shapes)]
    result = function(*inputs)
    result = result if upstream == "sum" else result.square()
    first = torch.autograd.grad(result, inputs, create_graph=True)
    with pytest.raises(InputError, match=r"use torch\.nn\.functional\.cross_entropy"):
        torch.autograd.grad(first[0].square().sum(), inputs, allow_unused=True)


def test_gradients_of_a_loss_are_handed_out_once() -> None:
    """They are not copied, so a second pass would hand out memory that is someone else's."""
    function, shapes = CASES["linear_cross_entropy"]
    inputs = [t.requires_grad_() for t in tensors(shapes)]
    for factor in (1.0, 2.0):
        loss = function(*inputs) * factor
        torch.autograd.grad(loss, inputs, retain_graph=True)
        with pytest.raises(InputError, match="handed out by an earlier backward pass; compute"):
            torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("name", [name for name in CASES if name != "dropout"])
def test_gradients_of_gradients_are_refused_through_the_dispatcher(name: str) -> None:
    """A tensor of another class is taken there, like all that torch.compile traces."""

    class Other(torch.Tensor):
        pass

    function, shapes = CASES[name]
    inputs = [t.as_subclass(Other).requires_grad_() for t in tensors(shapes)]
    first = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(InputError, match=r"no gradients of gradients|handed out"):
        torch.stack([g.square().sum() for g in first]).sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ALL)
def test_transforms_are_refused(name: str) -> None:
    function, shapes = ALL[name]
    first, *others = tensors(shapes)

    def of_first(x: Tensor) -> Tensor:
        return function(x, *others).sum()

    refused = pytest.raises(InputError, match=r": the native kernels know neither torch\.func")
    with refused:
        torch.func.grad(of_first)(first)
    with refused:
        torch.func.vmap(of_first)(torch.stack([first, first]))
    with refused:
        torch.func.jvp(of_first, (first,), (first,))
    with forward_ad.dual_level(), refused:
        of_first(forward_ad.make_dual(first, first))


@pytest.mark.parametrize("name", CASES)
def test_batches_of_gradients_are_refused(name: str) -> None:
    function, shapes = CASES[name]
    inputs = [t.requires_grad_() for t in tensors(shapes)]
    result = function(*inputs)
    with pytest.raises(InputError, match="take one gradient at a time"):
        torch.autograd.grad(result, inputs, torch.ones(3, *result.shape), is_grads_batched=True)


@pytest.mark.parametrize("name", ALL)
def test_lazily_negated_tensors(name: str) -> None:
    """The imaginary part of a conjugate is a view whose memory holds the opposite numbers."""
    function, shapes = ALL[name]
    inputs = tensors(shapes)
    negated = [torch._neg_view(-t) for t in inputs]
    assert all(t.is_neg() for t in negated)
    torch.testing.assert_close(function(*negated), function(*inputs), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("score_topk",)])
def test_tracing_records_the_operation(name: str) -> None:
    function, shapes = ALL[name]
    if "attention" in name or "cross_entropy" in name:
        pytest.skip("the values of its integers are looked at, which a trace cannot record")
    inputs = tensors(shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(function, tuple(inputs), check_trace=False)
    others = [t * 0.5 for t in inputs]
    torch.testing.assert_close(traced(*others), function(*others))


@pytest.mark.parametrize("name", ["attention", "packed_attention", "gru", "hstu_attention"])
def test_the_remedies_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, shapes = CASES[name]
    inputs = [t.double().requires_grad_() for t in tensors(shapes)]
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(function, inputs)
        monkeypatch.setenv("SEQREC_FAST_BACKEND", "reference")
        narrow = [t.detach().float().requires_grad_() for t in inputs]
        first = torch.autograd.grad(function(*narrow).square().sum(), narrow, create_graph=True)
        torch.autograd.grad(first[0].square().sum(), narrow[0])


@pytest.mark.parametrize("name", ["decode_attention", "score_topk"])
def test_operators_without_a_gradient_say_so(name: str) -> None:
    """The public functions compute by the reference, or give results that want none."""
    _, shapes = WITHOUT_GRADIENT[name]
    inputs = [t.requires_grad_() for t in tensors(shapes)]
    operator = getattr(torch.ops.seqrec_fast, name).default
    rest = (OFFSETS, None, 0.5) if name == "decode_attention" else (None, None, None, None, 3)
    found = operator(*inputs, *rest)
    found = found if isinstance(found, Tensor) else found[0]
    with pytest.raises(InputError, match=f"^{name}: the native kernels have no gradient; "):
        found.sum().backward()
    public = WITHOUT_GRADIENT[name][0](*inputs)
    assert public.requires_grad == (name == "decode_attention")
    if public.requires_grad:
        got = torch.autograd.grad(public.sum(), inputs)
        wide = [t.detach().double().requires_grad_() for t in inputs]
        want = torch.autograd.grad(WITHOUT_GRADIENT[name][0](*wide).sum(), wide)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6)
