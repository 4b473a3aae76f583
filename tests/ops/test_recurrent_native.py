# SPDX-License-Identifier: Apache-2.0
"""The recurrent kernels against float64 on every instruction set; torch's float32 sets the bar."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import _C, JaggedBatch, native, nn
from seqrec_fast.errors import InputError
from seqrec_fast.ops import _recurrent_native, recurrent
from seqrec_fast.ops.recurrent import CELLS, recurrent_reference
from tests.ops.judge import ISAS

ACTIVATIONS = ("tanh", "sigmoid")
Layer = dict[str, Any]


def layer(
    cell: str,
    lengths: list[int],
    inputs: int,
    hidden: int,
    *,
    bias: bool = True,
    state: bool = True,
    scale: float = 1.0,
    seed: int = 0,
) -> Layer:
    """Arguments of one layer, float32, scaled as torch initialises its layers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    gates, bound = CELLS[cell] * hidden, scale / hidden**0.5
    made: Layer = {
        "cell": cell,
        "x": draw(sum(lengths), inputs),
        "offsets": torch.tensor([0, *lengths]).cumsum(0),
        "weight_ih": draw(gates, inputs) * bound,
        "weight_hh": draw(gates, hidden) * bound,
    }
    if bias:
        made |= {"bias_ih": draw(gates) * bound, "bias_hh": draw(gates) * bound}
    if state:
        made["state"] = tuple(draw(len(lengths), hidden) for _ in range(1 + (cell == "lstm")))
    return made


