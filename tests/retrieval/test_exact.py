# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import native, retrieval
from seqrec_fast._rounding import round_to_bfloat16
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval import storage

RNG = np.random.default_rng(0)
VECTORS = RNG.integers(-3, 4, (200, 6)).astype(np.float32)
QUERIES = RNG.integers(-3, 4, (9, 6)).astype(np.float32)


def expected(scores: np.ndarray, hidden: np.ndarray, k: int) -> np.ndarray:
    """Indices by descending score, ties by index, hidden ones last as -1."""
    masked = np.where(hidden, -np.inf, scores)
    order = np.argsort(-masked, axis=1, kind="stable")[:, :k]
    order[np.take_along_axis(masked, order, axis=1) == -np.inf] = -1
    return np.pad(order, ((0, 0), (0, k - order.shape[1])), constant_values=-1)


def test_inner_product() -> None:
    index = retrieval.build(VECTORS)
    scores, ids = index.search(QUERIES, 10)
    products = QUERIES @ VECTORS.T
    np.testing.assert_array_equal(ids, expected(products, np.zeros_like(products, bool), 10))
    np.testing.assert_array_equal(scores, np.take_along_axis(products, ids, axis=1))
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)


def test_cosine_is_independent_of_length() -> None:
    rng = np.random.default_rng(1)
    vectors, queries = rng.standard_normal((300, 20)), rng.standard_normal((7, 20))
    lengths = 10.0 ** rng.uniform(-15, 15, 300)
    cosine = queries @ vectors.T
    cosine /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    index = retrieval.build(vectors * lengths[:, None], metric="cosine")
    scores, ids = index.search(queries * 1e-9, 300)
    np.testing.assert_allclose(scores, np.take_along_axis(cosine, ids, axis=1), atol=3e-7)
    assert (np.sort(ids) == np.arange(300)).all()


def test_zero_vectors_have_cosine_zero() -> None:
    index = retrieval.build([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], metric="cosine")
    scores, ids = index.search([[2.0, 0.0], [0.0, 0.0]], 3)
    np.testing.assert_array_equal(ids, [[1, 0, 2], [0, 1, 2]])
    np.testing.assert_array_equal(scores, [[1, 0, -1], [0, 0, 0]])


def test_more_than_there_is() -> None:
    scores, ids = retrieval.build(VECTORS[:3]).search(QUERIES, 5)
    assert (ids[:, 3:] == -1).all()
    assert (scores[:, 3:] == -np.inf).all()
    assert (np.sort(ids[:, :3]) == [0, 1, 2]).all()


