# SPDX-License-Identifier: Apache-2.0
"""Recommendations through the bundle's index equal the exact ones where the index is exact."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import bundle as bundles
from seqrec_fast import retrieval
from seqrec_fast.bundle import Bundle, catalogue
from seqrec_fast.data.items import ItemTable
from seqrec_fast.engine import Recommender
from seqrec_fast.engine.encoders import build_encoder
from seqrec_fast.engine.index_ranker import item_rows, query_rows
from seqrec_fast.errors import BundleError, InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.exact import ExactIndex

HISTORIES = [["i1", "i2", "i3"], ["i9"], ["nobody"], [], ["i5", "x", "i5", "i40", "i41", "i42"]]


def indexed(bundle: Bundle, **options: Any) -> Bundle:
    encoder = build_encoder(bundle.config, bundle.tensors)
    index = retrieval.build(item_rows(encoder.item_vectors, encoder.item_bias), **options)
    index.measured = {"recall": 1.0, "k": 10}
    return dataclasses.replace(bundle, index=index.to_tensors())


@pytest.fixture(params=["bias", "no bias", "temperature"])
def bundle(request: pytest.FixtureRequest, make: Any) -> Bundle:
    found: Bundle = make(bias=request.param == "bias")
    if request.param == "temperature":
        found.config["temperature"] = 0.07
    return indexed(found)


def test_what_was_removed_is_not_found_whatever_the_index_says(bundle: Bundle) -> None:
    gone = ["i5", "i40"]
    content = dataclasses.replace(bundle, index=None)
    after = catalogue.change(content, remove=gone).bundle
    exact = Recommender(after)
    through = Recommender(dataclasses.replace(after, index=bundle.index), retrieval="index")
    same(through.recommend(HISTORIES, 60), exact.recommend(HISTORIES, 60))
    assert not set(gone) & {i for one in through.recommend(HISTORIES, 60) for i in one.items}


def same(one: Any, other: Any) -> None:
    for mine, expected in zip(one, other, strict=True):
        assert mine.items.tolist() == expected.items.tolist()
        np.testing.assert_allclose(mine.scores, expected.scores, rtol=1e-5, atol=1e-5)
        assert (mine.fallback, mine.unknown) == (expected.fallback, expected.unknown)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"exclude_seen": False},
        {"k": 1000},
        {"deny": ["i1", "i7", "i8"]},
        {"allow": [f"i{n}" for n in range(20)], "deny": ["i3"]},
        {"allow": [["i1", "i4", "i6"], None, [], ["i9"], [f"i{n}" for n in range(40)]]},
        {"deny": [None, [f"i{n}" for n in range(55)], None, ["i0"], []]},
        {"allow": []},
    ],
)
def test_answers_are_those_of_the_exact_search(bundle: Bundle, arguments: dict[str, Any]) -> None:
    through, exact = (Recommender(bundle, retrieval=way) for way in ("index", "exact"))
    arguments = {"k": 10} | arguments
    same(through.recommend(HISTORIES, **arguments), exact.recommend(HISTORIES, **arguments))


def test_arrays_and_sessions_go_through_the_index(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    through, exact = (Recommender(bundle, retrieval=way) for way in ("index", "exact"))
    searches: list[int] = []
    search = ExactIndex.search
    monkeypatch.setattr(
        ExactIndex, "search", lambda *a, **o: searches.append(len(a[1])) or search(*a, **o)
    )
    rows = JaggedBatch.from_lists([[1, 2], [], [7]])
    blocked = np.arange(60) % 3 == 0
    mine, expected = (
        r.recommend_arrays(rows, 70, blocked=blocked) for r in (through, exact)
    )  # fmt: skip
    np.testing.assert_array_equal(mine[1], expected[1])
    assert searches == [2]  # the user without a history gets what is popular
    live = [r.sessions(10) for r in (through, exact)]
    for sessions in live:
        sessions.observe("u", "i3")
        sessions.observe("u", "i4")
    same(*([sessions.recommend("u", 5)] for sessions in live))
    same(*(sessions.recommend_many(["u", "v"], 5) for sessions in live))
    same(*([sessions.recommend("v", 5)] for sessions in live))
    assert searches[1:] == [1, 1]


def test_what_does_not_rank_stays_as_it_is(bundle: Bundle) -> None:
    through, exact = (Recommender(bundle, retrieval=way) for way in ("index", "exact"))
    np.testing.assert_array_equal(through.embed(HISTORIES), exact.embed(HISTORIES))
    np.testing.assert_array_equal(
        through.score(["i1"], ["i2", "i3"]), exact.score(["i1"], ["i2", "i3"])
    )
    assert through.similar_items("i1").items.tolist() == exact.similar_items("i1").items.tolist()
    assert through.version == exact.version


def test_biases_are_one_more_dimension() -> None:
    rng = np.random.default_rng(0)
    items, bias, queries = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((9, 3), (9,), (4, 3))
    )
    np.testing.assert_allclose(
        query_rows(queries, bias) @ item_rows(items, bias).T, queries @ items.T + bias, rtol=1e-5
    )
    assert item_rows(items, None) is items
    assert query_rows(queries, None) is queries


def test_swap_keeps_the_choice_and_info_tells_it(bundle: Bundle, make: Any, tmp_path: Path) -> None:
    bundles.save(bundle, tmp_path / "with")
    bundles.save(make(), tmp_path / "without")
    through = Recommender.load(tmp_path / "with", retrieval="index")
    facts = through.info()
    assert facts["retrieval"] == "index"
    assert facts["index"]["kind"] == "exact"
    assert facts["index"]["measured"] == {"recall": 1.0, "k": 10}
    with pytest.raises(BundleError, match=r"without: retrieval: the bundle has no index; make one"):
        through.swap(tmp_path / "without")
    assert through.info()["retrieval"] == "index"
    through.swap(tmp_path / "with")
    assert through.info()["retrieval"] == "index"
    exact = Recommender.load(tmp_path / "with")
    assert (exact.info()["retrieval"], exact.info()["index"]) == ("exact", None)
    exact.swap(tmp_path / "without")
    same(through.recommend(HISTORIES), Recommender.load(tmp_path / "with").recommend(HISTORIES))


def test_an_index_of_other_items_is_refused(make: Any) -> None:
    bundle = make()
    wrong = dataclasses.replace(bundle, index=retrieval.build(np.ones((60, 8))).to_tensors())
    with pytest.raises(InputError, match=r"it holds 60 items of 8 dimensions .* needs 60 of 9"):
        Recommender(wrong, retrieval="index")
    assert Recommender(wrong).recommend([["i1"]])[0].items.size  # it is not looked at
    cosine = retrieval.build(np.ones((60, 9)), metric="cosine")
    with pytest.raises(InputError, match="with metric 'cosine'"):
        Recommender(dataclasses.replace(bundle, index=cosine.to_tensors()), retrieval="index")


def test_impossible_choices_are_named(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="retrieval: found 'fast'; choose one of exact, index"):
        Recommender(bundle, retrieval="fast")
    with pytest.raises(InputError, match="retrieval: the index holds the vectors of weights="):
        Recommender(bundle, retrieval="index", weights="int8")


BRANDS = ItemTable(
    {"title": [f"T{n}" for n in range(60)], "brand": [f"b{n % 4}" for n in range(60)]}, "title"
)


@pytest.mark.parametrize(
    "arguments",
    [
        {"where": {"brand": ["b1", "b3"]}},
        {"where": [{"brand": "b1"}, None, {"brand": "no"}, None, {"brand": {"not": "b2"}}]},
        {"limit": {"brand": 1}, "k": 20},
        {"limit": {"brand": 2}, "where": {"brand": {"not": "b0"}}, "deny": ["i1", "i2"]},
        {"diversity": 2.0},
        {"diversity": 2.0, "allow": [f"i{n}" for n in range(30)], "deny": ["i3"]},
    ],
)
@pytest.mark.parametrize("interests", [1, 3])
def test_rules_limits_and_several_interests(
    make: Any, interests: int, arguments: dict[str, Any]
) -> None:
    if "diversity" in arguments and interests == 1:
        pytest.skip("needs several interests")
    plain = make("gru", bias=interests == 1, interests=interests)
    bundle = indexed(dataclasses.replace(plain, item_table=BRANDS), dtype="int8")
    after = catalogue.change(bundle, remove=["i0", "i17"]).bundle
    for one in (bundle, after):
        through, exact = (Recommender(one, retrieval=way) for way in ("index", "exact"))
        asked = {"k": 7} | arguments
        same(through.recommend(HISTORIES, **asked), exact.recommend(HISTORIES, **asked))


def test_an_index_of_other_vectors_is_refused(bundle: Bundle) -> None:
    name = "item_embedding.weight"
    tensors = {**bundle.tensors, name: bundle.tensors[name] * np.float32(1.02)}
    changed = dataclasses.replace(bundle, tensors=tensors)
    if "temperature" in bundle.config:  # directions alone count there
        changed.tensors[name] = bundle.tensors[name][::-1].copy()
    with pytest.raises(InputError, match=r"index\.safetensors: the vector of item index 0 is not"):
        Recommender(changed, retrieval="index")
    swapped = Recommender(bundle, retrieval="index")
    with pytest.raises(InputError, match="is not that of the model"):
        swapped.swap(changed)
    rounded = indexed(bundle, dtype="bfloat16")
    Recommender(rounded, retrieval="index").recommend(HISTORIES)
