# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of recurrent layers, run on the CPU, against float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec_fast import JaggedBatch, nn
from seqrec_fast.errors import InputError
from seqrec_fast.ops import recurrent, recurrent_step
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
    # without tokens or states there is no way from any leaf to a result
    loss = sum((r * u.to(dtype)).sum() for r, u in zip(results, upstream, strict=True))
    loss = loss + sum(0 * t.sum() for t in leaves)
    gradients = torch.autograd.grad(loss, leaves)
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
    emulated.set_device(3, 12 << 10 if form == STREAMED else 99 << 10)
    check(cell, case(cell, RAGGED, 40), dtype)
    check(cell, case(cell, [2, 3, 0, 1], 136 if form == STREAMED else 33), dtype)
    names = [launched[0] for launched in emulated.take_launches()]
    assert names == ["recurrent_forward_kernel", "recurrent_backward_kernel"] * 2


@pytest.mark.parametrize("cell", CELLS)
def test_long_sums_are_as_exact_as_torch(cell: str, emulated: Any) -> None:
    """More products than may be added in a row."""
    emulated.set_device(6, 227 << 10)
    check(cell, case(cell, [3, 1, 2], 400), torch.float32)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_around_tiles(cell: str, activation: str) -> None:
    for hidden in (1, 2, 15, 17):
        for dtype in DTYPES:
            check(cell, case(cell, [2, 3, 1], hidden, bias=hidden != 2), dtype, activation)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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
    state: Any = tuple(given_[6:])
    output, final = recurrent(cell, *given_[:6], state=state)  # type: ignore[arg-type]
    stepped, after = recurrent_step(cell, given_[0], *given_[2:6], state=state)  # type: ignore[arg-type]
    assert torch.equal(stepped, output)
    assert all(torch.equal(a, b) for a, b in zip(after, final, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_module_steps_by_blocks_that_wait_for_nobody(
    made: type[Any], dtype: torch.dtype, emulated: Any
) -> None:
    module = made(5, 33, 2).to(dtype)
    x, rows = torch.randn(4, 3, 5).to(dtype), torch.arange(4)
    state = None
    with torch.no_grad():
        for event in x:
            want, after = module(JaggedBatch(event, rows), state)
            emulated.take_launches()
            h, state = module.step(event, state)
            launches = [
                (name, grid[0], waits) for name, grid, *_, waits in emulated.take_launches()
            ]
            # three warps of 16 units for 33, each a block
            assert launches == [("recurrent_forward_kernel", 3, False)] * 2
            assert torch.equal(h, want.values)
            pairs = zip(state, after, strict=True) if made is nn.LSTM else [(state, after)]
            assert all(torch.equal(a, b) for a, b in pairs)


def test_a_step_with_gradients_keeps_what_they_need(emulated: Any) -> None:
    module = nn.GRU(5, 18)
    out, _ = module.step(torch.randn(2, 5))
    out.sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    names = [launched[0] for launched in emulated.take_launches()]
    assert names == ["recurrent_forward_kernel", "recurrent_backward_kernel"]


def test_tf32_by_either_setting_of_torch() -> None:
    """One of them may not be asked once the other was used, so that it is used elsewhere."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch before 2.9 has one setting alone")
    code = """
import torch
from seqrec_fast.ops import recurrent
from tests.ops.cuda.test_recurrent import case
tensors = case("gru", [3, 1], 24)[:6]
exact = recurrent("gru", *tensors)[0]
torch.backends.cuda.matmul.fp32_precision = "tf32"
print(float((recurrent("gru", *tensors)[0] - exact).abs().max()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 2.0**-9


def test_operators_refuse_other_types() -> None:
    tensors = [
        t if t is None or t.dtype == torch.int64 else t.double() for t in case("gru", [2], 3)
    ]
    with pytest.raises(InputError, match="expected float32, float16 or bfloat16"):
        kernels.recurrent_forward(*tensors[:6], None, None, 2, 0, False)  # type: ignore[arg-type]


def test_a_layer_that_nothing_holds_is_refused(emulated: Any) -> None:
    emulated.set_device(1, 16 << 10)
    with pytest.raises(InputError, match="cannot hold a layer of 400 hidden units"):
        recurrent("rnn", *case("rnn", [2], 400)[:6])  # type: ignore[arg-type]
