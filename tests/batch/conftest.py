# SPDX-License-Identifier: Apache-2.0
"""Models with ids of text and of integers that remember what they were asked and answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqrec_fast.bundle import Bundle
from seqrec_fast.engine import Recommender
from tests.engine.conftest import make_bundle


class Witness(Recommender):
    """A Recommender that keeps the questions and answers of a batch.

    The last bits of a score may depend on which users are encoded together, so that a batch is
    compared with the answers it was given, bit for bit; that these are those of ``recommend`` is
    tested with the engine.
    """

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        super().__init__(bundle, **options)
        self.asked: list[tuple[list[list[int]], dict[str, Any]]] = []
        self.answered: list[tuple[Any, Any]] = []

    def recommend_arrays(self, histories: Any, k: Any, exclude_seen: Any, **options: Any) -> Any:
        self.asked.append((histories.to_lists(), {"k": k, "exclude_seen": exclude_seen, **options}))
        self.answered.append(super().recommend_arrays(histories, k, exclude_seen, **options))
        return self.answered[-1]

    def check(
        self, found: pa.Table, users: list[Any], histories: list[list[Any]], k: int, **filters: Any
    ) -> None:
        """The output of the only batch since ``forget``, for these raw histories."""
        assert found.column(0).to_pylist() == users
        place = {raw: index for index, raw in enumerate(self.item_ids.tolist())}
        known = [[place[raw] for raw in history if raw in place] for history in histories]
        assert [row for asked, _ in self.asked for row in asked] == known
        exclude_seen = filters.pop("exclude_seen", True)
        blocked = np.zeros(self.num_items, dtype=np.bool_)
        if "allow" in filters:
            blocked[:] = True
            blocked[[place[raw] for raw in filters.pop("allow") if raw in place]] = False
        blocked[[place[raw] for raw in filters.pop("deny", ()) if raw in place]] = True
        assert not filters
        for _, options in self.asked:
            assert (options["k"], options["exclude_seen"]) == (
                min(k, self.num_items),
                exclude_seen,
            )
            given = options["blocked"]
            assert np.array_equal(blocked, np.zeros_like(blocked) if given is None else given)
        answers = [one for answer in self.answered for one in zip(*answer, strict=True)]
        for row, (scores, ids), history in zip(found.to_pylist(), answers, known, strict=True):
            there = ids >= 0
            assert row["items"] == self.item_ids[ids[there]].tolist()
            assert row["scores"] == scores[there].tolist()
            assert row["fallback"] == (not history)

    def forget(self) -> None:
        """Begins anew, for the next batch."""
        self.asked.clear()
        self.answered.clear()


@pytest.fixture(scope="session")
def text_bundle() -> Bundle:
    return make_bundle()


@pytest.fixture
def by_text(text_bundle: Bundle) -> Witness:
    return Witness(text_bundle, threads=1)


@pytest.fixture
def by_number() -> Witness:
    return Witness(make_bundle("gru", text_ids=False), threads=1)
