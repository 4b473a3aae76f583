# SPDX-License-Identifier: Apache-2.0
"""Figures of lists are those of full scores where the lists are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seqrec_fast.data import Holdout
from seqrec_fast.errors import InputError
from seqrec_fast.evaluation import evaluate, evaluate_lists, ranks_in_lists
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.native import score_topk

RNG = np.random.default_rng(0)
ITEMS = 40


def world(ties: bool) -> tuple[Any, Any, Holdout]:
    shapes = (25, 3), (ITEMS, 3)
    draw = (lambda s: RNG.integers(-2, 3, s)) if ties else RNG.standard_normal
    queries, items = (np.asarray(draw(shape), dtype=np.float32) for shape in shapes)

    def rows(longest: int) -> Any:
        return JaggedBatch.from_lists(
            [RNG.permutation(ITEMS)[: RNG.integers(0, longest)] for _ in range(25)], dtype=np.int32
        )

    return queries, items, Holdout(np.arange(25), rows(9), rows(4))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("length", [11, ITEMS])
def test_exact_lists_give_the_exact_figures(ties: bool, length: int) -> None:
    queries, items, holdout = world(ties)
    popularity = np.arange(ITEMS)
    wanted = evaluate(queries, items, None, holdout, k=(3, 10), popularity=popularity).values
    scores, ids = score_topk(queries, items, length, seen=holdout.histories)
    found = evaluate_lists(
        scores, ids, holdout, items=ITEMS, k=(3, 10), popularity=popularity, protocol="lists"
    )
    assert set(wanted) - set(found.values) == {"MRR"}
    for name, value in found.values.items():
        assert value == pytest.approx(wanted[name], abs=1e-12), name
    assert found.protocol == "lists"


def test_what_is_not_in_a_list_is_a_miss() -> None:
    holdout = Holdout(
        np.arange(2), JaggedBatch.from_lists([[], []]), JaggedBatch.from_lists([[4, 1], [2]])
    )
    ids = np.array([[1, 3, -1], [0, 3, 1]])
    scores = np.array([[5.0, 4.0, -np.inf], [2.0, 2.0, 1.0]], dtype=np.float32)
    assert ranks_in_lists(scores, ids, holdout).tolist() == [2**62, 1, 2**62]
    values = evaluate_lists(scores, ids, holdout, items=5, k=2).values
    assert (values["HR@2"], values["Recall@2"]) == (0.5, 0.25)


def test_lists_that_are_too_short_are_refused() -> None:
    _, _, holdout = world(False)
    with pytest.raises(InputError, match="ids: lists of 10 are too short for k=10; one more"):
        evaluate_lists(
            np.zeros((25, 10), np.float32), np.zeros((25, 10), np.int64), holdout, items=ITEMS, k=10
        )
