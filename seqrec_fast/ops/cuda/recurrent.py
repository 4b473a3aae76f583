# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers on a GPU: one matrix product for all inputs, then one persistent kernel a layer.

Back through time likewise: one kernel leaves the gradients of all gate sums, and torch's products
make those of weights and inputs of them. The host looks at shapes alone; rows of any lengths are
taken up by the kernels as others end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.ops._backend import allows_tf32
from seqrec_fast.ops._library import address
from seqrec_fast.ops._recurrent_backward import GRU, LSTM, Gradients, empty_gradients
from seqrec_fast.ops._recurrent_native import Forward, empty_results
from seqrec_fast.ops.cuda._module import kernels_for, number, stream

__all__ = ["recurrent_backward", "recurrent_forward", "recurrent_step"]

#: 0, 1 or 2 for weights in one block, split over several, or partly streamed; -1: as they fit
FORM = -1


def recurrent_forward(
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
    """The operator ``recurrent_forward``; see :func:`seqrec_fast.ops.recurrent`."""
    rows = offsets.shape[0] - 1
    return _forward(x, offsets, rows, (w_ih, w_hh, b_ih, b_hh, h0, c0), cell, activation, keep)


def recurrent_step(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    cell: int,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One event of each row, ``x`` [rows, inputs]: output, ``h_end`` and ``c_end``.

    As ``recurrent_forward`` with rows of one token; the weights are read by as many blocks as there
    are units for, and no block waits for another.
    """
    tensors = (w_ih, w_hh, b_ih, b_hh, h0, c0)
    return _forward(x, None, x.shape[0], tensors, cell, activation, False)[:3]


def _forward(
    x: Tensor,
    offsets: Tensor | None,
    rows: int,
    tensors: tuple[Tensor | None, ...],
    cell: int,
    activation: int,
    keep: bool,
) -> Forward:
    x, offsets = x.contiguous(), _dense(offsets)
    w_ih, w_hh, b_ih, b_hh, h0, c0 = map(_dense, tensors)
    assert w_ih is not None
    assert w_hh is not None
    hidden = w_hh.shape[1]
    output, h_end, c_end, gates, cells, hn = empty_results(x, rows, hidden, cell, keep, gates=False)
    # the kernel reads the products of a token before it writes the gates there
    projected = torch.mm(x, w_ih.t())
    if keep and cell in (LSTM, GRU):
        gates = projected
    shape = (cell, _math(x), hidden, rows)
    single = offsets is None
    work = _workspace(x, (*shape, False, single))
    kernels_for(x).recurrent_forward(
        *shape,
        single,
        FORM,
        activation,
        x.shape[0],
        address(offsets),
        work.data_ptr(),
        work.shape[0],
        projected.data_ptr(),
        w_hh.data_ptr(),
        address(b_ih),
        address(b_hh),
        address(h0),
        address(c0),
        *(address(t) for t in (output, h_end, c_end, gates, cells, hn)),
        stream(x),
    )
    return output, h_end, c_end, gates, cells, hn


def recurrent_backward(
    d_output: Tensor | None,
    d_h_end: Tensor | None,
    d_c_end: Tensor | None,
    x: Tensor,
    offsets: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    hn: Tensor,
    cell: int,
    activation: int,
    wanted: list[bool],
) -> Gradients:
    """The operator ``recurrent_backward``."""
    read = [_dense(t) for t in (h0, c0, output, gates, cells, hn, d_output, d_h_end, d_c_end)]
    offsets, x = offsets.contiguous(), x.contiguous()
    rows, hidden, tokens = offsets.shape[0] - 1, w_hh.shape[1], x.shape[0]
    outer = w_hh.shape[0]
    # of a gru hn, r, z, n: the recurrent weights have the first three, the inputs' the last three
    extra = hidden if cell == GRU else 0
    d_gates = x.new_empty(tokens, outer + extra)
    recurrent, inner = d_gates[:, :outer], d_gates[:, extra:]
    dx, dw_ih, dw_hh, db_ih, db_hh, dh0, dc0 = empty_gradients(x, offsets, w_ih, w_hh, wanted)
    h_prev = x.new_empty(tokens if wanted[2] else 0, hidden)
    transposed = w_hh.t().contiguous()
    shape = (cell, _math(x), hidden, rows)
    work = _workspace(x, (*shape, True, False))
    kernels_for(x).recurrent_backward(
        *shape,
        False,
        FORM,
        activation,
        tokens,
        offsets.data_ptr(),
        work.data_ptr(),
        work.shape[0],
        transposed.data_ptr(),
        *map(address, read),
        *(address(t) for t in (d_gates, h_prev, dh0, dc0)),
        stream(x),
    )
    if wanted[0]:
        dx = torch.mm(inner, w_ih)
    if wanted[1]:
        dw_ih = torch.mm(inner.t(), x)
    if wanted[2]:
        dw_hh = torch.roll(torch.mm(recurrent.t(), h_prev), -extra, 0)
    if wanted[3]:
        db_ih = inner.sum(0)
    if wanted[4]:
        db_hh = torch.roll(recurrent.sum(0), -extra, 0)
    return dx, dw_ih, dw_hh, db_ih, db_hh, dh0, dc0


def _math(x: Tensor) -> int:
    """The number of a ``RecurrentMath`` in csrc/cuda."""
    kind = number(x.dtype)
    return kind + 1 if kind else int(allows_tf32())


def _workspace(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory for what blocks tell one another, and for weights that fit no multiprocessor."""
    size: int = kernels_for(x).recurrent_plan(*shape, FORM)[-1]
    return x.new_empty(size, dtype=torch.uint8)


def _dense(tensor: Tensor | None) -> Tensor | None:
    """A tensor whose rows lie together and begin where the widest loads may; copied at need."""
    if tensor is None:
        return None
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor
