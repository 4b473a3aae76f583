# SPDX-License-Identifier: Apache-2.0
"""Items added, changed and removed without training: everything of a bundle stays in step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import bundle as bundles
from seqrec_fast import retrieval
from seqrec_fast.bundle import Bundle, catalogue
from seqrec_fast.bundle.item_features import ItemRegression
from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommender
from seqrec_fast.errors import InputError
from tests.bundle.conftest import make_bundle

WEIGHT = "item_embedding.weight"


def titled(items: int = 200, dim: int = 6) -> Bundle:
    """Vectors that the words of the titles explain, with some noise, and the years a little."""
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(30)]
    meanings = rng.standard_normal((30, dim))
    content = make_bundle()
    picks = np.array([rng.choice(30, 3, replace=False) for _ in range(items)])
    vectors = meanings[picks].sum(axis=1) + 0.2 * rng.standard_normal((items, dim))
    return replace(
        content,
        config={**content.config, "num_items": items, "dim": dim, "item_bias": False},
        tensors={WEIGHT: vectors.astype(np.float32)},
        items=Vocabulary.from_ids([f"i{n}" for n in range(items)]),
        popularity=rng.integers(1, 50, items),
        item_table=ItemTable(
            {
                "title": [" ".join(words[w] for w in pick) for pick in picks],
                "year": rng.integers(1990, 2020, items),
            },
            "title",
        ),
    )


def test_all_members_change_together_and_a_file_brings_them_back(
    content: Bundle, tmp_path: Path
) -> None:
    first, second = content.items.ids[:2]
    done = catalogue.change(
        content,
        add=["new", "near", first],
        vectors=[np.arange(4), None, np.full(4, 2.0)],
        like=[None, content.items.ids[4:6].tolist(), None],
        table=ItemTable({"name": ["A new one", None, "Renamed"], "year": np.arange(3)}, "name"),
        remove=[second, "nobody"],
    )
    after = done.bundle
    assert (done.added, done.changed, done.removed, done.restored) == (2, 1, 1, 0)
    assert done.unknown == ("nobody",)
    assert done.sources == {"given": 2, "like": 1, "features": 0}
    assert after.config["num_items"] == len(after.items) == 32
    assert after.items.ids[30:].tolist() == ["new", "near"]
    vectors = after.tensors[WEIGHT]
    np.testing.assert_array_equal(vectors[30], np.arange(4))
    np.testing.assert_array_equal(vectors[0], np.full(4, 2))
    np.testing.assert_array_equal(vectors[1:30], content.tensors[WEIGHT][1:])
    centre = content.tensors[WEIGHT].mean(axis=0, dtype=np.float64)
    apart = content.tensors[WEIGHT][4:6] - centre
    length = np.linalg.norm(apart, axis=1).mean()
    direction = apart.mean(axis=0) / np.linalg.norm(apart.mean(axis=0))
    np.testing.assert_allclose(vectors[31], centre + direction * length, rtol=1e-5)
    bias = content.tensors["output_bias"]
    assert after.tensors["output_bias"][30] == np.median(bias)
    assert after.tensors["output_bias"][31] == bias[4:6].mean()
    assert after.popularity[30:].tolist() == [0, 0]
    assert after.removed is not None
    assert np.flatnonzero(after.removed).tolist() == [1]
    table = after.item_table
    assert table is not None
    assert [table.title(n) for n in (0, 1, 3, 30, 31)] == [
        "Renamed", "Title 1", None, "A new one", None,
    ]  # fmt: skip
    assert np.asarray(table.columns["year"])[[0, 1, 30, 31]].tolist() == [2, 1991, 0, 1]
    assert np.isnan(np.asarray(table.columns["price"])[30])
    bundles.save(after, tmp_path / "b")
    again = bundles.load(tmp_path / "b")
    assert again.items == after.items
    assert again.item_table == table
    np.testing.assert_array_equal(np.asarray(again.removed), after.removed)
    back = catalogue.change(again, add=[second])
    assert (back.restored, back.changed, back.bundle.removed) == (1, 0, None)
    assert content.removed is None  # what was given is as it was
    assert len(content.items) == 30


def test_an_index_follows(content: Bundle) -> None:
    for temperature, bias in ((None, True), (0.1, False)):
        before = replace(content, config={**content.config, "temperature": temperature})
        if not bias:
            before.tensors = {n: t for n, t in content.tensors.items() if n != "output_bias"}
        index = retrieval.build(catalogue.index_rows(before, np.arange(30)))
        ids = content.items.ids
        for arguments in (
            {"add": ["a", ids[3]], "vectors": np.ones((2, 4)), "remove": ids[:4:2]},
            {"add": ["b", ids[2]], "like": [[ids[1]], None], "remove": ["a"]},
        ):
            after = catalogue.change(before, **arguments).bundle
            catalogue.update_index(index, before, after)
            size = len(after.items)
            whole = retrieval.build(catalogue.index_rows(after, np.arange(size)))
            whole.remove(np.flatnonzero(after.removed))
            queries = np.random.default_rng(0).standard_normal((5, index.dim))
            for found, expected in zip(
                index.search(queries, size), whole.search(queries, size), strict=True
            ):
                np.testing.assert_array_equal(found, expected)
            before = after
    with pytest.raises(InputError, match="index: it holds 32 items, the bundle 30"):
        catalogue.update_index(index, content, content)


def test_vectors_from_titles_are_better_than_chance_and_reproducible() -> None:
    content = titled()
    table = content.item_table
    assert table is not None
    some = np.arange(0, 200, 20)
    keep = np.setdiff1d(np.arange(200), some)
    known = replace(
        content,
        config={**content.config, "num_items": len(keep)},
        tensors={WEIGHT: content.tensors[WEIGHT][keep]},
        items=content.items.subset(keep),
        popularity=content.popularity[keep],
        item_table=table.select(keep),
    )
    arguments: dict[str, Any] = {
        "add": content.items.ids[some].tolist(), "table": table.select(some)
    }  # fmt: skip
    done = catalogue.change(known, **arguments)
    assert done.sources["features"] == len(some)
    assert done.quality is not None
    assert done.quality.r2 > 0.5
    assert done.quality.recall > 5 * done.quality.chance
    made, truth = done.bundle.tensors[WEIGHT][len(keep) :], content.tensors[WEIGHT][some]
    cosine = (made * truth).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(truth, axis=1)
    assert cosine.mean() > 0.8
    again = catalogue.change(known, **arguments).bundle.tensors[WEIGHT]
    np.testing.assert_array_equal(again, done.bundle.tensors[WEIGHT])


def test_titles_that_tell_nothing_are_told_to_be_useless() -> None:
    content = titled()
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(content.tensors[WEIGHT].shape).astype(np.float32)
    table = content.item_table
    assert table is not None
    quality = ItemRegression(table, noise, content.popularity).quality
    assert quality.r2 < 0.1
    assert quality.recall < 4 * quality.chance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"add": ["x"]}, "add: item 'x' is new and has no vector; give vectors"),
        ({"add": ["x", "x"], "vectors": np.ones((2, 4))}, "add: item 'x' stands twice"),
        ({"add": [None], "vectors": np.ones((1, 4))}, "add: item None is no id here"),
        ({"add": ["x"], "vectors": np.ones((2, 4))}, "vectors: 2 rows for 1 items"),
        ({"add": ["x"], "vectors": [np.ones(3)]}, "vectors: that of item 'x' must be 4 finite"),
        ({"add": ["x"], "vectors": [[np.nan] * 4]}, "vectors: that of item 'x' must be 4 finite"),
        ({"add": ["x"], "vectors": [["a"] * 4]}, "vectors: that of item 'x' is not a row"),
        ({"boost": 0}, "boost: expected a number above 0"),
        ({"boost": "1"}, "boost: expected a number above 0 and below 100, found '1'"),
        ({"remove": "id-0-0é"}, "remove: found 'id-0-0é'; give a list with one entry an item"),
        ({"add": ["x"], "like": 3}, "like: found 3; give a list with one entry an item"),
        ({"add": ["x"], "like": [["y"]]}, "like: item 'x' is said to be like 'y', which"),
        ({"add": ["id-0-0é"], "remove": ["id-0-0é"]}, "remove: item 'id-0-0é' is to be added"),
        ({"remove": [f"id-0-{n}é" for n in range(30)]}, "remove: no item would be left"),
        (
            {"add": ["id-0-0é"], "table": ItemTable({"year": ["soon"]})},
            "table: column 'year' holds numbers in this bundle, found 'soon'",
        ),
    ],
)
def test_what_cannot_be_done_is_named(
    content: Bundle, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        catalogue.change(content, **arguments)


def test_ids_keep_their_type() -> None:
    content = replace(make_bundle(), items=Vocabulary.from_ids(list(range(100, 130))))
    vectors = np.ones((2, 4))
    after = catalogue.change(content, add=["7", 5], vectors=vectors, remove=["100"]).bundle
    assert after.items.ids.dtype == np.int64
    assert after.items.ids[-2:].tolist() == [7, 5]
    assert after.items.encode([5, "7", 100]).tolist() == [31, 30, 0]
    with pytest.raises(InputError, match="'x7' is no id here; the ids of this bundle are whole"):
        catalogue.change(content, add=["x7"], vectors=vectors[:1])


def test_two_tables_change_by_similar_items_only(content: Bundle) -> None:
    rng = np.random.default_rng(0)
    output = rng.standard_normal((30, 4)).astype(np.float32)
    untied = replace(content, tensors={**content.tensors, "output.weight": output})
    after = catalogue.change(untied, add=["x"], like=[content.items.ids[:1].tolist()]).bundle
    np.testing.assert_allclose(after.tensors["output.weight"][30], output[0], rtol=1e-5)
    with pytest.raises(InputError, match="vectors: this model reads and ranks items by two"):
        catalogue.change(untied, add=["x"], vectors=[np.ones(4)])


def test_a_mask_that_does_not_fit_is_refused(content: Bundle, tmp_path: Path) -> None:
    for mask, message in (
        (np.zeros(29, bool), r"removed must be bool of shape \(30,\)"),
        (np.zeros(30, np.int64), "removed must be bool"),
        (np.ones(30, bool), "all 30 items are removed"),
    ):
        with pytest.raises(InputError, match=message):
            bundles.save(replace(content, removed=mask), tmp_path / "b")


def test_the_index_of_a_bundle_changes_with_it(content: Bundle, tmp_path: Path) -> None:
    rows = catalogue.index_rows(content, np.arange(30))
    with_index = replace(content, index=retrieval.build(rows, dtype="int8").to_tensors())
    ids = content.items.ids
    after = catalogue.change(with_index, add=["a"], vectors=np.ones((1, 4)), remove=ids[:2]).bundle
    bundles.save(after, tmp_path / "b")
    plain = Recommender.load(tmp_path / "b", threads=1)
    through = Recommender.load(tmp_path / "b", threads=1, retrieval="index")
    histories = [[ids[1], ids[5]], ["a"], []]
    for found, expected in zip(
        through.recommend(histories, k=31), plain.recommend(histories, k=31), strict=True
    ):
        assert found.items.tolist() == expected.items.tolist()
        assert not set(ids[:2]) & set(found.items.tolist())
