# SPDX-License-Identifier: Apache-2.0
"""Ranks against a plain count, ties, masking, bounded memory and bad input."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.evaluation import rank_targets, ranking
from seqrec_fast.jagged import JaggedBatch


def counted(
    queries: NDArray[Any],
    items: NDArray[Any],
    bias: NDArray[Any] | None,
    targets: list[list[int]],
    seen: list[list[int]] | None,
) -> list[int]:
    """The definition, item by item."""
    ranks = []
    for user, wanted in enumerate(targets):
        interests = queries[user].reshape(-1, items.shape[1])
        scores = [max(float(items[i] @ q) for q in interests) for i in range(len(items))]
        if bias is not None:
            scores = [s + float(b) for s, b in zip(scores, bias, strict=True)]
        for item in seen[user] if seen is not None else []:
            scores[item] = float("-inf")
        for target in wanted:
            before = [i for i, s in enumerate(scores) if i != target and s >= scores[target]]
            ranks.append(1 + len(before))
    return ranks


@given(
    seed=st.integers(0, 10**6),
    users=st.integers(0, 7),
    interests=st.sampled_from([None, 1, 3]),
    items=st.integers(1, 20),
    with_bias=st.booleans(),
    with_seen=st.booleans(),
    budget=st.sampled_from([1, 40, 300, 10**6]),
    threads=st.sampled_from([1, 2, 5]),
)
def test_ranks_are_those_of_the_definition(
    seed: int,
    users: int,
    interests: int | None,
    items: int,
    with_bias: bool,
    with_seen: bool,
    budget: int,
    threads: int,
) -> None:
    """Small whole numbers: exact in float32, and many ties."""
    rng = np.random.default_rng(seed)
    shape = (users, 3) if interests is None else (users, interests, 3)
    q = rng.integers(-2, 3, shape).astype(np.float32)
    x = rng.integers(-2, 3, (items, 3)).astype(np.float32)
    b = rng.integers(-2, 3, items).astype(np.float32) if with_bias else None
    # up to 30 targets a user: both ways of counting are taken
    targets = [rng.integers(0, items, rng.integers(0, 31)).tolist() for _ in range(users)]
    seen = [rng.integers(0, items, rng.integers(0, 6)).tolist() for _ in range(users)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "MEMORY_BYTES", budget)  # cuts users, and items, into chunks
        found = rank_targets(
            q,
            x,
            b,
            targets=JaggedBatch.from_lists(targets),
            seen=JaggedBatch.from_lists(seen) if with_seen else None,
            threads=threads,
        )
    assert found.dtype == np.int64
    assert found.tolist() == counted(q, x, b, targets, seen if with_seen else None)


def ranks(scores: list[float], target: int, seen: list[int] | None = None) -> int:
    """The rank of one target when the scores are given as they are."""
    return int(
        rank_targets(
            np.zeros((1, 1)),
            np.zeros((len(scores), 1)),
            np.array(scores, dtype=np.float32),
            targets=JaggedBatch.from_lists([[target]]),
            seen=None if seen is None else JaggedBatch.from_lists([seen]),
        )[0]
    )


def test_ties_count_against_us() -> None:
    assert ranks([0.0, 0.0, 0.0, 0.0], 0) == 4
    assert ranks([0.0, 0.0, 0.0, 0.0], 3) == 4
    assert ranks([5.0, 1.0, 1.0, 0.0], 1) == 3
    assert ranks([5.0, 1.0, 1.0, 0.0], 0) == 1


def test_seen_items_are_masked_with_minus_infinity_not_with_zero() -> None:
    scores = [-5.0, -1.0, -2.0, -3.0]
    assert ranks(scores, 0) == 4
    assert ranks(scores, 0, [1, 2]) == 2  # masked with 0 it would stay 4
    assert ranks(scores, 1, []) == 1


def test_a_target_that_was_seen_has_the_last_rank() -> None:
    assert ranks([9.0, 1.0, 0.0], 0, [0]) == 3
    assert ranks([9.0, 1.0, 0.0], 1, [0, 1, 2]) == 3


def test_other_targets_of_the_user_stay_in_the_ranking() -> None:
    found = rank_targets(
        np.zeros((1, 1)),
        np.zeros((4, 1)),
        np.array([4.0, 3.0, 2.0, 1.0]),
        targets=JaggedBatch.from_lists([[3, 0, 1]]),
    )
    assert found.tolist() == [4, 1, 2]


def test_ranks_of_a_large_catalogue_equal_those_of_whole_score_rows() -> None:
    rng = np.random.default_rng(3)
    q = rng.normal(size=(40, 16)).astype(np.float32)
    x = rng.normal(size=(5000, 16)).astype(np.float32)
    targets = rng.integers(0, 5000, (40, 1))
    scores = q @ x.T
    wanted = (scores >= np.take_along_axis(scores, targets, 1)).sum(1)
    found = rank_targets(q, x, targets=JaggedBatch.from_lists(targets.tolist()))
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("shape", [(1,), (2, 1)])
def test_memory_stays_bounded(shape: tuple[int, ...]) -> None:
    """20,000 users x 20,000 items would be 1.6 GB of scores, and twice that of two interests."""
    users = items = 20_000
    q = np.ones((users, *shape), dtype=np.float32)
    x = np.arange(items, dtype=np.float32)[:, None]
    targets = JaggedBatch.from_lengths(np.arange(users, dtype=np.int32), np.ones(users))
    tracemalloc.start()
    try:
        found = rank_targets(q, x, targets=targets)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.tolist() == list(range(items, 0, -1))
    assert peak < 80 * 2**20


def test_a_score_that_is_no_number_is_an_error_for_a_target_and_before_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finite vectors may still overflow to infinity minus infinity; here NaN is let through."""

    def unchecked(q: Any, x: Any, b: Any) -> tuple[Any, Any, Any]:
        return np.asarray(q, np.float32), np.asarray(x, np.float32), b

    monkeypatch.setattr(ranking, "checked_scorer", unchecked)
    queries, items = np.ones((3, 1)), np.array([[1.0], [0.5], [np.nan]])
    few = JaggedBatch.from_lists([[0], [1], []])
    assert rank_targets(queries, items, targets=few).tolist() == [2, 3]
    many = JaggedBatch.from_lists([[0] * 20, [1] * 20, []])  # counted by sorting
    assert rank_targets(queries, items, targets=many).tolist() == [2] * 20 + [3] * 20
    with pytest.raises(InputError, match=r"score of item 2 for user row 1 is not a number \(NaN\)"):
        rank_targets(queries, items, targets=JaggedBatch.from_lists([[0], [1, 2], [2]]))


