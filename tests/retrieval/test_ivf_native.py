# SPDX-License-Identifier: Apache-2.0
"""The native inverted lists; what they share with the other kinds is in test_contract.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import retrieval
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.clusters import cluster, nearest

RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((30, 24))
VECTORS = (CENTRES[RNG.integers(30, size=6000)] + 0.4 * RNG.standard_normal((6000, 24))).astype(
    np.float32
)
QUERIES = RNG.standard_normal((40, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def index() -> Any:
    return retrieval.build(VECTORS, kind="ivf-native")


@pytest.fixture(scope="module")
def exact() -> Any:
    return retrieval.build(VECTORS)


def recall(found: Any, expected: Any) -> float:
    hits = [np.intersect1d(a, b).size for a, b in zip(found.ids, expected.ids, strict=True)]
    return sum(hits) / expected.ids.size


def test_most_of_the_best_are_found_with_their_scores(index: Any, exact: Any) -> None:
    found, expected = index.search(QUERIES, 50), exact.search(QUERIES, 50)
    assert recall(found, expected) > 0.98
    every = exact.search(QUERIES, 6000)
    for row in range(len(QUERIES)):
        place = np.argsort(every.ids[row])[found.ids[row]]
        assert (np.diff(place) > 0).all()
        np.testing.assert_array_equal(found.scores[row], every.scores[row][place])


def test_reach_and_nprobe_buy_recall(index: Any, exact: Any) -> None:
    expected = exact.search(QUERIES, 50)
    for name, values in (("reach", (0.0, 1.5, 3.5)), ("nprobe", (1, 10, 100))):
        found = [recall(index.tuned(**{name: v}).search(QUERIES, 50), expected) for v in values]
        assert found[0] < found[1] < found[2], (name, found)
    whole = index.tuned(nprobe=None, reach=None).search(QUERIES, 50)
    for ours, theirs in zip(whole, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tuned_shares_the_items_and_not_the_changes(index: Any) -> None:
    again = index.tuned(reach=2.0, nprobe=7)
    assert again.options() == index.options() | {"reach": 2.0, "nprobe": 7}
    assert again._current is index._current
    assert again.add(VECTORS[:3]).tolist() == [6000, 6001, 6002]
    assert index.size == 6000
    for name in ("nlist", "seed", "ef"):
        with pytest.raises(InputError, match=f"^{name}: only nprobe and reach can be tuned"):
            index.tuned(**{name: 3})


def test_one_by_one_and_together_agree(index: Any) -> None:
    """The order of visits differs, so may what lies beyond the reach; whole visits do not."""
    whole = index.tuned(nprobe=60, reach=None)
    together = whole.search(QUERIES, 20)
    for row in range(5):
        alone = whole.search(QUERIES[row : row + 1], 20)
        np.testing.assert_array_equal(alone.ids[0], together.ids[row])
        np.testing.assert_array_equal(alone.scores[0], together.scores[row])
    same = index.search(QUERIES, 20, threads=1)
    np.testing.assert_array_equal(same.scores, index.search(QUERIES, 20, threads=1).scores)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_k_items_come_back_whatever_the_filters(index: Any, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    share = data.draw(st.sampled_from([0.0, 0.002, 0.05, 0.1, 0.5, 1.0]))
    queries = data.draw(st.sampled_from([1, 6]))
    k = data.draw(st.sampled_from([1, 40, 900]))
    mask = rng.random(6000) < share
    rows = JaggedBatch.from_lists([rng.integers(0, 6000, 200) for _ in range(queries)])
    searched = index.tuned(nprobe=data.draw(st.sampled_from([1, 5])), reach=0.5)
    found = searched.search(QUERIES[:queries], k, allow=mask, exclude=rows)
    for row, hidden in enumerate(rows):
        left = mask.copy()
        left[hidden] = False
        ids = found.ids[row]
        assert (ids >= 0).sum() == min(k, left.sum())
        assert left[ids[ids >= 0]].all()
    each = JaggedBatch.from_lists([np.flatnonzero(mask)] * queries)
    found = searched.search(QUERIES[:queries], k, allow=each)
    assert ((found.ids >= 0).sum(axis=1) == min(k, mask.sum())).all()


def test_the_tail_moves_to_the_lists(exact: Any) -> None:
    index = retrieval.build(VECTORS[:3000], kind="ivf-native", nlist=40, reach=None)
    index.remove([7, 8])
    for begin in range(3000, 6000, 500):
        index.add(VECTORS[begin : begin + 500])
    assert (index._current.own >= 0).sum() > 4000  # most lie in lists by now
    index.update([7, 8], VECTORS[7:9])
    found = index.search(QUERIES, 300)
    expected = exact.search(QUERIES, 300)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)
    index.add(np.repeat(VECTORS, 2, axis=0))  # much more than there was: new centres
    assert index._current.trained == len(index) == 18000


def test_an_empty_index_grows() -> None:
    index = retrieval.build(np.empty((0, 24)), kind="ivf-native")
    assert (index.search(QUERIES, 3).ids == -1).all()
    index.add(VECTORS[:100])
    expected = retrieval.build(VECTORS[:100]).search(QUERIES, 3)
    np.testing.assert_array_equal(index.search(QUERIES, 3).ids, expected.ids)
    index.add(VECTORS[100:])
    assert index._current.trained == 6000


def test_lists_are_the_same_for_the_same_seed() -> None:
    first, second = (cluster(VECTORS, 50, 3, 2000) for _ in range(2))
    other = cluster(VECTORS, 50, 4, 2000)
    np.testing.assert_array_equal(first[0].centres, second[0].centres)
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0].centres != other[0].centres).any()


def test_k_means_finds_centres_that_are_there() -> None:
    clusters, own = cluster(VECTORS, 60, 0, None)
    wide = VECTORS[:, None].astype(np.float64) - clusters.centres[None]
    squares = np.einsum("ijk,ijk->ij", wide, wide)
    np.testing.assert_array_equal(own, squares.argmin(axis=1))
    # items lie 0.4 about their centres in each direction, and all of them 1.08 about their mean
    assert 0.12 < np.trace(clusters.covariance) / 24 < 0.35
    twice = np.repeat(VECTORS[:5], 100, axis=0)  # fewer different items than lists
    assert len(np.unique(nearest(twice, cluster(twice, 20, 0, None)[0].centres))) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nlist": 0}, "nlist: expected a whole number of at least 1"),
        ({"nprobe": 1.5}, "nprobe: expected a whole number"),
        ({"reach": -1}, "reach: expected a number of standard deviations"),
        ({"reach": float("nan")}, "reach: expected a number of standard deviations"),
        ({"seed": -1}, "seed: expected a whole number of at least 0"),
        ({"ef": 3}, "options of kind 'ivf-native': got an unexpected keyword"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        retrieval.build(VECTORS, kind="ivf-native", **options)


def test_wide_vectors_need_no_covariance() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((500, 300)).astype(np.float32)
    queries = rng.standard_normal((3, 300)).astype(np.float32)
    found = retrieval.build(vectors, kind="ivf-native", reach=8.0).search(queries, 10)
    expected = retrieval.build(vectors).search(queries, 10)
    np.testing.assert_array_equal(found.ids, expected.ids)
