# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of attention in the interpreter, against float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec_fast import ops
from seqrec_fast.errors import InputError
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops.attention import attention_reference
from tests.ops.judge import allowed, worst
from tests.ops.judge import judge as judge_public
from tests.ops.triton.guards import MISSING, Guards

pytest.importorskip("triton", reason=MISSING)
from seqrec_fast.ops.triton import attention as kernels

FACTORS = {torch.float32: (2.0, 5.0), torch.float16: (2.0, 2.0), torch.bfloat16: (2.0, 2.0)}


def inputs(lengths: list[int], heads: int, width: int) -> tuple[Tensor, Tensor]:
    """Queries, keys, values and the gradient of the output; offsets."""
    generator = torch.Generator().manual_seed(sum(lengths) + width)
    tensors = torch.randn(4, sum(lengths), heads, width, generator=generator)
    return tensors, torch.tensor([0, *lengths]).cumsum(0)


def reference(tensors: Tensor, offsets: Tensor, causal: bool, dtype: torch.dtype) -> list[Tensor]:
    leaves = [t.to(dtype).requires_grad_() for t in tensors[:3]]
    out = attention_reference(*leaves, offsets, causal=causal)
    return [out.detach(), *torch.autograd.grad(out, leaves, tensors[3].to(dtype))]


def judge(
    guards: Guards, lengths: list[int], heads: int, width: int, causal: bool, dtype: torch.dtype
) -> None:
    tensors, offsets = inputs(lengths, heads, width)
    tensors = tensors.to(dtype)
    exact = reference(tensors, offsets, causal, torch.float64)
    theirs = reference(tensors, offsets, causal, dtype)
    q, k, v, d_out = (guards.among_nan(t) for t in tensors)
    scale = width**-0.5
    out, statistics = kernels.attention(q, k, v, offsets, causal, scale)
    assert statistics.dtype == torch.float32
    assert statistics.isfinite().all()
    gradients = kernels.attention_backward(d_out, q, k, v, offsets, out, statistics, causal, scale)
    guards.check()
    # sums may cancel to 0 in a row of one token: roundings are of the size of what is summed
    size = torch.stack([tensors.abs().amax((1, 2, 3)).prod()]).double()
    step = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    for place, (m, t, e) in enumerate(zip([out, *gradients], theirs, exact, strict=True)):
        floor = allowed(0.0, size, 0.0) * step
        limit = FACTORS[dtype][place > 0] * worst(t, e) + (floor if place else floor / 4)
        assert m.dtype == dtype
        assert m.is_contiguous()
        assert worst(m, e) <= limit, (place, lengths, heads, width, causal)


@pytest.mark.parametrize(
    ("dtype", "width", "causal"),
    [
        (torch.float32, 20, True),
        (torch.float32, 32, False),
        (torch.float16, 32, True),
        (torch.bfloat16, 20, False),
        (torch.bfloat16, 64, True),
    ],
)
def test_as_exact_as_torch(guards: Guards, dtype: torch.dtype, width: int, causal: bool) -> None:
    judge(guards, [1, 0, 15, 33], 2, width, causal, dtype)


@pytest.mark.parametrize("lengths", [[15, 16, 17], [31, 32, 33], [63, 64, 65]])
def test_edges_of_tiles(guards: Guards, lengths: list[int]) -> None:
    judge(guards, lengths, 1, 16, True, torch.float16 if lengths[0] == 63 else torch.float32)


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(any),
    heads=st.integers(1, 2),
    width=st.sampled_from([1, 7, 16, 48, 64, 100, 128]),
    causal=st.booleans(),
)
def test_any_lengths(
    guards: Guards, lengths: list[int], heads: int, width: int, causal: bool
) -> None:
    judge(guards, lengths, heads, width, causal, torch.float32)


