# SPDX-License-Identifier: Apache-2.0
"""A trained model as a native user encoder, without torch: its weights checked and packed.

The engine computes what ``seqrec_fast.models`` computes in evaluation mode, for the last event of
each history only (``csrc/engine``); on another device those models compute it themselves
(:mod:`seqrec_fast.engine.devices`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import _C
from seqrec_fast.engine.devices import ModelEngine, device_engine
from seqrec_fast.errors import BundleError, DeviceError, InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.native import CompactItems

__all__ = ["Encoder", "build_encoder", "tensor_shapes"]

Float = NDArray[np.float32]

_GATES = {"rnn": 1, "lstm": 4, "gru": 3}

_SHORTEST = np.float32(1e-12)  # the floor of torch.nn.functional.normalize
_ROWS_AT_ONCE = 1 << 15


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
    interests = _whole({"interests": 1, **config}, "interests")
    if interests > 1:
        shapes |= {
            "interest_head.hidden.weight": (4 * interests, dim),
            "interest_head.hidden.bias": (4 * interests,),
            "interest_head.scores.weight": (interests - 1, 4 * interests),
            "interest_head.gain": (interests - 1, dim),
        }
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BundleError(f"model.json: {name} must be a whole number above 0, found {value!r}")
    return value


def build_encoder(
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any] | CompactItems],
    device: str = "cpu",
    removed: NDArray[np.bool_] | None = None,
) -> Encoder:
    """The encoder of a bundle.

    Args:
        config: the bundle's ``model.json``.
        tensors: float32 weights by their names in the trained model; on the CPU, tables of item
            vectors may be compact.
        device: from :func:`seqrec_fast.engine.devices.checked_device`.
        removed: bool ``[num_items]``, true for items that the engine never ranks, or ``None``.

    Raises:
        BundleError: the model is unknown, or a tensor is missing or of another shape.
        DeviceError, MissingExtraError: there is no such device, or no torch for it.
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
    return Encoder(config, tensors, device, removed)


class Encoder:
    """A trained model, packed for the native engine; made by :func:`build_encoder`.

    Never changes, so that any number of threads may share it.

    Attributes:
        engine: this encoder and the items that it ranks.
        item_vectors: ``[items, dim]``, what user embeddings are multiplied with: float32, or
            compact where the weights are.
        item_bias: float32 ``[items]`` or None.
        ranking_bias: the same, and minus infinity for items that are removed; an item whose score
            is minus infinity is never chosen.
        window: most recent events of a history that are read; 0: all of them.
        interests: embeddings a user.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, NDArray[Any] | CompactItems],
        device: str = "cpu",
        removed: NDArray[np.bool_] | None = None,
    ) -> None:
        compact = {n: t for n, t in tensors.items() if isinstance(t, CompactItems)}
        weights = {
            n: np.ascontiguousarray(t, dtype=np.float32)
            for n, t in tensors.items()
            if not isinstance(t, CompactItems)
        }
        name = "output.weight" if "output.weight" in tensors else "item_embedding.weight"
        table: Float | CompactItems = compact[name] if name in compact else weights[name]
        temperature = config.get("temperature")
        if temperature is not None:
            table = _unit_rows(table, np.float32(temperature))
        self.item_bias: Float | None = weights.get("output_bias")
        self.ranking_bias = self.item_bias
        if removed is not None and removed.any():
            zeros = np.zeros(len(table), dtype=np.float32)
            bias = zeros if self.item_bias is None else self.item_bias
            self.ranking_bias = np.where(removed, np.float32(-np.inf), bias)
        if isinstance(table, CompactItems) and self.ranking_bias is not None:
            table = CompactItems.from_arrays(table.values, table.scales, self.ranking_bias)
        self.item_vectors: Float | CompactItems = table
        sizes = {
            "model": config["model"],
            "num_items": config["num_items"],
            "dim": config["dim"],
            "layers": config["layers"],
            "max_length": config["max_length"],
            "interests": config.get("interests", 1),
            "unit": temperature is not None,
            "sigmoid": config.get("cell_activation", "tanh") == "sigmoid",
        }
        if config["model"] == "sasrec":
            sizes |= {"heads": config["heads"], "inner": config["feed_forward"] * config["dim"]}
        else:
            sizes["hidden"] = config["hidden"]
        self.engine: ModelEngine
        if device == "cpu":
            parts: dict[str, Float | _C.ItemTable] = dict(weights)
            parts |= {n: t.native for n, t in compact.items()}
            ranked = table.native if isinstance(table, CompactItems) else table
            self.engine = _C.Engine(sizes, parts, ranked, self.ranking_bias)
        else:
            if compact:
                raise InputError(f"weights: compact tables are for the CPU, not for {device}")
            if self.ranking_bias is not None:
                config = {**config, "item_bias": True}
                weights["output_bias"] = self.ranking_bias
            self.engine = device_engine(device, config, weights)
        self.window: int = self.engine.window
        self.interests: int = config.get("interests", 1)

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of what a user is embedded as: ``(dim,)``, or ``(interests, dim)``."""
        dim = int(self.item_vectors.shape[1])
        return (dim,) if self.interests == 1 else (self.interests, dim)

    @property
    def native(self) -> _C.Engine:
        """The engine, where that is the native one.

        Raises:
            DeviceError: the model computes on another device.
            InputError: a user of the model has several interests.
        """
        if self.interests > 1:
            raise InputError(
                f"sessions: the model has {self.interests} interests a user, of which no state is "
                "kept; give whole histories to Recommender.recommend"
            )
        if not isinstance(self.engine, _C.Engine):
            raise DeviceError(
                "device: sessions keep the states of users on the CPU; load a Recommender with "
                'device="cpu" for them'
            )
        return self.engine

    def encode(
        self, histories: JaggedBatch[NDArray[np.int32]], *, threads: int | None = None
    ) -> Float:
        """User embeddings after the last event of each history.

        Args:
            histories: int32 items, oldest first, no row empty; only the last ``window`` events of
                a row are read.
            threads: cores to use at most; ``None`` takes the default of the native pool.

        Returns:
            float32 ``[users, dim]``; ``[users, interests, dim]`` where there are several.
        """
        values = np.ascontiguousarray(histories.values, dtype=np.int32)
        offsets = np.ascontiguousarray(histories.offsets, dtype=np.int64)
        return self.engine.encode(values, offsets, threads or 0)


def _unit_rows(x: Float | CompactItems, temperature: np.float32) -> Float | CompactItems:
    """Rows of length 1 / temperature."""
    if isinstance(x, CompactItems):
        if x.scales is not None:  # the scale of a row takes its length in
            lengths = np.empty(len(x), dtype=np.float32)
            for begin in range(0, len(x), _ROWS_AT_ONCE):
                part = np.arange(begin, min(begin + _ROWS_AT_ONCE, len(x)))
                lengths[part] = np.linalg.norm(x.rows(part), axis=1)
            scales = x.scales / np.maximum(lengths, _SHORTEST) / temperature
            return CompactItems.from_arrays(x.values, scales)
        x = x.rows(np.arange(len(x)))  # bfloat16 has no place for the lengths
    length = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _SHORTEST)
    result: Float = x / length / temperature
    return result
