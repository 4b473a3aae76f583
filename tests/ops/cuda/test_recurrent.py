# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of recurrent layers, run on the CPU, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops import recurrent
from seqrec_fast.ops.cuda import recurrent as kernels
from seqrec_fast.ops.recurrent import CELLS, recurrent_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPSILON = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
WHOLE, SPLIT, STREAMED = 0, 1, 2
RAGGED = [3, 0, 1, 6, 2, 0, 9, 1, 4, 5, 1, 2]


def case(
    cell: str, lengths: list[int], hidden: int, inputs: int = 5, *, bias: bool = True
) -> list[Tensor | None]:
    """x, offsets, both weights, both biases, states; numbers that all types can hold."""
    generator = torch.Generator().manual_seed(sum(lengths) + 7 * hidden)
    outer, bound = CELLS[cell] * hidden, hidden**-0.5

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).bfloat16().half().float()

    made: list[Tensor | None] = [
        draw(sum(lengths), inputs),
        torch.tensor([0, *lengths]).cumsum(0),
        draw(outer, inputs, scale=bound),
        draw(outer, hidden, scale=bound),
        draw(outer, scale=bound) if bias else None,
        draw(outer, scale=bound) if bias else None,
    ]
    return made + [draw(len(lengths), hidden) for _ in range(1 + (cell == "lstm"))]


def with_gradients(
    function: Any, cell: str, tensors: list[Tensor | None], dtype: torch.dtype, activation: str
) -> list[Tensor]:
    """Output, last states and the gradients of everything, in ``dtype``."""
    given_ = [
        t.to(dtype).requires_grad_() if t is not None and t.is_floating_point() else t
        for t in tensors
    ]
    output, final = function(
        cell, *given_[:6], state=tuple(given_[6:]) or None, cell_activation=activation
    )
    results = [output, *final]
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(r.shape, generator=generator).bfloat16().half() for r in results]
    leaves = [t for t in given_ if t is not None and t.requires_grad]
    gradients = torch.autograd.grad(results, leaves, [u.to(dtype) for u in upstream])
    return [r.detach() for r in (*results, *gradients)]


def check(
    cell: str, tensors: list[Tensor | None], dtype: torch.dtype, activation: str = "tanh"
) -> None:
    """Error at most twice that of torch in the type (five times for gradients of float32)."""
    outputs = 3 if cell == "lstm" else 2
    exact = with_gradients(recurrent_reference, cell, tensors, torch.float64, activation)
    theirs = with_gradients(recurrent_reference, cell, tensors, dtype, activation)
    found = with_gradients(recurrent, cell, tensors, dtype, activation)
    for number, (mine, other, truth) in enumerate(zip(found, theirs, exact, strict=True)):
        assert mine.dtype == dtype
        assert mine.shape == truth.shape
        if not truth.numel():
            continue
        factor = 5 if number >= outputs and dtype == torch.float32 else 2
        limit = factor * float((other.double() - truth).abs().max())
        # torch may be exact by chance; a few roundings of the largest number are always allowed
        limit += 4 * EPSILON[dtype] * float(truth.abs().max())
        assert float((mine.double() - truth).abs().max()) <= limit, number


@pytest.mark.parametrize("form", [WHOLE, SPLIT, STREAMED])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_form_is_as_exact_as_torch(
    cell: str, dtype: torch.dtype, form: int, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "FORM", form)
    # so little shared memory that of a long layer something is left to be streamed
    emulated.set_device(3, 20 << 10 if form == STREAMED else 99 << 10)
    for hidden in (16, 33) if form == WHOLE else (40, 50):
        check(cell, case(cell, RAGGED, hidden), dtype)
    names = [launched[0] for launched in emulated.take_launches()]
    assert names == ["recurrent_forward_kernel", "recurrent_backward_kernel"] * 2


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_around_tiles(cell: str, activation: str) -> None:
    for hidden in (1, 2, 15, 17):
        for dtype in DTYPES:
            check(cell, case(cell, [2, 3, 1], hidden, bias=hidden != 2), dtype, activation)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(0, 9) | st.integers(0, 1), max_size=40),
    cell=st.sampled_from(list(CELLS)),
    dtype=st.sampled_from(DTYPES),
    state=st.booleans(),
    order=st.integers(1, 9),
)
def test_any_lengths(
    emulated: Any, lengths: list[int], cell: str, dtype: torch.dtype, state: bool, order: int
) -> None:
    emulated.set_order(order)
    emulated.set_device(2)
    tensors = case(cell, lengths, 18)
    check(cell, tensors if state else tensors[:6], dtype)


@pytest.mark.parametrize("cell", CELLS)
def test_tf32_where_it_is_asked_for(cell: str) -> None:
    tensors = case(cell, RAGGED, 24)
    before = torch.get_float32_matmul_precision()
    exact = with_gradients(recurrent_reference, cell, tensors, torch.float64, "tanh")
    torch.set_float32_matmul_precision("high")
    try:
        found = with_gradients(recurrent, cell, tensors, torch.float32, "tanh")
    finally:
        torch.set_float32_matmul_precision(before)
    errors = [float((m.double() - e).abs().max()) for m, e in zip(found, exact, strict=True)]
    # ten bits behind the point, over products of 24 numbers and nine steps
    limits = [2.0**-9 * (1 + float(e.abs().max())) for e in exact]
    assert all(error <= limit for error, limit in zip(errors, limits, strict=True))
    assert max(errors) > 2.0**-20, "float32 was computed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_is_a_row_of_one_token(cell: str, dtype: torch.dtype) -> None:
    tensors = case(cell, [1] * 11, 33)
    given_ = [t if t is None or t.dtype == torch.int64 else t.to(dtype) for t in tensors]
    state = given_[6:]
    output, final = recurrent(cell, *given_[:6], state=tuple(state))  # type: ignore[arg-type]
    code = list(CELLS).index(cell)
    stepped = kernels.recurrent_step(given_[0], *given_[2:6], *[*state, None][:2], code, 0)
    assert torch.equal(stepped[0], output)
    assert torch.equal(stepped[1], final[0])


@pytest.mark.parametrize("backward", [False, True])
def test_weights_are_read_once_a_block(emulated: Any, backward: bool) -> None:
    """However many time steps there are."""
    rows, hidden = 3, 32
    counts = []
    for length in (1, 7):
        tensors = case("lstm", [length] * rows, hidden)
        weight = tensors[3]
        assert weight is not None
        emulated.take_launches()
        region = (weight.data_ptr(), weight.numel() * 4)
        emulated.start_counting([region])
        if backward:
            with_gradients(recurrent, "lstm", tensors, torch.float32, "tanh")
        else:
            recurrent("lstm", *tensors[:6])  # type: ignore[arg-type]
        counts.append(emulated.stop_counting()[1][1])
        blocks = emulated.take_launches()[0][1][0]
        assert blocks == rows
        if not backward:
            assert counts[-1] == blocks * region[1]
    assert counts[0] == counts[1]


def test_a_layer_that_nothing_holds_is_refused(emulated: Any) -> None:
    emulated.set_device(1, 16 << 10)
    with pytest.raises(InputError, match="cannot hold a layer of 400 hidden units"):
        recurrent("rnn", *case("rnn", [2], 400)[:6])  # type: ignore[arg-type]
