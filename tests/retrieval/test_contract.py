# SPDX-License-Identifier: Apache-2.0
"""What every kind of index keeps: one set of tests, run on each of them."""

from __future__ import annotations

import gc
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import retrieval
from seqrec_fast._rounding import round_to_bfloat16
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

#: a name, and the arguments of build with which the kind finds all there is on a few hundred items
BUILDS: dict[str, dict[str, Any]] = {
    "exact": {"kind": "exact"},
    "exact int8": {"kind": "exact", "dtype": "int8"},
    "exact bfloat16": {"kind": "exact", "dtype": "bfloat16"},
    "ivf-native": {"kind": "ivf-native", "nlist": 8, "nprobe": 8, "reach": None},
    "sharded": {"kind": "sharded", "shards": 3},
    "sharded int8": {
        "kind": "sharded",
        "shards": 2,
        "shard_options": {"dtype": "int8"},
        "parallel": True,
    },
}
if find_spec("faiss"):
    BUILDS |= {
        "flat": {"kind": "flat"},
        "sharded flat": {"kind": "sharded", "shard_kind": "flat"},
        "ivf": {"kind": "ivf", "nlist": 6, "nprobe": 6},
        "ivf by its size": {"kind": "ivf", "nprobe": 1000},
        "ivfpq": {"kind": "ivfpq", "nlist": 3, "nprobe": 3, "refine": 300},
        "hnsw": {"kind": "hnsw", "ef_search": 400},
    }
if find_spec("qdrant_client"):
    BUILDS["qdrant"] = {"kind": "qdrant"}
RNG = np.random.default_rng(0)
# what every kind can hold without rounding
VECTORS = round_to_bfloat16(RNG.standard_normal((300, 16)).astype(np.float32))
QUERIES = RNG.standard_normal((7, 16)).astype(np.float32)


@pytest.fixture(params=BUILDS)
def arguments(request: pytest.FixtureRequest) -> dict[str, Any]:
    return BUILDS[request.param]


def same(found: retrieval.Found, expected: retrieval.Found) -> None:
    """The same items in the same order, and scores to rounding."""
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)


def brute(vectors: Any, queries: Any, k: int, hidden: Any = None) -> retrieval.Found:
    scores = np.asarray(queries, np.float64) @ np.asarray(vectors, np.float64).T
    if hidden is not None:
        scores = np.where(hidden, -np.inf, scores)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, ids, axis=1)
    ids[best == -np.inf] = -1
    pad = ((0, 0), (0, k - ids.shape[1]))
    return retrieval.Found(
        np.pad(best, pad, constant_values=-np.inf).astype(np.float32),
        np.pad(ids, pad, constant_values=-1),
    )


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_search(arguments: dict[str, Any], metric: str) -> None:
    index = retrieval.build(VECTORS, metric=metric, **arguments)
    rows = VECTORS, QUERIES
    if metric == "cosine":
        rows = tuple(a / np.linalg.norm(a, axis=1, keepdims=True) for a in rows)
        if arguments.get("dtype") == "bfloat16":
            rows = index.vectors(np.arange(300)), rows[1]
            np.testing.assert_allclose(np.linalg.norm(rows[0], axis=1), 1, atol=2**-8)
    found = index.search(QUERIES, 20)
    assert (found.scores.dtype, found.ids.dtype) == (np.float32, np.int64)
    same(found, brute(*rows, 20))
    assert len(index) == index.size == 300


def test_more_than_there_is(arguments: dict[str, Any]) -> None:
    index = retrieval.build(VECTORS, **arguments)
    same(index.search(QUERIES, 310), brute(VECTORS, QUERIES, 310))


def test_zero_vectors_have_cosine_zero(arguments: dict[str, Any]) -> None:
    vectors, queries = VECTORS.copy(), np.concatenate([QUERIES, np.zeros((1, 16), np.float32)])
    vectors[[0, 7, 299]] = 0
    index = retrieval.build(vectors, metric="cosine", **arguments)
    rows = index.vectors(np.arange(300))
    assert not rows[[0, 7, 299]].any()
    unit = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    for k in (20, 300, 310):
        scores, ids = index.search(queries, k)
        same(retrieval.Found(scores[:-1], ids[:-1]), brute(rows, unit, k))
        there = min(k, 300)
        assert (scores[-1, :there] == 0).all()
        assert len(np.unique(ids[-1, :there])) == there
        assert (ids[-1, there:] == -1).all()
        if index.exact and index.kind != "qdrant":  # the others may take any of equal ones
            assert ids[-1, :there].tolist() == list(range(there))
    index.update([7], vectors[1:2] * 3)
    index.add(np.zeros((1, 16)))
    scores, ids = index.search(vectors[1:2] * 1e-20, 301)
    assert set(ids[0, :2].tolist()) == {1, 7}
    assert scores[0, ids[0] == 300].tolist() == [0.0]


