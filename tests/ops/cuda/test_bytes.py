# SPDX-License-Identifier: Apache-2.0
"""Bytes that the CUDA kernels load and store, counted, against the formulas of docs/gpu.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from seqrec_fast.benchmarks import shapes
from seqrec_fast.benchmarks.gpu_model import work
from seqrec_fast.ops import decode_attention, embedding, recurrent, score_topk
from seqrec_fast.ops.cuda import recurrent as kernels
from seqrec_fast.ops.recurrent import CELLS
from tests.ops.cuda.test_recurrent import SPLIT, STREAMED, WHOLE, case

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROWS, TIME, INPUTS, HIDDEN = 3, 4, 5, 64
TOKENS = ROWS * TIME


class Moved(NamedTuple):
    """Bytes of all loads and stores, of the loads of some tensors, and blocks of each launch."""

    loaded: int
    stored: int
    of: list[int]
    blocks: list[int]


def moved(emulated: Any, call: Callable[[], Any], *tensors: Tensor) -> Moved:
    emulated.take_launches()
    emulated.start_counting([(t.data_ptr(), t.nbytes) for t in tensors])
    call()
    everything, *each = emulated.stop_counting()
    blocks = [grid[0] for _, grid, *_ in emulated.take_launches()]
    return Moved(everything[1], everything[3], [counter[1] for counter in each], blocks)


def size_of(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


def layer(cell: str, dtype: torch.dtype) -> list[Any]:
    """Equal rows, without biases and states."""
    made = case(cell, [TIME] * ROWS, HIDDEN, INPUTS, bias=False)
    return [t if t is None or t.dtype == torch.int64 else t.to(dtype) for t in made[:6]]


def recurrent_model(cell: Any, dtype: torch.dtype) -> float:
    shape = shapes.RecurrentShape(cell, ROWS, TIME, HIDDEN, INPUTS)
    return work("recurrent", shape, str(dtype).removeprefix("torch."), False).bytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrent_layer(
    cell: Any, dtype: torch.dtype, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights once a block whatever the time steps, all else once."""
    monkeypatch.setattr(kernels, "FORM", WHOLE)
    emulated.set_device(1)
    gates, size = CELLS[cell], size_of(dtype)
    tensors = layer(cell, dtype)
    leaves = [t.requires_grad_() for t in tensors if t is not None and t.is_floating_point()]
    offsets, weight = tensors[1], tensors[3]
    results: list[Tensor] = []
    forward = moved(
        emulated, lambda: results.append(recurrent(cell, *tensors)[0]), offsets, weight.detach()
    )
    weights, states = gates * HIDDEN * HIDDEN * size, TOKENS * HIDDEN * size
    assert forward.of[1] == forward.blocks[0] * weights
    assert forward.loaded - sum(forward.of) == gates * states
    kept = {"rnn": 0, "lstm": gates * states + TOKENS * HIDDEN * 4, "gru": (gates + 1) * states}
    ends = ROWS * HIDDEN * size * (2 if cell == "lstm" else 1)
    assert forward.stored == states + ends + kept[cell]
    # with the product of the inputs, offsets, and biases, what the model counts
    product = size * (TOKENS * INPUTS + gates * HIDDEN * INPUTS)
    beside = ends + offsets.nbytes + 2 * gates * HIDDEN * size
    assert weights + states + product + beside == recurrent_model(cell, dtype)

    upstream = torch.ones_like(results[0])
    backward = moved(
        emulated, lambda: torch.autograd.grad(results[0], leaves, upstream), offsets, upstream
    )
    assert backward.of[1] == states
    before = (TOKENS - ROWS) * HIDDEN * size
    read = {"rnn": states, "lstm": gates * states + TOKENS * HIDDEN * 4, "gru": 4 * states}
    again = backward.blocks[0] * weights + states + before + read[cell]
    assert backward.loaded - backward.of[0] == again
    written = (gates + (cell == "gru")) * states
    assert backward.stored == written + states


