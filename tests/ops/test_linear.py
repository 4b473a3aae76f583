# SPDX-License-Identifier: Apache-2.0
"""The linear layer against float64 on every instruction set, its gradients, its refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError
from seqrec_fast.ops import linear
from seqrec_fast.ops.linear import linear_reference
from tests.ops.judge import ISAS, allowed, worst

SIZES = [1, 2, 3, 5, 11, 12, 13, 16, 23, 24, 25, 31, 32, 33, 48, 49, 100]


def tensors(rows: int, inputs: int, outputs: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, inputs), (outputs, inputs), (outputs,)]
    x, w, b = (torch.randn(s, generator=generator) for s in shapes)
    return [x, w / max(inputs, 1) ** 0.5, b]


@pytest.mark.parametrize("activation", native.ACTIVATIONS)
def test_forward_is_as_exact_as_torch(isa: str, activation: str) -> None:
    for rows, inputs, outputs in [(1, 300, 70), (7, 64, 48), (50, 33, 31), (200, 129, 100)]:
        x, w, b = tensors(rows, inputs, outputs)
        exact = linear_reference(x.double(), w.double(), b.double(), activation=activation)
        theirs = worst(linear_reference(x, w, b, activation=activation), exact)
        with torch.no_grad():
            mine = linear(x, w, b, activation=activation)
        assert worst(mine, exact) <= allowed(theirs, exact, 2.0)
        packed = native.PackedLinear(w.numpy(), b.numpy())
        again = packed(x.numpy(), activation=activation, threads=2)
        assert np.array_equal(again, mine.numpy())


@given(
    rows=st.sampled_from([0, *SIZES]),
    inputs=st.sampled_from([0, *SIZES, 130]),
    outputs=st.sampled_from([0, *SIZES]),
    bias=st.booleans(),
)
def test_every_size(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    x, w, b = tensors(rows, inputs, outputs)
    if not bias:
        b = None  # type: ignore[assignment]
    exact = linear_reference(x.double(), w.double(), None if b is None else b.double())
    # a single output is a dot product, which torch sums in many parts: one chain of roundings more
    chain = inputs**0.5 * 2.0**-24 * (float(exact.abs().max()) if exact.numel() else 0.0)
    theirs = worst(linear_reference(x, w, b), exact) + chain
    for name in ISAS:
        _C.use_isa(name)
        assert worst(linear(x, w, b), exact) <= allowed(theirs, exact, 2.0), name


def test_gradients_are_as_exact_as_torch(isa: str) -> None:
    for rows, inputs, outputs in [(1, 3, 2), (300, 64, 70), (77, 100, 33)]:
        given_tensors = tensors(rows, inputs, outputs)
        upstream = torch.randn(rows, outputs, generator=torch.Generator().manual_seed(1))

        def gradients(dtype: torch.dtype, function: object) -> list[torch.Tensor]:
            leaves = [t.to(dtype).requires_grad_() for t in given_tensors]  # noqa: B023
            out = function(*leaves, activation="gelu_tanh")  # type: ignore[operator]
            out.backward(upstream.to(dtype))  # noqa: B023
            return [leaf.grad for leaf in leaves if leaf.grad is not None]

        exact = gradients(torch.float64, linear_reference)
        theirs = gradients(torch.float32, linear_reference)
        mine = gradients(torch.float32, linear)
        for m, t, e in zip(mine, theirs, exact, strict=True):
            assert worst(m, e) <= allowed(worst(t, e), e, 5.0)


def test_only_the_wanted_gradients_and_views() -> None:
    x, w, b = tensors(6, 10, 4)
    wide = torch.randn(6, 30)
    view = wide[:, 10:20]
    torch.testing.assert_close(linear(view, w, b), linear_reference(view, w, b))
    torch.testing.assert_close(linear(view.T, torch.randn(3, 6)).shape, torch.Size([10, 3]))
    w.requires_grad_()
    linear(x, w, b).sum().backward()
    torch.testing.assert_close(w.grad, torch.ones(6, 4).T @ x)
    three = linear(torch.randn(2, 3, 10), w, b)
    assert three.shape == (2, 3, 4)


def test_rows_do_not_depend_on_the_threads() -> None:
    x, w, b = tensors(3000, 64, 257)
    packed = native.PackedLinear(w.numpy(), b.numpy())
    one = packed(x.numpy(), threads=1)
    for threads in (2, 3, 8):
        assert np.array_equal(packed(x.numpy(), threads=threads), one)


def test_registered_operator() -> None:
    x, w, b = (t.requires_grad_() for t in tensors(9, 5, 7))
    for bias in (b, None):
        torch.library.opcheck(torch.ops.seqrec_fast.linear.default, (x, w, bias, 0))
    compiled = torch.compile(lambda x: linear(x, w, b, activation="silu"), fullgraph=True)
    torch.testing.assert_close(compiled(x), linear_reference(x, w, b, activation="silu"))


def test_extremes() -> None:
    x = torch.tensor([[1e4, -1e4, 1e-40], [0.0, -0.0, 1e38]])
    w = torch.eye(3)
    for activation in native.ACTIVATIONS:
        found = linear(x, w, activation=activation)
        exact = linear_reference(x.double(), w.double(), activation=activation)
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-38)
    assert linear(torch.full((1, 3), torch.nan), w).isnan().all()


def test_clear_errors() -> None:
    x, w, b = tensors(2, 3, 4)
    with pytest.raises(InputError, match=r"x, weight: expected \[..., inputs\]"):
        linear(x, w[:, :2], b)
    with pytest.raises(InputError, match=r"bias: expected \[4\]"):
        linear(x, w, b[:3])
    with pytest.raises(InputError, match=r"weight: expected torch\.float32"):
        linear(x, w.double(), b)
    with pytest.raises(InputError, match="activation: unknown 'swish'"):
        linear(x, w, b, activation="swish")
    packed = native.PackedLinear(w.numpy(), b.numpy())
    with pytest.raises(InputError, match=r"x: expected \[rows, 3\]"):
        packed(np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(InputError, match="bias: expected one number an output"):
        native.PackedLinear(w.numpy(), b.numpy()[:2])
    with pytest.raises(InputError, match="activation: unknown 'swish'"):
        packed(x.numpy(), activation="swish")
