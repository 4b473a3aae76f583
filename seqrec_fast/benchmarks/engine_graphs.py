# SPDX-License-Identifier: Apache-2.0
"""Trained models as ONNX graphs: item indices in, the embedding after each row's last event out.

The graph is written from the weights node by node. It takes ``items`` int64 ``[rows, time]`` and,
where rows differ in length (padded on the right with any item), ``last`` int64 ``[rows]``, the
place of each row's last event; it gives ``user`` float32 ``[rows, dim]``. What comes after the last
event is never seen: attention is causal, and recurrent layers are read there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["encoder_graph"]

#: newest formats that all versions of the runtimes in use read
_OPSET, _IR_VERSION = 21, 10
_NORM_EPS = 1e-5
_MASKED = -1e9  # of a score; an infinity would do as well, but a sum of two of them would not

Array = NDArray[Any]
# torch's gates in the order of ONNX: i o f c for the LSTM, z r h for the GRU
_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
_ACTIVATIONS = {"lstm": 3, "gru": 2, "rnn": 1}


def encoder_graph(
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    ragged: bool,
    shape: tuple[int, int] | None = None,
) -> bytes:
    """The user encoder of a bundle as a serialised ONNX model, before any unit length.

    Args:
        config: the bundle's ``model.json``.
        tensors: float32 weights by name.
        ragged: whether rows may differ in length, so that there is an input ``last``.
        shape: rows and time of every call, if they are always the same; otherwise any.
    """
    graph = _Graph()
    weight = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    table = graph.constant("item_embedding.weight", weight["item_embedding.weight"])
    x = graph.node("Gather", table, "items", axis=0)
    build = _sasrec if config["model"] == "sasrec" else _recurrent
    build(graph, x, config, weight, ragged, shape)
    return graph.finish(ragged, shape, config["dim"])


class _Graph:
    """Nodes and constants as they are made; a value is its name."""

    def __init__(self) -> None:
        self._onnx = import_module("onnx")
        self._nodes: list[Any] = []
        self._constants: dict[str, Array] = {}

    def constant(self, name: str, value: Array) -> str:
        self._constants[name] = value
        return name

    def whole(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant("i" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{kind.lower()}{len(self._nodes)}.{at}" for at in range(outputs)]
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def linear(self, x: str, name: str, weight: Array, bias: Array) -> str:
        """``x @ weight.T + bias``."""
        w = self.constant(f"{name}.weight", np.ascontiguousarray(weight.T))
        product = self.node("MatMul", x, w)
        made: str = self.node("Add", product, self.constant(f"{name}.bias", bias))
        return made

    def norm(self, x: str, name: str, weight: Mapping[str, Array]) -> str:
        scale = self.constant(f"{name}.weight", weight[f"{name}.weight"])
        shift = self.constant(f"{name}.bias", weight[f"{name}.bias"])
        made: str = self.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=_NORM_EPS)
        return made

    def first_rows(self, table: str, x: str, axis: int = 0) -> str:
        """The first ``time`` entries of an axis of a constant, ``time`` being x's second size."""
        shape = self.node("Shape", x, start=1, end=2)
        made: str = self.node("Slice", table, self.whole(0), shape, self.whole(axis))
        return made

    def last_event(self, x: str, ragged: bool) -> str:
        """``[rows, time, width]`` -> ``[rows, 1, width]``."""
        if not ragged:
            made: str = self.node("Slice", x, self.whole(-1), self.whole(2**62), self.whole(1))
            return made
        place = self.node("Unsqueeze", "last", self.whole(1))
        found = self.node("GatherND", x, place, batch_dims=1)
        made = self.node("Unsqueeze", found, self.whole(1))
        return made

    def name_result(self, value: str) -> None:
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], ["user"]))

    def finish(self, ragged: bool, shape: tuple[int, int] | None, dim: int) -> bytes:
        helper, kind = self._onnx.helper, self._onnx.TensorProto
        rows, time = ("rows", "time") if shape is None else shape
        inputs = [helper.make_tensor_value_info("items", kind.INT64, [rows, time])]
        if ragged:
            inputs.append(helper.make_tensor_value_info("last", kind.INT64, [rows]))
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            inputs,
            [helper.make_tensor_value_info("user", kind.FLOAT, [rows, dim])],
            [self._onnx.numpy_helper.from_array(c, n) for n, c in self._constants.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )
        self._onnx.checker.check_model(model)
        serialised: bytes = model.SerializeToString()
        return serialised


# ------------------------------------------------------------------------------------ SASRec


