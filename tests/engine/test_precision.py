# SPDX-License-Identifier: Apache-2.0
"""Rounding of weights against torch and against its error bound; recommenders that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from seqrec_fast import bundle as bundles
from seqrec_fast.bundle import Bundle
from seqrec_fast.engine import Recommender
from seqrec_fast.engine.encoders import build_encoder, tensor_shapes
from seqrec_fast.engine.precision import (
    WEIGHTS,
    apply_weights,
    dequantise_rows,
    quantise_rows,
    round_to_bfloat16,
    stored_weights,
)
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.native import CompactItems

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
tables = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2), elements=finite)


def through_torch(array: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = torch.from_numpy(array).to(torch.bfloat16).float().numpy()
    return found


def test_bfloat16_is_that_of_torch_bit_for_bit() -> None:
    """Every upper half with the lower halves at which rounding turns: even, odd, overflow."""
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    every = (upper | lower).view(np.float32)
    rounded = round_to_bfloat16(every)
    expected = through_torch(every)
    number = ~np.isnan(every)
    np.testing.assert_array_equal(rounded.view(np.uint32)[number], expected.view(np.uint32)[number])
    assert np.isnan(rounded[~number]).all()
    assert not (rounded.view(np.uint32) & 0xFFFF).any()


@given(array=arrays.arrays(np.float32, arrays.array_shapes(), elements=finite))
def test_bfloat16_of_any_shape(array: NDArray[np.float32]) -> None:
    before = array.copy()
    np.testing.assert_array_equal(round_to_bfloat16(array), through_torch(array))
    np.testing.assert_array_equal(array, before)


@given(table=tables)
def test_int8_is_off_by_half_a_step_at_most(table: NDArray[np.float32]) -> None:
    values, scales = quantise_rows(table)
    assert values.dtype == np.int8
    assert scales.dtype == np.float32
    assert np.abs(values.astype(int)).max() <= 127
    exact = table.astype(np.float64)
    given_back = values.astype(np.float64) * scales.astype(np.float64)[:, None]
    # The quotient and the scale are each rounded once to float32: 127 steps of 2^-24 each. A row
    # too small for a step of full precision becomes zeros.
    largest = np.abs(exact).max(axis=1)
    bound = scales.astype(np.float64) * (0.5 + 2 * 127 * 2.0**-24)
    bound = np.where(scales == 0, largest, bound)
    assert (np.abs(given_back - exact) <= bound[:, None]).all()
    assert (largest[scales == 0] <= 127 * float(np.finfo(np.float32).tiny)).all()
    np.testing.assert_array_equal(dequantise_rows(values, scales), given_back.astype(np.float32))


def test_int8_holds_the_largest_float32() -> None:
    table = np.full((1, 2), np.finfo(np.float32).max, dtype=np.float32)
    found = dequantise_rows(*quantise_rows(table))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, table, rtol=2.0**-22)


def test_int8_uses_all_steps_and_keeps_zeros() -> None:
    table = np.array([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0], [-3e-3, 1e-3, 2e-3]], dtype=np.float32)
    values, scales = quantise_rows(table)
    assert values.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 42, 85]]
    np.testing.assert_array_equal(scales, np.abs(table).max(axis=1) / np.float32(127))


def test_what_is_rounded_in_a_model(content: Bundle) -> None:
    tensors = content.tensors
    half, byte = apply_weights(tensors, "bfloat16"), apply_weights(tensors, "int8")
    assert set(half) == set(byte) == set(tensors)
    for name, tensor in tensors.items():
        changed = not np.array_equal(half[name], tensor)
        assert changed == (tensor.ndim == 2), name
        assert np.array_equal(byte[name], tensor) == (name != "item_embedding.weight"), name
    assert apply_weights(tensors, "float32") == tensors


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("model", ["sasrec", "gru"])
def test_a_recommender_is_one_of_the_rounded_bundle(
    make: Any, tmp_path: Path, model: str, weights: str
) -> None:
    content = make(model)
    content.config["tied_output"] = False
    content.tensors["output.weight"] = content.tensors["item_embedding.weight"][::-1].copy()
    bundles.save(content, tmp_path / "b")
    recommender = Recommender.load(tmp_path / "b", weights=weights)
    assert recommender.info()["weights"] == weights
    content.tensors = apply_weights(content.tensors, weights)  # type: ignore[arg-type]
    histories = [["i1", "i2"], ["i7"], []]
    for found, expected in zip(
        recommender.recommend(histories, k=60), Recommender(content).recommend(histories, k=60),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_array_equal(found.scores, expected.scores)
    rounded = recommender.embed(histories)
    plain = Recommender.load(tmp_path / "b").embed(histories)
    assert np.array_equal(rounded, plain) == (weights == "float32")


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("model", ["sasrec", "gru"])
@pytest.mark.parametrize("items", [60, 70_000])  # products and bytes beside the items, or none
def test_compact_tables_serve_what_the_rounded_numbers_do(
    make: Any, model: str, weights: str, items: int
) -> None:
    content = make(model)
    rng = np.random.default_rng(1)
    content.config["dim"] = 8 if items == 60 else 64
    content.config["num_items"] = items
    content.tensors = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in tensor_shapes(content.config).items()
    }
    stored = build_encoder(content.config, stored_weights(content.tensors, weights))  # type: ignore[arg-type]
    plain = build_encoder(content.config, apply_weights(content.tensors, weights))  # type: ignore[arg-type]
    assert isinstance(stored.item_vectors, CompactItems)
    assert stored.item_vectors.nbytes <= plain.item_vectors.nbytes / 2
    histories = JaggedBatch.from_lists([[1, 5, 59, 2], [7], [items - 1, 0]])
    values, offsets = histories.values.astype(np.int32), histories.offsets.astype(np.int64)
    np.testing.assert_array_equal(
        stored.engine.encode(values, offsets), plain.engine.encode(values, offsets)
    )
    found = stored.engine.recommend(values, offsets, values, offsets, None, 50)
    expected = plain.engine.recommend(values, offsets, values, offsets, None, 50)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_cosine_models_and_similar_items_of_compact_tables(make: Any, weights: str) -> None:
    content = make("gru")
    content.config["temperature"] = 0.5
    stored = Recommender(content, weights=weights)
    content.tensors = apply_weights(content.tensors, weights)  # type: ignore[arg-type]
    plain = Recommender(content)
    # Lengths and scales are each rounded once more where they are merged.
    bound = 2.0**-20 / 0.5
    history = ["i1", "i2"]
    items = [f"i{n}" for n in range(60)]
    assert np.abs(stored.score(history, items) - plain.score(history, items)).max() <= bound
    found, expected = stored.similar_items("i3", k=59), plain.similar_items("i3", k=59)
    np.testing.assert_array_equal(found.items, expected.items)
    assert np.abs(found.scores - expected.scores).max() <= bound
    allowed = stored.recommend([history], k=3, allow=["i4", "i9"])[0]
    assert set(allowed.items) == {"i4", "i9"}


def test_bad_input_is_named(content: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weights: found 'fp16'; choose one of float32, bfloat16"):
        Recommender(content, weights="fp16")
    with pytest.raises(InputError, match="weights"):
        Recommender.load(tmp_path / "missing", weights="int4")
    with pytest.raises(InputError, match="float64"):
        round_to_bfloat16(np.zeros(3))
    with pytest.raises(InputError, match="two dimensions"):
        quantise_rows(np.zeros(3, dtype=np.float32))
    with pytest.raises(InputError, match="row 1 holds NaN"):
        quantise_rows(np.array([[1.0], [np.nan]], dtype=np.float32))
    with pytest.raises(InputError, match="scales"):
        dequantise_rows(np.zeros((2, 3), np.int8), np.ones(3, np.float32))
