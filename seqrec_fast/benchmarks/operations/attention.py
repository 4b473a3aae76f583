# SPDX-License-Identifier: Apache-2.0
"""Causal attention, forward and with gradients, on equal and on ragged lengths."""

from __future__ import annotations

import functools
import itertools
import math
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from seqrec_fast.benchmarks import rivals
from seqrec_fast.benchmarks.case import OURS, STANDARD, Bar, Case, Direction, Prepared
from seqrec_fast.benchmarks.jagged_attention import JaggedInputs, attention_case
from seqrec_fast.benchmarks.shapes import ATTENTION, AttentionShape
from seqrec_fast.ops import attention

__all__ = ["cases"]

_sdpa = torch.nn.functional.scaled_dot_product_attention


def cases() -> list[Case]:
    """Every shape in both directions."""
    directions: tuple[Direction, ...] = ("forward", "forward+backward")
    found = []
    for direction in directions:
        for shape in ATTENTION:
            forward = 1.9 if shape.time >= 1024 else 2.2
            ratio = 2.0 if direction == "forward+backward" else forward
            bar = Bar(ratio=ratio, against=STANDARD)
            prepare = functools.partial(_prepare, shape, direction)
            found.append(attention_case("attention", shape, direction, prepare, bar))
    return found


def _exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula itself, on ``[rows, heads, time, width]``."""
    time = q.shape[2]
    hidden = torch.ones(time, time, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(hidden, -torch.inf)
    return torch.softmax(scores, dim=3) @ v


def _prepare(
    shape: AttentionShape, direction: Direction, threads: int, without: tuple[str, ...]
) -> Prepared:
    inputs = JaggedInputs(shape, backward=direction == "forward+backward")
    found = Prepared(lambda: inputs.judge(_exact), without)
    found.offer(
        OURS, lambda: inputs.jagged(lambda q, k, v: attention(q, k, v, inputs.ragged.offsets))
    )
    causal = functools.partial(_sdpa, is_causal=True)
    padded = inputs.ragged.padding > 1
    found.offer(STANDARD, lambda: inputs.padded(causal), padded=padded)
    if padded:
        found.offer("torch, row by row", lambda: inputs.jagged(_row_by_row(inputs)))
    found.missing["torch.compile"] = "calls the same kernel as eager torch"
    if inputs.backward:
        return found
    found.offer("openvino", lambda: _openvino(inputs, threads), padded=padded)
    found.offer("onnxruntime", lambda: _onnxruntime(inputs, threads), padded=padded)
    return found


def _row_by_row(inputs: JaggedInputs) -> Any:
    offsets = inputs.ragged.offsets.tolist()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = []
        for begin, end in itertools.pairwise(offsets):
            a, b, c = (t[begin:end].transpose(0, 1)[None] for t in (q, k, v))
            out.append(_sdpa(a, b, c, is_causal=True)[0].transpose(0, 1))
        return torch.cat(out)

    return run


def _openvino(inputs: JaggedInputs, threads: int) -> Any:
    ov = import_module("openvino")
    ops = import_module("openvino.opset13")
    feeds = inputs.dense_arrays()
    size = feeds["q"].shape
    nodes = [ops.parameter(list(size), ov.Type.f32, name=name) for name in feeds]
    for name, node in zip(feeds, nodes, strict=True):
        node.output(0).tensor.set_names({name})
    made = ops.result(ops.scaled_dot_product_attention(*nodes, causal=True))
    model = ov.Model([made], nodes, "attention")
    return rivals.openvino_model_call(model, feeds, size, threads), inputs.read_array


def _onnxruntime(inputs: JaggedInputs, threads: int) -> Any:
    feeds = inputs.dense_arrays()
    size = feeds["q"].shape
    graph = rivals.attention_graph(size)
    return rivals.onnxruntime_call(graph, feeds, size, threads), inputs.read_array
