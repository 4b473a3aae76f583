# SPDX-License-Identifier: Apache-2.0
"""Layers of a transformer one after the other: Triton kernels where there are some, native ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.triton.guards import MISSING, Guards

pytest.importorskip("triton", reason=MISSING)

from seqrec_fast.ops.cross_entropy import linear_cross_entropy
from seqrec_fast.ops.dropout import dropout
from seqrec_fast.ops.embedding import embedding
from seqrec_fast.ops.feed_forward import feed_forward
from seqrec_fast.ops.layer_norm import add_layer_norm, layer_norm

ITEMS, DIM, INNER, TOKENS = 30, 12, 20, 37


def loss_and_gradients(parameters: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Of a half block between a table of items and the loss over it."""
    generator = torch.Generator().manual_seed(4)
    items = torch.randint(ITEMS, (TOKENS,), generator=generator)
    targets = torch.randint(ITEMS, (TOKENS,), generator=generator)
    leaves = [p.detach().to(dtype).requires_grad_() for p in parameters]
    table, gain, shift, up, up_bias, down, down_bias = leaves
    x = dropout(embedding(table, items), 0.2, seed=1)
    normed = layer_norm(x, gain, shift)
    change = feed_forward(normed, up, up_bias, down, down_bias, dropout=0.2, seed=2)
    x, normed = add_layer_norm(change, x, gain, shift, dropout=0.2, seed=3)
    loss = linear_cross_entropy(normed + 0.1 * x, table, targets)
    return [loss, *torch.autograd.grad(loss, leaves)]


def test_gradients_flow_through_all(guards: Guards, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = ((ITEMS, DIM), (DIM,), (DIM,), (INNER, DIM), (INNER,), (DIM, INNER), (DIM,))
    parameters = [torch.randn(s, generator=generator) * 0.5 for s in shapes]
    exact = loss_and_gradients(parameters, torch.float64)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "reference")
    theirs = loss_and_gradients(parameters, torch.float32)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton,native")
    found = loss_and_gradients(parameters, torch.float32)
    for e, t, m in zip(exact, theirs, found, strict=True):
        limit = 5 * (t - e).norm() + 4 * 2.0**-24 * e.norm()
        assert m.dtype == torch.float32
        assert (m - e).norm() <= limit