def _sasrec(
    graph: _Graph,
    x: str,
    config: Mapping[str, Any],
    weight: Mapping[str, Array],
    ragged: bool,
    shape: tuple[int, int] | None,
) -> None:
    length = config["max_length"] if shape is None else shape[1]
    positions = graph.constant("position", weight["position_embedding.weight"][:length])
    causal = np.where(np.tri(length, dtype=np.bool_), 0.0, _MASKED).astype(np.float32)
    mask = graph.constant("causal", causal)
    if shape is None:
        positions = graph.first_rows(positions, x)
        mask = graph.first_rows(graph.first_rows(mask, x), x, axis=1)
    x = graph.node("Add", x, positions)
    for block in range(config["layers"]):
        name, final = f"blocks.{block}", block == config["layers"] - 1
        normed = graph.norm(x, f"{name}.attention_norm", weight)
        attend = f"{name}.attention"
        if final:
            bias = _after_last(graph, x, length, shape) if ragged else None
            mixed = _attend(graph, attend, normed, config, weight, bias, ragged, last_only=True)
            x = graph.last_event(x, ragged)
        else:
            mixed = _attend(graph, attend, normed, config, weight, mask, ragged, last_only=False)
        x = graph.node("Add", x, mixed)
        normed = graph.norm(x, f"{name}.feed_forward_norm", weight)
        up, down = f"{name}.feed_forward.up", f"{name}.feed_forward.down"
        inner = graph.linear(normed, up, weight[f"{up}.weight"], weight[f"{up}.bias"])
        inner = graph.node("Gelu", inner, approximate="tanh")
        x = graph.node(
            "Add", x, graph.linear(inner, down, weight[f"{down}.weight"], weight[f"{down}.bias"])
        )
    graph.name_result(graph.node("Squeeze", graph.norm(x, "final_norm", weight), graph.whole(1)))


def _after_last(graph: _Graph, x: str, length: int, shape: tuple[int, int] | None) -> str:
    """What hides the padding from a row's last query: ``[rows, 1, 1, time]``."""
    places = graph.constant("places", np.arange(length, dtype=np.int64))
    if shape is None:
        places = graph.first_rows(places, x)
    beyond = graph.node("Greater", places, graph.node("Unsqueeze", "last", graph.whole(1, 2, 3)))
    zero = graph.constant("zero", np.zeros((), np.float32))
    hidden = graph.constant("hidden", np.array(_MASKED, np.float32))
    made: str = graph.node("Where", beyond, hidden, zero)
    return made


def _attend(
    graph: _Graph,
    name: str,
    x: str,
    config: Mapping[str, Any],
    weight: Mapping[str, Array],
    mask: str | None,
    ragged: bool,
    *,
    last_only: bool,
) -> str:
    dim, heads = config["dim"], config["heads"]
    width = dim // heads
    w, b = weight[f"{name}.qkv.weight"], weight[f"{name}.qkv.bias"]
    split = graph.whole(0, -1, heads, width)
    scale = np.float32(1.0 / math.sqrt(width))

    def part(at: int, source: str, order: list[int]) -> str:
        rows = slice(at * dim, (at + 1) * dim)
        # the scale of the scores goes into the queries' weights: one pass less
        by = scale if at == 0 else np.float32(1.0)
        made = graph.linear(source, f"{name}.{at}", w[rows] * by, b[rows] * by)
        turned: str = graph.node("Transpose", graph.node("Reshape", made, split), perm=order)
        return turned

    q = part(0, graph.last_event(x, ragged) if last_only else x, [0, 2, 1, 3])
    k, v = part(1, x, [0, 2, 3, 1]), part(2, x, [0, 2, 1, 3])
    scores = graph.node("MatMul", q, k)
    if mask is not None:
        scores = graph.node("Add", scores, mask)
    mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), v)
    merged = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
    merged = graph.node("Reshape", merged, graph.whole(0, -1, dim))
    return graph.linear(
        merged, f"{name}.out", weight[f"{name}.out.weight"], weight[f"{name}.out.bias"]
    )


# --------------------------------------------------------------------------------- recurrent


def _recurrent(
    graph: _Graph,
    x: str,
    config: Mapping[str, Any],
    weight: Mapping[str, Array],
    ragged: bool,
    shape: tuple[int, int] | None,
) -> None:
    cell, hidden = config["model"], config["hidden"]
    order, outputs = _GATES[cell], 3 if cell == "lstm" else 2
    options: dict[str, Any] = {"hidden_size": hidden}
    if cell == "gru":
        options["linear_before_reset"] = 1
    if config.get("cell_activation", "tanh") == "sigmoid":
        options["activations"] = ["Sigmoid"] * _ACTIVATIONS[cell]
    lengths = ""
    if ragged:
        one = graph.whole(1)
        lengths = graph.node("Cast", graph.node("Add", "last", one), to=6)  # int32
    x = graph.node("Transpose", x, perm=[1, 0, 2])
    ends = x
    for layer in range(config["layers"]):
        parts = {
            part: np.concatenate(
                [np.split(weight[f"recurrent.{part}_l{layer}"], len(order))[g] for g in order]
            )
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        w = graph.constant(f"w{layer}", parts["weight_ih"][None])
        r = graph.constant(f"r{layer}", parts["weight_hh"][None])
        b = graph.constant(f"b{layer}", np.concatenate([parts["bias_ih"], parts["bias_hh"]])[None])
        found = graph.node(cell.upper(), x, w, r, b, lengths, outputs=outputs, **options)
        x, ends = graph.node("Squeeze", found[0], graph.whole(1)), found[1]
    if ragged:
        # Read where each row ends: one of the runtimes runs on through the padding.
        every = graph.node("Transpose", x, perm=[1, 0, 2])
        ends = graph.node("Squeeze", graph.last_event(every, ragged), graph.whole(1))
    else:
        ends = graph.node("Squeeze", ends, graph.whole(0))
    project, shift = weight["projection.weight"], weight["projection.bias"]
    graph.name_result(graph.linear(ends, "projection", project, shift))
