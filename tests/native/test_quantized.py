# SPDX-License-Identifier: Apache-2.0
"""The search through a table of bytes: bit for bit the result of the search in float32."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

F32 = NDArray[np.float32]


def same(queries: Any, items: Any, k: int, bias: Any = None, **options: Any) -> NDArray[np.int64]:
    """Checks that both searches agree in every bit; returns the items."""
    scores, ids = native.score_topk(queries, items, k, bias=bias, **options)
    table = native.QuantizedItems(items, bias)
    found_scores, found_ids = native.score_topk(queries, table, k, **options)
    np.testing.assert_array_equal(found_ids, ids)
    # as bits: 0 and -0 are equal as numbers
    np.testing.assert_array_equal(found_scores.view(np.int32), scores.view(np.int32))
    return ids


def near_ties(rng: np.random.Generator, count: int, dim: int) -> F32:
    """Clusters of items that differ in a few last bits, some not at all, of many lengths."""
    centres = rng.standard_normal((max(1, count // 20), dim))
    items = centres[rng.integers(len(centres), size=count)] * rng.choice([1, 1, 2, 0.5], (count, 1))
    items *= 1 + rng.integers(-3, 4, (count, dim)) * rng.choice([0, 2.0**-23, 2.0**-12], (count, 1))
    return items.astype(np.float32)


@pytest.mark.parametrize("dim", [64, 128, 50])
def test_ten_thousand_queries_with_near_ties(dim: int) -> None:
    rng = np.random.default_rng(dim)
    items = near_ties(rng, 3000, dim)
    queries = rng.standard_normal((10_000, dim), dtype=np.float32)
    seen = JaggedBatch.from_lists(rng.integers(0, 3000, (10_000, 50)))
    same(queries, items, 10, seen=seen)


def test_near_ties_do_occur_and_bytes_alone_would_swap_them() -> None:
    """The tests above would fail without bounds and re-ranking."""
    rng = np.random.default_rng(0)
    items = near_ties(rng, 3000, 64)
    queries = rng.standard_normal((200, 64), dtype=np.float32)
    exact = same(queries, items, 10)
    scale = np.abs(items).max(axis=1, keepdims=True) / 127
    rounded = np.rint(items / scale) * scale
    order = np.argsort(-(queries @ rounded.T), axis=1, kind="stable")[:, :10]
    assert (order != exact).any(axis=1).mean() > 0.5


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_all_options(data: st.DataObject) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(0, 12) | st.just(70))
    total = draw(st.integers(0, 70) | st.sampled_from([600, 1500, 5000]))
    dim = draw(st.integers(1, 40) | st.sampled_from([64, 128, 256, 260, 300]))
    k = draw(st.integers(1, 30) | st.sampled_from([max(1, total), total + 3, 200]))
    kind = draw(st.sampled_from(["normal", "whole", "ties", "equal"]))
    items = {
        "normal": lambda: rng.standard_normal((total, dim)),
        "whole": lambda: rng.integers(-3, 4, (total, dim)),
        "ties": lambda: near_ties(rng, total, dim),
        "equal": lambda: np.ones((total, dim)),
    }[kind]().astype(np.float32)
    items *= 10.0 ** rng.integers(-3, 4, (total, 1)).astype(np.float32)
    options: dict[str, Any] = {"threads": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        options["bias"] = (rng.standard_normal(total) * 10.0 ** rng.integers(-3, 4)).astype(
            np.float32
        )
    if draw(st.booleans()):
        options["blocked"] = rng.random(total) < draw(st.sampled_from([0.05, 0.95, 1.0]))
    if draw(st.booleans()):
        rows = [rng.integers(0, total, rng.integers(0, 60) if total else 0) for _ in range(count)]
        options["seen"] = JaggedBatch.from_lists(rows)
    same(rng.standard_normal((count, dim), dtype=np.float32), items, k, **options)


@pytest.mark.parametrize("dim", [1, 3, 8, 20, 64, 128, 257, 600])
def test_every_instruction_set(isa: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    items = near_ties(rng, 2500, dim)
    queries = rng.standard_normal((7, dim), dtype=np.float32)
    bias = rng.standard_normal(2500).astype(np.float32)
    for some in (None, bias):
        same(queries, items, 25, some, blocked=rng.random(2500) < 0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 1e-42])
def test_items_of_any_value(isa: str, value: float) -> None:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((700, 24), dtype=np.float32)
    items[rng.integers(700, size=300), rng.integers(24, size=300)] = value
    items[5] = value
    queries = rng.standard_normal((4, 24), dtype=np.float32)
    bias = rng.standard_normal(700, dtype=np.float32)
    bias[::9] = value
    with np.errstate(all="ignore"):
        for k in (3, 100, 700):
            same(queries, items, k)
            same(queries, items, k, bias)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e16, 1e-42, 0.0, -0.0])
def test_queries_of_any_value(isa: str, value: float) -> None:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((1500, 24), dtype=np.float32)
    queries = rng.standard_normal((6, 24), dtype=np.float32)
    queries[1, 3], queries[3] = value, value
    seen = JaggedBatch.from_lists(rng.integers(0, 1500, (6, 50)))
    with np.errstate(all="ignore"):
        same(queries, items, 20, seen=seen)


@pytest.mark.parametrize("power", [-140, -126, -75, -60, 50, 59, 61, 100])
def test_extreme_magnitudes(isa: str, power: int) -> None:
    """Scores that underflow or overflow, and the edges of what the bounds cover."""
    rng = np.random.default_rng(0)
    scale = np.ldexp(np.float32(1), power)
    items = rng.standard_normal((900, 32), dtype=np.float32) * scale
    queries = rng.standard_normal((3, 32), dtype=np.float32)
    with np.errstate(all="ignore"):
        same(queries, items, 40)
        same(queries * np.ldexp(np.float32(1), min(power, 126)), items, 40)
        same(queries * np.ldexp(np.float32(1), -min(power, 126)), items, 40)


def test_bytes_at_their_extremes(isa: str) -> None:
    """Products that would overflow 16 bits if the levels of a query were not limited."""
    items = np.where(np.random.default_rng(0).random((600, 64)) < 0.5, -1, 1).astype(np.float32)
    items[::3] = 1.0
    same(np.array([[1.0] * 64, [-1.0] * 64, [1.0, -1.0] * 32]), items, 200)


def test_bounds_hold_where_each_step_rounds_against_them(isa: str) -> None:
    """Rests of half a step in every dimension, in the direction of the query."""
    rng = np.random.default_rng(1)
    steps = rng.integers(-60, 60, (2000, 64)) + rng.choice([0.499, -0.499], (2000, 1))
    items = (steps / 127).astype(np.float32)
    items[:, 0] = 1.0
    queries = np.vstack([np.ones(64), -np.ones(64), items[:4]]).astype(np.float32)
    same(queries, items, 50)


@pytest.mark.parametrize("dim", [1, 7, 8])
def test_scores_that_underflow_have_one_sign(isa: str, dim: int) -> None:
    """However many queries are searched for at once, and so however their products are summed."""
    rng = np.random.default_rng(dim)
    items = (rng.standard_normal((40, dim)) * 1e-30).astype(np.float32)
    queries = (rng.standard_normal((40, dim)) * 1e-30).astype(np.float32)
    same(queries, items, 40)


def test_all_items_equal_come_in_order() -> None:
    items = np.full((4000, 16), 0.3, dtype=np.float32)
    ids = same(np.ones((2, 16)), items, 150, threads=2)
    np.testing.assert_array_equal(ids, np.broadcast_to(np.arange(150), ids.shape))


def test_more_threads_than_cores_share_a_large_table() -> None:
    rng = np.random.default_rng(3)
    items = rng.standard_normal((120_000, 16), dtype=np.float32)
    queries = rng.standard_normal((9, 16), dtype=np.float32)
    for threads in (1, 2, 5):
        same(queries, items, 100, threads=threads)
        same(queries[:1], items, 100, threads=threads)


def test_pickles() -> None:
    rng = np.random.default_rng(0)
    table = native.QuantizedItems(rng.standard_normal((40, 5)), rng.standard_normal(40))
    again = pickle.loads(pickle.dumps(table))
    np.testing.assert_array_equal(
        native.score_topk(np.ones((1, 5)), again, 9)[1],
        native.score_topk(np.ones((1, 5)), table, 9)[1],
    )
    assert (len(again), again.dim) == (40, 5)


def test_memory_is_a_little_more_than_a_byte_a_dimension() -> None:
    items = np.zeros((16_000, 64), dtype=np.float32)
    assert native.QuantizedItems(items).nbytes == 16_000 * (64 + 5)
    assert native.QuantizedItems(items, np.zeros(16_000)).nbytes == 16_000 * (64 + 9)


def test_bad_arguments_are_named() -> None:
    table = native.QuantizedItems(np.ones((5, 3)))
    for call, message in (
        (lambda: native.QuantizedItems(np.ones(5)), "items: expected two dimensions"),
        (lambda: native.QuantizedItems(np.ones((2, 0))), "items: expected .* 1 column"),
        (lambda: native.QuantizedItems(np.ones((1, 32769))), "items: expected at most 32768"),
        (lambda: native.QuantizedItems(np.ones((5, 3)), np.ones(4)), "bias: expected one number"),
        (lambda: native.QuantizedItems(np.ones((5, 3)), threads=0), "threads: expected"),
        (lambda: native.score_topk(np.ones((1, 3)), table, 2, bias=np.ones(5)), "bias: give it to"),
        (lambda: native.score_topk(np.ones((1, 4)), table, 2), "queries: expected 3 columns"),
        (lambda: native.score_topk(np.ones((1, 3)), table, 0), "k: expected"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            call()


def test_a_table_of_other_items_is_refused_by_the_module_itself() -> None:
    items = np.ones((5, 3), dtype=np.float32)
    table = _C.Int8Table(items, None)
    for other, bias in (
        (items[:4], None),
        (items[:, :2].copy(), None),
        (items, items[:, 0].copy()),
    ):
        with pytest.raises(ValueError, match="table: made from other items"):
            _C.score_topk(other[:, : other.shape[1]], other, bias, None, None, None, 1, 1, table)
