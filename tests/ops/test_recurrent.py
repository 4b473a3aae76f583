# SPDX-License-Identifier: Apache-2.0
"""The recurrent reference against torch's own layers, against the formulas, and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast.errors import InputError
from seqrec_fast.ops import recurrent
from seqrec_fast.ops._rows import time_major
from seqrec_fast.ops.recurrent import CELLS

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=6)


def offsets_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def weights(cell: str, inputs: int, hidden: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gates = CELLS[cell] * hidden
    shapes: list[tuple[int, ...]] = [(gates, inputs), (gates, hidden), (gates,), (gates,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) * 0.5 for s in shapes]


def torch_layer(cell: str, w: list[torch.Tensor]) -> Any:
    layer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](
        w[0].shape[1], w[1].shape[1], dtype=torch.float64
    )
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer.load_state_dict(dict(zip(names, w, strict=True)))
    return layer


@pytest.mark.parametrize("cell", CELLS)
@given(lengths=LENGTHS, seed=st.integers(0, 5))
def test_equals_torch_row_by_row(cell: Any, lengths: list[int], seed: int) -> None:
    w = weights(cell, 3, 5, seed)
    layer = torch_layer(cell, w)
    offsets = offsets_of(lengths)
    x = torch.randn(int(offsets[-1]), 3, dtype=torch.float64)
    states = tuple(
        torch.randn(len(lengths), 5, dtype=torch.float64) for _ in range(2 if cell == "lstm" else 1)
    )
    output, final = recurrent(cell, x, offsets, *w, state=states)
    assert output.shape == (len(x), 5)
    for row, length in enumerate(lengths):
        begin, end = int(offsets[row]), int(offsets[row + 1])
        start = tuple(s[row][None, None] for s in states)
        if length == 0:
            for mine, given_state in zip(final, states, strict=True):
                assert torch.equal(mine[row], given_state[row])
            continue
        want, last = layer(x[begin:end, None], start if cell == "lstm" else start[0])
        torch.testing.assert_close(output[begin:end], want[:, 0], rtol=1e-10, atol=1e-12)
        for mine, theirs in zip(final, last if cell == "lstm" else (last,), strict=True):
            torch.testing.assert_close(mine[row], theirs[0, 0], rtol=1e-10, atol=1e-12)


def test_sigma_variant_follows_its_formulas() -> None:
    """Candidate and output pass through the logistic sigmoid in place of tanh."""
    sigma = torch.sigmoid
    x = torch.randn(1, 3, dtype=torch.float64)
    h, c = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    offsets = torch.tensor([0, 1])

    w_ih, w_hh, b_ih, b_hh = weights("rnn", 3, 4)
    got, _ = recurrent(
        "rnn", x, offsets, w_ih, w_hh, b_ih, b_hh, state=(h,), cell_activation="sigmoid"
    )
    torch.testing.assert_close(got, sigma(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh))

    w_ih, w_hh, b_ih, b_hh = weights("lstm", 3, 4)
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    cell = sigma(f) * c + sigma(i) * sigma(g)
    got, (_, got_cell) = recurrent(
        "lstm", x, offsets, w_ih, w_hh, b_ih, b_hh, state=(h, c), cell_activation="sigmoid"
    )
    torch.testing.assert_close(got_cell, cell)
    torch.testing.assert_close(got, sigma(o) * sigma(cell))

    w_ih, w_hh, b_ih, b_hh = weights("gru", 3, 4)
    a, b = (x @ w_ih.T + b_ih).chunk(3, 1), (h @ w_hh.T + b_hh).chunk(3, 1)
    r, z = sigma(a[0] + b[0]), sigma(a[1] + b[1])
    n = sigma(a[2] + r * b[2])
    got, _ = recurrent(
        "gru", x, offsets, w_ih, w_hh, b_ih, b_hh, state=(h,), cell_activation="sigmoid"
    )
    torch.testing.assert_close(got, (1 - z) * n + z * h)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell: Any, activation: Any) -> None:
    offsets = offsets_of([2, 0, 3, 1])
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    w = [t.requires_grad_() for t in weights(cell, 2, 3)]

    def run(x: torch.Tensor, *w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output, final = recurrent(cell, x, offsets, *w, cell_activation=activation)
        return (output, *final)

    assert torch.autograd.gradcheck(run, (x, *w))


def test_no_biases_and_no_tokens() -> None:
    w_ih, w_hh, _, _ = weights("gru", 3, 4)
    x = torch.randn(2, 3, dtype=torch.float64)
    zeros = torch.zeros(12, dtype=torch.float64)
    without, _ = recurrent("gru", x, torch.tensor([0, 2]), w_ih, w_hh)
    zero, _ = recurrent("gru", x, torch.tensor([0, 2]), w_ih, w_hh, zeros, zeros)
    torch.testing.assert_close(without, zero)
    empty, (final,) = recurrent("gru", x[:0], torch.tensor([0, 0, 0]), w_ih, w_hh)
    assert empty.shape == (0, 4)
    assert torch.equal(final, torch.zeros(2, 4, dtype=torch.float64))


@given(lengths=LENGTHS)
def test_the_plan_is_a_permutation_that_shrinks(lengths: list[int]) -> None:
    plan = time_major(offsets_of(lengths))
    tokens = sum(lengths)
    assert sorted(plan.to_time.tolist()) == list(range(tokens))
    assert plan.to_time[plan.to_row].tolist() == list(range(tokens))
    assert sum(plan.sizes) == tokens
    assert plan.sizes == sorted(plan.sizes, reverse=True)
    assert all(size > 0 for size in plan.sizes)


def test_clear_errors() -> None:
    w = weights("gru", 3, 4)
    x, offsets = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 2])
    with pytest.raises(InputError, match="cell: unknown cell 'mru'"):
        recurrent("mru", x, offsets, *w)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cell_activation: unknown activation 'relu'"):
        recurrent("gru", x, offsets, *w, cell_activation="relu")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="offsets: must run from 0 to the 2 tokens of x"):
        recurrent("gru", x, torch.tensor([0, 3]), *w)
    with pytest.raises(InputError, match="weight_ih: a lstm layer of 3 inputs"):
        recurrent("lstm", x, offsets, *w)
    with pytest.raises(InputError, match="state: a gru over 1 rows needs"):
        recurrent("gru", x, offsets, *w, state=(torch.zeros(2, 4, dtype=torch.float64),))