def test_filters(arguments: dict[str, Any]) -> None:
    index = retrieval.build(VECTORS, **arguments)
    mask = RNG.random(300) < 0.5
    rows = JaggedBatch.from_lists([RNG.integers(0, 300, 60) for _ in QUERIES])
    listed = np.zeros((7, 300), bool)
    for at, row in enumerate(rows):
        listed[at, row] = True
    for given, hidden in (
        ({"exclude": rows}, listed),
        ({"deny": rows}, listed),
        ({"allow": rows}, ~listed),
        ({"allow": mask}, np.broadcast_to(~mask, (7, 300))),
        ({"deny": np.flatnonzero(mask)}, np.broadcast_to(mask, (7, 300))),
        ({"allow": mask, "exclude": rows}, ~mask | listed),
        ({"allow": rows, "deny": mask}, ~listed | mask),
        ({"allow": []}, np.ones((7, 300), bool)),
    ):
        # k is more than some filters leave: all that is left has to come
        same(index.search(QUERIES, 70, **given), brute(VECTORS, QUERIES, 70, hidden))


def test_filters_after_changes_with_ids_that_stand_twice(arguments: dict[str, Any]) -> None:
    index = retrieval.build(VECTORS[:250], **arguments)
    assert index.remove([3, 4, 4, 249]) == 3
    index.update([4, 9], VECTORS[[260, 261]])
    index.add(VECTORS[250:])
    whole, gone = VECTORS.copy(), np.isin(np.arange(300), [3, 249])
    whole[[4, 9]] = VECTORS[[260, 261]]
    mask = RNG.random(300) < 0.5
    rows = JaggedBatch.from_lists([np.repeat(RNG.integers(0, 300, 60), 2) for _ in QUERIES])
    listed = np.zeros((7, 300), bool)
    for at, row in enumerate(rows):
        listed[at, row] = True
    few = [3, 5, 5, 4, 299, 4, 5]
    for given, hidden in (
        ({"exclude": rows, "deny": rows}, listed),
        ({"allow": rows, "deny": few}, ~listed | np.isin(np.arange(300), few)),
        ({"allow": few}, ~np.isin(np.arange(300), few)[None]),
        ({"allow": index.filter(allow=mask), "exclude": rows}, ~mask | listed),
        ({"deny": np.repeat(np.flatnonzero(mask), 2)}, np.broadcast_to(mask, (7, 300))),
    ):
        for k in (10, 300):
            same(index.search(QUERIES, k, **given), brute(whole, QUERIES, k, hidden | gone))


def test_all_items_go_and_come_back(arguments: dict[str, Any]) -> None:
    index = retrieval.build(VECTORS, **arguments)
    assert index.remove(range(300)) == 300
    nothing = index.search(QUERIES, 5, exclude=JaggedBatch.from_lists([[1]] * 7))
    assert (len(index), index.size, index.describe()["removed"]) == (0, 300, 300)
    for found in (nothing, index.search(QUERIES, 5), index.search(QUERIES, 5, allow=[1, 2])):
        assert (found.ids == -1).all()
        assert (found.scores == -np.inf).all()
    index.update(range(300), VECTORS)
    same(index.search(QUERIES, 300), brute(VECTORS, QUERIES, 300))
    assert len(index) == 300


def test_tensors_stay_what_they_are_whatever_becomes_of_the_index(
    arguments: dict[str, Any],
) -> None:
    index = retrieval.build(VECTORS, **arguments)
    index.remove([9])
    tensors = index.to_tensors()
    before = {name: tensor.copy() for name, tensor in tensors.items()}
    again: Any = retrieval.from_tensors(tensors)
    for one in (index, again):
        one.update([1, 2, 9], round_to_bfloat16(VECTORS[:3] * 5))
        one.add(VECTORS[:50])
        one.remove([7])
    del index, again, one
    gc.collect()
    rubbish = [np.full((300, 16), 7, np.float32) for _ in range(50)]  # where it may have lain
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)
    assert len(rubbish) == 50
    assert len(retrieval.from_tensors(tensors)) == 299


