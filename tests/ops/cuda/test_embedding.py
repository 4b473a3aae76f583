# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of embeddings, run on the CPU, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops import embedding, sequence_embedding
from seqrec_fast.ops.embedding import embedding_reference, sequence_embedding_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPSILON = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def case(lengths: list[int], items: int, dim: int, positions: int = 40) -> list[Tensor]:
    """weight, ids (few are frequent), positions, offsets."""
    generator = torch.Generator().manual_seed(sum(lengths) + items + dim)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = int(offsets[-1])
    ids = (torch.rand(tokens, generator=generator) ** 3 * items).long()
    weight = torch.randn(items, dim, generator=generator)
    return [weight, ids, torch.randn(positions, dim, generator=generator), offsets]


def with_gradients(
    function: Any, tensors: list[Tensor], dtype: torch.dtype, p: float
) -> list[Tensor]:
    """Output and gradients of both tables in ``dtype``, of numbers that float16 can hold."""
    weight, ids, positions, offsets = tensors
    weight, positions = (
        t.half().bfloat16().to(dtype).requires_grad_() for t in (weight, positions)
    )
    out = function(weight, ids, positions, offsets, dropout=p, seed=7)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad(out, (weight, positions), upstream.half().bfloat16().to(dtype))
    return [out.detach(), *gradients]


def check(tensors: list[Tensor], dtype: torch.dtype, p: float) -> None:
    """Error at most twice that of torch in the type (five times for gradients of float32)."""
    exact = with_gradients(sequence_embedding_reference, tensors, torch.float64, p)
    theirs = with_gradients(sequence_embedding_reference, tensors, dtype, p)
    found = with_gradients(sequence_embedding, tensors, dtype, p)
    for number, (mine, other, truth) in enumerate(zip(found, theirs, exact, strict=True)):
        assert mine.dtype == dtype
        assert mine.shape == truth.shape
        if not truth.numel():
            continue
        factor = 5 if number and dtype == torch.float32 else 2
        limit = factor * float((other.double() - truth).abs().max())
        # torch may be exact by chance; one rounding of the largest number is always allowed
        limit += EPSILON[dtype] * float(truth.abs().max())
        assert float((mine.double() - truth).abs().max()) <= limit, ("out", "table", "place")[
            number
        ]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 3, 8, 33, 64, 300])
def test_is_as_exact_as_torch(dim: int, dtype: torch.dtype, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    check(case([0, 1, 31, 5, 40, 0, 17], 11, dim), dtype, 0.3)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=40),
    items=st.integers(1, 50),
    dim=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    p=st.sampled_from([0.0, 0.5]),
    order=st.integers(0, 9),
)
def test_at_any_size(
    emulated: Any,
    lengths: list[int],
    items: int,
    dim: int,
    dtype: torch.dtype,
    p: float,
    order: int,
) -> None:
    emulated.set_order(order)
    check(case(lengths, items, dim), dtype, p)


def test_a_plain_table_and_its_types_of_ids() -> None:
    weight = torch.randn(10, 4, requires_grad=True)
    ids = torch.tensor([[3, 9, 3], [0, 3, 3]], dtype=torch.int32)
    out = embedding(weight, ids)
    assert torch.equal(out, weight[ids.long()])
    assert embedding(weight, ids[:0]).shape == (0, 3, 4)
    (gradient,) = torch.autograd.grad(out.sum(), weight)
    assert torch.equal(gradient[:, 0], torch.bincount(ids.flatten().long(), minlength=10).float())
    (empty,) = torch.autograd.grad(embedding(weight, ids[:0]).sum(), weight)
    assert not empty.any()


def test_one_frequent_id_over_many_blocks() -> None:
    tensors = case([40] * 12, 3, 16)
    tensors[1][5:470] = 1
    for dtype in DTYPES:
        check(tensors, dtype, 0.0)


def test_the_sums_in_order_are_the_same_bits_in_any_order_of_threads(emulated: Any) -> None:
    tensors, found = case([40] * 20, 7, 24), []
    for seed in range(4):
        emulated.set_order(seed)
        found.append(with_gradients(sequence_embedding, tensors, torch.float32, 0.2))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_dropout_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = case([9, 0, 30], 50, 17)
    mine = sequence_embedding(*tensors, dropout=0.4, seed=-5)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "native")
    assert torch.equal(mine, sequence_embedding(*tensors, dropout=0.4, seed=-5))


def test_numbers_outside_the_tables_touch_no_memory() -> None:
    """The host does not look at them: NaN comes out, nothing is added."""
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        around = torch.zeros(30, 8)
        weight = around[10:20].requires_grad_()
        ids = torch.tensor([2, -1, 10, 1 << 40, -(1 << 40), 9])
        out = torch.ops.seqrec_fast.embedding(weight, ids, None, None, 0.0, None)
        assert out.isnan().all(1).tolist() == [False, True, True, True, True, False]
        (gradient,) = torch.autograd.grad(out, weight, torch.ones_like(out))
        assert gradient[:, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 1]


def test_launches_and_bytes(emulated: Any) -> None:
    """Everything is read once: the tables' rows, the ids and the offsets' path apart."""
    weight, ids, positions, offsets = case([40] * 30, 500, 64)
    emulated.take_launches()
    watched = [(t.data_ptr(), t.numel() * t.element_size()) for t in (weight, positions, ids)]
    emulated.start_counting(watched)
    out = sequence_embedding(weight, ids, positions, offsets)
    everything, table, places, numbers = emulated.stop_counting()
    moved = out.numel() * 4
    assert (table[1], places[1], numbers[1]) == (moved, moved, ids.numel() * 8)
    assert everything[3] == moved
    assert [entry[0] for entry in emulated.take_launches()] == ["embedding_gather"]

    weight.requires_grad_()
    positions.requires_grad_()
    out = sequence_embedding(weight, ids, positions, offsets)
    upstream = torch.ones_like(out)
    emulated.take_launches()
    emulated.start_counting([(upstream.data_ptr(), moved)])
    torch.autograd.grad(out, (weight, positions), upstream)
    _, gradient = emulated.stop_counting()
    assert gradient[1] == 2 * moved  # once for either table
    names = [entry[0] for entry in emulated.take_launches()]
    assert names == ["embedding_scatter_runs", "embedding_scatter_join", "embedding_positions_sum"]


def test_registered_operator() -> None:
    weight, ids, positions, offsets = case([3, 0, 2], 5, 4)
    weight.requires_grad_()
    positions.requires_grad_()
    operator = torch.ops.seqrec_fast.embedding.default
    torch.library.opcheck(operator, (weight, ids, positions, offsets, 0.3, torch.tensor([4])))
    torch.library.opcheck(operator, (weight, ids, None, None, 0.0, None))


def test_reference_keeps_double(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="float32, float16 and bfloat16 on a GPU"):
        embedding(weight, torch.tensor([1]))
    monkeypatch.delenv("SEQREC_FAST_BACKEND")
    assert torch.equal(
        embedding(weight, torch.tensor([1])), embedding_reference(weight, torch.tensor([1]))
    )
