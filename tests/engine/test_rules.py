# SPDX-License-Identifier: Apache-2.0
"""Rules and limits of a Recommender: equal to the definition over the whole ranking."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seqrec_fast.data.items import ItemTable
from seqrec_fast.engine import Recommender
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from tests.engine.conftest import ITEMS, make_bundle

RNG = np.random.default_rng(3)
BRANDS = [f"b{n}" for n in np.minimum(RNG.geometric(0.4, ITEMS), 5)]
YEARS = RNG.integers(1980, 2000, ITEMS)
TABLE = ItemTable(
    {"title": [str(n) for n in range(ITEMS)], "brand": BRANDS, "year": YEARS}, "title"
)
HISTORIES = [["i1", "i5", "i9"], [], ["i30"]]


def recommender(model: str = "sasrec") -> Recommender:
    return Recommender(replace(make_bundle(model), item_table=TABLE))


def whole(rec: Recommender, **filters: Any) -> list[list[str]]:
    return [one.items.tolist() for one in rec.recommend(HISTORIES, ITEMS, **filters)]


def brand(item: str) -> str:
    return BRANDS[int(item[1:])]


@pytest.mark.parametrize("model", ["sasrec", "gru"])
def test_where(model: str) -> None:
    rec = recommender(model)
    rule = {"brand": ["b1", "b3"], "year": {"min": 1985}}

    def holds(item: str) -> bool:
        return brand(item) in ("b1", "b3") and YEARS[int(item[1:])] >= 1985

    expected = [[i for i in row if holds(i)][:7] for row in whole(rec)]
    found = rec.recommend(HISTORIES, 7, where=rule)
    assert [one.items.tolist() for one in found] == expected
    allow = [f"i{n}" for n in range(0, ITEMS, 2)]
    expected = [[i for i in row if holds(i) and i in allow][:7] for row in whole(rec)]
    found = rec.recommend(HISTORIES, 7, where=rule, allow=allow)
    assert [one.items.tolist() for one in found] == expected
    found = rec.recommend(HISTORIES, 7, where=rule, allow=[allow] * 3)
    assert [one.items.tolist() for one in found] == expected


def test_a_rule_a_user() -> None:
    rec = recommender()
    rules = [{"brand": "b1"}, None, {"brand": "b2"}]
    rows = whole(rec)
    expected = [
        [i for i in rows[0] if brand(i) == "b1"][:5],
        rows[1][:5],
        [i for i in rows[2] if brand(i) == "b2"][:5],
    ]
    assert [one.items.tolist() for one in rec.recommend(HISTORIES, 5, where=rules)] == expected


@pytest.mark.parametrize("filters", [{}, {"deny": ["i2", "i3"]}, {"deny": [["i2"], None, ["i4"]]}])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_limit(filters: dict[str, Any], exclude_seen: bool) -> None:
    rec = recommender()
    filters = filters | {"exclude_seen": exclude_seen}
    for k, most in ((3, 1), (10, 1), (10, 2), (25, 3)):
        found = rec.recommend(HISTORIES, k, limit={"brand": most}, **filters)
        for row, one in zip(whole(rec, **filters), found, strict=True):
            expected: list[str] = []
            for item in row:
                full = [brand(i) for i in expected].count(brand(item)) >= most
                if not full and len(expected) < k:
                    expected.append(item)
            assert one.items.tolist() == expected


def with_sessions(rec: Recommender) -> Any:
    """Sessions in which the users 0, 1, 2 have the histories; 1 is unknown."""
    sessions = rec.sessions(capacity=10)
    for user, history in enumerate(HISTORIES):
        sessions.observe_many([user] * len(history), history)
    return sessions


@pytest.mark.parametrize("model", ["sasrec", "gru"])
def test_sessions_answer_as_the_recommender(model: str) -> None:
    rec = recommender(model)
    sessions = with_sessions(rec)
    for arguments in (
        {"where": {"brand": ["b1", "b3"]}},
        {"where": [{"brand": "b1"}, None, {"year": {"min": 1990}}], "deny": ["i2", "i3"]},
        {"limit": {"brand": 2}},
        {"limit": {"brand": 1}, "where": {"year": {"max": 1995}}, "deny": [["i2"], None, ["i4"]]},
        {"limit": {"brand": 1}, "allow": [None, ["i1", "i2"], [f"i{n}" for n in range(20)]]},
        {"limit": {"brand": 3}, "exclude_seen": False},
    ):
        expected = rec.recommend(HISTORIES, 6, **arguments)
        found = sessions.recommend_many([0, 1, 2], 6, **arguments)
        for one, other in zip(found, expected, strict=True):
            assert one.items.tolist() == other.items.tolist()
            assert one.fallback == other.fallback
            assert one.unknown_filters == other.unknown_filters
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-4)
    one = sessions.recommend(2, 6, where={"brand": "b2"}, limit={"year": 1})
    other = rec.recommend([HISTORIES[2]], 6, where={"brand": "b2"}, limit={"year": 1})[0]
    assert one.items.tolist() == other.items.tolist()
    assert sessions.recommend_many([], 6, where={"brand": "b2"}, limit={"year": 1}) == []
    for arguments, message in (
        ({"where": {"colour": "red"}}, "column 'colour' is not in the item table"),
        ({"where": [{}, {}]}, "where: 2 rules for 1 users"),
        ({"limit": {"brand": 0}}, "limit: column 'brand' needs a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            sessions.recommend(0, 3, **arguments)


def test_arrays_obey_limits() -> None:
    rec = recommender()
    known = JaggedBatch.from_lists([[1, 5, 9], [], [30]], dtype=np.int32)
    blocked = np.zeros(ITEMS, np.bool_)
    blocked[[2, 3]] = True
    for options in ({}, {"blocked": blocked}):
        scores, ids = rec.recommend_arrays(known, 8, limit={"brand": 1}, **options)
        deny = ["i2", "i3"] if options else None
        expected = rec.recommend(HISTORIES, 8, limit={"brand": 1}, deny=deny)
        for one, own, other in zip(ids, scores, expected, strict=True):
            assert [f"i{n}" for n in one[one >= 0]] == other.items.tolist()
            assert (one[len(other.items) :] == -1).all()
            assert (own[len(other.items) :] == -np.inf).all()
    with pytest.raises(InputError, match="limit: expected a mapping"):
        rec.recommend_arrays(known, 8, limit={})  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    rec = recommender()
    for arguments, message in (
        ({"where": {"colour": "red"}}, "column 'colour' is not in the item table; there are title"),
        ({"where": "brand=b1"}, "where: found 'brand=b1'"),
        ({"where": [{}]}, "where: 1 rules for 3 users"),
        ({"limit": {"colour": 2}}, "column 'colour' is not in the item table"),
        ({"limit": {"brand": 0}}, "limit: column 'brand' needs a whole number"),
        ({"limit": []}, "limit: expected a mapping"),
    ):
        with pytest.raises(InputError, match=message):
            rec.recommend(HISTORIES, 3, **arguments)
    bare = Recommender(replace(make_bundle(), item_table=None))
    with pytest.raises(InputError, match="there is no item table"):
        bare.recommend(HISTORIES, 3, where={"brand": "b1"})
