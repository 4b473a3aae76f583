# SPDX-License-Identifier: Apache-2.0
"""Gather and scatter of embeddings against torch, with positions and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError
from seqrec_fast.ops import embedding, sequence_embedding
from seqrec_fast.ops.embedding import embedding_reference, sequence_embedding_reference
from tests.ops.judge import ISAS, judge

LENGTHS = st.lists(st.integers(0, 9), min_size=0, max_size=6)


def case(lengths: list[int], items: int, dim: int) -> list[torch.Tensor]:
    """weight, ids, positions, offsets."""
    generator = torch.Generator().manual_seed(sum(lengths) + items)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    weight = torch.randn(items, dim, generator=generator)
    ids = torch.randint(items, (int(offsets[-1]),), generator=generator)
    return [weight, ids, torch.randn(9, dim, generator=generator), offsets]


def bound(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda *t: function(*t, **options)


@given(
    lengths=LENGTHS,
    items=st.integers(1, 20),
    dim=st.sampled_from([1, 3, 4, 5, 8, 15, 16, 17, 33, 64]),
    p=st.sampled_from([0.0, 0.3]),
)
def test_equals_the_definition(lengths: list[int], items: int, dim: int, p: float) -> None:
    given_tensors = case(lengths, items, dim)
    before = native.build_info()["isa"]
    for name in ISAS:
        _C.use_isa(name)
        judge(
            bound(sequence_embedding, dropout=p, seed=2),
            bound(sequence_embedding_reference, dropout=p, seed=2),
            given_tensors,
        )
        weight, ids = given_tensors[:2]
        assert torch.equal(embedding(weight, ids), weight[ids])
        judge(embedding, embedding_reference, [weight, ids])
    _C.use_isa(before)


def test_gradients_are_the_same_bits_for_any_threads() -> None:
    weight, ids, positions, offsets = case([9, 4, 0, 9, 1] * 400, 3000, 64)
    weight.requires_grad_()
    positions.requires_grad_()
    threads = native.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            native.set_num_threads(count)
            out = sequence_embedding(weight, ids, positions, offsets, dropout=0.4, seed=1)
            gradients = torch.autograd.grad(out.square().sum(), (weight, positions))
            results.append([out, *gradients])
    finally:
        native.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_shapes_and_types_of_ids() -> None:
    weight = torch.randn(10, 4)
    ids = torch.randint(10, (2, 3), dtype=torch.int32)
    assert torch.equal(embedding(weight, ids), weight[ids.long()])
    assert torch.equal(embedding(weight.T.contiguous().T, ids), weight[ids.long()])
    assert embedding(weight, ids[:0]).shape == (0, 3, 4)


def test_reference_in_double_and_registered_operator() -> None:
    weight, ids, positions, offsets = case([3, 0, 2], 5, 4)
    wide = [weight.double().requires_grad_(), positions.double().requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda w, p: sequence_embedding(w, ids, p, offsets, dropout=0.3, seed=1), wide
    )
    weight.requires_grad_()
    positions.requires_grad_()
    operator = torch.ops.seqrec_fast.embedding.default
    seed = torch.tensor([4])
    torch.library.opcheck(operator, (weight, ids, positions, offsets, 0.3, seed))
    torch.library.opcheck(operator, (weight, ids, None, None, 0.0, None))
    compiled = torch.compile(lambda w: embedding(w, ids) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(weight), weight[ids] * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_outside_the_tables_are_refused(dtype: torch.dtype) -> None:
    weight, positions = torch.zeros(3, 2, dtype=dtype), torch.zeros(4, 2, dtype=dtype)
    for bad in (-1, 3):
        with pytest.raises(InputError, match="the rows of weight are 0 to 2"):
            embedding(weight, torch.tensor([0, bad]))
    ids = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(InputError, match="5 tokens, but there are 4 positions"):
        sequence_embedding(weight, ids, positions, torch.tensor([0, 5]))
    with pytest.raises(InputError, match="offsets: must run from 0 to the 5 tokens"):
        sequence_embedding(weight, ids, positions, torch.tensor([0, 4]))


def test_clear_errors() -> None:
    weight, ids, positions, offsets = case([2], 3, 4)
    with pytest.raises(InputError, match="offsets: must not decrease"):
        sequence_embedding(weight, ids, positions, torch.tensor([0, 2, 1, 2]))
    with pytest.raises(InputError, match="ids: expected int64 or int32"):
        embedding(weight, ids.float())
    with pytest.raises(InputError, match="weight: expected floating"):
        embedding(weight[0], ids)
    with pytest.raises(InputError, match=r"position_weight: expected torch\.float32 \[positions"):
        sequence_embedding(weight, ids, positions.double(), offsets)
    with pytest.raises(InputError, match=r"offsets: expected int64 \[rows \+ 1\]"):
        sequence_embedding(weight, ids, positions, offsets.int())
