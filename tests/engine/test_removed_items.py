# SPDX-License-Identifier: Apache-2.0
"""Items that were removed from the catalogue: never recommended, still understood."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seqrec_fast.bundle import catalogue
from seqrec_fast.engine import Recommender
from seqrec_fast.jagged import JaggedBatch
from tests.engine.conftest import ITEMS, make_bundle

GONE = [f"i{n}" for n in (0, 3, 4, 50)]
HISTORIES = [["i1", "i3", "i8"], [], ["i50"], ["i9", "i2"]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("model", ["sasrec", "gru"])
def test_answers_are_those_of_a_deny_list(model: str, bias: bool) -> None:
    content = make_bundle(model, bias=bias)
    plain = Recommender(content, threads=1)
    after = catalogue.change(content, remove=GONE).bundle
    served = Recommender(after, threads=1)
    assert served.version != plain.version
    assert (served.info()["removed"], served.num_items) == (4, ITEMS)
    for arguments in (
        {"k": 5},
        {"k": ITEMS, "exclude_seen": False},
        {"k": 9, "allow": ["i0", "i1", "i4", "i7"]},
        {"k": 9, "allow": [["i0", "i1"], None, ["i3"], ["i50", "i8"]]},
    ):
        for found, wanted in zip(
            served.recommend(HISTORIES, **arguments),
            plain.recommend(HISTORIES, deny=GONE, **arguments),
            strict=True,
        ):
            assert found.items.tolist() == wanted.items.tolist()
            np.testing.assert_array_equal(found.scores, wanted.scores)
            assert found.unknown == ()
    near = served.similar_items("i3", k=ITEMS)
    assert not set(GONE) & set(near.items.tolist())
    assert len(near.items) == ITEMS - len(GONE)
    scores = served.score(["i1"], ["i0", "i2", "who"])
    assert scores[0] == -np.inf
    assert np.isfinite(scores[1])
    assert np.isnan(scores[2])
    rows = JaggedBatch.from_lists([np.array([1, 3], np.int32)])
    _, ids = served.recommend_arrays(rows, k=ITEMS)
    assert not {0, 3, 4, 50} & set(ids.ravel().tolist())


def test_a_catalogue_changes_while_users_are_live() -> None:
    content = replace(make_bundle(), metrics={})
    served = Recommender(content, threads=1)
    sessions = served.sessions(10)
    for item in ("i1", "i2", "i3"):
        sessions.observe("u", item)
    first = sessions.recommend("u", 3)
    best = first.items[0]
    vector = content.tensors["item_embedding.weight"][int(best[1:])]
    after = catalogue.change(content, add=["fresh"], vectors=[vector * 5], remove=[best]).bundle
    served.swap(after)
    found = sessions.recommend("u", ITEMS)
    assert best not in found.items.tolist()
    assert "fresh" in found.items.tolist()
    assert sessions.history("u").tolist() == ["i1", "i2", "i3"]
    sessions.observe("u", best)  # removed, and still an event
    sessions.observe("u", "fresh")
    assert sessions.history("u").tolist()[-2:] == [best, "fresh"]
    expected = served.recommend([["i1", "i2", "i3", best, "fresh"]], 5)[0]
    assert sessions.recommend("u", 5).items.tolist() == expected.items.tolist()
