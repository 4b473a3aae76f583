# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of pointwise SiLU attention in the interpreter, against float64."""

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
from seqrec_fast.ops.hstu_attention import hstu_attention_reference, time_bucket_bounds
from tests.ops.judge import allowed, worst
from tests.ops.judge import judge as judge_public
from tests.ops.triton.guards import MISSING, Guards

pytest.importorskip("triton", reason=MISSING)
from seqrec_fast.ops.triton import hstu_attention as kernels

NORMALISER = 50.0


def judge(
    guards: Guards,
    lengths: list[int],
    width: int,
    tables: tuple[int, int],
    causal: bool,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(width)
    tokens, offsets = sum(lengths), torch.tensor([0, *lengths]).cumsum(0)
    q, k, v, d_out = torch.randn(4, tokens, 2, width, generator=generator).to(dtype)
    bias, time_bias = (
        torch.randn(2, n, generator=generator).to(dtype) if n else None for n in tables
    )
    times = (12 * torch.rand(tokens, generator=generator)).exp().long() if tables[1] else None

    def reference(of: torch.dtype) -> list[Tensor]:
        floating = (q, k, v, bias, time_bias)
        leaves = [None if t is None else t.to(of).requires_grad_() for t in floating]
        out = hstu_attention_reference(
            *leaves[:3],
            offsets,
            normaliser=NORMALISER,
            causal=causal,
            bias=leaves[3],
            time_bias=leaves[4],
            times=times,
        )
        wanted = [t for t in leaves if t is not None]
        return [out.detach(), *torch.autograd.grad(out, wanted, d_out.to(of))]

    guarded = (q, k, v, offsets, bias, time_bias, times)
    arguments = [None if t is None else guards.among_nan(t) for t in guarded]
    options = (causal, width**-0.5, NORMALISER)
    out = kernels.hstu_attention(*arguments, *options)
    gradients = kernels.hstu_attention_backward(
        guards.among_nan(d_out), *arguments, *options, bool(tables[0]), bool(tables[1])
    )
    guards.check()
    found = [out, *gradients[:3], *(t for t in gradients[3:] if t.numel())]
    step = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    exact, theirs = reference(torch.float64), reference(dtype)
    for place, (m, t, e) in enumerate(zip(found, theirs, exact, strict=True)):
        factor = 5.0 if place and dtype == torch.float32 else 2.0
        assert m.dtype == dtype
        limit = factor * worst(t, e) + allowed(0.0, e, 0.0) * step / 4
        assert worst(m, e) <= limit, (place, lengths, width, tables, causal)


@pytest.mark.parametrize(
    ("dtype", "width", "tables", "causal"),
    [
        (torch.float32, 20, (9, 12), True),
        (torch.float32, 32, (0, 0), False),
        (torch.float16, 16, (70, 0), False),
        (torch.float16, 64, (9, 12), True),
        (torch.bfloat16, 20, (9, 12), False),
        (torch.bfloat16, 32, (0, 5), True),
    ],
)
def test_as_exact_as_torch(
    guards: Guards, dtype: torch.dtype, width: int, tables: tuple[int, int], causal: bool
) -> None:
    judge(guards, [1, 0, 33, 17], width, tables, causal, dtype)


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(any),
    width=st.sampled_from([1, 7, 16, 48, 64, 100, 128]),
    tables=st.tuples(st.integers(0, 50), st.integers(0, 20)),
    causal=st.booleans(),
)
def test_any_lengths(
    guards: Guards, lengths: list[int], width: int, tables: tuple[int, int], causal: bool
) -> None:
    judge(guards, lengths, width, tables, causal, torch.float32)


