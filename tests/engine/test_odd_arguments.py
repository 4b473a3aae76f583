# SPDX-License-Identifier: Apache-2.0
"""Arguments at the edge of what Python and the system take: one clear error, or an answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast.engine import Recommender
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

HUGE = 10**5000  # Python refuses to write it


@pytest.mark.parametrize("text_ids", [True, False])
def test_numbers_without_a_text_are_unknown_ids(make: Any, text_ids: bool) -> None:
    rec = Recommender(make(text_ids=text_ids))
    assert rec.recommend([[HUGE]])[0].unknown == (HUGE,)
    assert math.isnan(rec.score([], [HUGE])[0])
    assert not len(rec.similar_items(HUGE))
    assert not rec.sessions(5).observe(1, HUGE)


def test_numbers_without_a_text_are_refused(recommender: Recommender) -> None:
    rows = JaggedBatch.from_lists([[1]])
    for k in (-HUGE, 0):
        with pytest.raises(InputError, match=r"^k: must be"):
            recommender.recommend([["i1"]], k)
    for k in (2**62, HUGE):
        with pytest.raises(InputError, match=r"^k: 1 users"):
            recommender.recommend_arrays(rows, k)
    with pytest.raises(InputError, match=r"^ttl: "):
        recommender.sessions(5, HUGE)
    with pytest.raises(InputError, match=r"^remember: "):
        recommender.sessions(5, remember=HUGE)
    with pytest.raises(InputError, match=r"^hop: "):
        recommender.sessions(5, hop=HUGE)
    recommender.sessions(5, memory=HUGE)


@pytest.mark.parametrize(
    "user", [HUGE, ["é" * 60], ["\ud800"], None, np.array([1]), 1.0], ids=list("abcdef")
)
def test_users_that_are_none(recommender: Recommender, user: Any) -> None:
    sessions = recommender.sessions(5)
    for call in (
        lambda: sessions.observe(user, "i1"),
        lambda: sessions.recommend(user),
        lambda: sessions.observe_many([user], ["i1"]),
    ):
        with pytest.raises(InputError, match=r"user: .*(integer or a text|give it as text)"):
            call()


def test_a_history_has_an_order(recommender: Recommender) -> None:
    with pytest.raises(InputError, match="history: found a set, which has no order"):
        recommender.score({"i1", "i2"}, ["i3"])  # type: ignore[arg-type]


def test_paths_with_a_null_character(recommender: Recommender, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="null character"):
        recommender.sessions(5).save(f"{tmp_path}/a\0b")
    with pytest.raises(InputError, match="null character"):
        recommender.load_sessions(f"{tmp_path}/a\0b", 5)
