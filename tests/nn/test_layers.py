# SPDX-License-Identifier: Apache-2.0
"""LayerNorm and FeedForward as modules: names of their parameters, modes, refusals."""

from __future__ import annotations

import pytest
import torch

from seqrec_fast.errors import InputError
from seqrec_fast.nn import FeedForward, LayerNorm


def test_layer_norm_loads_torchs_state() -> None:
    theirs = torch.nn.LayerNorm(5)
    torch.nn.init.normal_(theirs.weight)
    mine = LayerNorm(5)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 5)
    torch.testing.assert_close(mine(x), theirs(x))


def test_layer_norm_drops_in_training_alone() -> None:
    norm = LayerNorm(50)
    x, residual = torch.randn(2, 4, 50)
    total, _ = norm.eval().add(x, residual, 0.5)
    assert torch.equal(total, x + residual)
    total, normed = norm.train().add(x, residual, 0.5)
    assert 0 < int((total == residual).sum()) < total.numel()
    torch.testing.assert_close(normed, torch.nn.functional.layer_norm(total, (50,)))


def test_sizes_are_checked() -> None:
    with pytest.raises(InputError, match="dim: must be at least 1"):
        LayerNorm(0)
    with pytest.raises(InputError, match="dim, inner: must be at least 1, found 4 and 0"):
        FeedForward(4, 0)
