# SPDX-License-Identifier: Apache-2.0
"""score_topk and its companions through Python, judged by numpy in float64."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqrec_fast import native
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

F32 = NDArray[np.float32]


def judge(
    queries: NDArray[Any],
    items: NDArray[Any],
    k: int,
    bias: NDArray[Any] | None = None,
    seen: JaggedBatch[Any] | None = None,
    blocked: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The definition, in float64: a full stable sort."""
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    if bias is not None:
        scores = scores + bias.astype(np.float64)
    scores[np.isnan(scores)] = -np.inf
    if blocked is not None:
        scores[:, blocked.astype(bool)] = -np.inf
    if seen is not None:
        for row, hidden in enumerate(seen):
            scores[row, hidden] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    order[best == -np.inf] = -1
    missing = ((0, 0), (0, k - order.shape[1]))
    return np.pad(best, missing, constant_values=-np.inf), np.pad(
        order, missing, constant_values=-1
    )


def whole(rng: np.random.Generator, *shape: int) -> F32:
    """Small whole numbers: every sum is exact in float32, and ties abound."""
    return rng.integers(-3, 4, shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_agrees_exactly_on_whole_numbers(data: st.DataObject) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(0, 60) | st.sampled_from([100, 257]))
    total = draw(st.integers(0, 200) | st.sampled_from([480, 481, 1500]))
    dim = draw(st.integers(1, 70))
    k = draw(st.integers(1, 30) | st.sampled_from([max(1, total), total + 3]))
    bias = whole(rng, total) if draw(st.booleans()) else None
    blocked = rng.random(total) < draw(st.sampled_from([0.05, 0.5, 1.0]))
    hidden = [rng.integers(0, total, rng.integers(0, 20) if total else 0) for _ in range(count)]
    options: dict[str, Any] = {
        "bias": bias,
        "blocked": blocked if draw(st.booleans()) else None,
        "seen": JaggedBatch.from_lists(hidden) if draw(st.booleans()) else None,
    }
    queries, items = whole(rng, count, dim), whole(rng, total, dim)
    scores, ids = native.score_topk(queries, items, k, threads=draw(st.integers(1, 3)), **options)
    expected_scores, expected_ids = judge(queries, items, k, **options)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))
    assert scores.dtype == np.float32
    assert ids.dtype == np.int64


@pytest.mark.parametrize("dim", [1, 17, 64, 128, 300, 1000])
@pytest.mark.parametrize("count", [1, 6, 40])
def test_error_is_at_most_twice_that_of_numpy(dim: int, count: int) -> None:
    """The error of float32 matrix products, against float64, is the yardstick."""
    rng = np.random.default_rng(dim)
    queries = rng.standard_normal((count, dim), dtype=np.float32)
    items = rng.standard_normal((2000, dim), dtype=np.float32)
    exact = queries.astype(np.float64) @ items.astype(np.float64).T
    allowed = 2 * np.abs(queries @ items.T - exact).max()
    scores, ids = native.score_topk(queries, items, 2000)
    error = np.abs(scores - np.take_along_axis(exact, ids, axis=1)).max()
    assert error <= max(allowed, np.finfo(np.float32).eps)
    np.testing.assert_array_equal(np.sort(ids, axis=1), np.broadcast_to(np.arange(2000), ids.shape))
    assert (np.diff(scores, axis=1) <= 0).all()


def test_all_equal_scores_come_in_order_of_index() -> None:
    for count in (1, 20):
        scores, ids = native.score_topk(np.ones((count, 3)), np.ones((5000, 3)), 700)
        np.testing.assert_array_equal(ids, np.broadcast_to(np.arange(700), ids.shape))
        assert (scores == 3).all()


def test_zeros_of_both_signs_are_equal() -> None:
    items = np.array([[-0.0], [0.0], [-0.0], [0.0]], dtype=np.float32)
    for count in (1, 20):
        _, ids = native.score_topk(np.ones((count, 1)), items, 3)
        np.testing.assert_array_equal(ids, np.broadcast_to([0, 1, 2], ids.shape))


