# SPDX-License-Identifier: Apache-2.0
"""Shards merged are the whole, bit for bit: ties, filters, k beyond a shard, empty shards."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import retrieval
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

ROOT = Path(__file__).resolve().parents[2]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.sampled_from(["float32", "int8"]),
    st.sampled_from(["ip", "cosine"]),
    st.booleans(),
)
def test_the_merge_equals_the_whole(
    seed: int, sizes: list[int], dtype: str, metric: str, parallel: bool
) -> None:
    rng = np.random.default_rng(seed)
    size = sum(sizes)
    vectors = rng.integers(-1, 2, (size, 3)).astype(np.float32)  # many equal scores
    queries = rng.integers(-1, 2, (4, 3)).astype(np.float32)
    whole = retrieval.build(vectors, metric=metric, dtype=dtype)
    ends = np.cumsum(sizes)
    shards = [
        retrieval.build(vectors[end - count : end], metric=metric, dtype=dtype)
        for end, count in zip(ends, sizes, strict=True)
    ]
    sharded = retrieval.ShardedIndex(shards, parallel=parallel)
    assert (sharded.size, len(sharded)) == (size, size)
    mask = rng.random(size) < 0.5

    def some(count: int) -> JaggedBatch[Any]:
        return JaggedBatch.from_lists([rng.integers(0, size, count) for _ in range(4)])

    cases: list[dict[str, Any]] = [{}, {"deny": mask}]
    if size:
        gone = rng.choice(size, int(rng.integers(0, size + 1)), replace=False)
        assert whole.remove(gone) == sharded.remove(gone)
        changed = np.unique(rng.integers(0, size, 3))
        fresh = rng.integers(-1, 2, (len(changed), 3)).astype(np.float32)
        for index in (whole, sharded):
            index.update(changed, fresh)
        cases += [
            {"exclude": some(5)},
            {"allow": some(6), "deny": mask},
            {"allow": mask, "exclude": some(3), "deny": some(2)},
            {"allow": []},
        ]
    for arguments in cases:
        for k in (1, 3, size + 2):
            for found, expected in zip(
                sharded.search(queries, k, **arguments),
                whole.search(queries, k, **arguments),
                strict=True,
            ):
                np.testing.assert_array_equal(found, expected)
    assert len(whole) == len(sharded)
    every = np.arange(size)
    np.testing.assert_array_equal(sharded.vectors(every), whole.vectors(every))


def test_shards_of_different_kinds_and_files(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((90, 4)).astype(np.float32)
    made = retrieval.ShardedIndex(
        [retrieval.build(vectors[:50]), retrieval.build(vectors[50:], dtype="int8")]
    )
    assert made.exact
    made.remove([3, 60])
    paths = [tmp_path / "a", tmp_path / "b"]
    made.save_shards(paths)
    again = retrieval.ShardedIndex.load(paths)
    again.add(vectors[:1])
    made.add(vectors[:1])
    for found, expected in zip(again.search(vectors, 91), made.search(vectors, 91), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match="paths: found 1 for 2 shards"):
        made.save_shards(paths[:1])


def test_what_does_not_fit_together_is_named() -> None:
    one = retrieval.build(np.ones((2, 3)))
    with pytest.raises(InputError, match="shards: found none"):
        retrieval.ShardedIndex([])
    for other in (
        retrieval.build(np.ones((2, 4))),
        retrieval.build(np.ones((2, 3)), metric="cosine"),
    ):
        with pytest.raises(InputError, match="shards: number 1 has"):
            retrieval.ShardedIndex([one, other])
    with pytest.raises(InputError, match="shard_kind: shards of shards do not exist"):
        retrieval.build(np.ones((4, 3)), kind="sharded", shard_kind="sharded")
    for shards, message in (
        ({"shard_options": 3}, "shard_options: expected a mapping"),
        (
            {"shard_kind": "qdrant", "shard_options": {"location": "http://localhost:6333"}},
            "shard_options: shards can't share a Qdrant collection",
        ),
    ):
        with pytest.raises(InputError, match=message):
            retrieval.build(np.ones((4, 3)), kind="sharded", **shards)


def test_what_one_shard_cannot_hold_changes_none() -> None:
    vectors = np.arange(24, dtype=np.float32).reshape(8, 3)
    made: Any = {"kind": "sharded", "shards": 4, "shard_options": {"dtype": "bfloat16"}}
    index = retrieval.build(vectors, **made)
    beyond = vectors.copy()
    beyond[6] = 3.4e38
    with pytest.raises(InputError, match=r"^vectors: row 6 holds a number beyond 3\.39e38"):
        retrieval.build(beyond, **made)
    with pytest.raises(InputError, match=r"^vectors: row 2 holds a number beyond 3\.39e38"):
        index.update([0, 3, 6, 7], beyond[[1, 1, 6, 1]])
    np.testing.assert_array_equal(index.vectors(range(8)), vectors)
    with pytest.raises(InputError, match="shards: expected a whole number"):
        retrieval.build(np.ones((4, 3)), kind="sharded", shards=0)


def test_a_shard_elsewhere_is_searched_and_not_changed() -> None:
    class Elsewhere:
        def __init__(self, index: retrieval.Index) -> None:
            self._index = index
            self.size, self.dim, self.metric = index.size, index.dim, index.metric
            self.search = index.search

        def __len__(self) -> int:
            return len(self._index)

    vectors = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    sharded = retrieval.ShardedIndex(
        [Elsewhere(retrieval.build(vectors[:25])), Elsewhere(retrieval.build(vectors[25:]))],
        parallel=True,
    )
    found = sharded.search(vectors, 40, deny=[1, 30])
    expected = retrieval.build(vectors).search(vectors, 40, deny=[1, 30])
    np.testing.assert_array_equal(found.ids, expected.ids)
    with pytest.raises(InputError, match="shards: number 0 is not in this process"):
        sharded.add(vectors)


def test_shards_in_ray_actors(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    vectors = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    whole = retrieval.build(vectors, kind="sharded", shards=2)
    assert isinstance(whole, retrieval.ShardedIndex)
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    whole.save_shards(paths)
    np.save(tmp_path / "vectors.npy", vectors)
    # In a process of its own: Ray changes signal handlers, logging and the environment.
    code = f"""
        import json, numpy as np, ray
        from ray_shards import connect
        from seqrec_fast.jagged import JaggedBatch

        ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False,
                 log_to_driver=False, configure_logging=False)
        queries = np.load({str(tmp_path / "vectors.npy")!r})[:5]
        index = connect({paths!r})
        seen = JaggedBatch.from_lists([[n, 59 - n] for n in range(5)])
        found = index.search(queries, 45, exclude=seen, deny=[7, 40])
        print(json.dumps([found.scores.tolist(), found.ids.tolist()]))
        ray.shutdown()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=ROOT / "docs" / "examples",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores, ids = json.loads(done.stdout.splitlines()[-1])
    seen = JaggedBatch.from_lists([[n, 59 - n] for n in range(5)])
    expected = retrieval.build(vectors).search(vectors[:5], 45, exclude=seen, deny=[7, 40])
    np.testing.assert_array_equal(np.array(ids), expected.ids)
    np.testing.assert_array_equal(np.array(scores, np.float32), expected.scores)
