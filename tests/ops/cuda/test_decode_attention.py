# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of decode attention, run on the CPU, against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec_fast.errors import InputError
from seqrec_fast.ops import decode_attention, paged_decode_attention
from seqrec_fast.ops.decode_attention import (
    decode_attention_reference,
    paged_decode_attention_reference,
)
from tests.ops.test_decode_attention import end_to_end, in_pages, random

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def judge(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    dtype: torch.dtype,
) -> None:
    """Error at most twice that of torch in the type, of both forms, which give the same."""
    q, keys, values = (t.to(dtype) for t in (q, keys, values))
    pages = keys.double(), values.double()
    exact = paged_decode_attention_reference(q.double(), *pages, table, lengths)
    theirs = paged_decode_attention_reference(q, keys, values, table, lengths)
    limit = 2 * float((theirs.double() - exact).abs().max())
    # an output may cancel: its roundings are of the size of the values that are mixed
    limit += 4 * 2.0**-24 * float(values.nan_to_num().abs().max())
    found = paged_decode_attention(q, keys, values, table, lengths)
    assert found.dtype == dtype
    assert float((found.double() - exact).abs().max()) <= limit
    (k, offsets), (v, _) = end_to_end(keys, table, lengths), end_to_end(values, table, lengths)
    dense = decode_attention(q, k, v, offsets)
    assert float((dense.double() - exact).abs().max()) <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 8, 31, 32, 33, 64, 80, 128, 200, 256])
