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
