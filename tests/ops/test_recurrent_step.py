# SPDX-License-Identifier: Apache-2.0
"""A single event of every row, as an operation and an operator of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seqrec_fast import nn
from seqrec_fast.errors import InputError
from seqrec_fast.ops import recurrent, recurrent_step
from seqrec_fast.ops._recurrent_native import ACTIVATIONS, CELL_NAMES
from seqrec_fast.ops.recurrent import CELLS

MODULES = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def event(cell: str, rows: int, *, bias: bool = True, state: bool = True) -> dict[str, Any]:
    """Arguments of a step: 5 inputs, 18 hidden units."""
    generator = torch.Generator().manual_seed(rows)
    gates = CELLS[cell] * 18

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    made: dict[str, Any] = {
        "cell": cell,
        "x": draw(rows, 5),
        "weight_ih": draw(gates, 5),
        "weight_hh": draw(gates, 18),
    }
    if bias:
        made |= {"bias_ih": draw(gates), "bias_hh": draw(gates)}
    if state:
        made["state"] = tuple(draw(rows, 18) for _ in range(1 + (cell == "lstm")))
    return made


def flat(result: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    return [result[0], *result[1]]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_is_a_layer_over_rows_of_one_token(
    cell: str, activation: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", backend)
    for rows, bias, state in ((0, True, True), (1, False, True), (9, True, False), (9, True, True)):
        given = event(cell, rows, bias=bias, state=state) | {"cell_activation": activation}
        found = flat(recurrent_step(**given))
        want = flat(recurrent(**given, offsets=torch.arange(rows + 1)))
        assert len(found) == 2 + (cell == "lstm")
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_the_layer(cell: str) -> None:
    given = event(cell, 7)
    found = []
    for function, more in ((recurrent_step, {}), (recurrent, {"offsets": torch.arange(8)})):
        leaves = {
            name: tuple(t.clone().requires_grad_() for t in value)
            if name == "state"
            else value.clone().requires_grad_()
            for name, value in given.items()
            if name != "cell"
        }
        wanted = [*(v for n, v in leaves.items() if n != "state"), *leaves["state"]]
        results = flat(function(cell, **leaves, **more))
        found.append(torch.autograd.grad(sum(r.square().sum() for r in results), wanted))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_is_an_operator_and_compiles(cell: str) -> None:
    given = event(cell, 4)
    h0, c0 = (*given["state"], None)[:2]
    weights = [given[k] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    operator = torch.ops.seqrec_fast.recurrent_step.default
    torch.library.opcheck(operator, (given["x"], *weights, h0, c0, CELL_NAMES.index(cell), 0))
    names: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Any:
        names.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    module = MODULES[cell](5, 18, 2)
    step = torch.compile(module.step, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    with torch.no_grad():
        state = None
        for _ in range(2):
            want, after = module.step(given["x"], state)
            found, state = step(given["x"], state)
            torch.testing.assert_close(found, want)
            torch.testing.assert_close(state, after)
    steps = [name for name in names if name.startswith("seqrec_fast.")]
    assert set(steps) == {"seqrec_fast.recurrent_step.default"}


def test_clear_errors() -> None:
    given = event("lstm", 3)
    with pytest.raises(InputError, match=r"x: expected \[rows, inputs\], found \(5,\)"):
        recurrent_step(**(given | {"x": torch.zeros(5)}))
    with pytest.raises(InputError, match=r"state: a lstm over 3 rows needs \(h, c\)"):
        recurrent_step(**(given | {"state": given["state"][:1]}))
    with pytest.raises(InputError, match=r"weight_hh: expected torch\.float32"):
        recurrent_step(**(given | {"weight_hh": given["weight_hh"].double()}))
    with pytest.raises(InputError, match="cell: unknown cell 'tanh'"):
        recurrent_step(**(given | {"cell": "tanh"}))
