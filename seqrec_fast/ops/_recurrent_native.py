# SPDX-License-Identifier: Apache-2.0
"""The native recurrent layer as an operator of torch; :mod:`seqrec_fast.ops.recurrent` calls it."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops import _recurrent_backward
from seqrec_fast.ops._library import register

__all__ = ["ACTIVATIONS", "CELL_NAMES", "forward"]

CELL_NAMES = ("rnn", "lstm", "gru")
ACTIVATIONS = ("tanh", "sigmoid")
_GATES = (1, 4, 3)
_LSTM, _GRU = 1, 2

#: output, h_end, c_end (lstm), and where they are kept: gates, cells (lstm), hn (gru)
Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _outputs(x: Tensor, rows: int, hidden: int, cell: int, keep: bool) -> Forward:
    """Memory of all results; empty where a cell has none, or nothing is kept for a gradient."""
    tokens = x.shape[0]
    gated = keep and cell != 0
    return (
        x.new_empty(tokens, hidden),
        x.new_empty(rows, hidden),
        x.new_empty(rows if cell == _LSTM else 0, hidden),
        x.new_empty(tokens if gated else 0, _GATES[cell] * hidden),
        x.new_empty(tokens if keep and cell == _LSTM else 0, hidden),
        x.new_empty(tokens if keep and cell == _GRU else 0, hidden),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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
    x, offsets = x.contiguous(), offsets.contiguous()
    w_ih, w_hh = w_ih.contiguous(), w_hh.contiguous()
    b_ih = None if b_ih is None else b_ih.contiguous()
    b_hh = None if b_hh is None else b_hh.contiguous()
    h0 = None if h0 is None else h0.contiguous()
    c0 = None if c0 is None else c0.contiguous()
    rows, hidden = offsets.shape[0] - 1, w_hh.shape[1]
    made = _outputs(x, rows, hidden, cell, keep)
    try:
        _C.recurrent_forward(
            cell,
            activation,
            x.shape[0],
            rows,
            x.shape[1],
            hidden,
            x.data_ptr(),
            offsets.data_ptr(),
            w_ih.data_ptr(),
            w_hh.data_ptr(),
            _address(b_ih),
            _address(b_hh),
            _address(h0),
            _address(c0),
            *(tensor.data_ptr() for tensor in made),
        )
    except ValueError as error:
        raise InputError(str(error)) from None
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
    return _outputs(x, offsets.shape[0] - 1, w_hh.shape[1], cell, keep)


_FORWARD = register(
    "recurrent_forward(Tensor x, Tensor offsets, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
    "Tensor? b_hh, Tensor? h0, Tensor? c0, int cell, int activation, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _cpu,
    _fake,
    backward=_recurrent_backward.backward,
    setup_context=_recurrent_backward.setup_context,
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

    Without a gradient, and where no graph is being traced, the dispatcher of torch has nothing to
    add: the kernel is then called directly.

    Returns:
        ``output``, ``h_end``, ``c_end``, and for the gradient ``gates``, ``cells``, ``hn``; those
        that the cell has not, or that are not kept, have no rows.
    """
    direct = not keep and type(x) is Tensor and not torch.compiler.is_compiling()
    run = _cpu if direct else _FORWARD
    made: Forward = run(x, offsets, w_ih, w_hh, b_ih, b_hh, h0, c0, cell, activation, keep)
    return made
