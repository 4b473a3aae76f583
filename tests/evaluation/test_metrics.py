# SPDX-License-Identifier: Apache-2.0
"""The figures against torchmetrics, against hand-made cases, and how they print."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.retrieval import (
    RetrievalHitRate,
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalPrecision,
    RetrievalRecall,
)

from seqrec_fast.data import Holdout
from seqrec_fast.errors import InputError
from seqrec_fast.evaluation import (
    Metrics,
    describe_protocol,
    evaluate,
    evaluate_popularity,
    metrics_from_ranks,
    rank_targets,
)
from seqrec_fast.evaluation.metrics import coverage, novelty
from seqrec_fast.jagged import JaggedBatch

TORCHMETRICS = {
    "HR": RetrievalHitRate,
    "NDCG": RetrievalNormalizedDCG,
    "MRR": RetrievalMRR,
    "Recall": RetrievalRecall,
    "Precision": RetrievalPrecision,
}


def holdout(histories: list[list[int]], targets: list[list[int]]) -> Holdout:
    return Holdout(
        np.arange(len(targets)), JaggedBatch.from_lists(histories), JaggedBatch.from_lists(targets)
    )


@given(
    seed=st.integers(0, 10**6),
    users=st.integers(1, 12),
    items=st.integers(8, 60),
    most=st.integers(1, 8),
)
def test_figures_agree_with_torchmetrics(seed: int, users: int, items: int, most: int) -> None:
    """Random scores without ties, one or more targets a user, seen items masked."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(users, 8)).astype(np.float32)
    x = rng.normal(size=(items, 8)).astype(np.float32)
    chosen = [rng.permutation(items) for _ in range(users)]
    targets = [c[: rng.integers(1, most + 1)].tolist() for c in chosen]
    seen = [c[most : most + rng.integers(0, items - most + 1)].tolist() for c in chosen]
    cutoffs = [1, 3, 5, items]
    ranks = rank_targets(
        q, x, targets=JaggedBatch.from_lists(targets), seen=JaggedBatch.from_lists(seen)
    )
    found = metrics_from_ranks(ranks, JaggedBatch.from_lists(targets).offsets, cutoffs)

    scores = q @ x.T
    relevant = np.zeros((users, items), dtype=bool)
    for user in range(users):
        relevant[user, targets[user]] = True
        scores[user, seen[user]] = -np.inf
    # torchmetrics wants finite scores, and never counts a hit whose score is not positive (MRR):
    # places from the bottom say the same.
    scores = scores.argsort(axis=1, kind="stable").argsort(axis=1).astype(np.float32) + 1
    given_ = (
        torch.from_numpy(scores.reshape(-1)),
        torch.from_numpy(relevant.reshape(-1)),
        torch.arange(users).repeat_interleave(items),
    )
    for name, metric in TORCHMETRICS.items():
        for cutoff in cutoffs:
            wanted = metric(top_k=cutoff)(given_[0], given_[1], indexes=given_[2])
            assert found[f"{name}@{cutoff}"] == pytest.approx(float(wanted), abs=1e-6), name
    assert found["MRR"] == pytest.approx(
        float(RetrievalMRR()(given_[0], given_[1], indexes=given_[2])), abs=1e-6
    )


def test_one_target_by_hand() -> None:
    found = metrics_from_ranks([1, 3, 11], [0, 1, 2, 3], [2, 10])
    assert found["HR@2"] == found["Recall@2"] == pytest.approx(1 / 3)
    assert found["HR@10"] == pytest.approx(2 / 3)
    assert found["NDCG@10"] == pytest.approx((1 + 1 / 2) / 3)
    assert found["MRR@10"] == pytest.approx((1 + 1 / 3) / 3)
    assert found["MRR"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 3)
    assert found["Precision@10"] == pytest.approx(0.2 / 3)
    assert list(found)[:5] == ["HR@2", "NDCG@2", "MRR@2", "Recall@2", "Precision@2"]
    assert list(found)[-1] == "MRR"


def test_several_targets_by_hand_and_users_without_any_left_out() -> None:
    found = metrics_from_ranks([4, 1, 9], [0, 0, 3, 3], 5)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found["HR@5"] == 1
    assert found["Recall@5"] == pytest.approx(2 / 3)
    assert found["Precision@5"] == pytest.approx(2 / 5)
    assert found["NDCG@5"] == pytest.approx((1 + 1 / math.log2(5)) / ideal)
    assert found["MRR@5"] == 1
    # the ideal of a short list has k entries, not as many as there are targets
    assert metrics_from_ranks([1, 2, 3], [0, 3], 2)["NDCG@2"] == pytest.approx(1)


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "5", [], [5, 0], [None]])
def test_impossible_cutoffs_are_refused(k: Any) -> None:
    with pytest.raises(InputError, match="k: "):
        metrics_from_ranks([1], [0, 1], k)