@pytest.mark.parametrize("form", [SPLIT, STREAMED])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrent_layer_of_several_blocks(
    cell: Any, dtype: torch.dtype, form: int, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a part of the weights, and reads the states of all in every step but the first."""
    monkeypatch.setattr(kernels, "FORM", form)
    emulated.set_device(4, 99 << 10)
    tensors = layer(cell, dtype)
    gates, size = CELLS[cell], size_of(dtype)
    found = moved(emulated, lambda: recurrent(cell, *tensors), tensors[1], tensors[3])
    assert found.blocks == [4]
    assert found.of[1] == gates * HIDDEN * HIDDEN * size
    states = TOKENS * HIDDEN * size
    exchanged = 4 * (TOKENS - ROWS) * HIDDEN * size
    assert found.loaded - sum(found.of) == gates * states + exchanged


@pytest.mark.parametrize("cell", CELLS)
def test_streamed_weights_are_taken_from_the_table_once(
    cell: Any, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits no multiprocessor is read from a copy in every step."""
    monkeypatch.setattr(kernels, "FORM", STREAMED)
    emulated.set_device(4, 12 << 10)
    hidden = 400
    made = case(cell, [TIME] * ROWS, hidden, bias=False)[:6]
    tensors: list[Any] = [t.half() if t is not None and t.is_floating_point() else t for t in made]
    found = moved(emulated, lambda: recurrent(cell, *tensors), tensors[1], tensors[3])
    assert found.of[1] == tensors[3].nbytes
    states = TOKENS * hidden * 2
    plain = CELLS[cell] * states + found.blocks[0] * (TOKENS - ROWS) * hidden * 2
    streamed = found.loaded - sum(found.of) - plain
    assert 0 < streamed < TIME * tensors[3].nbytes
    assert streamed % TIME == 0


def test_topk(emulated: Any) -> None:
    """Of one tile of queries and one range of items."""
    shape = shapes.TopkShape(queries=5, items=300, dim=24, k=7)
    emulated.set_device(1)
    queries, items = torch.randn(5, 24), torch.randn(300, 24)
    results: list[Tensor] = []
    found = moved(emulated, lambda: results.extend(score_topk(queries, items, k=7)), queries, items)
    assert found.blocks == [1, 5]
    assert (
        sum(found.of) + sum(t.nbytes for t in results)
        == work("topk", shape, "float32", False).bytes
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_attention(dtype: torch.dtype, emulated: Any) -> None:
    """Of rows and heads enough for a launch."""
    shape = shapes.DecodeAttentionShape(rows=6, cached=90, heads=2, width=24)
    q, keys, values = (torch.randn(n, 2, 24).to(dtype) for n in (6, 540, 540))
    offsets = torch.arange(7) * 90
    found = moved(emulated, lambda: decode_attention(q, keys, values, offsets), q, keys, values)
    assert len(found.blocks) == 1
    # a query is read by each eight lanes of the block, from its cache after the first of them
    assert found.of == [16 * q.nbytes, keys.nbytes, values.nbytes]
    once = q.nbytes + keys.nbytes + values.nbytes + offsets.nbytes + found.stored
    name = str(dtype).removeprefix("torch.")
    assert once == work("decode_attention", shape, name, False).bytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: torch.dtype, emulated: Any) -> None:
    shape = shapes.EmbeddingShape(tokens=130, items=50, dim=24)
    weight, ids = torch.randn(50, 24).to(dtype), torch.randint(0, 50, (130,))
    found = moved(emulated, lambda: embedding(weight, ids), weight, ids)
    assert found.of == [130 * 24 * weight.element_size(), ids.nbytes]
    assert found.loaded == sum(found.of)
    name = str(dtype).removeprefix("torch.")
    assert found.loaded + found.stored == work("embedding", shape, name, False).bytes