@pytest.mark.parametrize("count", [1, 20])
def test_everything_hidden(count: int) -> None:
    rng = np.random.default_rng(0)
    queries, items = whole(rng, count, 4), whole(rng, 700, 4)
    all_seen = JaggedBatch.from_lists([np.arange(700)] * count)
    for options in ({"seen": all_seen}, {"blocked": np.ones(700, dtype=bool)}):
        scores, ids = native.score_topk(queries, items, 5, **options)  # type: ignore[arg-type]
        assert (ids == -1).all()
        assert (scores == -np.inf).all()


@pytest.mark.parametrize("count", [1, 20])
def test_nan_and_infinite_scores(count: int) -> None:
    items = np.array([[np.nan], [1.0], [np.inf], [-np.inf], [2.0]], dtype=np.float32)
    scores, ids = native.score_topk(np.ones((count, 1)), items, 5)
    np.testing.assert_array_equal(ids, np.broadcast_to([2, 4, 1, -1, -1], ids.shape))
    assert (scores[:, 0] == np.inf).all()
    nothing = native.score_topk(np.full((count, 1), np.nan), items, 5)[1]
    assert (nothing == -1).all()


def test_extreme_magnitudes() -> None:
    tiny, huge = np.float32(1e-40), np.float32(3e38)
    items = np.array([[tiny], [huge], [-huge], [2 * tiny], [0]], dtype=np.float32)
    for count in (1, 20):
        scores, ids = native.score_topk(np.ones((count, 1)), items, 5)
        np.testing.assert_array_equal(ids[0], [1, 3, 0, 4, 2])
        assert scores[0, 1] == 2 * tiny


@pytest.mark.parametrize("dim", [48, 64, 128])
def test_same_answer_for_every_number_of_threads_and_every_batch(dim: int) -> None:
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((150, dim), dtype=np.float32)
    items = rng.standard_normal((20000, dim), dtype=np.float32)
    seen = JaggedBatch.from_lists([rng.integers(0, 20000, 50) for _ in range(150)])
    one = native.score_topk(queries, items, 100, seen=seen, threads=1)
    for threads in (2, 5):
        for a, b in zip(
            one, native.score_topk(queries, items, 100, seen=seen, threads=threads), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    for first, last in ((0, 1), (3, 5), (7, 20)):
        part = seen.select(np.arange(first, last))
        for threads in (1, 2):
            found = native.score_topk(queries[first:last], items, 100, seen=part, threads=threads)
            np.testing.assert_array_equal(found[0], one[0][first:last])
            np.testing.assert_array_equal(found[1], one[1][first:last])


def test_many_callers_at_once() -> None:
    rng = np.random.default_rng(2)
    items = rng.standard_normal((30000, 32), dtype=np.float32)
    queries = [rng.standard_normal((n, 32), dtype=np.float32) for n in (1, 3, 16, 70) * 6]
    expected = [native.score_topk(q, items, 20, threads=1) for q in queries]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda q: native.score_topk(q, items, 20, threads=2), queries))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a[1], b[1])


def _in_child(queue: Any) -> None:
    items = np.arange(60000, dtype=np.float32)[:, None] * np.ones((1, 32), dtype=np.float32)
    _, ids = native.score_topk(np.ones((4, 32)), items, 3, threads=2)
    queue.put(ids.tolist())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_after_fork() -> None:
    context = multiprocessing.get_context("fork")
    here: Any = context.SimpleQueue()
    _in_child(here)  # the parent has running workers before it forks
    queue: Any = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == here.get() == [[59999, 59998, 59997]] * 4


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=False,
    )


PROBE = """
    import numpy as np
    from seqrec_fast import native
    rng = np.random.default_rng(0)
    found = native.score_topk(rng.standard_normal((30, 64)), rng.standard_normal((5000, 64)), 50)
    print(native.build_info()["isa"], found[1].tolist())
"""


def test_every_instruction_set_finds_the_same_items() -> None:
    answers = {}
    for isa in native.build_info()["isa_supported"]:
        done = run(PROBE, SEQREC_FAST_ISA=isa)
        assert done.returncode == 0, done.stderr
        used, _, answers[isa] = done.stdout.partition(" ")
        assert used == isa
    assert len(set(answers.values())) == 1
    assert "baseline" in answers


