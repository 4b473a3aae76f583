# SPDX-License-Identifier: Apache-2.0
"""User encoders in numpy: a trained model's embedding of histories, without torch.

They compute what ``seqrec_fast.models`` computes in evaluation mode, for the last event of each
history only: the last transformer block forms one query a user. Rows are taken longest first and
worked on in groups of equal length, so that nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import BundleError
from seqrec_fast.jagged import JaggedBatch

__all__ = ["Encoder", "build_encoder", "tensor_shapes"]

Float = NDArray[np.float32]

_NORM_EPS = np.float32(1e-5)
_GATES = {"rnn": 1, "lstm": 4, "gru": 3}
#: activations held at once by one group of rows, in floats
_GROUP_FLOATS = 4 * 1024 * 1024


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model.

    Args:
        config: a bundle's ``model.json``.

    Raises:
        BundleError: the configuration is not one of this version's models.
    """
    kind = config.get("model")
    if kind != "sasrec" and kind not in _GATES:
        raise BundleError(f"model.json: unknown model {kind!r}; a newer version may know it")
    size = {name: _whole(config, name) for name in ("num_items", "dim", "layers", "max_length")}
    items, dim = size["num_items"], size["dim"]
    shapes: dict[str, tuple[int, ...]] = {"item_embedding.weight": (items, dim)}
    if not config.get("tied_output", True):
        shapes["output.weight"] = (items, dim)
    if config.get("item_bias", False):
        shapes["output_bias"] = (items,)
    if kind == "sasrec":
        inner = _whole(config, "feed_forward") * dim
        if dim % _whole(config, "heads"):
            raise BundleError(f"model.json: heads {config['heads']} do not divide dim {dim}")
        shapes["position_embedding.weight"] = (size["max_length"], dim)
        norms = ["final_norm"]
        linears: dict[str, tuple[int, int]] = {}
        for block in range(size["layers"]):
            name = f"blocks.{block}"
            norms += [f"{name}.attention_norm", f"{name}.feed_forward_norm"]
            linears[f"{name}.attention.qkv"] = (3 * dim, dim)
            linears[f"{name}.attention.out"] = (dim, dim)
            linears[f"{name}.feed_forward.up"] = (inner, dim)
            linears[f"{name}.feed_forward.down"] = (dim, inner)
        for name in norms:
            shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    else:
        hidden = _whole(config, "hidden")
        gates = _GATES[str(kind)] * hidden
        linears = {"projection": (dim, hidden)}
        for layer in range(size["layers"]):
            shapes |= {
                f"recurrent.weight_ih_l{layer}": (gates, dim if layer == 0 else hidden),
                f"recurrent.weight_hh_l{layer}": (gates, hidden),
                f"recurrent.bias_ih_l{layer}": (gates,),
                f"recurrent.bias_hh_l{layer}": (gates,),
            }
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BundleError(f"model.json: {name} must be a whole number above 0, found {value!r}")
    return value


