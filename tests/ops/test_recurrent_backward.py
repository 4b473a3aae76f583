# SPDX-License-Identifier: Apache-2.0
"""The recurrent gradients against float64 on every instruction set; torch's float32 is the bar."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqrec_fast import _C, native, nn
from seqrec_fast.errors import InputError
from seqrec_fast.ops import _recurrent_native, recurrent
from seqrec_fast.ops.recurrent import CELLS, recurrent_reference
from tests.ops.judge import ISAS

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Layer:
    """Random arguments of one layer by name, and random gradients of its results."""

    def __init__(
        self,
        cell: Any,
        lengths: list[int],
        inputs: int,
        hidden: int,
        *,
        bias: bool = True,
        state: bool = True,
        activation: Any = "tanh",
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        gates, bound, states = CELLS[cell] * hidden, hidden**-0.5, 1 + (cell == "lstm")
        self.cell, self.activation = cell, activation
        self.offsets = torch.tensor([0, *lengths]).cumsum(0)
        self.arguments = {
            "x": draw(sum(lengths), inputs),
            "weight_ih": draw(gates, inputs) * bound,
            "weight_hh": draw(gates, hidden) * bound,
        }
        if bias:
            self.arguments |= {n: draw(gates) * bound for n in ("bias_ih", "bias_hh")}
        if state:
            self.arguments |= {n: draw(len(lengths), hidden) for n in ("h0", "c0")[:states]}
        shapes = [(sum(lengths), hidden), *[(len(lengths), hidden)] * states]
        self.given = [draw(*shape) for shape in shapes]

    def run(self, function: Callable[..., Any], arguments: dict[str, Tensor]) -> list[Tensor]:
        state = tuple(arguments[n] for n in ("h0", "c0") if n in arguments)
        output, end = function(
            self.cell,
            arguments["x"],
            self.offsets,
            *(arguments.get(n) for n in WEIGHTS),
            state=state or None,
            cell_activation=self.activation,
        )
        return [output, *end]

    def gradients(
        self,
        function: Callable[..., Any],
        dtype: torch.dtype = torch.float32,
        parts: tuple[int, ...] | None = None,
        wanted: tuple[str, ...] | None = None,
    ) -> dict[str, Tensor]:
        """Of sum(result * given) over `parts` of the results (0: output, 1: h, 2: c)."""
        arguments = {
            name: tensor.detach().to(dtype).requires_grad_(wanted is None or name in wanted)
            for name, tensor in self.arguments.items()
        }
        found = self.run(function, arguments)
        parts = tuple(range(len(found))) if parts is None else parts
        loss = sum((found[i] * self.given[i].to(dtype)).sum() for i in parts)
        assert isinstance(loss, Tensor)
        if loss.requires_grad:  # the reference leaves the weights out where there are no tokens
            loss.backward()  # type: ignore[no-untyped-call]
        leaves = {n: t for n, t in arguments.items() if t.requires_grad}
        return {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in leaves.items()}

    def check(self, parts: tuple[int, ...] | None = None) -> None:
        """The 5x rule, with a floor of a few roundings where torch happens to have no error.

        What enters is of size one, and a gradient may be a small difference of such numbers.
        """
        exact = self.gradients(recurrent_reference, torch.float64, parts)
        theirs = self.gradients(recurrent_reference, torch.float32, parts)
        mine = self.gradients(recurrent, torch.float32, parts)
        for name, want in exact.items():
            assert mine[name].shape == want.shape
            if not want.numel():
                continue
            floor = 4 * 2.0**-24 * max(float(want.abs().max()), 1.0)
            allowed = 5 * float((theirs[name] - want).abs().max()) + floor
            assert float((mine[name] - want).abs().max()) <= allowed, name


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("cell", CELLS)
def test_is_as_exact_as_torch(isa: str, cell: str, activation: str) -> None:
    ragged = [3, 50, 0, 1, 17, 17, 2, 40, 9, 33, 5]
    for inputs, hidden in ((64, 64), (20, 100), (7, 33)):
        Layer(cell, ragged, inputs, hidden, activation=activation).check()
    Layer(cell, [30] * 20, 16, 48, state=False, activation=activation).check()
    Layer(cell, [200], 16, 64, bias=False, activation=activation).check()


@pytest.mark.parametrize("cell", CELLS)
def test_every_size(isa: str, cell: str) -> None:
    """Around every edge of vectors, groups and tiles, with few and with many rows."""
    for hidden, inputs in product((1, 5, 8, 15, 16, 17, 33, 65), (1, 7, 24, 49)):
        Layer(cell, [2, 3, 1], inputs, hidden).check()
    for rows in range(1, 27):
        Layer(cell, [2] * rows, 5, 20, state=rows % 2 == 0).check()


@given(
    lengths=st.lists(st.integers(0, 40) | st.integers(0, 1), max_size=20),
    cell=st.sampled_from(list(CELLS)),
    activation=st.sampled_from(["tanh", "sigmoid"]),
    bias=st.booleans(),
    state=st.booleans(),
    part=st.sampled_from([None, (0,), (1,)]),
    seed=st.integers(0, 3),
)
def test_any_lengths(
    lengths: list[int],
    cell: str,
    activation: str,
    bias: bool,
    state: bool,
    part: tuple[int, ...] | None,
    seed: int,
) -> None:
    layer = Layer(cell, lengths, 6, 18, bias=bias, state=state, activation=activation, seed=seed)
    before = native.build_info()["isa"]
    for name in ISAS:
        _C.use_isa(name)
        layer.check(part)
    _C.use_isa(before)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_one_result(isa: str, cell: str) -> None:
    layer = Layer(cell, [3, 0, 5, 1], 6, 18)
    for part in range(len(layer.given)):
        layer.check((part,))


@pytest.mark.parametrize("cell", CELLS)
def test_only_what_is_wanted(cell: str) -> None:
    layer = Layer(cell, [3, 0, 5, 1], 6, 18)
    everything = layer.gradients(recurrent)
    for name in layer.arguments:
        found = layer.gradients(recurrent, wanted=(name,))
        assert found.keys() == {name}
        assert torch.equal(found[name], everything[name])


@pytest.mark.parametrize("cell", CELLS)
def test_does_not_depend_on_the_number_of_threads(cell: str) -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 60, (300,), generator=generator).tolist()
    layer = Layer(cell, lengths, 32, 64)
    before = native.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 8):
            native.set_num_threads(1)  # the forward pass may round differently
            leaves = {n: t.clone().requires_grad_() for n, t in layer.arguments.items()}
            results = layer.run(recurrent, leaves)
            native.set_num_threads(threads)
            torch.autograd.backward(results, layer.given)
            found.append([t.grad for t in leaves.values()])
    finally:
        native.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_extremes(isa: str, cell: str) -> None:
    """Saturated gates have no gradient; a row of NaN leaves the inputs of others alone."""
    big = Layer(cell, [5, 3], 4, 17)
    big.arguments["x"] *= 1e5
    exact = big.gradients(recurrent_reference, torch.float64)
    held = 2.0**-36 * float(big.arguments["x"].abs().max())  # gates are held at 2^-40 and above
    for name, gradient in big.gradients(recurrent).items():
        torch.testing.assert_close(gradient.double(), exact[name], rtol=1e-5, atol=1e-6 + held)
    spoilt = Layer(cell, [4, 6, 3, 2, 2, 2, 2, 2], 4, 17)
    clean = spoilt.gradients(recurrent)["x"]
    spoilt.arguments["x"][5] = torch.nan
    found = spoilt.gradients(recurrent)["x"]
    assert found[5:10].isnan().all()
    others = [t for t in range(len(clean)) if not 4 <= t < 10]
    assert torch.equal(found[others], clean[others])


def test_backward_twice_and_gradients_of_gradients() -> None:
    layer = Layer("gru", [3, 0, 2], 4, 6)
    leaves = {n: t.requires_grad_() for n, t in layer.arguments.items()}
    weights = (leaves[n] for n in WEIGHTS)
    forward = torch.ops.seqrec_fast.recurrent_forward.default
    by_dispatcher = forward(leaves["x"], layer.offsets, *weights, leaves["h0"], None, 2, 0, True)[0]
    for output in (layer.run(recurrent, leaves)[0], by_dispatcher):
        first = torch.autograd.grad(output.sum(), list(leaves.values()), retain_graph=True)
        again = torch.autograd.grad(output.sum(), list(leaves.values()), create_graph=True)
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)
        with pytest.raises(InputError, match="no gradients of gradients"):
            again[0].sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("cell", range(3))
def test_operators_are_registered_soundly(cell: int) -> None:
    layer = Layer(_recurrent_native.CELL_NAMES[cell], [3, 0, 2], 4, 6)
    tensors = {n: t.requires_grad_() for n, t in layer.arguments.items()}
    x, offsets = tensors["x"], layer.offsets
    arguments = (*(tensors[n] for n in WEIGHTS), tensors["h0"], tensors.get("c0"), cell, 0)
    forward = torch.ops.seqrec_fast.recurrent_forward.default
    torch.library.opcheck(forward, (x, offsets, *arguments, True))
    with torch.no_grad():
        output, _, _, gates, cells, hn = forward(x, offsets, *arguments, True)
        states = (*layer.given, None)[:3]
        wanted = [True, True, True, True, cell == 2, True, cell == 1]
        for want in (wanted, [False] * 7):
            torch.library.opcheck(
                torch.ops.seqrec_fast.recurrent_backward.default,
                (
                    *states,
                    *(t.detach() for t in (x, offsets, tensors["weight_ih"], tensors["weight_hh"])),
                    tensors["h0"].detach(),
                    tensors["c0"].detach() if cell == 1 else None,
                    *(output, gates, cells, hn, cell, 0, want),
                ),
            )
    with pytest.raises(InputError, match="a gradient needs keep=True"):
        forward(x, offsets, *arguments, False)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_compiled_training_step(cell: str) -> None:
    module = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell](4, 6, 2, batch_first=True)
    x = torch.randn(3, 5, 4)

    def loss(x: Tensor) -> Tensor:
        found: Tensor = module(x)[0].square().sum()
        return found

    loss(x).backward()  # type: ignore[no-untyped-call]
    plain = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled(x).backward()
    assert len(plain) == 8
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])


def test_forced_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced or not, training runs on the kernels; the reference can be had, and is other code."""
    layer = Layer("lstm", [30, 0, 20], 24, 36)
    free = layer.gradients(recurrent)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "native")
    forced = layer.gradients(recurrent)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "reference")
    reference = layer.gradients(recurrent)
    direct = layer.gradients(recurrent_reference)
    for name, gradient in free.items():
        assert torch.equal(gradient, forced[name])
        assert torch.equal(reference[name], direct[name])
    assert any(not torch.equal(free[n], reference[n]) for n in free)


def test_views_and_broadcast_gradients() -> None:
    """Gradients that come expanded (of a sum) or transposed are read as they mean."""
    layer = Layer("gru", [3, 2], 6, 8)
    leaves = {n: t.requires_grad_() for n, t in layer.arguments.items()}
    names = list(leaves)

    def gradients(given: Tensor) -> tuple[Tensor, ...]:
        output = layer.run(recurrent, leaves)[0]
        return torch.autograd.grad(output, [leaves[n] for n in names], given)

    ones = gradients(torch.ones(5, 8))
    for a, b in zip(ones, gradients(torch.ones(1, 1).expand(5, 8)), strict=True):
        assert torch.equal(a, b)
    given_ = layer.given[0]
    for a, b in zip(gradients(given_), gradients(given_.T.contiguous().T), strict=True):
        assert torch.equal(a, b)
