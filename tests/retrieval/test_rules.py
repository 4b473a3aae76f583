# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import retrieval
from seqrec_fast.data.items import ItemTable
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

TABLE = ItemTable(
    {
        "language": ["en", "de", None, "en"],
        "genre": ["Drama|Crime", "Drama", "Comedy", None],
        "words": ["a b", "b", "c a", "c"],
        "stock": ["True", "false", "yes", None],
        "year": np.array([1990.0, 2001.0, np.nan, 1995.0]),
        "count": np.array([0, 1, 2, 3]),
        "released": ["1990", "2001", "V", None],
    }
)


@pytest.mark.parametrize(
    ("where", "items"),
    [
        ({}, [0, 1, 2, 3]),
        ({"language": "en"}, [0, 3]),
        ({"language": ["en", "de"]}, [0, 1, 3]),
        ({"language": None}, [2]),
        ({"language": {"not": "en"}}, [1, 2]),
        ({"language": "xx"}, []),
        ({"genre": "Drama"}, [0, 1]),
        ({"genre": "Drama|Crime"}, [0]),
        ({"genre": ["Crime", "Comedy"]}, [0, 2]),
        ({"genre": {"all": ["Drama", "Crime"]}}, [0]),
        ({"genre": {"any": ["Drama"], "not": "Crime"}}, [1]),
        ({"words": {"any": ["a"], "separator": " "}}, [0, 2]),
        ({"words": "a"}, []),
        ({"stock": True}, [0, 2]),
        ({"stock": False}, [1]),
        ({"year": {"min": 1990, "max": 1995}}, [0, 3]),
        ({"year": {"not": {"min": 1995}}}, [0, 2]),
        ({"year": None}, [2]),
        ({"year": 2001}, [1]),
        ({"count": ["2", 3]}, [2, 3]),
        ({"released": {"max": 1999}}, [0]),
        ({"count": {"max": 1}, "language": "en"}, [0]),
    ],
)
def test_where(where: dict[str, Any], items: list[int]) -> None:
    rules = retrieval.Rules(TABLE)
    assert np.flatnonzero(rules.mask(where)).tolist() == items
    assert rules.mask(where) is rules.mask(dict(where))


def test_separators_of_a_table() -> None:
    rules = retrieval.Rules(TABLE, {"words": " "})
    assert np.flatnonzero(rules.mask({"words": ["b"]})).tolist() == [0, 1]
    assert rules.categories("words").lengths.tolist() == [2, 1, 2, 1]
    assert rules.categories("year").lengths.tolist() == [1, 1, 0, 1]


def test_long_rules_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[retrieval.Rules.__module__]
    monkeypatch.setattr(module, "_CACHED_BYTES", 10_000)
    rules = retrieval.Rules(TABLE)
    for number in range(50):
        assert not rules.mask({"words": [f"{number} " * 200]}).any()
        held = sum(len(key) + mask.nbytes for key, mask in rules._masks.items())
        assert rules._cached == held <= 10_000
    again = rules.mask({"words": ["49 " * 200]})
    assert again is rules.mask({"words": ["49 " * 200]})
    rules.mask({"words": ["x" * 20_000]})
    assert len(rules._masks) == 1