def test_the_cap_allows_narrower_sets() -> None:
    supported = native.build_info()["isa_supported"]
    done = run(PROBE, SEQREC_FAST_ISA="avx512")
    assert done.stdout.split(" ")[0] == supported[-1], done.stderr


def test_unknown_instruction_set_is_refused_at_first_use() -> None:
    done = run(PROBE, SEQREC_FAST_ISA="sse9")
    assert done.returncode != 0
    assert "InputError: SEQREC_FAST_ISA: found 'sse9'; set it to baseline" in done.stderr
    imported = run("import seqrec_fast.native", SEQREC_FAST_ISA="sse9")
    assert imported.returncode == 0, imported.stderr


def test_import_starts_no_thread() -> None:
    done = run(
        """
        import threading, pathlib
        tasks = pathlib.Path("/proc/self/task")
        import numpy
        before = len(list(tasks.iterdir())) if tasks.exists() else 0
        from seqrec_fast import _C, native
        native.score_topk(numpy.ones((2, 3)), numpy.ones((4, 3)), 2)
        after = len(list(tasks.iterdir())) if tasks.exists() else 0
        print(after - before, _C.pool_workers())
        """
    )
    assert done.stdout.split() == ["0", "0"], done.stderr


def test_number_of_threads() -> None:
    before = native.get_num_threads()
    assert before >= 1
    try:
        native.set_num_threads(3)
        assert native.get_num_threads() == 3
    finally:
        native.set_num_threads(before)
    for wrong in (0, -1, 1025, 1.5, "2", True, None):
        with pytest.raises(InputError, match=r"^threads: expected"):
            native.set_num_threads(wrong)  # type: ignore[arg-type]


def test_build_info_and_features() -> None:
    info = native.build_info()
    assert info["isa"] in info["isa_supported"]
    assert set(info["isa_supported"]) <= set(info["isa_compiled"])
    assert info["isa_compiled"][0] == "baseline"
    assert info["lanes"] in (4, 8, 16)
    assert "-O3" in info["flags"]
    assert "fast-math" not in info["flags"]
    if "avx2" in info["isa_supported"]:
        assert "avx2" in native.cpu_features()


def test_operations_are_listed_with_reasons() -> None:
    listed = {(o.name, o.backend): o for o in native.operations()}
    assert listed["topk", "native"].available
    assert all(o.reason for o in listed.values())
    assert {name for name, _ in listed} >= {"recurrent", "attention", "cross_entropy", "topk"}


def test_arguments_of_other_layouts_are_converted() -> None:
    rng = np.random.default_rng(3)
    queries, items = whole(rng, 6, 10), whole(rng, 90, 10)
    expected = native.score_topk(queries[:, ::2], items[:, ::2], 7)
    for convert in (
        lambda a: np.asfortranarray(a[:, ::2]),
        lambda a: a[:, ::2].astype(np.float64),
        lambda a: a[:, ::2].astype(np.int16),
        lambda a: a[:, ::2].tolist(),
    ):
        found = native.score_topk(convert(queries), convert(items), 7)
        np.testing.assert_array_equal(found[1], expected[1])
    wide = JaggedBatch.from_lists([[1, 5]] * 6, dtype=np.int64)
    narrow = JaggedBatch.from_lists([[5, 1]] * 6, dtype=np.uint8)
    np.testing.assert_array_equal(
        native.score_topk(queries, items, 7, seen=wide)[1],
        native.score_topk(queries, items, 7, seen=narrow)[1],
    )


