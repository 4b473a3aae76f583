# SPDX-License-Identifier: Apache-2.0
"""The exact index under changes, step by step beside one that is built anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec_fast import retrieval
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval import exact, storage
from tests.retrieval import test_contract

DIM = 5


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_SMALL", 0)


def filters(rng: np.random.Generator, queries: int, size: int) -> list[dict[str, Any]]:
    def some(count: int) -> JaggedBatch[Any]:
        return JaggedBatch.from_lists([rng.integers(0, size, count) for _ in range(queries)])

    mask = rng.random(size) < 0.4
    return [
        {},
        {"exclude": some(4)},
        {"deny": mask},
        {"allow": some(7), "exclude": some(3)},
        {"allow": some(size), "deny": mask},
    ]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["float32", "int8", "bfloat16"]), st.integers(1, 70)
)
def test_any_changes_give_what_building_anew_gives(seed: int, dtype: str, first: int) -> None:
    """Bit for bit, ties and filters included: vectors of few values have many equal scores."""
    rng = np.random.default_rng(seed)

    def vectors(count: int) -> Any:
        return rng.integers(-2, 3, (count, DIM)).astype(np.float32)

    whole, hidden = vectors(first), np.zeros(first, bool)
    index = retrieval.build(whole.copy(), dtype=dtype)
    for _ in range(8):
        what = rng.integers(3)
        if what == 0:
            more = vectors(int(rng.integers(1, 5)))
            index.add(more)
            whole, hidden = np.concatenate([whole, more]), np.pad(hidden, (0, len(more)))
        else:
            ids = rng.choice(len(whole), min(len(whole), int(rng.integers(1, 4))), replace=False)
            if what == 1:
                fresh = vectors(len(ids))
                index.update(ids, fresh)
                whole[ids], hidden[ids] = fresh, False
            else:
                index.remove(ids)
                hidden[ids] = True
        anew = retrieval.build(whole.copy(), dtype=dtype)
        anew.remove(np.flatnonzero(hidden))
        queries = vectors(3)
        for given_filters in filters(rng, 3, len(whole)):
            k = int(rng.integers(1, len(whole) + 3))
            for found, expected in zip(
                index.search(queries, k, **given_filters),
                anew.search(queries, k, **given_filters),
                strict=True,
            ):
                np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(index.vectors(np.arange(len(whole))), whole)


@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16"])
def test_the_contract_holds_with_items_beside(dtype: str) -> None:
    arguments = {"kind": "exact", "dtype": dtype}
    test_contract.test_a_changing_catalogue(arguments)
    test_contract.test_searches_while_it_changes(arguments)


def test_few_changes_leave_the_table_where_it_is_and_many_fold_in(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((800, DIM)).astype(np.float32)
    index = retrieval.build(vectors, dtype="int8")
    table = index._state().table
    index.add(vectors[:50])
    index.update(np.arange(50), vectors[50:100])
    assert index._state().table is table
    assert np.shares_memory(table.items, vectors)
    path = tmp_path / "index"
    index.save(path)
    again = retrieval.load(path)
    np.testing.assert_array_equal(again.vectors([0, 849]), vectors[[50, 49]])
    assert again.describe() == index.describe()
    index.add(vectors[100:101])  # the 101st beside 800
    assert index._state().side is None
    assert len(index._state().table) == 851
    np.testing.assert_array_equal(index.vectors([0, 849, 850]), vectors[[50, 49, 100]])


def test_a_file_whose_parts_do_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index"
    vectors = np.ones((20, DIM), np.float32)
    index = retrieval.build(vectors)
    index.add(vectors[:2])
    index.save(path)
    meta, tensors = storage.read_index(path)
    for change in (
        {"side.ids": np.array([20, 22])},
        {"side.ids": np.array([21, 20])},
        {"side.ids": np.array([-1, 20])},
        {"side.ids": np.array([20])},
        {"side.ids": np.array([20.0, 21.0])},
        {"side.items": np.full((2, DIM), np.nan, np.float32)},
        {"side.items": np.ones((2, DIM + 1), np.float32)},
        {"items": vectors[:19]},
        {"items": np.ones((30, DIM), np.float32)},
    ):
        facts = {name: meta[name] for name in ("kind", "metric", "dim", "size", "options")}
        storage.write_index(path, facts, {**tensors, **change})
        with pytest.raises(InputError, match="/index: "):
            retrieval.load(path)
