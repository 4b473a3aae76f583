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
from seqrec_fast.ops import attention, decode_attention, paged_decode_attention
from seqrec_fast.ops.decode_attention import (
    decode_attention_reference,
    paged_decode_attention_reference,
)
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


# ------------------------------------------------------------------------------- in pages


def in_pages(
    lengths: list[int], size: int, heads: int, width: int, dtype: torch.dtype = torch.int64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pages in any order, NaN where no row has a token, with their table and the lengths."""
    per_row = max((-(-n // size) for n in lengths), default=0) + 1
    needed = sum(-(-n // size) for n in lengths)
    pages = random(2, needed + 2, size, heads, width, seed=2)
    order = torch.randperm(needed + 2, generator=torch.Generator().manual_seed(3)).tolist()
    table = torch.full((len(lengths), per_row), -7, dtype=dtype)  # what is not needed is nonsense
    filled = torch.zeros(needed + 2, size, dtype=torch.bool)
    for row, length in enumerate(lengths):
        for i in range(-(-length // size)):
            page = order.pop()
            table[row, i] = page
            filled[page, : length - i * size] = True
    pages[:, ~filled] = torch.nan
    return pages[0], pages[1], table, torch.tensor(lengths)


def end_to_end(
    keys: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What lies in pages, one row after the other, and the offsets."""
    size = keys.shape[1]
    rows = [
        keys[table[i, : -(-int(n) // size)].long()].flatten(0, 1)[: int(n)]
        for i, n in enumerate(lengths)
    ]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return torch.cat(rows), offsets


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    size=st.integers(1, 20),
    heads=st.integers(1, 3),
    width=st.integers(1, 40),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_pages_equal_caches_end_to_end(
    lengths: list[int], size: int, heads: int, width: int, dtype: torch.dtype
) -> None:
    keys, values, table, counts = in_pages(lengths, size, heads, width, dtype)
    q = random(len(lengths), heads, width)
    (k, offsets), (v, _) = end_to_end(keys, table, counts), end_to_end(values, table, counts)
    found = paged_decode_attention(q, keys, values, table, counts, 0.3)
    assert torch.equal(found, decode_attention(q, k, v, offsets, scale=0.3))
    wide = paged_decode_attention(q.double(), keys.double(), values.double(), table, counts)
    torch.testing.assert_close(
        wide, decode_attention_reference(q.double(), k.double(), v.double(), offsets)
    )


def test_pages_gradients_operator_and_compile() -> None:
    keys, values, table, lengths = in_pages([5, 0, 9], 4, 2, 8)
    q = random(3, 2, 8)
    operator = torch.ops.seqrec_fast.paged_decode_attention.default
    torch.library.opcheck(operator, (q, keys, values, table, lengths, 0.3))
    compiled = torch.compile(paged_decode_attention, fullgraph=True)
    want = paged_decode_attention(q, keys, values, table, lengths)
    torch.testing.assert_close(compiled(q, keys, values, table, lengths), want)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (keys, values)]
    assert torch.equal(paged_decode_attention(q, *strided, table, lengths), want)
    q.requires_grad_()
    out = paged_decode_attention(q, keys, values, table, lengths)
    torch.testing.assert_close(out.detach(), want)
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()
    none = q.detach()[:0]
    for function in (paged_decode_attention, paged_decode_attention_reference):
        assert function(none, keys, values, table[:0], lengths[:0]).shape == (0, 2, 8)
        empty = function(q.detach(), keys[:0], values[:0], table[:, :0], lengths * 0)
        assert torch.equal(empty, torch.zeros(3, 2, 8))


def test_clear_errors_about_pages() -> None:
    keys, values, table, lengths = in_pages([5, 0, 9], 4, 2, 8)
    q = random(3, 2, 8)
    with pytest.raises(InputError, match="q, key_pages, value_pages: expected"):
        paged_decode_attention(q, keys, values[:1], table, lengths)
    with pytest.raises(InputError, match="q, key_pages, value_pages: expected one dtype"):
        paged_decode_attention(q, keys, values.double(), table, lengths)
    with pytest.raises(InputError, match=r"page_table: expected int32 or int64 \[3, pages"):
        paged_decode_attention(q, keys, values, table[:2], lengths)
    with pytest.raises(InputError, match="page_table: expected int32 or int64"):
        paged_decode_attention(q, keys, values, table.float(), lengths)
    with pytest.raises(InputError, match=r"lengths: expected int64 \[3\]"):
        paged_decode_attention(q, keys, values, table, lengths.int())
    with pytest.raises(InputError, match="lengths: must be from 0 to the 16 tokens"):
        paged_decode_attention(q, keys, values, table, lengths + 8)
    with pytest.raises(InputError, match="page_table: expected on cpu like q, found on meta"):
        paged_decode_attention(q, keys, values, table.to("meta"), lengths)
    table[2, 1] = 7
    with pytest.raises(InputError, match="page_table: row 2 names page 7, but the pages are 0 to"):
        paged_decode_attention(q, keys, values, table, lengths)
