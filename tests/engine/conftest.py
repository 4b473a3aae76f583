# SPDX-License-Identifier: Apache-2.0
"""Small models with random weights, as bundles, and the definition of a recommendation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seqrec_fast.bundle import Bundle
from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommender
from seqrec_fast.engine.encoders import tensor_shapes
from seqrec_fast.jagged import JaggedBatch
from tests.engine.reference import ReferenceEncoder

ITEMS = 60


def make_bundle(
    model: str = "sasrec", *, text_ids: bool = True, bias: bool = True, **options: Any
) -> Bundle:
    config: dict[str, Any] = {
        "model": model,
        "num_items": ITEMS,
        "dim": 8,
        "layers": 2,
        "heads": 2,
        "feed_forward": 2,
        "hidden": 8,
        "max_length": 4,
        "cell_activation": "tanh",
        "tied_output": True,
        "item_bias": bias,
        **options,
    }
    rng = np.random.default_rng(5)
    return Bundle(
        config=config,
        tensors={
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in tensor_shapes(config).items()
        },
        items=Vocabulary.from_ids([f"i{n}" if text_ids else 1000 + n for n in range(ITEMS)]),
        popularity=rng.permutation(ITEMS) // 3,  # with ties
        item_table=ItemTable(
            {"title": [None if n == 7 else f"Title {n}" for n in range(ITEMS)]}, "title"
        ),
        metrics={"test": {"values": {"HR@10": 0.5}, "users": 3, "protocol": "strict"}},
    )


class Definition:
    """What a Recommender has to answer, computed one user at a time and item by item."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.encoder = ReferenceEncoder(bundle.config, bundle.tensors)

    def scores(self, history: list[Any]) -> NDArray[np.float32]:
        known = [i for i in self.bundle.items.encode(history).tolist() if i >= 0]
        if not known:
            return self.bundle.popularity.astype(np.float32)
        query = self.encoder.encode(JaggedBatch.from_lists([known]))[0]
        found = self.encoder.item_vectors @ query.T
        if found.ndim == 2:
            found = found.max(axis=1)
        return found if self.encoder.item_bias is None else found + self.encoder.item_bias

    def answer(
        self,
        history: list[Any],
        k: int,
        *,
        exclude_seen: bool = True,
        allow: Any = None,
        deny: Any = None,
    ) -> list[Any]:
        """Raw ids of the best items."""
        encode = self.bundle.items.encode
        out = set(encode(list(history)).tolist()) if exclude_seen else set()
        out |= set() if deny is None else set(encode(list(deny)).tolist())
        inside = set(range(ITEMS)) if allow is None else set(encode(list(allow)).tolist())
        scores = self.scores(list(history))
        order = sorted(range(ITEMS), key=lambda item: (-scores[item], item))
        left = [item for item in order if item in inside and item not in out]
        return self.bundle.items.ids[left[:k]].tolist()


@pytest.fixture(scope="session")
def content() -> Bundle:
    return make_bundle()


@pytest.fixture(scope="session")
def definition(content: Bundle) -> Definition:
    return Definition(content)


@pytest.fixture(scope="session")
def recommender(content: Bundle) -> Recommender:
    return Recommender(content, threads=1)


@pytest.fixture(scope="session")
def make() -> Any:
    return make_bundle


@pytest.fixture(scope="session")
def define() -> Any:
    return Definition
