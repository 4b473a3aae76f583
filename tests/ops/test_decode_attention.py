# SPDX-License-Identifier: Apache-2.0
"""Attention of one query to a cache, against float64 and against causal attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError
from seqrec_fast.ops import attention, decode_attention
from seqrec_fast.ops.decode_attention import decode_attention_reference
from tests.ops.judge import ISAS


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def judge(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    lengths: torch.Tensor | None,
) -> None:
    """On every instruction set: error at most twice that of torch, and a few roundings."""
    exact = decode_attention_reference(
        q.double(), keys.double(), values.double(), offsets, lengths=lengths
    )
    theirs = decode_attention_reference(q, keys, values, offsets, lengths=lengths)
    torch_error = float((theirs.double() - exact).abs().max()) if exact.numel() else 0.0
    # an output may cancel: its roundings are of the size of the values that are mixed
    size = float(values.nan_to_num().abs().max()) if values.numel() else 0.0
    before = native.build_info()["isa"]
    for name in ISAS:
        _C.use_isa(name)
        out = decode_attention(q, keys, values, offsets, lengths=lengths)
        error = float((out.double() - exact).abs().max()) if exact.numel() else 0.0
        assert error <= 2 * torch_error + 4 * 2.0**-24 * size, name
    _C.use_isa(before)


@pytest.mark.parametrize("width", [1, 3, 8, 17, 32, 64, 80])
def test_is_as_exact_as_torch(width: int) -> None:
    offsets = torch.tensor([0, 1, 1, 40, 300, 900])
    judge(random(5, 2, width), *random(2, 900, 2, width, seed=1), offsets, None)
    lengths = torch.tensor([0, 0, 17, 260, 513])
    judge(random(5, 2, width), *random(2, 900, 2, width, seed=1), offsets, lengths)


@given(
    room=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    heads=st.integers(1, 3),
    width=st.integers(1, 40),
    data=st.data(),
)
def test_at_any_size(room: list[int], heads: int, width: int, data: st.DataObject) -> None:
    offsets = torch.tensor([0, *room]).cumsum(0)
    lengths = torch.tensor([data.draw(st.integers(0, r)) for r in room])
    q = random(len(room), heads, width)
    judge(q, *random(2, sum(room), heads, width, seed=1), offsets, lengths)


def test_equals_the_last_position_of_causal_attention() -> None:
    q, k, v = random(3, 60, 2, 32)
    offsets = torch.tensor([0, 20, 60])
    last = attention(q, k, v, offsets)[offsets[1:] - 1]
    torch.testing.assert_close(decode_attention(q[offsets[1:] - 1], k, v, offsets), last)


def test_extremes_and_places_not_filled() -> None:
    q, keys, values = random(2, 2, 8), random(50, 2, 8), random(50, 2, 8)
    offsets = torch.tensor([0, 30, 50])
    keys[20:30] = values[20:30] = torch.nan  # not filled
    for name in ISAS:
        _C.use_isa(name)
        out = decode_attention(q * 1e4, keys, values, offsets, lengths=torch.tensor([20, 20]))
        exact = decode_attention_reference(
            q.double() * 1e4,
            keys.double(),
            values.double(),
            offsets,
            lengths=torch.tensor([20, 20]),
        )
        torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=1e-2)
        empty = decode_attention(q, keys, values, offsets, lengths=torch.tensor([0, 0]))
        assert torch.equal(empty, torch.zeros_like(q))
    torch.testing.assert_close(
        decode_attention_reference(q, keys, values, offsets, lengths=torch.tensor([0, 0])),
        torch.zeros_like(q),
    )


def test_views_gradients_and_threads() -> None:
    qkv = random(600, 3, 4, 32)
    _, keys, values = qkv.unbind(1)
    offsets = torch.tensor([0, 250, 600])
    q = random(2, 4, 32, seed=1).requires_grad_()
    want = decode_attention_reference(q, keys, values, offsets)
    with torch.no_grad():
        torch.testing.assert_close(decode_attention(q, keys, values, offsets), want)
    out = decode_attention(q, keys, values, offsets)
    assert torch.equal(torch.autograd.grad(out.sum(), q)[0], torch.autograd.grad(want.sum(), q)[0])
    arrays = [t.detach().numpy() for t in (q, keys, values, offsets)]
    one = native.decode_attention(*arrays, threads=1)
    torch.testing.assert_close(torch.from_numpy(one), want.detach())
    for threads in (2, 5):
        assert np.array_equal(native.decode_attention(*arrays, threads=threads), one)


def test_registered_operator_and_compile() -> None:
    arguments = random(2, 2, 8), random(9, 2, 8), random(9, 2, 8), torch.tensor([0, 4, 9])
    operator = torch.ops.seqrec_fast.decode_attention.default
    torch.library.opcheck(operator, (*arguments, None, 0.3))
    torch.library.opcheck(operator, (*arguments, torch.tensor([4, 2]), 0.3))
    compiled = torch.compile(decode_attention, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), decode_attention(*arguments))


def test_clear_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    q, keys, offsets = random(2, 2, 8), random(9, 2, 8), torch.tensor([0, 4, 9])
    with pytest.raises(InputError, match="q, keys, values: expected"):
        decode_attention(q, keys, keys[:3], offsets)
    with pytest.raises(InputError, match="offsets: expected 3 for 2 rows of q, found 2"):
        decode_attention(q, keys, keys, offsets[[0, 2]])
    with pytest.raises(InputError, match="lengths: must be from 0 to"):
        decode_attention(q, keys, keys, offsets, lengths=torch.tensor([5, 0]))
    with pytest.raises(InputError, match=r"lengths: expected int64 \[2\]"):
        decode_attention(q, keys, keys, offsets, lengths=torch.tensor([5]))
    with pytest.raises(InputError, match="one dtype and device"):
        decode_attention(q, keys, keys.double(), offsets)
    arrays = q.numpy(), keys.numpy(), keys.numpy()
    with pytest.raises(InputError, match="lengths: expected one a row"):
        native.decode_attention(*arrays, [0, 4, 9], lengths=[5, 0])
    with pytest.raises(InputError, match="offsets: must run from 0 to the 9 tokens"):
        native.decode_attention(*arrays, [0, 4])
    with pytest.raises(InputError, match=r"keys: expected \[cached tokens, 2, 8\]"):
        native.decode_attention(arrays[0], arrays[1][:, :1], arrays[2], [0, 4, 9])
    with pytest.raises(ValueError, match="lengths: row 1 holds 5 tokens, found 6"):
        torch.ops.seqrec_fast.decode_attention(q, keys, keys, offsets, torch.tensor([1, 6]), 1.0)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "native")
    with pytest.raises(InputError, match="kernels of decode_attention have no gradient"):
        decode_attention(q.requires_grad_(), keys, keys, offsets)
