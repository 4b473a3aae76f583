# SPDX-License-Identifier: Apache-2.0
"""Items in 16 or 8 bits: bit for bit the search in float32 over the numbers they stand for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqrec_fast import native
from seqrec_fast.engine.precision import dequantise_rows, quantise_rows, round_to_bfloat16
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.native import CompactForm, CompactItems

FORMS: tuple[CompactForm, ...] = ("bfloat16", "int8")
Float = NDArray[np.float32]


def rounded(vectors: Float, form: str) -> Float:
    if form == "bfloat16":
        return round_to_bfloat16(vectors)
    return dequantise_rows(*quantise_rows(vectors))


def same(queries: Any, vectors: Float, form: CompactForm, k: int, bias: Any, **options: Any) -> Any:
    """Checks that both searches agree in every bit; returns the items."""
    table = CompactItems(vectors, form, bias)
    numbers = rounded(vectors, form)
    np.testing.assert_array_equal(
        table.rows(np.arange(len(vectors))).view(np.int32), numbers.view(np.int32)
    )
    scores, ids = native.score_topk(queries, numbers, k, bias=bias, **options)
    found_scores, found_ids = native.score_topk(queries, table, k, **options)
    np.testing.assert_array_equal(found_ids, ids)
    np.testing.assert_array_equal(found_scores.view(np.int32), scores.view(np.int32))
    return ids


@settings(max_examples=100, deadline=None)
@given(data=st.data(), form=st.sampled_from(FORMS))
def test_all_options(data: st.DataObject, form: CompactForm) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(0, 20) | st.just(70))
    total = draw(st.integers(0, 70) | st.sampled_from([600, 1500, 5000]))
    dim = draw(st.integers(1, 40) | st.sampled_from([64, 128, 256, 260, 300]))
    k = draw(st.integers(1, 30) | st.sampled_from([max(1, total), total + 3, 200]))
    # whole numbers of few values: ties, zero rows
    kind = draw(st.booleans())
    vectors = rng.integers(-1, 2, (total, dim)) if kind else rng.standard_normal((total, dim))
    bias = rng.standard_normal(total).astype(np.float32) if draw(st.booleans()) else None
    options: dict[str, Any] = {"threads": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        options["blocked"] = rng.random(total) < draw(st.sampled_from([0.05, 0.95, 1.0]))
    if draw(st.booleans()):
        rows = [rng.integers(0, total, rng.integers(0, 60) if total else 0) for _ in range(count)]
        options["seen"] = JaggedBatch.from_lists(rows)
    queries = rng.standard_normal((count, dim), dtype=np.float32)
    same(queries, vectors.astype(np.float32), form, k, bias, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [1, 3, 16, 20, 64, 128, 257])
def test_every_instruction_set(isa: str, dim: int, form: CompactForm) -> None:
    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((2501, dim), dtype=np.float32)
    vectors[1000:1500] = vectors[:500]
    bias = rng.standard_normal(2501).astype(np.float32)
    for queries in (1, 4, 7, 40):
        some = rng.standard_normal((queries, dim), dtype=np.float32)
        same(some, vectors, form, 25, bias if queries % 2 else None, blocked=rng.random(2501) < 0.1)


def test_rounding_moves_items_so_that_the_tests_above_can_fail() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 64), dtype=np.float32)
    queries = rng.standard_normal((50, 64), dtype=np.float32)
    exact = native.score_topk(queries, vectors, 20)[1]
    for form in FORMS:
        found = native.score_topk(queries, CompactItems(vectors, form), 20)[1]
        assert (found != exact).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e16, 1e-42])
def test_queries_of_any_value(isa: str, value: float, form: CompactForm) -> None:
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((6, 24), dtype=np.float32)
    queries[1, 3], queries[3] = value, value
    with np.errstate(all="ignore"):
        same(queries, rng.standard_normal((1500, 24), dtype=np.float32), form, 20, None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("power", [-140, -126, -100, -60, 50, 59, 61, 100])
def test_extreme_magnitudes(isa: str, form: CompactForm, power: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((900, 32), dtype=np.float32) * np.ldexp(np.float32(1), power)
    vectors[::7] = rng.standard_normal((129, 32))
    queries = rng.standard_normal((3, 32), dtype=np.float32)
    with np.errstate(all="ignore"):
        same(queries, vectors, form, 40, None)
        same(queries * np.float32(1e-30), vectors, form, 40, None)


@pytest.mark.parametrize("form", FORMS)
def test_a_mapped_file_is_searched_where_it_lies(tmp_path: Path, form: CompactForm) -> None:
    rng = np.random.default_rng(0)
    made = CompactItems(rng.standard_normal((300, 20)), form)
    np.save(tmp_path / "values.npy", made.values)
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    table = CompactItems.from_arrays(mapped, made.scales)
    assert np.shares_memory(table.values, mapped)
    queries = rng.standard_normal((3, 20))
    for found, expected in zip(
        native.score_topk(queries, table, 9), native.score_topk(queries, made, 9), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_size_and_form() -> None:
    vectors = np.ones((16_000, 64), dtype=np.float32)
    half, byte = (CompactItems(vectors, form) for form in FORMS)
    assert (half.dtype, byte.dtype) == FORMS
    assert half.shape == (len(byte), byte.dim) == (16_000, 64)
    assert half.nbytes == vectors.nbytes // 2
    assert byte.nbytes == 16_000 * (64 + 4 + 1)


@pytest.mark.parametrize("form", FORMS)
def test_pickles(form: CompactForm) -> None:
    table = CompactItems(np.eye(40, 5), form, np.arange(40))
    again = pickle.loads(pickle.dumps(table))
    for found, expected in zip(
        native.score_topk(np.ones((1, 5)), again, 9),
        native.score_topk(np.ones((1, 5)), table, 9),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_rows_of_any_table() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    for table in (vectors, native.QuantizedItems(vectors), CompactItems(vectors, "bfloat16")):
        np.testing.assert_array_equal(native.item_rows(table, [3, 0, 3]), vectors[[3, 0, 3]])
        assert native.item_rows(table, []).shape == (0, 3)
        for bad in ([4], [-1], [2**40]):
            with pytest.raises(InputError, match="indices: "):
                native.item_rows(table, bad)


def test_bad_arguments_are_named() -> None:
    byte, step = np.ones((2, 3), np.int8), np.ones(2, np.float32)
    table = CompactItems(np.ones((5, 3)), "int8")
    for call, message in (
        (lambda: CompactItems(np.ones(5), "int8"), "vectors: expected two dimensions"),
        (lambda: CompactItems(np.ones((5, 3)), "int4"), "form: found 'int4'"),  # type: ignore[arg-type]
        (lambda: CompactItems(np.ones((5, 0)), "int8"), "values: expected .* 1 column"),
        (lambda: CompactItems(np.full((5, 3), np.nan), "int8"), "vectors: row 0 holds NaN"),
        (lambda: CompactItems(np.ones((1, 32769)), "int8"), "values: expected at most 32768"),
        (lambda: CompactItems(np.ones((5, 3)), "int8", np.ones(4)), "bias: expected one number"),
        (lambda: CompactItems.from_arrays(np.ones((2, 3))), "values: expected uint16"),
        (lambda: CompactItems.from_arrays(byte[:, ::2], step), "values: expected rows side by"),
        (lambda: CompactItems.from_arrays(byte), "scales: expected one number"),
        (lambda: CompactItems.from_arrays(byte, -step), "scales: expected finite"),
        (lambda: CompactItems.from_arrays(byte.astype(np.uint16), step), "scales: only"),
        (lambda: native.score_topk(np.ones((1, 3)), table, 2, bias=np.ones(5)), "bias: give it to"),
        (lambda: native.score_topk(np.ones((1, 4)), table, 2), "queries: expected 3 columns"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            call()