@pytest.mark.parametrize(
    ("ranks", "offsets", "message"),
    [
        ([], [0], "no target"),
        ([], [0, 0], "no target"),
        ([0], [0, 1], "the best rank is 1, found 0"),
        ([1, 2], [0, 1], "must run from 0"),
        ([1, 2], [0, 2, 1, 2], "must not decrease"),
    ],
)
def test_impossible_ranks_are_refused(ranks: Any, offsets: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metrics_from_ranks(ranks, offsets, 5)


def test_coverage_and_novelty_by_hand() -> None:
    lists = np.array([[0, 1], [1, -1]])
    assert coverage(lists, 4) == 0.5
    # shares with one event added to each item: 4/8, 2/8, 1/8, 1/8
    counts = [3, 1, 0, 0]
    assert novelty(lists, counts) == pytest.approx((1 + 2 + 2) / 3)
    assert novelty(np.array([[2]]), counts) == pytest.approx(3)
    assert novelty(np.full((1, 2), -1), counts) == 0


def test_evaluate_puts_everything_together() -> None:
    q = np.array([[1.0], [-1.0]])
    x = np.array([[4.0], [3.0], [2.0], [1.0]])
    held = holdout([[0], [3]], [[1], [0]])
    found = evaluate(
        q, x, None, held, k=(1, 2), popularity=[3, 1, 0, 0], protocol="by-time, strict"
    )
    assert found.users == 2
    assert found["HR@1"] == 0.5
    assert found["HR@2"] == 0.5
    assert found["MRR"] == pytest.approx((1 + 1 / 3) / 2)
    # lists: user 0 gets 1, 2; user 1 gets 2, 1
    assert found["Coverage@1"] == 0.5
    assert found["Coverage@2"] == 0.5
    assert found["Novelty@2"] == pytest.approx(2.5)
    assert found.protocol == "by-time, strict, full ranking, seen excluded, ties against"
    with_seen = evaluate(q, x, None, held, k=1, popularity=None, exclude_seen=False)
    assert with_seen.protocol == "full ranking, seen included, ties against"
    assert with_seen["HR@1"] == 0
    assert with_seen["Coverage@1"] == 0.5  # items 0 and 3
    assert "Novelty@1" not in with_seen.values


def test_evaluate_counts_only_users_with_a_target() -> None:
    held = holdout([[], [0]], [[], [1]])
    found = evaluate(np.ones((2, 1)), np.eye(2)[:, :1], None, held, k=5, popularity=[1, 1])
    assert found.users == 1
    assert found["Coverage@5"] == 0.5  # user 1 alone, item 0 is masked


def test_evaluate_refuses_counts_of_another_catalogue_and_an_empty_holdout() -> None:
    held = holdout([[0]], [[1]])
    with pytest.raises(InputError, match="popularity: expected one count for each of the 2 items"):
        evaluate(np.ones((1, 1)), np.ones((2, 1)), None, held, popularity=[1])
    with pytest.raises(InputError, match="holdout is empty"):
        evaluate(np.ones((0, 1)), np.ones((2, 1)), None, holdout([], []), popularity=[1, 1])
    with pytest.raises(InputError, match="queries: row 0 holds NaN"):
        evaluate(np.full((1, 1), np.nan), np.ones((2, 1)), None, held, popularity=[1, 1])


def test_popularity_takes_the_same_path_ties_against_it() -> None:
    held = holdout([[0], [3], [1]], [[1], [0], [2]])
    found = evaluate_popularity(held, [9, 5, 5, 1], k=(1, 2), protocol="leave-one-out, strict")
    # user 0: 1 ties with 2 -> rank 2; user 1: rank 1; user 2: 0 before 2, 1 is masked -> rank 2
    assert found["HR@1"] == pytest.approx(1 / 3)
    assert found["HR@2"] == 1
    assert found.users == 3
    assert found.protocol == "leave-one-out, strict, full ranking, seen excluded, ties against"
    with pytest.raises(InputError, match="popularity: expected one count an item"):
        evaluate_popularity(held, [[1, 2]])


def test_popularity_counts_beyond_float32_keep_their_order() -> None:
    held = holdout([[]], [[1]])
    found = evaluate_popularity(held, [2**24, 2**24 + 1, 0], k=1)
    assert found["HR@1"] == 1


class _Split:
    protocol = "leave-one-out"
    refitted = False


def test_a_protocol_says_whether_it_is_strict_or_refit() -> None:
    split: Any = _Split()
    assert describe_protocol(split) == "leave-one-out, strict"
    assert describe_protocol(split, refit=True) == "leave-one-out, refit"
    split.refitted = True
    assert describe_protocol(split) == "leave-one-out, refit"


def test_metrics_go_to_json_and_back_and_name_what_is_missing() -> None:
    found = Metrics({"HR@10": 0.5}, 3, "x")
    assert Metrics.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(InputError, match="no figure named 'HR@5'; there are HR@10"):
        _ = found["HR@5"]
    for bad in ({}, {"values": 3, "users": 1, "protocol": ""}, {"values": {"a": "b"}}):
        with pytest.raises(InputError, match="metrics: expected the keys"):
            Metrics.from_dict(bad)


def test_metrics_print_as_an_aligned_table() -> None:
    found = Metrics(
        {"HR@5": 0.25, "HR@10": 0.5, "MRR@5": 0.1, "MRR@10": 0.125, "MRR": 0.13, "Novelty@10": 9.5},
        12345,
        "by-time, strict",
    )
    assert str(found).splitlines() == [
        "12,345 users; by-time, strict",
        "metric       @5     @10  all ranks",
        "HR       0.2500  0.5000          -",
        "MRR      0.1000  0.1250     0.1300",
        "Novelty       -    9.50          -",
    ]
