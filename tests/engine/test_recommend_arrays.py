# SPDX-License-Identifier: Apache-2.0
"""Recommendations by item index are those by raw id."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast.engine import Recommender
from seqrec_fast.engine import recommender as module
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

ITEMS = 60


@given(
    histories=st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=12), max_size=5),
    k=st.integers(1, ITEMS + 5),
    exclude_seen=st.booleans(),
    blocked=st.none() | st.sets(st.integers(0, ITEMS - 1)),
    users_at_once=st.sampled_from([1, 2, 100]),
)
def test_arrays_hold_what_recommend_answers(
    recommender: Recommender,
    histories: list[list[int]],
    k: int,
    exclude_seen: bool,
    blocked: set[int] | None,
    users_at_once: int,
) -> None:
    mask = None
    if blocked is not None:
        mask = np.zeros(ITEMS, dtype=np.bool_)
        mask[list(blocked)] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_USERS_AT_ONCE", users_at_once)
        scores, ids = recommender.recommend_arrays(
            JaggedBatch.from_lists(histories), k, exclude_seen, blocked=mask
        )
    assert (scores.shape, scores.dtype) == ((len(histories), k), np.float32)
    assert (ids.shape, ids.dtype) == ((len(histories), k), np.int64)
    names = recommender.item_ids
    answers = recommender.recommend(
        [names[row].tolist() for row in histories],
        k,
        exclude_seen,
        deny=None if blocked is None else names[list(blocked)].tolist(),
    )
    for row, answer in enumerate(answers):
        there = ids[row] >= 0
        assert names[ids[row][there]].tolist() == answer.items.tolist()
        np.testing.assert_allclose(scores[row][there], answer.scores, rtol=1e-5, atol=1e-5)
        assert np.isneginf(scores[row][~there]).all()
        assert not there[len(answer) :].any()


@pytest.mark.parametrize(
    ("histories", "options", "named"),
    [
        ([["i1"]], {}, "JaggedBatch"),
        (JaggedBatch.from_lists([[1]], dtype=np.int64), {}, "int64"),
        (JaggedBatch.from_lists([[1], [2, 60]]), {}, "row 1 holds item 60, but the items are 0 to"),
        (JaggedBatch.from_lists([[-1]]), {}, "row 0 holds item -1"),
        (JaggedBatch.from_lists([[1]]), {"k": 0}, "k: "),
        (JaggedBatch.from_lists([[1]]), {"blocked": np.zeros(3, np.bool_)}, "blocked"),
        (JaggedBatch.from_lists([[1]]), {"blocked": np.zeros(ITEMS)}, "blocked"),
    ],
)
def test_bad_input_is_named(
    recommender: Recommender, histories: Any, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        recommender.recommend_arrays(histories, **options)
