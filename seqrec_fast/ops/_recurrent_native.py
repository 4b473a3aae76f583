# SPDX-License-Identifier: Apache-2.0
"""The native recurrent layer as an operator of torch; :mod:`seqrec_fast.ops.recurrent` calls it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.ops import _recurrent_backward
from seqrec_fast.ops._library import register
from seqrec_fast.ops._recurrent_backward import GRU, LSTM

__all__ = ["ACTIVATIONS", "CELL_NAMES", "Forward", "empty_results", "forward", "infer", "step"]

CELL_NAMES = ("rnn", "lstm", "gru")
ACTIVATIONS = ("tanh", "sigmoid")
_GATES = (1, 4, 3)

#: output, h_end, c_end (lstm), and where they are kept: gates, cells (lstm), hn (gru)
Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
#: output, h_end, c_end (lstm)
Step = tuple[Tensor, Tensor, Tensor]


def empty_results(
    x: Tensor, rows: int, hidden: int, cell: int, keep: bool, *, gates: bool = True
) -> Forward:
    """Memory of all results; empty where a cell has none, or nothing is kept for a gradient.

    Without ``gates`` there is none for these: the caller has it.
    """
    tokens = x.shape[0]
    gated = gates and keep and cell != 0
    return (
        x.new_empty(tokens, hidden),
        x.new_empty(rows, hidden),
        x.new_empty(rows if cell == LSTM else 0, hidden),
        x.new_empty(tokens if gated else 0, _GATES[cell] * hidden),
        # float32 whatever the type of x: sums of a whole row have gone into them
        x.new_empty(tokens if keep and cell == LSTM else 0, hidden, dtype=torch.float32),
        x.new_empty(tokens if keep and cell == GRU else 0, hidden),
    )


def _launch(
    x: Tensor,
    offsets: Tensor | None,
    rows: int,
    tensors: tuple[Tensor | None, ...],
    cell: int,
    activation: int,
    made: tuple[Tensor | None, ...],
    packing: _C.RecurrentPacking | None = None,
) -> None:
    # the list holds on to copies that `contiguous` may make until the kernel has read them
    dense = [None if t is None else t.contiguous() for t in (x, offsets, *tensors)]
    sizes = x.shape[0], rows, x.shape[1], tensors[1].shape[1]  # type: ignore[union-attr]
    addresses = [0 if t is None else t.data_ptr() for t in (*dense, *made)]
    arguments: tuple[Any, ...] = (cell, activation, *sizes, *addresses)
    _C.recurrent_forward(*arguments, packing=packing)


def _cpu(
    x: Tensor,
    offsets: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    cell: int,
    activation: int,
    keep: bool,
) -> Forward:
    rows = offsets.shape[0] - 1
    made = empty_results(x, rows, w_hh.shape[1], cell, keep)
    _launch(x, offsets, rows, (w_ih, w_hh, b_ih, b_hh, h0, c0), cell, activation, made)
    return made


def _fake(
    x: Tensor,
    offsets: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    cell: int,
    activation: int,
    keep: bool,
) -> Forward:
    return empty_results(x, offsets.shape[0] - 1, w_hh.shape[1], cell, keep)


_FORWARD = register(
    "recurrent_forward(Tensor x, Tensor offsets, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
    "Tensor? b_hh, Tensor? h0, Tensor? c0, int cell, int activation, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _cpu,
    _fake,
    backward=_recurrent_backward.backward,
    setup_context=_recurrent_backward.setup_context,
    gpu="cuda.recurrent:recurrent_forward",
)


def forward(
    x: Tensor,
    offsets: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    cell: int,
    activation: int,
    keep: bool,
) -> Forward:
    """One layer; shapes and dtypes have been checked.

    Returns:
        ``output``, ``h_end``, ``c_end``, and for the gradient ``gates``, ``cells``, ``hn``; those
        that the cell has not, or that are not kept, have no rows.
    """
    made: Forward = _FORWARD(x, offsets, w_ih, w_hh, b_ih, b_hh, h0, c0, cell, activation, keep)
    return made


def _step_cpu(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    cell: int,
    activation: int,
) -> Step:
    rows = x.shape[0]
    output, h_end, c_end, *_ = empty_results(x, rows, w_hh.shape[1], cell, False)
    made = (output, h_end, c_end if cell == LSTM else None, None, None, None)
    _launch(x, None, rows, (w_ih, w_hh, b_ih, b_hh, h0, c0), cell, activation, made)
    return output, h_end, c_end


def _step_fake(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    cell: int,
    activation: int,
) -> Step:
    return empty_results(x, x.shape[0], w_hh.shape[1], cell, False)[:3]


_STEP = register(
    "recurrent_step(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
    "Tensor? h0, Tensor? c0, int cell, int activation) -> (Tensor, Tensor, Tensor)",
    _step_cpu,
    _step_fake,
    gpu="cuda.recurrent:recurrent_step",
)


def step(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    cell: int,
    activation: int,
) -> Step:
    """One event of each row, ``x`` [rows, inputs]; shapes and dtypes have been checked.

    It has no gradient, keeps nothing and needs no offsets.
    """
    made: Step = _STEP(x, w_ih, w_hh, b_ih, b_hh, h0, c0, cell, activation)
    return made


def infer(
    x: Tensor,
    offsets: Tensor | None,
    rows: int,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    state: tuple[Tensor, ...],
    cell: int,
    activation: int,
    packing: _C.RecurrentPacking,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`forward` where no gradient is asked for, past the dispatcher of torch.

    Without ``offsets`` all rows have the same length. ``packing`` keeps the packed weights for the
    next call of the same layer.
    """
    hidden = weights[1].shape[1]
    output, h_end = x.new_empty(x.shape[0], hidden), x.new_empty(rows, hidden)
    c_end = x.new_empty(rows, hidden) if cell == LSTM else None
    h0, c0 = (*state, None, None)[:2]
    _launch(
        x,
        offsets,
        rows,
        (*weights, h0, c0),
        cell,
        activation,
        (output, h_end, c_end, None, None, None),
        packing,
    )
    return output, (h_end,) if c_end is None else (h_end, c_end)
