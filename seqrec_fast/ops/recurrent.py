# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers (RNN, LSTM, GRU) over jagged batches: the definition, in plain torch.

Weights have torch's layout, so that a ``state_dict`` of ``torch.nn.RNN/LSTM/GRU`` fits. With ``x``
the input of a time step, ``h`` the hidden state and ``phi`` the cell's activation (tanh in the
textbook form, the logistic sigmoid in the sigma variant):

* RNN (Elman 1990): ``h' = phi(W x + b + U h + d)``
* LSTM (Hochreiter and Schmidhuber 1997, forget gate of Gers et al. 2000), gates i, f, g, o:
  ``c' = sigmoid(f) * c + sigmoid(i) * phi(g)``, ``h' = sigmoid(o) * phi(c')``
* GRU (Cho et al. 2014, reset gate after the product as in cuDNN), gates r, z, n:
  ``n = phi(W_n x + b_n + sigmoid(r) * (U_n h + d_n))``, ``h' = n + sigmoid(z) * (h - n)``

Rows are read longest first and time step by time step; a row that has ended leaves the batch, so
that no padding is ever computed. :func:`recurrent_reference` is the definition in plain torch, with
one matrix product for the inputs of all time steps; float32 on the CPU is computed by kernels that
turn the sums of a unit into its new state while they are in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops import _recurrent_native
from seqrec_fast.ops._autocast import compute_dtype, narrow
from seqrec_fast.ops._backend import Backend, choose_backend
from seqrec_fast.ops._checks import check_jagged, check_offsets
from seqrec_fast.ops._library import needs_gradient
from seqrec_fast.ops._rows import TimeMajor, permute_tokens, time_major

__all__ = [
    "CELLS",
    "Cell",
    "CellActivation",
    "recurrent",
    "recurrent_reference",
    "recurrent_step",
]

Cell = Literal["rnn", "lstm", "gru"]
CellActivation = Literal["tanh", "sigmoid"]
_Activation = Callable[[Tensor], Tensor]

#: number of gates of each cell, that is rows of a weight matrix per hidden unit
CELLS: dict[str, int] = {"rnn": 1, "lstm": 4, "gru": 3}


def recurrent(
    cell: Cell,
    x: Tensor,
    offsets: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    state: tuple[Tensor, ...] | None = None,
    cell_activation: CellActivation = "tanh",
    plan: TimeMajor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One recurrent layer over a jagged batch.

    Args:
        cell: ``"rnn"``, ``"lstm"`` or ``"gru"``.
        x: ``[tokens, inputs]``, rows end to end.
        offsets: int64 ``[rows + 1]``.
        weight_ih: ``[gates * hidden, inputs]``.
        weight_hh: ``[gates * hidden, hidden]``.
        bias_ih: ``[gates * hidden]`` or None.
        bias_hh: ``[gates * hidden]`` or None.
        state: initial hidden state ``(h,)`` or, for the LSTM, ``(h, c)``, each ``[rows, hidden]``;
            zeros where None.
        cell_activation: ``"tanh"``, or ``"sigmoid"`` for the sigma variant.
        plan: ``time_major(offsets)`` if it is at hand (layers of one stack share it); only the
            reference reads it.

    Returns:
        The hidden state after every event, ``[tokens, hidden]`` in the order of ``x``, and the
        state after the last event of each row, shaped like ``state``.

    Raises:
        InputError: shapes or dtypes do not fit, the cell or activation is unknown, or
            ``SEQREC_FAST_BACKEND`` forces a backend that cannot run.
    """
    x, weight_ih, weight_hh, bias_ih, bias_hh = narrow(x, weight_ih, weight_hh, bias_ih, bias_hh)
    state = None if state is None else narrow(*state)
    _check(cell, x, offsets, weight_ih, weight_hh, bias_ih, bias_hh, state, cell_activation)
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    if backend_of(x) == "reference":
        return recurrent_reference(
            cell, x, offsets, *weights, state=state, cell_activation=cell_activation, plan=plan
        )
    keep = needs_gradient(x, *weights, *(state or ()))
    h0, c0 = (*(state or ()), None, None)[:2]
    output, h_end, c_end, *_ = _recurrent_native.forward(
        x, offsets, *weights, h0, c0, *_codes(cell, cell_activation), keep=keep
    )
    return output, (h_end, c_end) if cell == "lstm" else (h_end,)


def recurrent_step(
    cell: Cell,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    state: tuple[Tensor, ...] | None = None,
    cell_activation: CellActivation = "tanh",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One event of every row: :func:`recurrent` with rows of one token each.

    On a GPU the weights are read by as many blocks as there are hidden units for, and no block
    waits for another. Where a gradient is asked for, :func:`recurrent` computes.

    Args:
        cell: ``"rnn"``, ``"lstm"`` or ``"gru"``.
        x: ``[rows, inputs]``, one event a row.
        weight_ih: ``[gates * hidden, inputs]``.
        weight_hh: ``[gates * hidden, hidden]``.
        bias_ih: ``[gates * hidden]`` or None.
        bias_hh: ``[gates * hidden]`` or None.
        state: the state before the event, ``(h,)`` or, for the LSTM, ``(h, c)``, each
            ``[rows, hidden]``; zeros where None.
        cell_activation: ``"tanh"``, or ``"sigmoid"`` for the sigma variant.

    Returns:
        The hidden state ``[rows, hidden]``, and the state after the event, shaped like ``state``.

    Raises:
        InputError: as :func:`recurrent` does.
    """
    x, weight_ih, weight_hh, bias_ih, bias_hh = narrow(x, weight_ih, weight_hh, bias_ih, bias_hh)
    state = None if state is None else narrow(*state)
    _check(cell, x, None, weight_ih, weight_hh, bias_ih, bias_hh, state, cell_activation)
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    if backend_of(x) == "reference" or needs_gradient(x, *weights, *(state or ())):
        offsets = torch.arange(x.shape[0] + 1, device=x.device)
        return recurrent(cell, x, offsets, *weights, state=state, cell_activation=cell_activation)
    h0, c0 = (*(state or ()), None, None)[:2]
    output, h_end, c_end = _recurrent_native.step(
        x, *weights, h0, c0, *_codes(cell, cell_activation)
    )
    return output, (h_end, c_end) if cell == "lstm" else (h_end,)


def _codes(cell: Cell, cell_activation: CellActivation) -> tuple[int, int]:
    """The numbers by which the kernels know them."""
    return (
        _recurrent_native.CELL_NAMES.index(cell),
        _recurrent_native.ACTIVATIONS.index(cell_activation),
    )


def backend_of(x: Tensor) -> Backend:
    """What :func:`recurrent` computes tensors such as this by."""
    return choose_backend("recurrent", x.device, compute_dtype(x))


def recurrent_reference(
    cell: Cell,
    x: Tensor,
    offsets: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    state: tuple[Tensor, ...] | None = None,
    cell_activation: CellActivation = "tanh",
    plan: TimeMajor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The definition of :func:`recurrent` in plain torch, for any floating dtype and device."""
    _check(cell, x, offsets, weight_ih, weight_hh, bias_ih, bias_hh, state, cell_activation)
    check_jagged("x", x, offsets)
    rows, hidden = offsets.shape[0] - 1, weight_hh.shape[1]
    plan = plan or time_major(offsets)
    if state is None:
        state = tuple(x.new_zeros(rows, hidden) for _ in range(2 if cell == "lstm" else 1))
    start = tuple(s.index_select(0, plan.order) for s in state)
    if not plan.sizes:
        return x.new_zeros(0, hidden), state
    projected = torch.nn.functional.linear(
        permute_tokens(x, plan.to_time, plan.to_row), weight_ih, bias_ih
    )
    inputs = torch.split(projected, plan.sizes)
    phi = torch.tanh if cell_activation == "tanh" else torch.sigmoid
    if cell == "lstm":
        hs, cs = _lstm(inputs, start[0], start[1], weight_hh, bias_hh, phi)
        tracks = [hs, cs]
    elif cell == "gru":
        tracks = [_gru(inputs, start[0], weight_hh, bias_hh, phi)]
    else:
        tracks = [_rnn(inputs, start[0], weight_hh, bias_hh, phi)]

    packed = [torch.cat(track) for track in tracks]
    output = permute_tokens(packed[0], plan.to_row, plan.to_time)
    back = torch.empty_like(plan.order)
    back[plan.order] = torch.arange(rows, device=plan.order.device)
    ran = (plan.last >= 0).unsqueeze(1)
    final = tuple(
        torch.where(ran, p.index_select(0, plan.last.clamp(min=0)), s).index_select(0, back)
        for p, s in zip(packed, start, strict=True)
    )
    return output, final


def _check(
    cell: str,
    x: Tensor,
    offsets: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    state: tuple[Tensor, ...] | None,
    cell_activation: str,
) -> None:
    """Refuses what does not fit, by shapes and dtypes alone (a traced graph has no values).

    Without ``offsets`` every row is one token.
    """
    if cell not in CELLS:
        raise InputError(f"cell: unknown cell {cell!r}; choose one of {', '.join(CELLS)}")
    if cell_activation not in ("tanh", "sigmoid"):
        raise InputError(
            f"cell_activation: unknown activation {cell_activation!r}; choose tanh or sigmoid"
        )
    if x.ndim != 2:
        kind = "rows" if offsets is None else "tokens"
        raise InputError(f"x: expected [{kind}, inputs], found {tuple(x.shape)}")
    if offsets is not None:
        check_offsets(offsets)
    hidden = weight_hh.shape[1] if weight_hh.ndim == 2 else 0
    gates = CELLS[cell] * hidden
    if weight_ih.shape != (gates, x.shape[1]) or weight_hh.shape != (gates, hidden) or not hidden:
        raise InputError(
            f"weight_ih: a {cell} layer of {x.shape[1]} inputs and {hidden} hidden units needs "
            f"[{gates}, {x.shape[1]}] and [{gates}, {hidden}], found {tuple(weight_ih.shape)} and "
            f"{tuple(weight_hh.shape)}"
        )
    for name, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None and bias.shape != (gates,):
            raise InputError(f"{name}: expected [{gates}], found {tuple(bias.shape)}")
    rows = x.shape[0] if offsets is None else offsets.shape[0] - 1
    parts = 2 if cell == "lstm" else 1
    if state is not None and (len(state) != parts or any(s.shape != (rows, hidden) for s in state)):
        raise InputError(
            f"state: a {cell} over {rows} rows needs {'(h, c)' if cell == 'lstm' else '(h,)'} of "
            f"[{rows}, {hidden}], found {[tuple(s.shape) for s in state]}"
        )
    for name, tensor in (
        ("offsets", offsets),
        ("weight_ih", weight_ih),
        ("weight_hh", weight_hh),
        ("bias_ih", bias_ih),
        ("bias_hh", bias_hh),
        *(("state", s) for s in state or ()),
    ):
        if tensor is None:
            continue
        if tensor.device != x.device or (tensor.dtype != x.dtype and name != "offsets"):
            raise InputError(
                f"{name}: expected {x.dtype if name != 'offsets' else torch.int64} on {x.device} "
                f"like x, found {tensor.dtype} on {tensor.device}; convert it"
            )


def _rnn(
    inputs: tuple[Tensor, ...], h: Tensor, u: Tensor, d: Tensor | None, phi: _Activation
) -> list[Tensor]:
    track = []
    for gate in inputs:
        h = phi(gate + torch.nn.functional.linear(h[: len(gate)], u, d))
        track.append(h)
    return track


def _lstm(
    inputs: tuple[Tensor, ...],
    h: Tensor,
    c: Tensor,
    u: Tensor,
    d: Tensor | None,
    phi: _Activation,
) -> tuple[list[Tensor], list[Tensor]]:
    hs, cs = [], []
    for gate in inputs:
        n = len(gate)
        i, f, g, o = (gate + torch.nn.functional.linear(h[:n], u, d)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c[:n] + torch.sigmoid(i) * phi(g)
        h = torch.sigmoid(o) * phi(c)
        hs.append(h)
        cs.append(c)
    return hs, cs


def _gru(
    inputs: tuple[Tensor, ...], h: Tensor, u: Tensor, d: Tensor | None, phi: _Activation
) -> list[Tensor]:
    track = []
    two = 2 * u.shape[1]
    for gate in inputs:
        h = h[: len(gate)]
        back = torch.nn.functional.linear(h, u, d)
        r, z = torch.sigmoid(gate[:, :two] + back[:, :two]).chunk(2, dim=1)
        candidate = phi(gate[:, two:] + r * back[:, two:])
        h = torch.lerp(candidate, h, z)
        track.append(h)
    return track