def test_separators_of_requests_do_not_fill_the_memory() -> None:
    rules = retrieval.Rules(TABLE)
    for number in range(100):
        rules.mask({"words": {"any": ["b"], "separator": f"<{number}>"}})
        rules.categories("words", f"{{{number}}}")
        found = rules.mask({"words": {"any": ["b"], "separator": " "}})
        assert np.flatnonzero(found).tolist() == [0, 1]
    assert len(rules._others) <= 8


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"brand": "x"}, "where: column 'brand' is not in the item table; there are language"),
        ({"year": "old"}, "where: column 'year' holds numbers, found 'old'"),
        ({"language": {"min": 3}}, "where: column 'language': 'min' and 'max' need numbers"),
        ({"language": {"is": 3}}, "where: column 'language': found 'is'; a condition holds"),
        ({"genre": {"all": "x"}}, "where: column 'genre': 'all' needs a list"),
        ({"genre": {"not": "x", "separator": ""}}, "where: column 'genre': a separator is a text"),
        (["language"], "where: expected a mapping of columns to conditions"),
        ({"language": object()}, "where: holds a value that is no text, number or list"),
    ],
)
def test_rules_name_what_is_wrong(where: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        retrieval.Rules(TABLE).mask(where)


def test_no_table() -> None:
    with pytest.raises(InputError, match="column 'a': there is no item table"):
        retrieval.Rules(None).mask({"a": 1})


def test_numbers_beyond_all_others() -> None:
    rules = retrieval.Rules(ItemTable({"whole": np.array([1, 2]), "part": np.array([1.5, np.nan])}))
    for column, known in (("whole", [True, True]), ("part", [True, False])):
        for huge, above, below in ((10**400, False, True), (-(10**400), True, False)):
            found = rules.mask({column: {"min": huge}})
            assert found.tolist() == [above and one for one in known]
            found = rules.mask({column: {"max": huge}})
            assert found.tolist() == [below and one for one in known]
            assert not rules.mask({column: huge}).any()


def greedy(ids: Any, categories: JaggedBatch[Any], most: list[int], k: int) -> list[int]:
    """The definition: down the whole ranking, an item unless one of its categories is full."""
    counts = [0] * len(most)
    found: list[int] = []
    for item in ids:
        if item < 0 or len(found) == k:
            break
        own = categories[item]
        if all(counts[c] < most[c] for c in own):
            found.append(int(item))
            for c in own:
                counts[c] += 1
    return found


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_limits_are_the_greedy_walk(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size, k = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 30))
    brands = data.draw(st.integers(1, 20))
    # few brands with most items, so that the head of a ranking is one brand's
    brand = [None if n == 0 else f"b{n}" for n in rng.geometric(2 / (brands + 1), size) - 1]
    tags = ["|".join(f"t{n}" for n in rng.integers(0, 5, rng.integers(1, 3))) for _ in range(size)]
    rules = retrieval.Rules(ItemTable({"brand": brand, "tag": tags}))
    limit = data.draw(
        st.sampled_from([{"brand": 1}, {"brand": 3}, {"tag": 4}, {"brand": 2, "tag": 7}])
    )
    limits = retrieval.Limits(rules, limit)
    vectors = rng.integers(-2, 3, (size, 4)).astype(np.float32)
    vectors[:, 0] += [0 if b is None else 3 for b in brand]
    queries = rng.integers(-2, 3, (3, 4)).astype(np.float32)
    index = retrieval.build(vectors, dtype=data.draw(st.sampled_from(["float32", "int8"])))
    filters: dict[str, Any] = {}
    if data.draw(st.booleans()):
        filters["exclude"] = JaggedBatch.from_lists([rng.integers(0, size, 9) for _ in range(3)])
    if data.draw(st.booleans()):
        filters["allow"] = rng.random(size) < 0.5
    if data.draw(st.booleans()):
        filters["deny"] = JaggedBatch.from_lists([rng.integers(0, size, 9) for _ in range(3)])
    found = retrieval.search_limited(index, queries, k, limits, **filters)
    whole = index.search(queries, size, **filters)
    for row in range(3):
        expected = greedy(whole.ids[row], limits.categories, limits.most, k)
        assert found.ids[row][found.ids[row] >= 0].tolist() == expected
        assert (found.ids[row, len(expected) :] == -1).all()
        scores = dict(zip(whole.ids[row].tolist(), whole.scores[row].tolist(), strict=True))
        assert found.scores[row, : len(expected)].tolist() == [scores[i] for i in expected]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({}, "limit: expected a mapping"),
        ({"genre": 0}, "limit: column 'genre' needs a whole number of at least 1, found 0"),
        ({"genre": True}, "limit: column 'genre' needs a whole number"),
        (
            {"genre": {"most": 0}},
            "limit: column 'genre' needs a whole number of at least 1, found 0",
        ),
        ({"genre": {"separator": " "}}, "limit: column 'genre' needs a number, or 'most' and"),
        ({"genre": {"most": 1, "least": 1}}, "limit: column 'genre' needs a number, or 'most'"),
        ({"genre": {"most": 1, "separator": ""}}, "limit: column 'genre': a separator is a text"),
        ({"brand": 1}, "limit: column 'brand' is not in the item table"),
    ],
)
def test_limits_name_what_is_wrong(limit: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        retrieval.Limits(retrieval.Rules(TABLE), limit)


def test_limits_of_tags_with_a_separator_of_their_own() -> None:
    table = ItemTable({"class": ["a b", "a c", "b", "c d", None]})
    index = retrieval.build(np.arange(5, 0, -1, dtype=np.float32)[:, None])
    limit = {"class": {"most": 1, "separator": " "}}
    for rules in (retrieval.Rules(table), retrieval.Rules(table, {"class": ","})):
        limits = retrieval.Limits(rules, limit)
        found = retrieval.search_limited(index, [[1.0]], 5, limits)
        assert found.ids.tolist() == [[0, 3, 4, -1, -1]]
    limits = retrieval.Limits(retrieval.Rules(table), {"class": 1})
    assert (retrieval.search_limited(index, [[1.0]], 5, limits).ids >= 0).all()


SEARCHED: dict[str, dict[str, Any]] = {
    "exact": {"dtype": "int8"},
    "sharded": {"shards": 3},
    "ivf-native": {"nlist": 40, "nprobe": 1, "reach": 0},
}
if find_spec("faiss"):
    SEARCHED |= {
        "flat": {},
        "ivf": {"nlist": 40, "nprobe": 1},
        "ivfpq": {"nlist": 40, "nprobe": 1, "nbits": 4},
        "hnsw": {"m": 2, "ef_search": 2, "ef_construction": 4},
    }


@pytest.mark.parametrize("kind", SEARCHED)
def test_limits_hold_in_the_search_of_every_kind(kind: str) -> None:
    """Also where an approximate search finds late what it should have found first."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((600, 8)).astype(np.float32)
    queries = rng.standard_normal((9, 8)).astype(np.float32)
    brands = np.minimum(rng.geometric(0.3, 600) - 1, 12)  # few have most items
    rules = retrieval.Rules(ItemTable({"brand": [f"b{n}" if n else None for n in brands]}))
    limits = retrieval.Limits(rules, {"brand": 2})
    index = retrieval.build(vectors, kind=kind, **SEARCHED[kind])
    index.remove(range(0, 600, 7))
    mask = (rng.random(600) < 0.9) & (brands > 0)
    seen = JaggedBatch.from_lists(rng.integers(0, 600, (9, 40)))
    exact = retrieval.build(vectors)
    exact.remove(range(0, 600, 7))
    for k in (5, 20, 40):
        found = retrieval.search_limited(index, queries, k, limits, exclude=seen, allow=mask)
        best = retrieval.search_limited(exact, queries, k, limits, exclude=seen, allow=mask)
        if index.exact:
            np.testing.assert_array_equal(found.ids, best.ids)
        np.testing.assert_array_equal(found.ids >= 0, best.ids >= 0)  # as many, wherever they are
        with np.errstate(invalid="ignore"):
            assert not (np.diff(found.scores, axis=1) > 0).any()
        for ids, hidden in zip(found.ids, seen, strict=True):
            ids = ids[ids >= 0]
            assert np.bincount(brands[ids]).max() <= 2
            assert mask[ids].all()
            assert (ids % 7 > 0).all()
            assert not set(ids.tolist()) & set(hidden.tolist())
            assert len(np.unique(ids)) == len(ids)


def test_a_table_of_other_items_is_refused() -> None:
    limits = retrieval.Limits(retrieval.Rules(TABLE), {"genre": 1})
    index = retrieval.build(np.eye(5))
    with pytest.raises(InputError, match="limit: the item table has 4 rows for 5 items"):
        retrieval.search_limited(index, np.eye(5), 2, limits)


def test_too_few_categories_leave_places_open() -> None:
    """Three items that are in no full category, however many are asked for; the rest is empty."""
    limits = retrieval.Limits(retrieval.Rules(TABLE), {"genre": 1})
    index = retrieval.build(np.arange(4, 0, -1, dtype=np.float32)[:, None])
    scores, ids = retrieval.search_limited(index, [[1.0], [-1.0]], 1000, limits)
    assert ids[0, :4].tolist() == [0, 2, 3, -1]
    assert ids[1, :4].tolist() == [3, 2, 1, -1]
    assert scores[0, :4].tolist() == [4, 2, 1, -np.inf]
    assert (ids[:, 3:] == -1).all()
    index.remove([0, 2, 3])
    assert retrieval.search_limited(index, [[1.0]], 3, limits).ids.tolist() == [[1, -1, -1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": [[1.0], [1.0, 2.0]]}, "queries: expected an array of numbers, found uneven"),
        ({"queries": 3.0}, "queries: expected two dimensions"),
        ({"queries": [[1.0, 2.0]]}, "queries: expected 1 columns like the index, found 2"),
        ({"k": 0}, "k: expected a whole number of at least 1, found 0"),
        ({"k": "3"}, "k: expected a whole number, found '3'"),
        ({"k": 2**60}, "k: .* take more memory than there is"),
        ({"allow": [4]}, "allow: found item 4, but the items are 0 to 3"),
        ({"exclude": JaggedBatch.from_lists([[0], [1]])}, r"exclude: expected one row a query"),
    ],
)
def test_a_limited_search_names_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    limits = retrieval.Limits(retrieval.Rules(TABLE), {"genre": 1})
    index = retrieval.build(np.ones((4, 1)))
    asked: dict[str, Any] = {"queries": [[1.0]], "k": 3, "limits": limits} | arguments
    with pytest.raises(InputError, match=f"^{message}"):
        retrieval.search_limited(index, **asked)
