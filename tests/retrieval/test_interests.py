# SPDX-License-Identifier: Apache-2.0
"""Merged searches of several interests against brute force, and lists made more diverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import JaggedBatch
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval import build
from seqrec_fast.retrieval.interests import best_of_interests, diversified, search_interests


def brute_force(
    vectors: Any, items: Any, k: int, hidden: list[set[int]]
) -> tuple[list[list[float]], list[list[int]]]:
    scores, ids = [], []
    for user, interests in enumerate(vectors):
        best = (items @ interests.T).max(axis=1)
        left = [i for i in range(len(items)) if i not in hidden[user]]
        order = sorted(left, key=lambda i: (-best[i], i))[:k]
        room = k - len(order)
        ids.append(order + [-1] * room)
        scores.append([float(best[i]) for i in order] + [-np.inf] * room)
    return scores, ids


@given(
    seed=st.integers(0, 10**6),
    users=st.integers(0, 5),
    interests=st.integers(1, 4),
    count=st.integers(1, 25),
    k=st.integers(1, 30),
    data=st.data(),
)
def test_search_is_that_of_brute_force(
    seed: int, users: int, interests: int, count: int, k: int, data: st.DataObject
) -> None:
    """Small whole numbers: exact in float32, and many ties."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (users, interests, 3)).astype(np.float32)
    items = rng.integers(-2, 3, (count, 3)).astype(np.float32)
    some = st.sets(st.integers(0, count - 1))
    seen = [data.draw(some) for _ in range(users)]
    allow = data.draw(st.none() | some)
    deny = [data.draw(some) for _ in range(users)]
    outside = set() if allow is None else set(range(count)) - allow
    found = search_interests(
        build(items, "exact", metric="ip"),
        vectors,
        k,
        exclude=JaggedBatch.from_lists([sorted(s) for s in seen]),
        allow=None if allow is None else np.array(sorted(allow), dtype=np.int64),
        deny=JaggedBatch.from_lists([sorted(s) for s in deny]),
    )
    hidden = [s | d | outside for s, d in zip(seen, deny, strict=True)]
    scores, ids = brute_force(vectors, items, k, hidden)
    assert found.ids.shape == (users, k)
    assert found.ids.tolist() == ids
    assert found.scores.tolist() == scores


@given(
    seed=st.integers(0, 10**6), k=st.integers(1, 25), diversity=st.sampled_from([0.0, 0.5, 50.0])
)
def test_diverse_lists_obey_filters_and_are_full(seed: int, k: int, diversity: float) -> None:
    rng = np.random.default_rng(seed)
    items = rng.integers(-2, 3, (20, 3)).astype(np.float32)
    vectors = rng.integers(-2, 3, (4, 3, 3)).astype(np.float32)
    seen = [rng.integers(0, 20, n) for n in rng.integers(0, 30, 4)]
    own = [rng.integers(0, 20, n) for n in rng.integers(0, 30, 4)]
    index = build(items, "exact")
    gone = rng.integers(0, 20, 3)
    index.remove(gone)
    mask = rng.random(20) < 0.8
    found = search_interests(
        index,
        vectors,
        k,
        diversity=diversity,
        exclude=JaggedBatch.from_lists(seen, dtype=np.int64),
        allow=JaggedBatch.from_lists(own, dtype=np.int64),
        deny=index.filter(deny=mask),
    )
    for user in range(4):
        left = set(own[user].tolist()) - set(seen[user].tolist()) - set(gone.tolist())
        left -= set(np.flatnonzero(~mask).tolist())
        ids = found.ids[user][found.ids[user] >= 0].tolist()
        assert len(ids) == len(set(ids)) == min(k, len(left))
        assert set(ids) <= left
        each = items[ids] @ vectors[user].T
        scores = found.scores[user, : len(ids)]
        assert (each == scores[:, None]).any(axis=1).all()
        if not diversity:
            assert scores.tolist() == each.max(axis=1, initial=-np.inf).tolist()


