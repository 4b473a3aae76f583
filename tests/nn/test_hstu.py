# SPDX-License-Identifier: Apache-2.0
"""The HSTU layer: its formula, causality, training, refusals."""

from __future__ import annotations

import pytest
import torch

from seqrec_fast import nn
from seqrec_fast.errors import InputError


def test_equals_the_formula() -> None:
    layer = nn.HSTULayer(8, 2, 10, width=3, time_buckets=6).double()
    x = torch.randn(5, 8, dtype=torch.float64)
    times = torch.tensor([0, 3, 10, 500, 501])
    found = layer(x, torch.tensor([0, 5]), times)
    parts = torch.nn.functional.silu(layer.uvqk(layer.input_norm(x))).view(5, 4, 2, 3)
    mixed = torch.zeros(5, 2, 3, dtype=torch.float64)
    assert layer.time_bias is not None
    for head in range(2):
        _, v, q, k = parts[:, :, head].unbind(1)
        for i in range(5):
            for j in range(i + 1):
                apart = max(int(times[i] - times[j]), 1)
                bucket = min(int(torch.tensor(apart).double().log() / 0.301), 5)
                score = q[i] @ k[j] / 3**0.5 + layer.bias[head, i - j]
                score = score + layer.time_bias[head, bucket]
                mixed[i, head] += torch.nn.functional.silu(score) / 10 * v[j]
    gated = layer.attention_norm(mixed.view(5, 6)) * parts[:, 0].reshape(5, 6)
    torch.testing.assert_close(found, x + layer.out(gated))


def test_native_and_reference_agree_and_all_parameters_learn() -> None:
    layer = nn.HSTULayer(16, 2, 20, time_buckets=8)
    x, offsets, times = torch.randn(25, 16), torch.tensor([0, 20, 20, 25]), torch.arange(25) ** 3
    out = layer(x, offsets, times)
    exact = nn.HSTULayer(16, 2, 20, time_buckets=8).double()
    exact.load_state_dict({n: p.double() for n, p in layer.state_dict().items()})
    torch.testing.assert_close(out.double(), exact(x.double(), offsets, times), rtol=0, atol=1e-5)
    out.square().sum().backward()
    exact(x.double(), offsets, times).square().sum().backward()
    for (name, a), b in zip(layer.named_parameters(), exact.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert a.grad.abs().sum() > 0, name
        error = (a.grad.double() - b.grad).abs().max()
        assert error <= 1e-5 * b.grad.abs().max().clamp(min=1), name


def test_later_events_and_other_rows_are_not_seen() -> None:
    layer = nn.HSTULayer(8, 2, 10).eval()
    x, offsets = torch.randn(9, 8), torch.tensor([0, 4, 9])
    before = layer(x, offsets)
    changed = x.clone()
    changed[6:] += 1.0
    after = layer(changed, offsets)
    assert torch.equal(after[:6], before[:6])
    assert not torch.allclose(after[6:], before[6:])


def test_clear_errors() -> None:
    with pytest.raises(InputError, match="heads: 3 heads do not divide dim 8"):
        nn.HSTULayer(8, 3, 10)
    with pytest.raises(InputError, match="must be at least 1"):
        nn.HSTULayer(8, 2, 0)
    layer = nn.HSTULayer(8, 2, 10, time_buckets=4)
    with pytest.raises(InputError, match="times: the layer has a bias by time"):
        layer(torch.randn(2, 8), torch.tensor([0, 2]))