def double(arguments: Layer) -> Layer:
    def convert(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(v.double() for v in value)
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if floating else value

    return {name: convert(value) for name, value in arguments.items()}


def flat(result: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    return [result[0], *result[1]]


def check(arguments: Layer, **options: Any) -> None:
    """The 2x rule, with a floor where torch happens to have no error.

    The floor is a few roundings of the largest number that enters or leaves the recurrence: a state
    may be a small difference of larger ones.
    """
    exact = flat(recurrent_reference(**double(arguments), **options))
    theirs = flat(recurrent_reference(**arguments, **options))
    mine = flat(recurrent(**arguments, **options))
    numbers = [t for t in (*exact, *arguments.get("state", ())) if t.numel()]
    floor = 4 * 2.0**-24 * max((float(t.abs().max()) for t in numbers), default=0.0)
    for m, t, e in zip(mine, theirs, exact, strict=True):
        assert m.shape == e.shape
        if not e.numel():
            continue
        allowed = 2 * float((t - e).abs().max()) + floor
        assert float((m - e).abs().max()) <= allowed


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_is_as_exact_as_torch(isa: str, cell: str, activation: str) -> None:
    ragged = [3, 50, 0, 1, 17, 17, 2, 40, 9, 33, 5]
    for inputs, hidden in ((64, 64), (20, 100), (7, 33)):
        check(layer(cell, ragged, inputs, hidden), cell_activation=activation)
    check(layer(cell, [30] * 20, 16, 48, state=False), cell_activation=activation)
    check(layer(cell, [12] * 9, 64, 300), cell_activation=activation)
    check(layer(cell, [200], 16, 64, bias=False), cell_activation=activation)


@pytest.mark.parametrize("cell", CELLS)
def test_every_size(isa: str, cell: str) -> None:
    """Around every edge of vectors and tiles, with few and with many rows."""
    sizes = (1, 3, 5, 8, 15, 16, 17, 33, 65)
    for hidden, inputs in product(sizes, (1, 4, 7)):
        check(layer(cell, [2, 3, 1], inputs, hidden))
    for rows in range(1, 20):
        check(layer(cell, [2] * rows, 5, 20, state=rows % 2 == 0))


@given(
    lengths=st.lists(st.integers(0, 40) | st.integers(0, 1), max_size=20),
    cell=st.sampled_from(list(CELLS)),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    state=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_lengths(
    lengths: list[int], cell: str, activation: str, bias: bool, state: bool, seed: int
) -> None:
    arguments = layer(cell, lengths, 6, 18, bias=bias, state=state, seed=seed)
    for name in ISAS:
        _C.use_isa(name)
        check(arguments, cell_activation=activation)


@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("cell", [0, 1, 2])
def test_what_is_kept_for_the_gradient(isa: str, cell: int, activation: int) -> None:
    """Gates, cells and U_n h + d_n of every token, by the formulas from the states before them."""
    name = _recurrent_native.CELL_NAMES[cell]
    for hidden in (16, 21):
        given_ = layer(name, [7, 1, 0, 12, 4], 5, hidden)
        h0, c0 = (*given_["state"], None)[:2]
        weights = [given_[k] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        places = (given_["x"], given_["offsets"], *weights, h0, c0, cell, activation)
        output, h_end, c_end, gates, cells, hn = _recurrent_native.forward(*places, keep=True)
        plain = _recurrent_native.forward(*places, keep=False)
        torch.testing.assert_close(output, plain[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(h_end, plain[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(c_end, plain[2], rtol=1e-5, atol=1e-6)
        if cell == 0:
            assert not gates.numel()
            continue
        ends = given_["offsets"].tolist()
        before_h, before_c = torch.empty_like(output), torch.empty_like(output)
        for row, (begin, end) in enumerate(pairwise(ends)):
            if begin < end:
                before_h[begin:end] = torch.cat([h0[row][None], output[begin : end - 1]])
                if cell == 1:
                    assert c0 is not None
                    before_c[begin:end] = torch.cat([c0[row][None], cells[begin : end - 1]])
        a = (given_["x"] @ weights[0].T + weights[2]).chunk(CELLS[name], 1)
        b = (before_h @ weights[1].T + weights[3]).chunk(CELLS[name], 1)
        phi = (torch.tanh, torch.sigmoid)[activation]
        close = {"rtol": 2e-5, "atol": 2e-6}
        if cell == 1:
            i, f, o = (torch.sigmoid(a[k] + b[k]) for k in (0, 1, 3))
            g = phi(a[2] + b[2])
            torch.testing.assert_close(gates, torch.cat([i, f, g, o], 1), **close)
            torch.testing.assert_close(cells, f * before_c + i * g, **close)
        else:
            r, z = (torch.sigmoid(a[k] + b[k]) for k in (0, 1))
            n = phi(a[2] + r * b[2])
            torch.testing.assert_close(gates, torch.cat([r, z, n], 1), **close)
            torch.testing.assert_close(hn, b[2], **close)


@pytest.mark.parametrize("cell", CELLS)
def test_extremes(isa: str, cell: str) -> None:
    """Sums of ten thousand saturate; denormals and NaN pass; rows do not touch one another."""
    for activation in ACTIVATIONS:
        big = layer(cell, [5, 3], 4, 17)
        big["x"] = big["x"] * 1e5
        check(big, cell_activation=activation)
        small = layer(cell, [5, 3], 4, 17, bias=False, state=False)
        small["x"] = small["x"] * 1e-42
        found = recurrent(**small, cell_activation=activation)[0]
        torch.testing.assert_close(
            found, recurrent_reference(**small, cell_activation=activation)[0], atol=1e-7, rtol=1e-6
        )
    spoilt = layer(cell, [4, 6, 3, 2, 2, 2, 2, 2], 4, 17)
    clean, _ = recurrent(**spoilt)
    spoilt["x"][5] = torch.nan
    found, ends = recurrent(**spoilt)
    assert found[5:10].isnan().all()
    assert ends[0][1].isnan().all()
    others = [t for t in range(len(clean)) if not 5 <= t < 10]
    assert torch.equal(found[others], clean[others])


@pytest.mark.parametrize("cell", CELLS)
def test_steps_one_by_one_equal_the_whole(isa: str, cell: str) -> None:
    module = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell](6, 18, 2, batch_first=True)
    x = torch.randn(5, 9, 6)
    with torch.no_grad():
        whole, whole_end = module(x)
        state = None
        for t in range(9):
            h, state = module.step(x[:, t], state)
            torch.testing.assert_close(h, whole[:, t], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state, whole_end, rtol=1e-5, atol=1e-6)
        first, _ = module(x[:, :4])
        torch.testing.assert_close(first, whole[:, :4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_threads_and_order_of_rows(isa: str, cell: str) -> None:
    """Many rows on several threads, and the rows of a batch in another order."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 60, (150,), generator=generator).tolist()
    arguments = layer(cell, lengths, 32, 64)
    before = native.get_num_threads()
    try:
        native.set_num_threads(1)
        one = flat(recurrent(**arguments))
        for threads in (2, 3, 8):
            native.set_num_threads(threads)
            for a, b in zip(one, flat(recurrent(**arguments)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    finally:
        native.set_num_threads(before)
    rows = torch.randperm(150, generator=generator)
    batch = JaggedBatch(arguments["x"], arguments["offsets"])
    moved = arguments | {
        "x": torch.cat([batch[int(r)] for r in rows]),
        "offsets": torch.tensor([0, *(lengths[int(r)] for r in rows)]).cumsum(0),
        "state": tuple(s[rows] for s in arguments["state"]),
    }
    _, ends = recurrent(**moved)
    for mine, whole in zip(ends, one[1:], strict=True):
        torch.testing.assert_close(mine, whole[rows], rtol=1e-5, atol=1e-6)


def test_module_paths_agree() -> None:
    """Padded, jagged and traced calls; no rows, no time; only one thing may differ: the route."""
    module = nn.LSTM(6, 18, 2)
    x = torch.randn(5, 3, 6)
    with torch.no_grad():
        want, (h, c) = module(x)
        offsets = torch.arange(4) * 5
        jagged, (h2, c2) = module(JaggedBatch(x.transpose(0, 1).reshape(15, 6), offsets))
        traced = torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0]
        torch.testing.assert_close(jagged.values.view(3, 5, 18).transpose(0, 1), want)
        torch.testing.assert_close((h2, c2), (h, c))
        torch.testing.assert_close(traced, want)
        assert module(torch.zeros(0, 3, 6))[0].shape == (0, 3, 18)
        assert module(torch.zeros(5, 0, 6))[1][0].shape == (2, 0, 18)
        with pytest.raises(InputError, match="x: expected 6 inputs, found 4"):
            module(torch.zeros(5, 3, 4))
        with pytest.raises(InputError, match=r"state: expected torch\.float32"):
            module(x, (torch.zeros(2, 3, 18).double(), torch.zeros(2, 3, 18).double()))
    reference, _ = module(x)  # with a gradient
    torch.testing.assert_close(reference.detach(), want)


def test_registered_operator_and_compiled_layer() -> None:
    for cell, keep in product(range(3), (False, True)):
        given_ = layer(_recurrent_native.CELL_NAMES[cell], [3, 0, 2], 4, 6)
        h0, c0 = (*given_["state"], None)[:2]
        weights = [given_[k] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        torch.library.opcheck(
            torch.ops.seqrec_fast.recurrent_forward.default,
            (given_["x"], given_["offsets"], *weights, h0, c0, cell, 0, keep),
        )
    given_ = layer("gru", [3, 0, 2], 4, 6)
    compiled = torch.compile(
        lambda x: recurrent(**(given_ | {"x": x}))[0] * 2, fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(given_["x"]), recurrent(**given_)[0] * 2)


def test_views_and_layouts() -> None:
    given_ = layer("lstm", [3, 2], 6, 8)
    want = flat(recurrent(**given_))
    wide = torch.zeros(5, 20)
    wide[:, 4:10] = given_["x"]
    moved = given_ | {
        "x": wide[:, 4:10],
        "weight_hh": given_["weight_hh"].T.contiguous().T,
        "state": tuple(s.T.contiguous().T for s in given_["state"]),
    }
    for a, b in zip(want, flat(recurrent(**moved)), strict=True):
        assert torch.equal(a, b)


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = layer("gru", [3, 2], 4, 6)
    native_result = recurrent(**given_)[0]
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "reference")
    assert torch.equal(recurrent(**given_)[0], recurrent_reference(**given_)[0])
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "native")
    assert torch.equal(recurrent(**given_)[0], native_result)
    with pytest.raises(InputError, match="recurrent has native kernels for float32"):
        recurrent(**double(given_))


def test_clear_errors() -> None:
    given_ = layer("gru", [3, 2], 4, 6)
    with pytest.raises(InputError, match="offsets: must run from 0 to the 5 tokens"):
        recurrent(**(given_ | {"offsets": torch.tensor([0, 3, 4])}))
    with pytest.raises(InputError, match="offsets: must not decrease"):
        recurrent(**(given_ | {"offsets": torch.tensor([0, 7, 5])}))
    with pytest.raises(InputError, match=r"weight_hh: expected torch\.float32"):
        recurrent(**(given_ | {"weight_hh": given_["weight_hh"].double()}))
    with pytest.raises(InputError, match=r"bias_hh: expected \[18\], found \(6,\)"):
        recurrent(**(given_ | {"bias_hh": torch.zeros(6)}))
    with pytest.raises(InputError, match="state: a gru over 2 rows"):
        recurrent(**(given_ | {"state": (torch.zeros(3, 6),)}))
    for options, message in (
        ({"bidirectional": True}, "bidirectional: not supported"),
        ({"proj_size": 3}, "proj_size: 3 is not supported"),
        ({"nonlinearity": "relu"}, "nonlinearity: 'relu' is not supported"),
    ):
        with pytest.raises(InputError, match=message):
            nn.RNN(4, 6, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"x: expected \[rows, input_size\]"):
        nn.RNN(4, 6).step(torch.zeros(4))
    with pytest.raises(InputError, match=r"state: expected h \[1, 2, 6\]"):
        nn.RNN(4, 6).step(torch.zeros(2, 4), torch.zeros(2, 6))
