# SPDX-License-Identifier: Apache-2.0
"""Gradients that float16 cannot hold are infinite or NaN, never a number: scalers look for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.triton.guards import MISSING

pytest.importorskip("triton", reason=MISSING)

from seqrec_fast import ops
from seqrec_fast.ops.attention import attention_reference
from seqrec_fast.ops.cross_entropy import (
    linear_cross_entropy_reference,
    sampled_cross_entropy_reference,
)
from seqrec_fast.ops.feed_forward import feed_forward_reference
from seqrec_fast.ops.hstu_attention import hstu_attention_reference
from seqrec_fast.ops.layer_norm import add_layer_norm_reference, layer_norm_reference

OFFSETS = torch.tensor([0, 30, 41])
TARGETS = torch.arange(41) % 7
NEGATIVES = torch.tensor([0, 3, 3, 8])

Function = Callable[..., Any]

#: operation, its definition, shapes
CASES: dict[str, tuple[Function, Function, list[tuple[int, ...]]]] = {
    "layer_norm": (ops.layer_norm, layer_norm_reference, [(41, 8), (8,), (8,)]),
    "add_layer_norm": (
        lambda *t: ops.add_layer_norm(*t)[1],
        lambda *t: add_layer_norm_reference(*t)[1],
        [(41, 8), (41, 8), (8,), (8,)],
    ),
    "feed_forward": (
        ops.feed_forward,
        feed_forward_reference,
        [(41, 8), (20, 8), (20,), (8, 20), (8,)],
    ),
    "attention": (
        lambda *t: ops.attention(*t, OFFSETS),
        lambda *t: attention_reference(*t, OFFSETS),
        [(41, 1, 16)] * 3,
    ),
    "hstu_attention": (
        lambda *t: ops.hstu_attention(*t[:3], OFFSETS, normaliser=1.0, bias=t[3]),
        lambda *t: hstu_attention_reference(*t[:3], OFFSETS, normaliser=1.0, bias=t[3]),
        [(41, 1, 16)] * 3 + [(1, 4)],
    ),
    "linear_cross_entropy": (
        lambda h, w, b: ops.linear_cross_entropy(h, w, TARGETS, b),
        lambda h, w, b: linear_cross_entropy_reference(h, w, TARGETS, b),
        [(41, 8), (9, 8), (9,)],
    ),
    "sampled_cross_entropy": (
        lambda h, w, b: ops.sampled_cross_entropy(h, w, TARGETS, NEGATIVES, b),
        lambda h, w, b: sampled_cross_entropy_reference(h, w, TARGETS, NEGATIVES, b),
        [(41, 8), (9, 8), (9,)],
    ),
}


def gradients(function: Function, given: list[Tensor], upstream: float) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in given]
    out = function(*leaves)
    return list(torch.autograd.grad(out, leaves, torch.full_like(out, upstream)))


@pytest.mark.parametrize("name", CASES)
def test_what_overflows_is_not_finite(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton,native")
    function, reference, shapes = CASES[name]
    generator = torch.Generator().manual_seed(3)
    given = [torch.randn(shape, generator=generator).half() for shape in shapes]
    # a loss scaler's factor grows until this happens; a loss of one number is float32
    upstream = 2.0**30 if "cross_entropy" in name else 60_000.0
    found = gradients(function, given, upstream)
    exact = gradients(reference, [t.double() for t in given], upstream)
    lost = 0
    for mine, true in zip(found, exact, strict=True):
        assert mine.dtype == torch.float16
        beyond = true.abs() > 66_000.0
        assert not mine[beyond].isfinite().any()
        lost += int(beyond.sum())
    assert lost > 0
