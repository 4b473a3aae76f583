# SPDX-License-Identifier: Apache-2.0
"""User encoders in plain numpy, one history at a time: what the native ones are judged against.

They compute what ``seqrec_fast.models`` computes in evaluation mode, in the dtype of the weights
they are given: in float64 they are the judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.jagged import JaggedBatch

__all__ = ["ReferenceEncoder"]

Array = NDArray[Any]


class ReferenceEncoder:
    """A trained model in numpy.

    Args:
        config: a bundle's ``model.json``.
        tensors: the weights.
        dtype: of the computation.
    """

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, Array], dtype: Any = np.float64
    ) -> None:
        self.config = config
        self.w = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        self.temperature = config.get("temperature")
        table = self.w.get("output.weight", self.w["item_embedding.weight"])
        self.item_vectors = table if self.temperature is None else unit(table) / self.temperature
        self.item_bias = self.w.get("output_bias")

    def encode(self, histories: JaggedBatch[Any]) -> Array:
        """``[users, (interests,) dim]`` after the last event of each history."""
        rows = [self._interests(np.asarray(row)) for row in histories]
        found = np.stack(rows) if rows else np.empty((0, self.config["dim"]))
        return found if self.temperature is None else unit(found)

    def _interests(self, items: Array) -> Array:
        hidden = self._last(items)
        if self.config.get("interests", 1) == 1:
            return hidden
        if self.config["model"] == "sasrec":
            items = items[-self.config["max_length"] :]
        vectors = self.w["item_embedding.weight"][items]
        inner = np.tanh(self._linear("interest_head.hidden", vectors))
        logits = np.clip(inner @ self.w["interest_head.scores.weight"].T, -20, 20)
        weights = np.exp(logits - logits.max(axis=0))
        pooled = (weights / weights.sum(axis=0)).T @ vectors
        return np.concatenate([hidden[None], hidden + self.w["interest_head.gain"] * pooled])

    def _last(self, items: Array) -> Array:
        if self.config["model"] == "sasrec":
            return self._sasrec(items[-self.config["max_length"] :])
        return self._recurrent(items)

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    # ------------------------------------------------------------------ recurrent

    def _recurrent(self, items: Array) -> Array:
        cell, hidden = self.config["model"], self.config["hidden"]
        phi = sigmoid if self.config.get("cell_activation", "tanh") == "sigmoid" else np.tanh
        rows = self.w["item_embedding.weight"][items]
        for layer in range(self.config["layers"]):
            w_ih, w_hh, b_ih, b_hh = (
                self.w[f"recurrent.{part}_l{layer}"]
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h = np.zeros(hidden, dtype=rows.dtype)
            c = np.zeros_like(h)
            after = []
            for x in rows:
                a, b = w_ih @ x + b_ih, w_hh @ h + b_hh
                if cell == "rnn":
                    h = phi(a + b)
                elif cell == "lstm":
                    i, f, g, o = np.split(a + b, 4)
                    c = sigmoid(f) * c + sigmoid(i) * phi(g)
                    h = sigmoid(o) * phi(c)
                else:
                    ar, az, an = np.split(a, 3)
                    br, bz, bn = np.split(b, 3)
                    z = sigmoid(az + bz)
                    n = phi(an + sigmoid(ar + br) * bn)
                    h = (1 - z) * n + z * h
                after.append(h)
            rows = np.stack(after)
        return self._linear("projection", rows[-1])

    # ------------------------------------------------------------------ transformer

    def _sasrec(self, items: Array) -> Array:
        length = len(items)
        x = self.w["item_embedding.weight"][items] + self.w["position_embedding.weight"][:length]
        for block in range(self.config["layers"]):
            name = f"blocks.{block}"
            x = x + self._attend(f"{name}.attention", self._norm(f"{name}.attention_norm", x))
            normed = self._norm(f"{name}.feed_forward_norm", x)
            inner = gelu(self._linear(f"{name}.feed_forward.up", normed))
            x = x + self._linear(f"{name}.feed_forward.down", inner)
        return self._norm("final_norm", x)[-1]

    def _attend(self, name: str, x: Array) -> Array:
        length, dim = x.shape
        heads = self.config["heads"]
        qkv = self._linear(f"{name}.qkv", x).reshape(length, 3, heads, dim // heads)
        q, k, v = qkv.transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(dim // heads)
        scores[:, ~np.tri(length, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ v).transpose(1, 0, 2).reshape(length, dim)
        return self._linear(f"{name}.out", mixed)

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return (
            centred / np.sqrt(variance + 1e-5) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]
        )


def sigmoid(x: Array) -> Array:
    # the form with tanh overflows at neither end
    return 0.5 * np.tanh(0.5 * x) + 0.5


def gelu(x: Array) -> Array:
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1.0 + np.tanh(inner))


def unit(x: Array) -> Array:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