def test_an_empty_index_and_no_queries() -> None:
    scores, ids = retrieval.build(np.empty((0, 6))).search(QUERIES, 2)
    assert (ids == -1).all()
    assert (scores == -np.inf).all()
    assert retrieval.build(VECTORS).search(np.empty((0, 6)), 2)[1].shape == (0, 2)
    empty = JaggedBatch.from_lists([])
    assert retrieval.build(VECTORS).search(np.empty((0, 6)), 2, allow=empty)[1].shape == (0, 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_filters_combine(data: st.DataObject) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    hidden = np.zeros((9, 200), dtype=bool)
    arguments: dict[str, Any] = {}

    def lists(longest: int) -> list[np.ndarray]:
        return [rng.integers(0, 200, rng.integers(0, longest)) for _ in range(9)]

    if draw(st.booleans()):
        rows = lists(30)
        arguments["exclude"] = JaggedBatch.from_lists(rows)
        for query, row in enumerate(rows):
            hidden[query, row] = True
    deny = draw(st.sampled_from(["none", "common", "each"]))
    if deny == "common":
        arguments["deny"] = rng.integers(0, 200, 40)
        hidden[:, arguments["deny"]] = True
    elif deny == "each":
        rows = lists(40)
        arguments["deny"] = JaggedBatch.from_lists(rows)
        for query, row in enumerate(rows):
            hidden[query, row] = True
    allow = draw(st.sampled_from(["none", "common", "few each", "many each"]))
    if allow == "common":
        arguments["allow"] = rng.integers(0, 200, 60).tolist()
        hidden[:, np.setdiff1d(np.arange(200), arguments["allow"])] = True
    elif allow != "none":
        rows = lists(20 if allow == "few each" else 300)
        arguments["allow"] = JaggedBatch.from_lists(rows, dtype=np.int64)
        for query, row in enumerate(rows):
            hidden[query, np.setdiff1d(np.arange(200), row)] = True
    k = draw(st.sampled_from([1, 7, 250]))
    _, ids = retrieval.build(VECTORS).search(QUERIES, k, **arguments)
    np.testing.assert_array_equal(ids, expected(QUERIES @ VECTORS.T, hidden, k))


def test_an_empty_allow_list_allows_nothing() -> None:
    index = retrieval.build(VECTORS)
    assert (index.search(QUERIES, 3, allow=[])[1] == -1).all()
    assert (index.search(QUERIES, 3, deny=[])[1] >= 0).all()


def test_describe() -> None:
    index = retrieval.build(VECTORS, metric="cosine")
    assert index.describe() == {
        "kind": "exact",
        "metric": "cosine",
        "items": 200,
        "removed": 0,
        "dim": 6,
        "bytes": 200 * 6 * 4,
        "exact": True,
        "options": {"dtype": "float32"},
    }
    assert len(index) == 200


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_a_table_of_bytes_changes_nothing_but_memory(metric: str) -> None:
    rng = np.random.default_rng(2)
    vectors, queries = rng.standard_normal((2000, 20)), rng.standard_normal((5, 20))
    plain = retrieval.build(vectors, metric=metric)
    table = retrieval.build(vectors, metric=metric, dtype="int8")
    allow = JaggedBatch.from_lists([rng.integers(0, 2000, n) for n in (3, 50, 900, 1900, 0)])
    exclude = JaggedBatch.from_lists(rng.integers(0, 2000, (5, 50)))
    for options in ({}, {"exclude": exclude}, {"allow": allow}, {"deny": [1, 2, 3]}):
        expected = plain.search(queries, 30, **options)
        for a, b in zip(expected, table.search(queries, 30, **options), strict=True):
            np.testing.assert_array_equal(a, b)
    assert table.describe()["bytes"] == plain.describe()["bytes"] + 2000 * 25
    assert table.describe()["options"] == {"dtype": "int8"}


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_bfloat16_finds_what_float32_finds_over_the_rounded_vectors(metric: str) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((3000, 20)).astype(np.float32)
    vectors[::7] = vectors[::7].round(1)  # equal scores
    queries = rng.standard_normal((20, 20)).astype(np.float32)
    unit = retrieval.build(vectors, metric=metric).vectors(np.arange(3000))
    unit_queries = retrieval.build(queries, metric=metric).vectors(np.arange(20))
    plain = retrieval.build(round_to_bfloat16(unit))  # rounded, and not made of unit length again
    short = retrieval.build(vectors, metric=metric, dtype="bfloat16")
    allow = JaggedBatch.from_lists([rng.integers(0, 3000, n) for n in (3, 900, 2900, 0) * 5])
    exclude = JaggedBatch.from_lists(rng.integers(0, 3000, (20, 50)))
    for options in ({}, {"exclude": exclude}, {"allow": allow}, {"deny": [1, 2, 3]}):
        for k in (1, 30, 3100):
            for a, b in zip(
                plain.search(unit_queries, k, **options),
                short.search(queries, k, **options),
                strict=True,
            ):
                np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(short.vectors([5, 7]), round_to_bfloat16(unit[[5, 7]]))
    described = short.describe()
    assert (described["bytes"], described["exact"]) == (3000 * 20 * 2, False)
    with pytest.raises(InputError, match="it has none that act in a search alone, found dtype"):
        short.tuned(dtype="float32")


def test_what_bfloat16_cannot_hold_is_refused_and_changes_nothing() -> None:
    large = np.full((2, 6), 3.4e38, np.float32)
    with pytest.raises(InputError, match=r"^vectors: row 1 holds a number beyond 3\.39e38, the la"):
        retrieval.build(np.concatenate([VECTORS[:1], large]), dtype="bfloat16")
    index = retrieval.build(VECTORS, dtype="bfloat16")
    index.remove([7])
    before = index.search(QUERIES, 250)
    for call in (lambda: index.add(large), lambda: index.update([7, 3], large)):
        with pytest.raises(InputError, match=r"^vectors: row 0 holds a number beyond 3\.39e38"):
            call()
    for found, expected_ in zip(index.search(QUERIES, 250), before, strict=True):
        np.testing.assert_array_equal(found, expected_)
    assert (index.size, len(index)) == (200, 199)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_table_of_bytes_is_not_made_again(
    mmap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    for size in (0, 1, 16, 17, 70_001):
        vectors = rng.standard_normal((size, 20)).astype(np.float32)
        index = retrieval.build(vectors, dtype="int8")
        index.save(tmp_path / "index")
        with monkeypatch.context() as patch:
            patch.setattr(native.QuantizedItems, "__init__", None)
            again = retrieval.load(tmp_path / "index", mmap=mmap)
        assert again.describe() == index.describe()
        queries = rng.standard_normal((3, 20)).astype(np.float32)
        for found, expected_ in zip(
            again.search(queries, 20), index.search(queries, 20), strict=True
        ):
            np.testing.assert_array_equal(found, expected_)


def test_a_table_of_another_layout_is_made_anew(tmp_path: Path) -> None:
    index = retrieval.build(VECTORS, dtype="int8")
    index.save(tmp_path / "index")
    meta, tensors = storage.read_index(tmp_path / "index")
    tensors["table.blocks"] = np.zeros((3, 1), np.uint8)
    storage.write_index(tmp_path / "other", {**meta, "layout": "8x8 little"}, tensors)
    again = retrieval.load(tmp_path / "other")
    np.testing.assert_array_equal(again.search(QUERIES, 9).ids, index.search(QUERIES, 9).ids)


def test_a_table_that_does_not_fit_is_refused_and_one_of_noise_is_searched(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((1001, 20)).astype(np.float32)
    retrieval.build(vectors, dtype="int8").save(tmp_path / "index")
    meta, tensors = storage.read_index(tmp_path / "index")
    blocks, bounds = tensors["table.blocks"], tensors["table.bounds"]
    for change in (
        {"table.blocks": blocks[:-1]},
        {"table.blocks": blocks[:, :-1]},
        {"table.blocks": blocks.view(np.int8)},
        {"table.blocks": blocks.reshape(-1)},
        {"table.bounds": bounds[:-1]},
        {"table.bounds": bounds[:, :3]},
        {"table.bounds": bounds.astype(np.float64)},
    ):
        storage.write_index(tmp_path / "bad", meta, {**tensors, **change})
        with pytest.raises(InputError, match=r"/bad: (blocks|bounds)"):
            retrieval.load(tmp_path / "bad")
    del tensors["table.bounds"]
    storage.write_index(tmp_path / "bad", meta, tensors)
    with pytest.raises(InputError, match=r"/bad: its tensor 'table\.bounds' is missing"):
        retrieval.load(tmp_path / "bad")
    for _ in range(5):
        noise = {
            "table.blocks": rng.integers(0, 256, blocks.shape, np.uint8),
            "table.bounds": rng.integers(0, 2**32, bounds.shape, np.uint32).view(np.float32),
        }
        storage.write_index(tmp_path / "noise", meta, {**tensors, **noise})
        ids = retrieval.load(tmp_path / "noise").search(vectors[:20], 1200).ids
        assert ids.min() >= -1
        assert ids.max() < 1001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": 1}, "options of kind 'exact': got an unexpected keyword"),
        ({"kind": "tree"}, "kind: found 'tree'; choose one of exact, ivf-native"),
        ({"metric": "l2"}, "metric: found 'l2'; choose one of ip, cosine"),
        ({"dtype": "int4"}, "dtype: found 'int4'; choose one of float32, bfloat16, int8"),
        ({"vectors": [1.0, 2.0]}, r"vectors: expected two dimensions \[rows, dim\], found shape"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, "vectors: .* uneven rows"),
        ({"vectors": np.empty((3, 0))}, "vectors: expected at least 1 column"),
        ({"vectors": [["a"]]}, "vectors: expected floating-point numbers"),
        ({"vectors": [[1.0], [np.nan]]}, "vectors: row 1 is not finite"),
        ({"vectors": [[1.0], [1e300]]}, "vectors: row 1 is not finite in float32"),
    ],
)
def test_build_names_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        retrieval.build(**({"vectors": VECTORS} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": QUERIES[:, :5]}, "queries: expected 6 columns like the index, found 5"),
        ({"queries": QUERIES[0]}, "queries: expected two dimensions"),
        ({"queries": np.full((9, 6), np.inf)}, "queries: row 0 is not finite"),
        ({"k": 0}, "k: expected a whole number of at least 1"),
        ({"k": 0, "allow": JaggedBatch.from_lists([[1]] * 9)}, "k: expected a whole number"),
        ({"deny": [200]}, "deny: found item 200, but the items are 0 to 199"),
        ({"allow": [-1]}, "allow: found item -1"),
        ({"allow": [0.5]}, "allow: expected whole item ids, found float64"),
        ({"allow": [[1], [2]]}, "allow: expected one list of item ids, a bool mask"),
        ({"deny": JaggedBatch.from_lists([[1]])}, r"deny: expected one row a query \(9\)"),
        ({"exclude": JaggedBatch.from_lists([[300]] * 9)}, "exclude: found item 300"),
        ({"exclude": [1, 2]}, "exclude: expected a JaggedBatch of one row a query"),
    ],
)
def test_search_names_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        retrieval.build(VECTORS).search(**({"queries": QUERIES, "k": 3} | arguments))