def test_is_as_exact_as_torch(width: int, dtype: torch.dtype) -> None:
    lengths = [0, 1, 63, 64, 65, 200]
    judge(random(6, 2, width), *in_pages(lengths, 16, 2, width), dtype)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=12),
    size=st.integers(1, 40),
    heads=st.integers(1, 3),
    width=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    table=st.sampled_from([torch.int32, torch.int64]),
)
def test_at_any_size(
    lengths: list[int],
    size: int,
    heads: int,
    width: int,
    dtype: torch.dtype,
    table: torch.dtype,
) -> None:
    q = random(len(lengths), heads, width)
    judge(q, *in_pages(lengths, size, heads, width, table), dtype)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_long_caches_with_room_to_grow(rows: int) -> None:
    """Few rows are shared out among blocks, many are not; what is not filled is NaN."""
    room = [(137 * i) % 900 + 1 for i in range(rows)]
    lengths = torch.tensor([(n * 7) // 9 for n in room])
    offsets = torch.tensor([0, *room]).cumsum(0)
    keys, values = random(2, sum(room), 2, 16)
    for i in range(rows):
        keys[offsets[i] + lengths[i] : offsets[i + 1]] = torch.nan
    q = random(rows, 2, 16, seed=1)
    wide = [t.double() for t in (q, keys, values)]
    exact = decode_attention_reference(*wide, offsets, lengths=lengths)
    theirs = decode_attention_reference(q, keys, values, offsets, lengths=lengths)
    found = decode_attention(q, keys, values, offsets, lengths=lengths)
    limit = 2 * float((theirs.double() - exact).abs().max()) + 4 * 2.0**-24 * 5
    assert float((found.double() - exact).abs().max()) <= limit


def test_not_finite_and_extreme_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    q, keys, values = random(6, 1, 8), random(300, 1, 8), random(300, 1, 8)
    offsets = torch.arange(7) * 50
    q[0] *= 1e4
    keys[60, 0, 0] = torch.nan
    keys[110, 0] = torch.inf
    keys[160, 0] = -torch.inf * q[3, 0].sign()  # a score of minus infinity has no weight
    keys[200:250, 0] = -torch.inf * q[4, 0].sign()
    values[260, 0, 3] = torch.inf
    found = decode_attention(q, keys, values, offsets)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "native")
    native = decode_attention(q, keys, values, offsets)
    torch.testing.assert_close(found, native, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert found[3].isfinite().all()
    assert found[4].isnan().all()


def test_views_are_read_where_they_lie() -> None:
    keys, values, table, lengths = in_pages([70, 5, 0], 8, 2, 16)
    q = random(3, 2, 16)
    want = paged_decode_attention(q, keys, values, table, lengths)
    by_head = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (keys, values)]
    assert torch.equal(paged_decode_attention(q, *by_head, table, lengths), want)
    both = torch.stack([keys, values], 2)
    assert torch.equal(paged_decode_attention(q, *both.unbind(2), table, lengths), want)
    odd = [torch.cat([t[..., :1], t], -1)[..., 1:] for t in (q, keys, values)]
    assert torch.equal(paged_decode_attention(*odd, table, lengths), want)
    columns = torch.stack([table, table], -1)[..., 0]
    assert torch.equal(paged_decode_attention(q, keys, values, columns, lengths), want)


def test_pages_that_do_not_exist_and_lengths_too_large() -> None:
    """The host does not look at numbers on a GPU: the kernels touch nothing that is not there."""
    keys, values, table, lengths = in_pages([9, 9, 9, 9], 4, 2, 8)
    q = random(4, 2, 8)
    operator = torch.ops.seqrec_fast.paged_decode_attention.default
    want = operator(q, keys, values, table, lengths, 0.5)
    table[1, 1], table[2, 2] = keys.shape[0], -1
    found = operator(q, keys, values, table, lengths, 0.5)
    assert torch.equal(found[[0, 3]], want[[0, 3]])
    assert found[[1, 2]].isnan().all()
    keys, values = keys.nan_to_num(), values.nan_to_num()
    whole = operator(q[:1], keys, values, table[:1, :3], torch.tensor([12]), 0.5)
    more = operator(q[:1], keys, values, table[:1, :3], torch.tensor([2**40]), 0.5)
    assert torch.equal(whole, more)
    assert not operator(q[:1], keys, values, table[:1], torch.tensor([-3]), 0.5).any()
    wrong = torch.tensor([50, -20, 2**50, 0, 3])  # nor does it look at offsets
    dense = torch.ops.seqrec_fast.decode_attention.default
    dense(q, keys[0], values[0], wrong, None, 0.5)
    dense(q, keys.flatten(0, 1), values.flatten(0, 1), wrong, lengths, 0.5)


def test_operators_gradients_and_compile() -> None:
    keys, values, table, lengths = in_pages([5, 0, 9], 4, 2, 8)
    q = random(3, 2, 8)
    paged = torch.ops.seqrec_fast.paged_decode_attention.default
    torch.library.opcheck(paged, (q, keys, values, table, lengths, 0.3))
    dense = torch.ops.seqrec_fast.decode_attention.default
    (k, offsets), (v, _) = end_to_end(keys, table, lengths), end_to_end(values, table, lengths)
    torch.library.opcheck(dense, (q, k, v, offsets, None, 0.3))
    torch.library.opcheck(dense, (q, k, v, offsets, lengths, 0.3))
    compiled = torch.compile(paged_decode_attention, fullgraph=True, backend="aot_eager")
    want = paged_decode_attention(q, keys, values, table, lengths)
    assert torch.equal(compiled(q, keys, values, table, lengths), want)
    with pytest.raises(InputError, match=r"SEQREC_FAST_BACKEND=cuda,native: .*have no gradient"):
        paged_decode_attention(q.requires_grad_(), keys, values, table, lengths)
    with pytest.raises(InputError, match="q: expected heads of at most 256 numbers, found 300"):
        decode_attention(random(1, 1, 300), *random(2, 4, 1, 300), torch.tensor([0, 4]))


def test_no_rows_heads_tokens_or_pages() -> None:
    keys, values, table, lengths = in_pages([5, 0, 9], 4, 2, 8)
    q = random(3, 2, 8)
    for none in (q[:0], q[:, :0], q[..., :0]):
        pages = [t[:, :, : none.shape[1], : none.shape[2]] for t in (keys, values)]
        rows = none.shape[0]
        found = paged_decode_attention(none, *pages, table[:rows], lengths[:rows])
        assert found.shape == none.shape
    zeros = torch.zeros_like(q)
    for pages, places in ((keys[:0], table[:, :0]), (keys, table[:, :0]), (keys[:, :0], table)):
        assert torch.equal(paged_decode_attention(q, pages, pages, places, lengths * 0), zeros)
    empty = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(decode_attention(q, keys[0, :0], keys[0, :0], empty), zeros)


# ------------------------------------------------------------------ launches and bytes, counted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 9])
def test_caches_are_read_once(emulated: Any, rows: int, dtype: torch.dtype) -> None:
    lengths = [(173 * i) % 700 + 300 for i in range(rows)]
    keys, values, table, counts = in_pages(lengths, 16, 2, 24)
    keys, values = keys.to(dtype), values.to(dtype)
    q = random(rows, 2, 24).to(dtype)
    (k, offsets), (v, _) = end_to_end(keys, table, counts), end_to_end(values, table, counts)
    for call, tensors in (
        (lambda: paged_decode_attention(q, keys, values, table, counts), (keys, values)),
        (lambda: decode_attention(q, k, v, offsets), (k, v)),
    ):
        emulated.take_launches()
        emulated.start_counting([(t.data_ptr(), t.nbytes) for t in tensors])
        call()
        _, first, second = emulated.stop_counting()
        assert first[1] == second[1] == sum(lengths) * 2 * 24 * q.element_size()
        names = [name for name, *_ in emulated.take_launches()]
        # nine rows of two heads keep the four multiprocessors busy
        assert names == ["decode_attention", "decode_attention_merge"][: 2 if rows == 1 else 1]


def test_the_order_of_threads_changes_nothing(emulated: Any) -> None:
    q, keys, values = random(2, 3, 20), *random(2, 900, 3, 20, seed=1)
    offsets = torch.tensor([0, 700, 900])
    want = decode_attention(q, keys, values, offsets)
    for seed in (2, 3):
        emulated.set_order(seed)
        assert torch.equal(decode_attention(q, keys, values, offsets), want)
    # more blocks sum in another order
    emulated.set_device(40)
    torch.testing.assert_close(decode_attention(q, keys, values, offsets), want)
