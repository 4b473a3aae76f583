# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of pointwise SiLU attention in the interpreter, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops.hstu_attention import hstu_attention_reference, time_bucket_bounds
from tests.ops.judge import allowed, worst
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
        given = [q, k, v, bias, time_bias]
        leaves = [None if t is None else t.to(of).requires_grad_() for t in given]
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

    given = [
        None if t is None else guards.among_nan(t) for t in (q, k, v, offsets, bias, time_bias)
    ]
    given.append(None if times is None else guards.among_nan(times))
    options = (causal, width**-0.5, NORMALISER)
    out = kernels.hstu_attention(*given, *options)
    gradients = kernels.hstu_attention_backward(
        guards.among_nan(d_out), *given, *options, bool(tables[0]), bool(tables[1])
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


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("width", "tables"), [(32, (0, 0)), (20, (9, 12)), (16, (70, 0))])
def test_as_exact_as_torch(
    guards: Guards, dtype: torch.dtype, width: int, tables: tuple[int, int], causal: bool
) -> None:
    judge(guards, [1, 0, 33, 17], width, tables, causal, dtype)


@pytest.mark.parametrize("buckets", [1, 3, 150])
def test_time_buckets_are_those_of_the_bounds(buckets: int) -> None:
    bounds = time_bucket_bounds(buckets)
    moments = {0, 1, 2**40, 2**62, 2**63 - 1}
    for least in bounds[1::7] + bounds[140:]:
        moments |= {least - 1, least, min(least + 1, 2**63 - 1)}
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
    given = (q, q, q, q, torch.tensor([0, 5]), bias, None, None, True, 1.0, 1.0)
    with pytest.raises(InputError, match="summed with atomics"):
        kernels.hstu_attention_backward(*given, True, False)
    kernels.hstu_attention_backward(*given, False, False)


def test_variants_have_names_of_their_own() -> None:
    names = [v.name for v in kernels.variants()]
    assert len(set(names)) == len(names)
