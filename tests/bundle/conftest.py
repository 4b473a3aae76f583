# SPDX-License-Identifier: Apache-2.0
"""A small but real bundle: every kind of file, text ids, titles, a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seqrec_fast import bundle as bundles
from seqrec_fast.bundle import Bundle
from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine.encoders import tensor_shapes

CONFIG = {
    "model": "gru",
    "num_items": 30,
    "dim": 4,
    "layers": 1,
    "hidden": 6,
    "max_length": 5,
    "cell_activation": "tanh",
    "tied_output": True,
    "item_bias": True,
}


def make_bundle(seed: int = 0) -> Bundle:
    rng = np.random.default_rng(seed)
    count = 30
    return Bundle(
        config=dict(CONFIG),
        tensors={
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in tensor_shapes(CONFIG).items()
        },
        items=Vocabulary.from_ids([f"id-{seed}-{n}é" for n in range(count)]),
        popularity=rng.integers(0, 50, count),
        item_table=ItemTable(
            {
                "title": [None if n == 3 else f"Title {n}" for n in range(count)],
                "year": np.arange(1990, 1990 + count),
                "price": np.where(np.arange(count) == 5, np.nan, 1.5),
            },
            "title",
        ),
        metrics={"test": {"values": {"HR@10": 0.25}, "users": 7, "protocol": "x"}},
        cleaning={"steps": [{"name": "read", "rows_in": 10}], "notes": ["ñ"]},
        training={"options": {"epochs": 2}, "history": [{"epoch": 1, "loss": 0.5}]},
        extra_files={"curve.png": b"\x89PNG" + bytes(range(256))},
    )


@pytest.fixture
def content() -> Bundle:
    return make_bundle()


@pytest.fixture
def another() -> Bundle:
    return make_bundle(1)


@pytest.fixture
def saved(tmp_path: Path, content: Bundle) -> Path:
    path = tmp_path / "bundle"
    bundles.save(content, path)
    return path
