# SPDX-License-Identifier: Apache-2.0
"""Jagged attention against the formula written out row by row, and its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast.errors import InputError
from seqrec_fast.ops import attention
from seqrec_fast.ops._rows import equal_runs, token_positions

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def offsets_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def written_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, causal: bool
) -> torch.Tensor:
    """softmax(q k^T / sqrt(width) + mask) v, one row and one head at a time."""
    out = torch.full_like(q, torch.nan)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for head in range(q.shape[1]):
            scores = q[begin:end, head] @ k[begin:end, head].T / q.shape[2] ** 0.5
            if causal:
                later = torch.ones(end - begin, end - begin).triu(1).bool()
                scores = scores.masked_fill(later, -torch.inf)
            out[begin:end, head] = scores.softmax(1) @ v[begin:end, head]
    return out


@pytest.mark.parametrize("causal", [True, False])
@given(lengths=LENGTHS, heads=st.integers(1, 3), width=st.integers(1, 5))
def test_equals_the_formula(causal: bool, lengths: list[int], heads: int, width: int) -> None:
    offsets = offsets_of(lengths)
    q, k, v = torch.randn(3, int(offsets[-1]), heads, width, dtype=torch.float64)
    got = attention(q, k, v, offsets, causal=causal)
    torch.testing.assert_close(got, written_out(q, k, v, offsets, causal), rtol=1e-9, atol=1e-12)


def test_float32_is_as_near_to_float64_as_dense_torch() -> None:
    offsets = offsets_of([40] * 8)
    q, k, v = torch.randn(3, 320, 2, 32)
    judge = written_out(q.double(), k.double(), v.double(), offsets, True)
    dense = [t.view(8, 40, 2, 32).transpose(1, 2) for t in (q, k, v)]
    torch_out = torch.nn.functional.scaled_dot_product_attention(*dense, is_causal=True)
    torch_error = (torch_out.transpose(1, 2).reshape(320, 2, 32).double() - judge).abs().max()
    error = (attention(q, k, v, offsets).double() - judge).abs().max()
    assert error <= 2 * torch_error


def test_gradients() -> None:
    offsets = offsets_of([3, 0, 1, 3])
    q, k, v = (torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda *t: attention(*t, offsets), (q, k, v))


def test_scale_and_no_tokens() -> None:
    q, k, v = torch.randn(3, 4, 1, 4, dtype=torch.float64)
    offsets = torch.tensor([0, 4])
    uniform = attention(q, k, v, offsets, scale=0.0, causal=False)
    torch.testing.assert_close(uniform, v.mean(0, keepdim=True).expand_as(v))
    assert attention(q[:0], k[:0], v[:0], torch.tensor([0, 0])).shape == (0, 1, 4)


def test_rows_of_one_length_side_by_side_are_one_run() -> None:
    runs = equal_runs(offsets_of([4, 4, 2, 0, 0, 2, 4]))
    assert [(r.begin, r.end, r.rows, r.length) for r in runs] == [
        (0, 8, 2, 4),
        (8, 10, 1, 2),
        (10, 12, 1, 2),
        (12, 16, 1, 4),
    ]


def test_positions_count_from_the_start_of_a_row() -> None:
    assert token_positions(offsets_of([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]


def test_clear_errors() -> None:
    q = torch.zeros(2, 1, 3)
    with pytest.raises(InputError, match="expected three equal shapes"):
        attention(q, q, q[:1], torch.tensor([0, 2]))
    with pytest.raises(InputError, match="offsets: must run from 0 to the 2 tokens of q"):
        attention(q, q, q, torch.tensor([0, 1]))