def test_a_changing_catalogue(arguments: dict[str, Any]) -> None:
    index = retrieval.build(VECTORS[:200], **arguments)
    whole = VECTORS[:200].copy()
    hidden = np.zeros(200, bool)
    assert index.add(VECTORS[200:260]).tolist() == list(range(200, 260))
    assert index.add(VECTORS[260:261]).tolist() == [260]
    assert index.add(np.empty((0, 16))).tolist() == []
    whole, hidden = VECTORS[:261].copy(), np.zeros(261, bool)
    same(index.search(QUERIES, 50), brute(whole, QUERIES, 50))
    gone = np.unique(index.search(QUERIES, 10).ids)
    assert index.remove(gone) == len(gone)
    assert index.remove(gone[:2]) == 0
    hidden[gone] = True
    assert (len(index), index.size) == (261 - len(gone), 261)
    same(index.search(QUERIES, 300), brute(whole, QUERIES, 300, hidden[None]))
    changed = np.array([gone[0], 5, 250]) if 5 not in gone else np.array([gone[0]])
    fresh = round_to_bfloat16(RNG.standard_normal((len(changed), 16)).astype(np.float32))
    index.update(changed, fresh)
    whole[changed], hidden[changed] = fresh, False
    same(index.search(QUERIES, 300), brute(whole, QUERIES, 300, hidden[None]))
    np.testing.assert_allclose(index.vectors(changed), fresh, rtol=1e-6)
    assert index.add(VECTORS[261:]).tolist() == list(range(261, 300))
    whole, hidden = np.concatenate([whole, VECTORS[261:]]), np.concatenate([hidden, [False] * 39])
    same(index.search(QUERIES, 300), brute(whole, QUERIES, 300, hidden[None]))
    assert index.describe()["removed"] == int(hidden.sum())


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_a_file_brings_back_the_same(
    arguments: dict[str, Any], metric: str, mmap: bool, tmp_path: Path
) -> None:
    index = retrieval.build(VECTORS, metric=metric, **arguments)
    index.remove([3, 299])
    path = tmp_path / "index"
    index.save(path)
    again = retrieval.load(path, mmap=mmap)
    assert again.describe() == index.describe()
    for found, expected in zip(again.search(QUERIES, 300), index.search(QUERIES, 300), strict=True):
        np.testing.assert_array_equal(found, expected)
    again.add(VECTORS[:1])  # also what is mapped can grow
    assert again.size == 301
    assert [one.name for one in tmp_path.iterdir()] == ["index"]


def test_a_damaged_file_is_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "index"
    retrieval.build(VECTORS, **arguments).save(path)
    whole = path.read_bytes()
    for at in np.linspace(0, len(whole) - 1, 23).astype(int):
        bytes_ = bytearray(whole)
        bytes_[at] ^= 0x10
        path.write_bytes(bytes_)
        with pytest.raises(InputError, match=r"/index: "):
            retrieval.load(path)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"/index: "):
            retrieval.load(path)


def test_changes_that_do_not_fit_change_nothing(arguments: dict[str, Any]) -> None:
    index = retrieval.build(VECTORS, **arguments)
    before = index.search(QUERIES, 300)
    for call, message in (
        (lambda: index.add(VECTORS[:, :5]), "vectors: expected 16 columns like the index, found 5"),
        (lambda: index.add([[np.nan] * 16]), "vectors: row 0 is not finite"),
        (lambda: index.update([0], VECTORS[:2]), "vectors: expected one row for each of the 1 ids"),
        (lambda: index.update([1, 1], VECTORS[:2]), "ids: item 1 stands twice"),
        (lambda: index.update([300], VECTORS[:1]), "ids: found item 300, but the items are 0 to"),
        (lambda: index.remove([-1]), "ids: found item -1"),
        (lambda: index.remove(5), "ids: expected one list of item ids"),
        (lambda: index.vectors([0.5]), "ids: expected whole item ids"),
        (lambda: index.search(QUERIES, 3, allow=[True]), "allow: a mask needs one truth value"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    same(index.search(QUERIES, 300), before)


def test_searches_while_it_changes(arguments: dict[str, Any]) -> None:
    """Every answer is that of some moment: the best item is the newest that was added."""
    index = retrieval.build(np.eye(16, dtype=np.float32), **arguments)
    query = np.eye(16, dtype=np.float32)[:1]
    wrong: list[Any] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            scores, ids = index.search(query, 2)
            # item 15 + n has the score n + 1
            if ids[0, 0] > 15 and scores[0, 0] != ids[0, 0] - 14:
                wrong.append((scores, ids))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 60):
        index.add(np.eye(16, dtype=np.float32)[:1] * (number + 1))
        if number % 7 == 0:
            index.remove([15 + number - 1])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert index.search(query, 1).ids.item() == 15 + 59


def test_searches_while_items_get_new_vectors(arguments: dict[str, Any]) -> None:
    """An item is found once, with the score of some moment, and never goes back to an older one."""
    unit = np.eye(16, dtype=np.float32)
    index = retrieval.build(unit, **arguments)
    wrong: list[Any] = []
    done = threading.Event()

    def search() -> None:
        last = 1.0
        while not done.is_set():
            scores, ids = index.search(unit[:1], 16, deny=[15])
            found = ids[0][ids[0] >= 0].tolist()
            score = float(scores[0, 0])
            if len(set(found)) != len(found) or score < last or score != round(score):
                wrong.append((last, scores, ids))
            last = score

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(2, 40):
        index.update([number % 14], unit[:1] * number)  # the best so far
        index.update([(number + 7) % 14], unit[1:2])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    scores, ids = index.search(unit[:1], 1)
    assert (ids.item(), scores.item()) == (39 % 14, 39.0)
