# SPDX-License-Identifier: Apache-2.0
"""The stacks that the engine is measured against compute what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seqrec_fast.bundle import Bundle
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommender
from seqrec_fast.engine.encoders import build_encoder, tensor_shapes
from seqrec_fast.jagged import JaggedBatch

pytest.importorskip("onnx")
ITEMS, MAX_LENGTH = 300, 12


def make_bundle(model: str, **options: Any) -> Bundle:
    config: dict[str, Any] = {
        **{"model": model, "num_items": ITEMS, "dim": 16, "layers": 2, "heads": 2},
        **{"feed_forward": 4, "hidden": 24, "max_length": MAX_LENGTH, "cell_activation": "tanh"},
        **{"tied_output": True, "item_bias": False, "temperature": None, **options},
    }
    rng = np.random.default_rng(3)
    return Bundle(
        config=config,
        tensors={
            name: (0.3 * rng.normal(size=shape)).astype(np.float32)
            for name, shape in tensor_shapes(config).items()
        },
        items=Vocabulary.from_ids(list(range(ITEMS))),
        popularity=np.arange(ITEMS),
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("sasrec", {}),
        ("sasrec", {"item_bias": True, "temperature": 0.1, "layers": 1}),
        ("gru", {}),
        ("gru", {"cell_activation": "sigmoid", "tied_output": False}),
        ("lstm", {}),
        ("rnn", {"layers": 1}),
    ],
)
def test_rivals_embed_as_the_engine_does(runtime: str, model: str, options: dict[str, Any]) -> None:
    pytest.importorskip(runtime)
    from seqrec_fast.benchmarks.engine_rivals import rival_stacks

    bundle = make_bundle(model, **options)
    rng = np.random.default_rng(4)
    # ragged, equal, one alone, and longer than what the model reads
    batches = [[3, 1, MAX_LENGTH + 5, 7], [6, 6], [1], [MAX_LENGTH + 5]]
    stacks, missing = rival_stacks(bundle, 1, runtimes=[runtime], searches=["numpy"])
    assert not missing
    for lengths in batches:
        rows = [rng.integers(0, ITEMS, n).tolist() for n in lengths]
        expected = build_encoder(bundle.config, bundle.tensors).encode(JaggedBatch.from_lists(rows))
        found = stacks[f"{runtime}+numpy"].embed(rows)
        # sums of float32 in another order: the depth of the longest, not the size of an entry
        scale = np.abs(expected).max()
        assert np.abs(found - expected).max() <= 64 * np.finfo(np.float32).eps * scale, lengths
    fixed, _ = rival_stacks(bundle, 1, shape=(1, 6), runtimes=[runtime], searches=["numpy"])
    row = [rng.integers(0, ITEMS, 6).tolist()]
    np.testing.assert_allclose(
        fixed[f"{runtime}+numpy"].embed(row), stacks[f"{runtime}+numpy"].embed(row), rtol=2e-5
    )


@pytest.mark.parametrize("search", ["faiss", "numpy"])
@pytest.mark.parametrize("bias", [False, True])
def test_rivals_recommend_as_the_engine_does(search: str, bias: bool) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip(search)
    from seqrec_fast.benchmarks.engine_rivals import rival_stacks

    bundle = make_bundle("sasrec", item_bias=bias)
    recommender = Recommender(bundle, threads=1)
    stacks, _ = rival_stacks(bundle, 1, runtimes=["onnxruntime"], searches=[search])
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, ITEMS, n).tolist() for n in (4, 9, 30)]
    for exclude in (False, True):
        scores, ids = stacks[f"onnxruntime+{search}"](rows, 20, exclude_seen=exclude)
        for row, answer in enumerate(recommender.recommend(rows, k=20, exclude_seen=exclude)):
            assert ids[row].tolist() == answer.items.tolist()
            np.testing.assert_allclose(scores[row], answer.scores, rtol=1e-5, atol=1e-5)


def test_a_missing_search_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from seqrec_fast.benchmarks import engine_rivals

    def absent(name: str) -> Any:
        if name == "faiss":
            raise ImportError("no module named faiss")
        return __import__(name)

    monkeypatch.setattr(engine_rivals, "import_module", absent)
    stacks, missing = engine_rivals.rival_stacks(make_bundle("gru"), 1, runtimes=["onnxruntime"])
    assert list(stacks) == ["onnxruntime+numpy"]
    assert missing == {"faiss": "no module named faiss"}