Q, V = np.ones((2, 3), dtype=np.float32), np.ones((5, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: expected a whole number of at least 1, found 0"),
        ({"k": -3}, "k: expected a whole number of at least 1, found -3"),
        ({"k": 2.0}, "k: expected a whole number, found 2.0"),
        ({"k": True}, "k: expected a whole number of at least 1, found True"),
        ({"k": None}, "k: expected a whole number, found None"),
        ({"queries": np.ones(3)}, r"queries: expected two dimensions .*\(3,\)"),
        ({"items": np.ones((5, 3, 1))}, "items: expected two dimensions"),
        ({"queries": np.ones((2, 4))}, "queries: expected 3 columns like items, found 4"),
        ({"queries": np.ones((2, 0)), "items": np.ones((5, 0))}, "items: expected at least 1"),
        ({"queries": np.ones((2, 3), dtype=complex)}, "queries: .* found complex128"),
        ({"items": [["a", "b", "c"]]}, "items: expected floating-point numbers"),
        ({"items": [[1.0], [1.0, 2.0]]}, "items: .* uneven rows"),
        ({"bias": np.ones(4)}, r"bias: expected one number an item \(5\)"),
        ({"bias": np.ones((5, 1))}, "bias: expected one number an item"),
        ({"blocked": np.zeros(6, dtype=bool)}, "blocked: expected one flag an item"),
        ({"blocked": np.array([1, 2])}, "blocked: expected bool or uint8.* found int64"),
        ({"seen": [[1], [2]]}, "seen: expected a JaggedBatch, found list"),
        ({"seen": JaggedBatch.from_lists([[1]])}, r"seen: expected one row a query \(2\)"),
        ({"seen": JaggedBatch.from_lists([[1], [5]])}, "seen: found item 5 at position 1"),
        ({"seen": JaggedBatch.from_lists([[-1], [0]])}, "seen: found item -1 at position 0"),
        (
            {"seen": JaggedBatch.from_lists([[2**32], [0]], dtype=np.int64)},
            "seen: found item 2147483647",
        ),
        ({"seen": JaggedBatch.from_lists([[0.5], [0]], dtype=np.float64)}, "seen: .* float64"),
        ({"threads": 0}, "threads: expected a whole number of at least 1"),
        ({"threads": 5000}, "threads: expected 1 to 1024, found 5000"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"queries": Q, "items": V, "k": 2} | change
    with pytest.raises(InputError, match=rf"^{message}") as caught:
        native.score_topk(**arguments)
    assert "\n" not in str(caught.value)


def test_more_places_than_memory_holds_are_refused() -> None:
    vectors = np.ones((3, 2), dtype=np.float32)
    with pytest.raises(InputError, match=r"k: 1,000,000,000,000,000 places .* the 3 items are"):
        native.score_topk(vectors, vectors, 10**15)


def test_torch_batches_are_refused_with_the_remedy() -> None:
    pytest.importorskip("torch")
    seen = JaggedBatch.from_lists([[1], [2]]).to_torch()
    with pytest.raises(InputError, match="call to_numpy"):
        native.score_topk(Q, V, 2, seen=seen)


def test_broken_offsets_are_refused_by_the_module_itself() -> None:
    from seqrec_fast import _C

    values = np.array([0, 1], dtype=np.int32)
    for offsets in ([0, 3, 2], [1, 1, 2], [0, 1, 3], [0, 2, 1]):
        with pytest.raises(ValueError, match=r"^seen offsets: "):
            _C.score_topk(Q, V, None, values, np.array(offsets, dtype=np.int64), None, 2)


def test_memory_that_cannot_be_had_is_a_memory_error() -> None:
    with pytest.raises((MemoryError, ValueError)):
        native.score_topk(Q, V, 2**50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": [0, 2.5, 5]}, "offsets: expected whole numbers, found float64"),
        ({"offsets": [0, "a", 5]}, "offsets: expected whole numbers, found <U"),
        ({"offsets": [[0], [2, 3]]}, "offsets: expected an array of numbers, found uneven rows"),
        ({"offsets": None}, "offsets: expected whole numbers, found object"),
        ({"offsets": [0, 3, 2, 5]}, "offsets: must not decrease"),
        ({"q": [[1], [2, 3]]}, "q: expected an array of numbers, found uneven rows"),
        ({"scale": "x"}, "scale: expected a number, found 'x'"),
    ],
)
def test_arguments_of_attention_are_named(change: dict[str, Any], message: str) -> None:
    a = np.zeros((5, 2, 4), np.float32)
    given = {"q": a, "k": a, "v": a, "offsets": [0, 2, 5]} | change
    with pytest.raises(InputError, match=f"^{message}"):
        native.attention(**given)


def test_lengths_of_decode_attention_are_whole() -> None:
    a = np.zeros((5, 2, 4), np.float32)
    with pytest.raises(InputError, match=r"^lengths: expected whole numbers, found float64"):
        native.decode_attention(a[:2], a, a, [0, 2, 5], lengths=[1.7, 2])