NAN = np.array([[0.0, 1.0], [np.nan, 0.0]])
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "queries NaN": ({"queries": NAN}, "queries: row 1 holds NaN"),
    "items NaN": ({"items": NAN}, "items: row 1 holds NaN"),
    "items infinite": ({"items": np.array([[np.inf, 0], [0, 0]])}, "items: row 0 holds NaN or inf"),
    "bias NaN": ({"bias": [0.0, np.nan]}, "bias: the entry of item 1 is nan"),
    "bias short": ({"bias": [0.0]}, r"bias: expected shape \(2,\)"),
    "columns": ({"items": np.zeros((2, 3))}, "queries: 2 columns, but items have 3"),
    "one dimension": ({"queries": np.zeros(2)}, "queries: expected two dimensions"),
    "no items": ({"items": np.zeros((0, 2))}, "the catalogue is empty"),
    "target too large": ({"targets": JaggedBatch.from_lists([[0], [2]])}, "row 1 holds item 2"),
    "target negative": ({"targets": JaggedBatch.from_lists([[-1], [0]])}, "row 0 holds item -1"),
    "targets float": (
        {"targets": JaggedBatch.from_lists([[0.0], [1.0]], np.float32)},
        "targets: expected item indices",
    ),
    "targets short": ({"targets": JaggedBatch.from_lists([[0]])}, "1 rows, but there are 2"),
    "seen too large": ({"seen": JaggedBatch.from_lists([[], [7]])}, "seen: row 1 holds item 7"),
    "threads zero": ({"threads": 0}, "threads: must be"),
    "threads text": ({"threads": "2"}, "threads: must be"),
    "threads true": ({"threads": True}, "threads: must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    changes, message = BAD[case]
    arguments: dict[str, Any] = {
        "queries": np.zeros((2, 2)),
        "items": np.zeros((2, 2)),
        "targets": JaggedBatch.from_lists([[0], [1]]),
        **changes,
    }
    with pytest.raises(InputError, match=message):
        rank_targets(**arguments)


def test_large_finite_vectors_are_not_taken_for_infinite_ones() -> None:
    big = np.full((2, 4), 3e38, dtype=np.float32)  # the sum of a row overflows, no entry does
    targets = JaggedBatch.from_lists([[0], [1]])
    assert rank_targets(np.zeros((2, 4)), big, targets=targets).tolist() == [2, 2]
