# SPDX-License-Identifier: Apache-2.0
"""Models of several interests, served: answers against their definition, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import _C, JaggedBatch
from seqrec_fast import bundle as bundles
from seqrec_fast.engine import Recommender
from seqrec_fast.engine.precision import apply_weights
from seqrec_fast.errors import BundleError, InputError
from seqrec_fast.retrieval.interests import diversified
from tests.engine.conftest import ITEMS, Definition, make_bundle
from tests.engine.reference import ReferenceEncoder

CONTENT = {
    model: make_bundle(model, interests=3, temperature=0.5 if model == "gru" else None)
    for model in ("sasrec", "gru")
}
SERVED = {model: Recommender(content, threads=1) for model, content in CONTENT.items()}
DEFINED = {model: Definition(content) for model, content in CONTENT.items()}
IDS = [f"i{n}" for n in range(ITEMS)]
some_ids = st.lists(st.sampled_from([*IDS, "unknown"]), max_size=20)


@pytest.mark.parametrize("model", CONTENT)
@given(data=st.data(), k=st.integers(1, ITEMS + 5), exclude_seen=st.booleans())
@settings(max_examples=40)
def test_answers_are_those_of_the_definition(
    model: str, data: st.DataObject, k: int, exclude_seen: bool
) -> None:
    """Every way: all known, some unknown, filters of all and of each, few and many allowed."""
    histories = data.draw(st.lists(some_ids, min_size=1, max_size=4))
    users = len(histories)
    one_each = st.lists(st.none() | some_ids, min_size=users, max_size=users)
    asked = {name: data.draw(st.none() | one_each) for name in ("allow", "deny")}
    found = SERVED[model].recommend(histories, k, exclude_seen, **asked)
    for user, history in enumerate(histories):
        own = {name: None if lists is None else lists[user] for name, lists in asked.items()}
        wanted = DEFINED[model].answer(history, k, exclude_seen=exclude_seen, **own)
        assert found[user].items.tolist() == wanted
        scores = DEFINED[model].scores(history)[CONTENT[model].items.encode(wanted)]
        np.testing.assert_allclose(found[user].scores, scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", CONTENT)
def test_embeddings_arrays_and_scores(model: str, isa: str) -> None:
    rec, defined = SERVED[model], DEFINED[model]
    histories = [["i1", "i2", "i3"], ["x"], ["i9"] * 7]
    vectors = rec.embed(histories)
    assert vectors.shape == (3, 3, 8)
    assert not vectors[1].any()
    known = JaggedBatch.from_lists([[1, 2, 3], [9] * 7])
    np.testing.assert_allclose(vectors[[0, 2]], defined.encoder.encode(known), atol=1e-4)
    scores, ids = rec.recommend_arrays(known, ITEMS + 2, blocked=np.arange(ITEMS) == 5)
    for row, history in enumerate((histories[0], histories[2])):
        wanted = defined.answer(history, ITEMS, deny=["i5"])
        left = [f"i{item}" for item in ids[row] if item >= 0]
        assert left == wanted
        np.testing.assert_allclose(
            rec.score(history, wanted), scores[row, : len(wanted)], rtol=1e-5, atol=1e-5
        )
    assert np.isnan(rec.score(histories[0], ["nowhere"])).all()
    assert rec.similar_items("i3", 4).items.tolist()[0] != "i3"


def test_many_users_at_once_and_threads_change_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, ITEMS, rng.integers(1, 90)) for _ in range(300)]
    histories = JaggedBatch.from_lists(rows)
    one = Recommender(CONTENT["gru"], threads=1).recommend_arrays(histories, 20)
    two = Recommender(CONTENT["gru"], threads=2).recommend_arrays(histories, 20)
    assert (one[1] == two[1]).all()
    engine = SERVED["gru"]._current.encoder.engine
    assert isinstance(engine, _C.Engine)
    assert engine.interests == 3
    whole = engine.encode(histories.values, histories.offsets)
    for place in (0, 7, 299):
        alone = engine.encode(rows[place].astype(np.int32), np.array([0, len(rows[place])]))
        np.testing.assert_allclose(alone[0], whole[place], rtol=1e-4, atol=1e-5)


def test_native_merge_counts_items_once_and_ties_by_id() -> None:
    """Item vectors and queries of small whole numbers: exact, with many ties."""
    content = make_bundle("gru", interests=3)
    rng = np.random.default_rng(1)
    content.tensors["item_embedding.weight"] = rng.integers(-1, 2, (ITEMS, 8)).astype(np.float32)
    content.tensors["output_bias"] = np.zeros(ITEMS, np.float32)
    engine = Recommender(content)._current.encoder.engine
    queries = rng.integers(-1, 2, (50, 3, 8)).astype(np.float32)
    seen = JaggedBatch.from_lists([rng.integers(0, ITEMS, 9).tolist() for _ in range(50)])
    items = content.tensors["item_embedding.weight"]
    for k in (1, 10, ITEMS + 3):
        scores, ids = engine.rank(queries, seen.values, seen.offsets, None, k)
        for user in range(50):
            best = (items @ queries[user].T).max(axis=1)
            left = [i for i in range(ITEMS) if i not in seen[user]]
            order = sorted(left, key=lambda i: (-best[i], i))[:k]
            assert ids[user].tolist() == order + [-1] * (k - len(order))
            assert scores[user, : len(order)].tolist() == best[order].tolist()
            assert (scores[user, len(order) :] == -np.inf).all()


def test_diversity_is_that_of_retrieval() -> None:
    rec, content = SERVED["sasrec"], CONTENT["sasrec"]
    history = ["i1", "i2", "i3"]
    assert (
        rec.recommend([history], diversity=0.0)[0].items.tolist()
        == rec.recommend([history])[0].items.tolist()
    )
    vectors = rec.embed([history])[0]
    scores = vectors @ content.tensors["item_embedding.weight"].T + content.tensors["output_bias"]
    scores[:, [1, 2, 3]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    each = np.take_along_axis(scores, order, 1)
    wanted = diversified(each[None], order[None], 10, 5.0)[1][0]
    found = rec.recommend([history, ["unknown"]], diversity=5.0)
    assert found[0].items.tolist() == [f"i{item}" for item in wanted]
    assert found[0].items.tolist() != rec.recommend([history])[0].items.tolist()
    assert found[1].fallback == "popularity"


def test_diversity_of_arrays() -> None:
    rec = SERVED["gru"]
    known = JaggedBatch.from_lists([[1, 2, 3], [], [9] * 7], dtype=np.int32)
    _, ids = rec.recommend_arrays(known, 6, diversity=5.0)
    expected = rec.recommend([["i1", "i2", "i3"], [], ["i9"] * 7], 6, diversity=5.0)
    for one, other in zip(ids, expected, strict=True):
        assert [f"i{n}" for n in one] == other.items.tolist()
    with pytest.raises(InputError, match="limit: does not combine with diversity"):
        rec.recommend_arrays(known, 6, diversity=5.0, limit={"title": 1})
    with pytest.raises(InputError, match="diversity: expected a number of at least 0"):
        rec.recommend_arrays(known, 6, diversity=-1.0)


@pytest.mark.parametrize("diversity", [-1, float("nan"), float("inf"), "much", True])
def test_wrong_diversity_is_named(diversity: Any) -> None:
    with pytest.raises(InputError, match="diversity: expected a number of at least 0"):
        SERVED["gru"].recommend([["i1"]], diversity=diversity)


def test_diversity_needs_several_interests(recommender: Recommender) -> None:
    with pytest.raises(InputError, match="diversity: the model has one interest a user"):
        recommender.recommend([["i1"]], diversity=0.1)


def test_sessions_are_refused_with_the_remedy() -> None:
    for rec in SERVED.values():
        with pytest.raises(InputError, match=r"3 interests a user.*Recommender\.recommend"):
            rec.sessions(10)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_compact_tables_serve_interests(weights: Any) -> None:
    content = CONTENT["sasrec"]
    found = Recommender(content, weights=weights).embed([["i1", "i2"]])
    rounded = {**content.tensors, **apply_weights(content.tensors, weights)}
    if weights == "bfloat16":
        name = "interest_head.hidden.weight"
        assert (rounded[name] != content.tensors[name]).any()
    exact = ReferenceEncoder(content.config, rounded).encode(JaggedBatch.from_lists([[1, 2]]))
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


def test_saved_and_loaded(tmp_path: Path) -> None:
    bundles.save(CONTENT["gru"], tmp_path / "b")
    loaded = Recommender.load(tmp_path / "b")
    assert (loaded.embed([["i4"]]) == SERVED["gru"].embed([["i4"]])).all()
    assert loaded.info()["config"]["interests"] == 3


def test_tensors_of_the_head_are_checked() -> None:
    content = make_bundle("gru", interests=2)
    del content.tensors["interest_head.gain"]
    with pytest.raises(BundleError, match=r"'interest_head\.gain' is missing"):
        Recommender(content)
