# SPDX-License-Identifier: Apache-2.0
"""Models of random weights in the usual sizes: what they compute costs what a trained one costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.bundle import Bundle
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine.encoders import tensor_shapes

__all__ = ["item_names", "random_bundle"]


def item_names(first: int, count: int) -> list[str]:
    """Ids like those of Amazon's products: ``B000000007``."""
    return [f"B{n:09d}" for n in range(first, first + count)]


def random_bundle(
    model: str,
    ids: Sequence[Any],
    longest: int,
    *,
    seed: int = 0,
    norms: float = 1.0,
    popularity: NDArray[np.int64] | None = None,
    **options: Any,
) -> Bundle:
    """A model of random weights: d 64, two blocks of two heads, or H 128.

    Args:
        model: ``"sasrec"``, ``"rnn"``, ``"lstm"`` or ``"gru"``.
        ids: raw ids of the items.
        longest: events of a window.
        seed: of the weights and of the popularity.
        norms: added to the weights of layer norms.
        popularity: events of each item; drawn at random where it is not given.
        options: further entries of the configuration, or other values.
    """
    config: dict[str, Any] = {
        "model": model,
        "num_items": len(ids),
        "dim": 64,
        "layers": 2 if model == "sasrec" else 1,
        "heads": 2,
        "feed_forward": 4,
        "hidden": 128,
        "max_length": longest,
        "cell_activation": "tanh",
        "tied_output": True,
        "item_bias": False,
        **options,
    }
    random = np.random.default_rng(seed)
    tensors = {
        name: (0.1 * random.standard_normal(shape)).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }
    for name, tensor in tensors.items():
        if name.endswith("norm.weight"):
            tensor += norms
    if popularity is None:
        popularity = random.integers(1, 400, len(ids))
    return Bundle(config, tensors, Vocabulary.from_ids(list(ids)), popularity)