@pytest.mark.parametrize("buckets", [1, 3, 150])
def test_time_buckets_are_those_of_the_bounds(buckets: int) -> None:
    bounds = time_bucket_bounds(buckets)
    moments = {0, 1, 2**40, 2**62, 2**63 - 1}
    for least in bounds[1::9] + bounds[140:]:
        moments |= {least - 1, least}
    apart = torch.tensor(sorted(moments))[:, None]
    times = torch.cat([torch.zeros_like(apart), apart], 1).flatten()
    table = torch.arange(1.0, buckets + 1)[None]
    count = len(apart)
    zeros = torch.zeros(2 * count, 1, 1)
    v = torch.tensor([1.0, 0.0]).repeat(count)[:, None, None]
    offsets = torch.arange(count + 1) * 2
    out = kernels.hstu_attention(zeros, zeros, v, offsets, None, table, times, True, 1.0, 1.0)
    place = torch.bucketize(
        apart.flatten(), torch.tensor(bounds[1:], dtype=torch.int64), right=True
    )
    torch.testing.assert_close(out.flatten()[1::2], torch.nn.functional.silu(table[0, place]))


def test_extreme_scores_and_nothing() -> None:
    q = torch.full((5, 1, 4), 100.0)
    offsets = torch.tensor([0, 5])
    tables = (None, None, None)
    assert (kernels.hstu_attention(q, -q, q, offsets, *tables, True, 1.0, 1.0) == 0).all()
    least = torch.full((1, 3), torch.finfo(torch.float32).min)
    low = kernels.hstu_attention(q, q, q, offsets, least, None, None, True, 1e-9, 1.0)
    assert (low == 0).all()
    none = torch.zeros(0, 1, 4)
    bias = torch.zeros(1, 3)
    found = kernels.hstu_attention_backward(
        none, none, none, none, offsets[:1].repeat(2), bias, None, None, True, 1.0, 1.0, True, False
    )
    assert [tuple(t.shape) for t in found] == [(0, 1, 4)] * 3 + [(1, 3), (0,)]
    assert (found[3] == 0).all()


def test_deterministic_algorithms_refuse_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    q, bias = torch.zeros(5, 1, 4), torch.zeros(1, 3)
    inputs = (q, q, q, q, torch.tensor([0, 5]), bias, None, None, True, 1.0, 1.0)
    with pytest.raises(InputError, match="summed with atomics"):
        kernels.hstu_attention_backward(*inputs, True, False)
    kernels.hstu_attention_backward(*inputs, False, False)


def test_public_function_and_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton,native")
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 21, 2, 12, generator=generator)
    bias, time_bias = torch.randn(2, 2, 7, generator=generator)
    offsets, times = torch.tensor([0, 3, 3, 21]), torch.arange(21) ** 3
    assert choose_backend("hstu_attention", q.device, q.dtype) == "triton"
    judge_public(
        lambda q, k, v, b, t: ops.hstu_attention(
            q, k, v, offsets, normaliser=NORMALISER, bias=b, time_bias=t, times=times
        ),
        lambda q, k, v, b, t: hstu_attention_reference(
            q, k, v, offsets, normaliser=NORMALISER, bias=b, time_bias=t, times=times
        ),
        [q, k, v, bias, time_bias],
    )
    wide = torch.zeros(21, 1, 129)
    with pytest.raises(InputError, match="heads of at most 128, found 129"):
        ops.hstu_attention(wide, wide, wide, offsets, normaliser=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_is_whole(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton,native")
    q, k, v = (t.requires_grad_() for t in torch.randn(3, 3, 1, 4).to(dtype).unbind())
    bias, time_bias = (torch.randn(1, n).to(dtype).requires_grad_() for n in (2, 3))
    inputs = (q, k, v, torch.tensor([0, 1, 3]), bias, time_bias, torch.tensor([1, 5, 9]))
    operator = torch.ops.seqrec_fast.hstu_attention.default
    torch.library.opcheck(operator, (*inputs, True, 0.5, 2.0))


def test_every_kind_and_width_ships() -> None:
    for table in (kernels.FORWARD, kernels.QUERY_GRADIENT, kernels.KEY_GRADIENT):
        assert set(table) == set(product(("16", "tf32", "fp32"), (32, 64, 128)))
    names = [v.name for v in kernels.variants()]
    assert len(set(names)) == len(names) == 30