def build_encoder(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Encoder:
    """The encoder of a bundle.

    Args:
        config: the bundle's ``model.json``.
        tensors: float32 weights by their names in the trained model.

    Raises:
        BundleError: the model is unknown, or a tensor is missing or of another shape.
    """
    for name, shape in tensor_shapes(config).items():
        if name not in tensors:
            raise BundleError(f"weights.safetensors: tensor {name!r} is missing")
        if tensors[name].shape != shape:
            raise BundleError(
                f"weights.safetensors: {name!r} has shape {tensors[name].shape}, "
                f"model.json asks for {shape}"
            )
    temperature = config.get("temperature")
    if temperature is not None and not (
        isinstance(temperature, (int, float)) and 0 < temperature < math.inf
    ):
        raise BundleError(f"model.json: temperature must be above 0, found {temperature!r}")
    kind = _SASRec if config["model"] == "sasrec" else _Recurrent
    return kind(config, tensors)


class Encoder:
    """A trained model in numpy; made by :func:`build_encoder`. Safe to share between threads.

    Attributes:
        item_vectors: float32 ``[items, dim]``, what user embeddings are multiplied with.
        item_bias: float32 ``[items]`` or None.
        max_length: most recent events of a history that are read.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
        self.max_length: int = config["max_length"]
        self._w = {n: np.ascontiguousarray(t, dtype=np.float32) for n, t in tensors.items()}
        self._dim: int = config["dim"]
        self._layers: int = config["layers"]
        temperature = config.get("temperature")
        self._unit = temperature is not None
        table = self._w["output.weight" if "output.weight" in self._w else "item_embedding.weight"]
        if temperature is not None:
            table = _unit_rows(table) / np.float32(temperature)
        self.item_vectors: Float = table
        self.item_bias: Float | None = self._w.get("output_bias")

    def encode(self, histories: JaggedBatch[NDArray[np.int32]]) -> Float:
        """User embeddings after the last event of each history.

        Args:
            histories: int32 items, oldest first, no row empty; only the last ``max_length`` events
                of a row are read.

        Returns:
            float32 ``[users, dim]``.
        """
        window = histories.last(self.max_length)
        lengths = np.diff(window.offsets)
        order = np.argsort(-lengths, kind="stable")
        result = np.empty((len(lengths), self._dim), dtype=np.float32)
        begin = 0
        while begin < len(order):
            rows = order[begin : begin + self._rows_at_once(int(lengths[order[begin]]))]
            result[rows] = self._last(window.select(rows))
            begin += len(rows)
        return _unit_rows(result) if self._unit else result

    def _rows_at_once(self, length: int) -> int:
        raise TypeError(f"{type(self).__name__} is abstract")

    def _last(self, batch: JaggedBatch[NDArray[np.int32]]) -> Float:
        """Embedding after the last event of each row; rows come longest first."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def _linear(self, name: str, x: Float) -> Float:
        result: Float = x @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return result


class _Recurrent(Encoder):
    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(config, tensors)
        self._hidden: int = config["hidden"]
        self._cell: str = config["model"]
        sigma = config.get("cell_activation", "tanh") == "sigmoid"
        self._phi: Callable[[Float], Float] = _sigmoid if sigma else np.tanh

    def _rows_at_once(self, length: int) -> int:
        return max(1, _GROUP_FLOATS // (length * _GATES[self._cell] * self._hidden))

    def _last(self, batch: JaggedBatch[NDArray[np.int32]]) -> Float:
        lengths = np.diff(batch.offsets)
        steps = int(lengths[0])
        running = np.searchsorted(-lengths, -np.arange(steps), side="left")
        place = np.concatenate([batch.offsets[:n] + t for t, n in enumerate(running.tolist())])
        x = self._w["item_embedding.weight"][batch.values[place]]
        bounds = np.concatenate([[0], np.cumsum(running)]).tolist()
        h = np.zeros((len(lengths), self._hidden), dtype=np.float32)
        for layer in range(self._layers):
            w_ih, w_hh, b_ih, b_hh = (
                self._w[f"recurrent.{part}_l{layer}"]
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            gates = x @ w_ih.T + b_ih
            x = np.empty((len(gates), self._hidden), dtype=np.float32)
            h = np.zeros((len(lengths), self._hidden), dtype=np.float32)
            c = np.zeros_like(h)
            for a, b in pairwise(bounds):
                n = b - a
                # rows beyond n have ended: their h stays what it was after their last event
                h[:n], c[:n] = self._step(gates[a:b], h[:n] @ w_hh.T + b_hh, h[:n], c[:n])
                x[a:b] = h[:n]
        return self._linear("projection", h)

    def _step(self, gates: Float, back: Float, h: Float, c: Float) -> tuple[Float, Float]:
        two = 2 * self._hidden
        if self._cell == "rnn":
            return self._phi(gates + back), c
        if self._cell == "lstm":
            i, f, g, o = np.split(gates + back, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * self._phi(g)
            return _sigmoid(o) * self._phi(c), c
        r, z = np.split(_sigmoid(gates[:, :two] + back[:, :two]), 2, axis=1)
        candidate = self._phi(gates[:, two:] + r * back[:, two:])
        return candidate + z * (h - candidate), c


class _SASRec(Encoder):
    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(config, tensors)
        self._heads: int = config["heads"]
        self._inner: int = config["feed_forward"] * config["dim"]

    def _rows_at_once(self, length: int) -> int:
        floats = length * (4 * self._dim + self._inner + self._heads * length)
        return max(1, _GROUP_FLOATS // floats)

    def _last(self, batch: JaggedBatch[NDArray[np.int32]]) -> Float:
        lengths = np.diff(batch.offsets)
        bounds = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
        ends = batch.offsets.tolist()
        parts = [
            self._equal(batch.values[ends[a] : ends[b]].reshape(b - a, -1))
            for a, b in pairwise(bounds)
        ]
        return np.concatenate(parts)

    def _equal(self, items: NDArray[np.int32]) -> Float:
        """Rows of one length: ``items [rows, length]``."""
        x = self._w["item_embedding.weight"][items]
        x += self._w["position_embedding.weight"][: items.shape[1]]
        for block in range(self._layers):
            name = f"blocks.{block}"
            final = block == self._layers - 1
            mixed = self._attend(
                f"{name}.attention", self._norm(f"{name}.attention_norm", x), last_only=final
            )
            x = (x[:, -1:] if final else x) + mixed
            normed = self._norm(f"{name}.feed_forward_norm", x)
            inner = _gelu(self._linear(f"{name}.feed_forward.up", normed))
            x = x + self._linear(f"{name}.feed_forward.down", inner)
        return self._norm("final_norm", x[:, -1])

    def _attend(self, name: str, x: Float, *, last_only: bool) -> Float:
        rows, length, dim = x.shape
        heads, width = self._heads, dim // self._heads
        weight, bias = self._w[f"{name}.qkv.weight"], self._w[f"{name}.qkv.bias"]
        queries = x[:, -1:] if last_only else x
        q = (queries @ weight[:dim].T + bias[:dim]).reshape(rows, -1, heads, width)
        kv = (x @ weight[dim:].T + bias[dim:]).reshape(rows, length, 2, heads, width)
        k, v = kv[:, :, 0].transpose(0, 2, 3, 1), kv[:, :, 1].transpose(0, 2, 1, 3)
        scores = q.transpose(0, 2, 1, 3) @ k * np.float32(1.0 / math.sqrt(width))
        if not last_only:
            scores[:, :, ~np.tri(length, dtype=np.bool_)] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ v).transpose(0, 2, 1, 3).reshape(rows, -1, dim)
        return self._linear(f"{name}.out", mixed)

    def _norm(self, name: str, x: Float) -> Float:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance: Float = np.square(centred).mean(axis=-1, keepdims=True, dtype=np.float32)
        result: Float = centred / np.sqrt(variance + _NORM_EPS)
        return result * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]


def _sigmoid(x: Float) -> Float:
    # tanh form: no overflow at either end
    result: Float = np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)
    return result


def _gelu(x: Float) -> Float:
    root = np.float32(math.sqrt(2.0 / math.pi))
    inner = root * (x + np.float32(0.044715) * x * x * x)
    half = np.float32(0.5) * x
    result: Float = half + half * np.tanh(inner)
    return result


def _unit_rows(x: Float) -> Float:
    # the floor is torch.nn.functional.normalize's
    length = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-12))
    result: Float = x / length
    return result
