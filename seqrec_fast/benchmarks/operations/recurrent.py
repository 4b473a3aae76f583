# SPDX-License-Identifier: Apache-2.0
"""RNN, LSTM and GRU layers, forward and with gradients, on equal and on ragged lengths."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from seqrec_fast import nn
from seqrec_fast.benchmarks import rivals
from seqrec_fast.benchmarks.case import OURS, STANDARD, Bar, Case, Direction, Outputs, Prepared
from seqrec_fast.benchmarks.ragged import Ragged
from seqrec_fast.benchmarks.shapes import RECURRENT, RecurrentShape
from seqrec_fast.jagged import JaggedBatch

__all__ = ["cases"]

_GATES = {"rnn": 1, "lstm": 4, "gru": 3}
#: forward: on one thread, on more, on one row, share of the peak of wide layers
_FORWARD = {
    "lstm": (1.25, 1.25, 1.9, 0.68),
    "gru": (1.7, 2.0, 2.3, 0.72),
    "rnn": (1.7, 1.7, 1.9, None),
}
_WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def cases() -> list[Case]:
    """Every shape in both directions."""
    directions: tuple[Direction, ...] = ("forward", "forward+backward")
    return [_case(shape, direction) for direction in directions for shape in RECURRENT]


def _bar(shape: RecurrentShape, direction: str) -> Bar:
    if direction == "forward+backward":
        return Bar() if shape.cell == "rnn" else Bar(ratio=2.0)
    one, more, single, share = _FORWARD[shape.cell]
    if shape.rows == 1:
        return Bar(ratio=single)
    return Bar(ratio=one, ratio_threads=more, share_of_peak=share if shape.hidden >= 128 else None)


def _case(shape: RecurrentShape, direction: Direction) -> Case:
    ragged = Ragged(shape.lengths, shape.rows, shape.time)
    gates = _GATES[shape.cell] * shape.hidden
    weights = gates * (shape.inputs + shape.hidden + 2)
    passes = 3 if direction == "forward+backward" else 1
    equal = None
    if shape.lengths != "equal":
        equal = f"{shape._replace(lengths='equal')}, {direction}"
    return Case(
        "recurrent",
        shape,
        direction,
        flops=2.0 * passes * ragged.tokens * gates * (shape.inputs + shape.hidden),
        bytes=4.0
        * (1 if passes == 1 else 2)
        * (ragged.tokens * (shape.inputs + shape.hidden) + weights),
        prepare=functools.partial(_prepare, shape, direction),
        bar=Bar() if equal else _bar(shape, direction),
        padding=ragged.padding,
        equal=equal,
    )


def _prepare(
    shape: RecurrentShape, direction: Direction, threads: int, without: tuple[str, ...]
) -> Prepared:
    torch.manual_seed(0)
    ragged = Ragged(shape.lengths, shape.rows, shape.time)
    name = shape.cell.upper()
    theirs = getattr(torch.nn, name)(shape.inputs, shape.hidden)
    ours = getattr(nn, name)(shape.inputs, shape.hidden)
    ours.load_state_dict(theirs.state_dict())
    values = torch.randn(ragged.tokens, shape.inputs)
    upstream = torch.randn(ragged.tokens, shape.hidden)
    backward = direction == "forward+backward"
    padded = shape.lengths != "equal"

    def job(module: Any, x: Any, given: Tensor, to_values: Any) -> Any:
        """Run and read of one module on ``x``, which is a tensor, jagged or packed."""
        leaf = x if isinstance(x, Tensor) else x.values if isinstance(x, JaggedBatch) else x.data

        def forward() -> Tensor:
            out = module(x)[0]
            return out if isinstance(out, Tensor) else _data(out)

        if not backward:

            def run() -> Tensor:
                with torch.inference_mode():
                    return forward()

            return run, lambda y: {"y": to_values(y).numpy()}
        leaf.requires_grad_()
        parameters = [getattr(module, name) for name in _WEIGHTS]

        def read(result: tuple[Tensor, tuple[Tensor, ...]]) -> Outputs:
            y, (d_x, *rest) = result
            outputs = {"y": to_values(y.detach()).numpy(), "d_x": to_values(d_x).numpy()}
            grads = zip(_WEIGHTS, rest, strict=True)
            return outputs | {f"d_{name[:-3]}": g.numpy() for name, g in grads}

        return rivals.gradients(forward, [leaf, *parameters], given), read

    def judge() -> Outputs:
        exact = getattr(torch.nn, name)(shape.inputs, shape.hidden).double()
        exact.load_state_dict(theirs.state_dict())
        run, read = job(
            exact,
            ragged.to_padded(values.double(), time_major=True),
            ragged.to_padded(upstream.double(), time_major=True),
            functools.partial(ragged.from_padded, time_major=True),
        )
        found: Outputs = read(run())
        return found

    found = Prepared(judge, without)
    batch = JaggedBatch(values.clone(), ragged.offsets)
    found.offer(OURS, lambda: job(ours, batch, upstream, lambda y: y))
    dense = ragged.to_padded(values, time_major=True)
    from_dense = functools.partial(ragged.from_padded, time_major=True)
    found.offer(
        STANDARD,
        lambda: job(theirs, dense, ragged.to_padded(upstream, time_major=True), from_dense),
        padded=padded,
    )
    if padded:
        packed = ragged.packed(values)
        found.offer(
            "torch, packed",
            lambda: job(theirs, packed, ragged.packed(upstream).data, ragged.from_packed),
        )
    found.missing["torch.compile"] = "leaves RNN, LSTM and GRU modules to eager torch"
    if backward:
        return found
    weights = {n[:-3]: getattr(theirs, n).detach().numpy() for n in _WEIGHTS}
    size = (shape.time, 1, shape.rows, shape.hidden)
    feeds = {"x": dense.detach().numpy()}

    def graph() -> bytes:
        return rivals.cell_graph(shape.cell, weights, shape.rows, shape.time)

    def read_array(y: Any) -> Outputs:
        return {"y": from_dense(torch.from_numpy(y[:, 0])).numpy()}

    found.offer(
        "onnxruntime",
        lambda: (rivals.onnxruntime_call(graph(), feeds, size, threads), read_array),
        padded=padded,
    )
    found.offer(
        "openvino",
        lambda: (rivals.openvino_call(graph(), feeds, size, threads), read_array),
        padded=padded,
    )
    return found


def _data(out: Any) -> Tensor:
    found: Tensor = out.values if isinstance(out, JaggedBatch) else out.data
    return found