@pytest.mark.parametrize("width", [16, 5])
def test_packed_is_as_its_parts(guards: Guards, width: int) -> None:
    tensors, offsets = inputs([9, 0, 20], 2, width)
    qkv = tensors[:3].transpose(0, 1).contiguous()
    out, statistics = kernels.packed_attention(qkv, offsets, True, 0.25)
    apart, other = kernels.attention(*tensors[:3], offsets, True, 0.25)
    assert torch.equal(out, apart)
    gradient = kernels.packed_attention_backward(
        tensors[3], qkv, offsets, out, statistics, True, 0.25
    )
    parts = kernels.attention_backward(tensors[3], *tensors[:3], offsets, apart, other, True, 0.25)
    assert torch.equal(gradient, torch.stack(parts, 1))
    guards.check()


def test_any_strides() -> None:
    tensors, offsets = inputs([9, 4], 2, 16)
    wanted, _ = kernels.attention(*tensors[:3], offsets, False, 0.25)
    wider = torch.full((3, 13, 2, 17), torch.nan)
    wider[..., 1:] = tensors[:3]
    turned = tensors[:3].permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    by_head = tensors[:3].transpose(1, 2).contiguous().transpose(1, 2)
    for same in (wider[..., 1:], turned, by_head):
        assert torch.equal(kernels.attention(*same, offsets, False, 0.25)[0], wanted)


def test_statistics_make_the_weights_again() -> None:
    tensors, offsets = inputs([20], 1, 16)
    q, k, v = tensors[:3]
    _, statistics = kernels.attention(q, k, v, offsets, False, 0.5)
    scores = q[:, 0] @ k[:, 0].T * 0.5
    weights = torch.exp2(scores * 1.4426950408889634 - statistics[0, 0, :, None])
    torch.testing.assert_close(weights * statistics[1, 0, :, None], scores.softmax(1))


def test_extremes_and_nothing() -> None:
    tensors, offsets = inputs([20, 45], 1, 16)
    q, k, v = tensors[:3]
    out, _ = kernels.attention(q * 1e4, k, v, offsets, True, 1.0)
    assert out.isfinite().all()
    v[3] = torch.nan
    out, _ = kernels.attention(q, k, v, offsets, True, 1.0)
    assert out[3].isnan().all()
    assert not out[20:].isnan().any()
    none = torch.zeros(0, 2, 8)
    empty, kept = kernels.attention(none, none, none, torch.tensor([0, 0]), True, 1.0)
    assert empty.shape == (0, 2, 8)
    found = kernels.attention_backward(
        none, none, none, none, torch.tensor([0, 0]), empty, kept, True, 1.0
    )
    assert [t.shape for t in found] == [(0, 2, 8)] * 3


def test_public_functions_and_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton,native")
    tensors, offsets = inputs([3, 0, 18], 2, 12)
    assert choose_backend("attention", tensors.device, tensors.dtype) == "triton"
    judge_public(
        lambda q, k, v: ops.attention(q, k, v, offsets),
        lambda q, k, v: attention_reference(q, k, v, offsets),
        list(tensors[:3]),
    )
    judge_public(
        lambda x: ops.packed_attention(x, offsets, causal=False),
        lambda x: attention_reference(*x.unbind(1), offsets, causal=False),
        [tensors[:3].transpose(0, 1)],
    )
    wide = torch.zeros(21, 1, 129)
    with pytest.raises(InputError, match="heads of at most 128, found 129"):
        ops.attention(wide, wide, wide, offsets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_are_whole(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton,native")
    tensors, offsets = inputs([1, 2], 1, 4)
    q, k, v = (t.to(dtype).requires_grad_() for t in tensors[:3])
    operators = torch.ops.seqrec_fast
    torch.library.opcheck(operators.attention.default, (q, k, v, offsets, True, 0.4))
    qkv = torch.stack([q, k, v], 1).detach().requires_grad_()
    torch.library.opcheck(operators.packed_attention.default, (qkv, offsets, False, 0.4))


def test_every_kind_and_width_ships() -> None:
    for table in (kernels.FORWARD, kernels.QUERY_GRADIENT, kernels.KEY_GRADIENT):
        assert set(table) == set(product(("16", "tf32", "fp32"), (32, 64, 128)))
    names = [v.name for v in kernels.variants()]
    assert len(set(names)) == len(names) == 34
