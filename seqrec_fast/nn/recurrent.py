# SPDX-License-Identifier: Apache-2.0
"""RNN, LSTM and GRU modules with the names and ``state_dict`` of torch's, on jagged batches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.ops._library import needs_gradient, runs_directly
from seqrec_fast.ops._recurrent_native import ACTIVATIONS, CELL_NAMES, infer
from seqrec_fast.ops._rows import time_major
from seqrec_fast.ops.recurrent import (
    CELLS,
    Cell,
    CellActivation,
    backend_of,
    recurrent,
    recurrent_step,
)

__all__ = ["GRU", "LSTM", "RNN", "Recurrent"]

_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Recurrent(torch.nn.Module):
    """A stack of recurrent layers; use :class:`RNN`, :class:`LSTM` or :class:`GRU`.

    Parameters are named and laid out as in torch: ``weight_ih_l{k}``, ``weight_hh_l{k}``,
    ``bias_ih_l{k}``, ``bias_hh_l{k}``, so a ``state_dict`` of the torch module loads as it is. Two
    directions, projections of the hidden state and relu are not supported.
    """

    cell: Cell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        cell_activation: CellActivation = "tanh",
        bidirectional: bool = False,
        proj_size: int = 0,
        nonlinearity: str = "tanh",
    ) -> None:
        """Makes the layers, initialised uniformly in ``±1/sqrt(hidden_size)`` as torch's are.

        Args:
            input_size: width of an input.
            hidden_size: number of hidden units.
            num_layers: layers of the stack.
            bias: whether the layers have biases.
            batch_first: layout of padded input and output, ``[rows, time, ...]`` where True; it
                does not matter for jagged input.
            dropout: probability of dropping an output of every layer but the last, in training.
            cell_activation: ``"tanh"``, or ``"sigmoid"`` for the sigma variant.
            bidirectional: known to torch; only False is supported (a recommender reads forward).
            proj_size: known to torch; only 0 is supported.
            nonlinearity: known to torch; only ``"tanh"`` is supported.

        Raises:
            InputError: a size is below 1, or an option is unknown or not supported.
        """
        super().__init__()
        if bidirectional:
            raise InputError(
                "bidirectional: not supported, the layers read forward in time; use torch.nn"
            )
        if proj_size:
            raise InputError(f"proj_size: {proj_size} is not supported; use torch.nn.LSTM")
        if nonlinearity != "tanh":
            raise InputError(
                f"nonlinearity: {nonlinearity!r} is not supported; choose tanh, or the logistic "
                "sigmoid by cell_activation='sigmoid'"
            )
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if size < 1:
                raise InputError(f"{name}: must be at least 1, found {size}")
        if not 0.0 <= dropout < 1.0:
            raise InputError(f"dropout: must be in [0, 1), found {dropout}")
        if cell_activation not in ("tanh", "sigmoid"):
            raise InputError(
                f"cell_activation: unknown activation {cell_activation!r}; choose tanh or sigmoid"
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.cell_activation: CellActivation = cell_activation
        gates = CELLS[self.cell] * hidden_size
        for layer in range(num_layers):
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (gates, input_size if layer == 0 else hidden_size),
                "weight_hh": (gates, hidden_size),
            }
            if bias:
                shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_l{layer}", torch.nn.Parameter(torch.empty(shape)))
        self._names = [
            tuple(f"{name}_l{layer}" for name in _WEIGHTS[: 4 if bias else 2])
            for layer in range(num_layers)
        ]
        # what inference keeps between calls, a layer each
        self._packings = [_C.RecurrentPacking() for _ in range(num_layers)]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every parameter uniformly in ``±1/sqrt(hidden_size)``."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        """Runs the stack over jagged or padded input.

        Args:
            x: a :class:`JaggedBatch` with values ``[tokens, input_size]``, or a padded tensor
                ``[time, rows, input_size]`` (``[rows, time, input_size]`` with ``batch_first``)
                in which every row has the full length.
            state: initial ``h`` (for the LSTM ``(h, c)``), each ``[layers, rows, hidden]``; zeros
                where None.

        Returns:
            Output of the last layer in the form of the input, and the final state, each tensor
            ``[layers, rows, hidden]``.

        Raises:
            InputError: shapes do not fit.
        """
        if isinstance(x, JaggedBatch):
            if not x.is_torch:
                raise InputError("x: holds numpy arrays; call its to_torch() first")
            if x.values.ndim != 2:
                raise InputError(
                    f"x: expected values [tokens, input_size], found {tuple(x.values.shape)}"
                )
            values, end = self._layers(x.values, x.offsets, len(x), state)
            return x.with_values(values), end
        if not isinstance(x, Tensor) or x.ndim != 3:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"x: expected a JaggedBatch or three dimensions, found {found}")
        dense = x if self.batch_first else x.transpose(0, 1)
        rows, time, width = dense.shape
        values, end = self._layers(dense.reshape(rows * time, width), None, rows, state)
        padded = values.reshape(rows, time, self.hidden_size)
        return (padded if self.batch_first else padded.transpose(0, 1)), end

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Advances every row by one event: what a server does when an event arrives.

        Args:
            x: ``[rows, input_size]``, one event a row.
            state: ``h`` (for the LSTM ``(h, c)``) before it, each ``[layers, rows, hidden]``, as
                :meth:`forward` and this method return it; zeros where None.

        Returns:
            The hidden state of the last layer ``[rows, hidden]``, and the state after the event.

        Raises:
            InputError: shapes do not fit.
        """
        if x.ndim != 2:
            raise InputError(f"x: expected [rows, input_size], found {tuple(x.shape)}")
        return self._layers(x, None, x.shape[0], state)

    def _layers(
        self, values: Tensor, offsets: Tensor | None, rows: int, state: Any
    ) -> tuple[Tensor, Any]:
        """All layers over ``rows`` rows; without ``offsets`` they are of the same length."""
        pair = self.cell == "lstm"
        given = None if state is None else (tuple(state) if pair else (state,))
        if given is not None:
            if not all(isinstance(part, Tensor) for part in given):
                raise InputError(
                    f"state: expected {'tensors (h, c)' if pair else 'one tensor h'}, found "
                    f"{[type(part).__name__ for part in given]}"
                )
            shape = (self.num_layers, rows, self.hidden_size)
            if len(given) != 1 + pair or any(tuple(s.shape) != shape for s in given):
                raise InputError(
                    f"state: expected {'(h, c), each' if pair else 'h'} {list(shape)}, "
                    f"found {[tuple(s.shape) for s in given]}"
                )
        if values.shape[1] != self.input_size:
            raise InputError(f"x: expected {self.input_size} inputs, found {values.shape[1]}")
        weights = [self._weights(layer) for layer in range(self.num_layers)]
        flat = [w for one in weights for w in one]
        present = [t for t in (*flat, *(given or ())) if t is not None]
        backend = backend_of(values)
        differentiated = needs_gradient(values, *flat, *(given or ()))
        # past the dispatcher of torch where nothing is asked of it
        direct = (
            backend == "native"
            and not differentiated
            and runs_directly(values, *present)
            and _all_native(*present)
            and (offsets is None or offsets.is_cpu)
        )
        codes = (CELL_NAMES.index(self.cell), ACTIVATIONS.index(self.cell_activation))
        # one event a row, for which there are kernels of their own
        single = (
            not (direct or differentiated)
            and backend != "reference"
            and offsets is None
            and values.shape[0] == rows
        )
        plan = None
        if not (direct or single):
            if offsets is None:
                length = values.shape[0] // max(rows, 1)
                offsets = torch.arange(rows + 1, device=values.device) * length
            plan = time_major(offsets) if backend == "reference" else None
        finals = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                values = torch.nn.functional.dropout(values, self.dropout, self.training)
            begin = None if given is None else tuple(s[layer] for s in given)
            if direct:
                values, final = infer(
                    values,
                    offsets,
                    rows,
                    weights[layer],
                    begin or (),
                    *codes,
                    self._packings[layer],
                )
            elif single:
                values, final = recurrent_step(
                    self.cell,
                    values,
                    *weights[layer],
                    state=begin,
                    cell_activation=self.cell_activation,
                )
            else:
                assert offsets is not None
                values, final = recurrent(
                    self.cell,
                    values,
                    offsets,
                    *weights[layer],
                    state=begin,
                    cell_activation=self.cell_activation,
                    plan=plan,
                )
            finals.append(final)
        if self.num_layers == 1:
            stacked = tuple(part.unsqueeze(0) for part in finals[0])
        else:
            stacked = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        return values, stacked if pair else stacked[0]

    def _weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        plain = self._parameters
        # a parametrized weight is an attribute that is computed
        found: tuple[Any, ...] = tuple(
            [plain[name] if name in plain else getattr(self, name) for name in self._names[layer]]
        )
        # the kernels read by the sizes of the module, whatever has been put in place of a parameter
        hidden, gates = self.hidden_size, CELLS[self.cell] * self.hidden_size
        inputs = hidden if layer else self.input_size
        shapes = [(gates, inputs), (gates, hidden), (gates,), (gates,)]
        if [None if w is None else w.shape for w in found] != shapes[: len(found)]:
            for name, weight, shape in zip(self._names[layer], found, shapes, strict=False):
                if weight is None or weight.shape != shape:
                    raise InputError(
                        f"{name}: expected {list(shape)}, found "
                        f"{None if weight is None else tuple(weight.shape)}"
                    )
        return found if self.bias else (*found, None, None)

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"dropout={self.dropout}, cell_activation={self.cell_activation!r}"
        )


def _all_native(*tensors: Tensor | None) -> bool:
    for tensor in tensors:
        if tensor is not None and not (tensor.dtype is torch.float32 and tensor.is_cpu):
            return False
    return True


class RNN(Recurrent):
    """Elman RNN; drop-in for ``torch.nn.RNN`` (tanh), also on jagged batches."""

    cell: Cell = "rnn"


class LSTM(Recurrent):
    """LSTM; drop-in for ``torch.nn.LSTM`` (one direction), also on jagged batches."""

    cell: Cell = "lstm"


class GRU(Recurrent):
    """GRU; drop-in for ``torch.nn.GRU`` (one direction), also on jagged batches."""

    cell: Cell = "gru"
