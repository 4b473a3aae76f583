# SPDX-License-Identifier: Apache-2.0
"""Native encoders against float64, for odd shapes: at most twice the error of float32 in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seqrec_fast.engine.encoders import build_encoder, tensor_shapes
from seqrec_fast.jagged import JaggedBatch
from tests.engine.reference import ReferenceEncoder

#: heads, width of a head, layers, hidden, window, events at most
SHAPES = [(1, 1, 1, 1, 1, 5), (1, 33, 2, 130, 17, 40), (8, 8, 2, 64, 50, 60), (5, 3, 3, 31, 16, 40)]


def draw(
    model: str, shape: tuple[int, ...], shared: float, rng: Any, **options: Any
) -> tuple[Any, Any]:
    """A model whose item vectors all hold ``shared`` beside what is their own."""
    heads, width, layers, hidden, window, _ = shape
    config = {
        **{"model": model, "num_items": 50, "dim": heads * width, "layers": layers},
        **{"heads": heads, "feed_forward": 2, "hidden": hidden, "max_length": window},
        **options,
    }
    tensors = {}
    for name, size in tensor_shapes(config).items():
        # a recurrent model of larger weights is chaotic: it makes any rounding as large as itself
        tensor = rng.standard_normal(size) / max(3.0, size[-1] ** 0.5)
        tensor += 1.0 if "norm.weight" in name else 0.0
        tensor += shared if name == "item_embedding.weight" else 0.0
        tensors[name] = tensor.astype(np.float32)
    return config, tensors


@pytest.mark.parametrize("shared", [0.0, 30.0])
@pytest.mark.parametrize("model", ["sasrec", "gru", "lstm", "rnn"])
@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_error_of_float32(
    isa: str, model: str, shape: tuple[int, ...], shared: float
) -> None:
    keeps_the_rule(model, shape, shared)


@pytest.mark.parametrize("interests", [2, 5])
@pytest.mark.parametrize("model", ["sasrec", "gru"])
@pytest.mark.parametrize("shape", SHAPES)
def test_several_interests_have_twice_the_error_of_float32(
    isa: str, model: str, shape: tuple[int, ...], interests: int
) -> None:
    for temperature in (None, 0.1):
        keeps_the_rule(model, shape, 0.0, interests=interests, temperature=temperature)


def keeps_the_rule(model: str, shape: tuple[int, ...], shared: float, **options: Any) -> None:
    if shared and model != "sasrec":
        pytest.skip("saturates the gates: nothing is left to compare")
    mine, theirs, scale = [], [], 0.0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        config, tensors = draw(model, shape, shared, rng, **options)
        rows = [rng.integers(0, 50, rng.integers(1, shape[-1] + 1)) for _ in range(12)]
        histories = JaggedBatch.from_lists(rows)
        exact = ReferenceEncoder(config, tensors).encode(histories)
        single = ReferenceEncoder(config, tensors, np.float32).encode(histories)
        found = build_encoder(config, tensors).encode(histories)
        assert found.shape == exact.shape
        mine.append(np.abs(found - exact).reshape(len(rows), -1).max(axis=1))
        theirs.append(np.abs(single - exact).reshape(len(rows), -1).max(axis=1))
        scale = max(scale, np.abs(exact).max())
    error, their = (float(np.sqrt(np.square(e).mean())) for e in (mine, theirs))
    assert error <= 2 * their + 4 * 2.0**-24 * scale, (error, their)
