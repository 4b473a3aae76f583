# SPDX-License-Identifier: Apache-2.0
"""The gradient of the native recurrent layer: an operator of torch, and its place in autograd."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops._library import address, register

__all__ = ["GRU", "LSTM", "Gradients", "backward", "empty_gradients", "setup_context"]

#: codes of the cells, in the order of ``RecurrentCell`` in csrc
LSTM, GRU = 1, 2

#: dx, dw_ih, dw_hh, db_ih, db_hh (gru; that of the others equals db_ih), dh0, dc0 (lstm)
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def empty_gradients(
    x: Tensor, offsets: Tensor, w_ih: Tensor, w_hh: Tensor, wanted: list[bool]
) -> Gradients:
    """Memory of the gradients that are wanted; no rows where they are not."""
    rows, hidden = offsets.shape[0] - 1, w_hh.shape[1]
    d_x, d_w_ih, d_w_hh, d_b_ih, d_b_hh, d_h0, d_c0 = wanted
    return (
        x.new_empty(x.shape[0] if d_x else 0, x.shape[1]),
        x.new_empty(w_ih.shape[0] if d_w_ih else 0, w_ih.shape[1]),
        x.new_empty(w_hh.shape[0] if d_w_hh else 0, hidden),
        x.new_empty(w_hh.shape[0] if d_b_ih else 0),
        x.new_empty(w_hh.shape[0] if d_b_hh else 0),
        x.new_empty(rows if d_h0 else 0, hidden),
        x.new_empty(rows if d_c0 else 0, hidden),
    )


def _cpu(
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
    made = empty_gradients(x, offsets, w_ih, w_hh, wanted)
    # contiguous() may copy, and the copies must live until the kernel has read them
    read = [
        None if tensor is None else tensor.contiguous()
        for tensor in (x, offsets, w_ih, w_hh, h0, c0, output, gates, cells, hn)
    ]
    given = [None if t is None else t.contiguous() for t in (d_output, d_h_end, d_c_end)]
    _C.recurrent_backward(
        cell,
        activation,
        x.shape[0],
        offsets.shape[0] - 1,
        x.shape[1],
        w_hh.shape[1],
        *map(address, (*read, *given)),
        *(tensor.data_ptr() if want else 0 for tensor, want in zip(made, wanted, strict=True)),
    )
    return made


def _fake(
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
    return empty_gradients(x, offsets, w_ih, w_hh, wanted)


_BACKWARD = register(
    "recurrent_backward(Tensor? d_output, Tensor? d_h_end, Tensor? d_c_end, Tensor x, "
    "Tensor offsets, Tensor w_ih, Tensor w_hh, Tensor? h0, Tensor? c0, Tensor output, "
    "Tensor gates, Tensor cells, Tensor hn, int cell, int activation, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _cpu,
    _fake,
    gpu="cuda.recurrent:recurrent_backward",
)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Saves what :func:`backward` reads; arguments as of ``recurrent_forward``."""
    x, offsets, w_ih, w_hh, _, _, h0, c0, cell, activation, keep = inputs
    if not keep:
        raise InputError("recurrent_forward: a gradient needs keep=True")
    h_all, _, _, gates, cells, hn = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates, cells, hn)
    ctx.save_for_backward(x, offsets, w_ih, w_hh, h0, c0, h_all, gates, cells, hn)
    ctx.cell, ctx.activation = cell, activation


def backward(
    ctx: Any,
    d_output: Tensor | None,
    d_h_end: Tensor | None,
    d_c_end: Tensor | None,
    *_: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of all arguments of ``recurrent_forward``."""
    x, _, w_ih, w_hh, b_ih, b_hh, h0, c0, *_ = ctx.needs_input_grad
    gru = ctx.cell == GRU
    wanted = [x, w_ih, w_hh, b_ih or (b_hh and not gru), b_hh and gru, h0, c0]
    if ctx.cell != LSTM:
        d_c_end = None
    dx, dw_ih, dw_hh, db_ih, db_hh, dh0, dc0 = _BACKWARD(
        d_output,
        d_h_end,
        d_c_end,
        *ctx.saved_tensors,
        ctx.cell,
        ctx.activation,
        wanted,
    )
    return (
        dx if x else None,
        None,
        dw_ih if w_ih else None,
        dw_hh if w_hh else None,
        db_ih if b_ih else None,
        (db_hh if gru else db_ih) if b_hh else None,
        dh0 if h0 else None,
        dc0 if c0 else None,
        None,
        None,
        None,
    )