def test_candidates_that_were_not_found_stay_out() -> None:
    def search(queries: Any, hidden: Any) -> Any:
        scores = np.array([[3.0, -np.inf], [1.0, -np.inf]], dtype=np.float32)
        return scores, np.array([[4, -1], [4, -1]])

    scores, ids = best_of_interests(np.zeros((1, 2, 1), np.float32), 2, None, search)
    assert ids.tolist() == [[4, -1]]
    assert scores.tolist() == [[3.0, -np.inf]]


LISTS = (
    np.array([[[9.0, 8.0, 7.0], [3.0, 2.0, 1.0]]], dtype=np.float32),
    np.array([[[1, 2, 3], [4, 5, 1]]]),
)


def test_diversity_takes_from_all_interests_in_turn() -> None:
    _, ids = diversified(*LISTS, 4, 0.0)
    assert ids.tolist() == [[1, 2, 3, 4]]
    scores, ids = diversified(*LISTS, 4, 100.0)
    assert ids.tolist() == [[1, 4, 2, 5]]
    assert scores.tolist() == [[9.0, 3.0, 8.0, 2.0]], "scores are those of the items"
    _, ids = diversified(*LISTS, 7, 100.0)
    assert ids.tolist() == [[1, 4, 2, 5, 3, -1, -1]]


def test_diversity_of_categories() -> None:
    categories = np.array([0, 0, 0, 1, 0, 2])
    _, ids = diversified(*LISTS, 3, 100.0, categories)
    assert ids.tolist() == [[1, 3, 5]]


@given(seed=st.integers(0, 10**6), diversity=st.sampled_from([0.0, 0.5, 2.0]))
def test_each_place_has_the_item_of_the_largest_value(seed: int, diversity: float) -> None:
    """ComiRec's greedy choice, one item at a time."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.integers(0, 9, (1, 3, 5)).astype(np.float32))
    ids = np.stack([rng.permutation(8)[:5] for _ in range(3)])[None]
    out_scores, out = diversified(scores, ids, 5, diversity)
    best: dict[int, tuple[float, int]] = {}
    for interest in range(3):
        for score, item in zip(scores[0, interest], ids[0, interest].tolist(), strict=True):
            if item not in best or score > best[item][0]:
                best[item] = float(score), interest
    taken: list[int] = []
    for place, item in enumerate(out[0].tolist()):

        def value(i: int, place: int = place) -> float:
            same = sum(best[t][1] == best[i][1] for t in taken)
            return best[i][0] + diversity * (1 - same / max(place, 1))

        assert value(item) == max(value(i) for i in best if i not in taken)
        assert out_scores[0, place] == best[item][0]
        taken.append(item)
    assert len(set(taken)) == 5


def test_wrong_arguments_are_named() -> None:
    index = build(np.ones((3, 2), np.float32), "exact")
    with pytest.raises(InputError, match=r"interests: expected \[users, interests, dim\]"):
        search_interests(index, np.ones((2, 2)), 1)
    with pytest.raises(InputError, match="diversity: must be a number of at least 0"):
        search_interests(index, np.ones((1, 2, 2)), 1, diversity=-1.0)
    with pytest.raises(InputError, match=r"categories: expected one number an item \(3\)"):
        search_interests(index, np.ones((1, 2, 2)), 1, diversity=1.0, categories=[1])
    with pytest.raises(InputError, match=r"interests: .* found uneven rows"):
        search_interests(index, [[[1.0]], [[1.0], [2.0]]], 1)
    wrong: Any = "1"
    with pytest.raises(InputError, match="diversity: must be a number of at least 0, found '1'"):
        search_interests(index, np.ones((1, 2, 2)), 1, diversity=wrong)
    rows = JaggedBatch.from_lists([[0], [1]])
    for name in ("exclude", "allow", "deny"):
        with pytest.raises(InputError, match=rf"{name}: expected one row a user \(1\), found 2"):
            search_interests(index, np.ones((1, 2, 2)), 1, **{name: rows})
