# SPDX-License-Identifier: Apache-2.0
"""ops.topk: the native kernel and the reference against each other and against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import native
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.ops import topk as module
from seqrec_fast.ops.topk import score_topk, score_topk_reference


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 40), st.integers(0, 150), st.integers(1, 40), st.integers(1, 160), st.integers()
)
def test_native_equals_the_reference(queries: int, items: int, dim: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(abs(seed))
    q = torch.from_numpy(rng.integers(-3, 4, (queries, dim)).astype(np.float32))
    v = torch.from_numpy(rng.integers(-3, 4, (items, dim)).astype(np.float32))
    bias = torch.from_numpy(rng.integers(-3, 4, items).astype(np.float32))
    blocked = torch.from_numpy(rng.random(items) < 0.2)
    rows = [rng.integers(0, items, 5 if items else 0) for _ in range(queries)]
    seen = JaggedBatch.from_lists(rows)
    for options in ({}, {"bias": bias, "seen": seen, "blocked": blocked, "k": k}):
        found = score_topk(q, v, **({"k": k} | options))  # type: ignore[arg-type]
        wanted = score_topk_reference(
            q.double(),
            v.double(),
            **({"k": k} | options | ({"bias": bias.double()} if options else {})),  # type: ignore[arg-type]
        )
        assert torch.equal(found[1], wanted[1])
        assert torch.equal(found[0].double(), wanted[0])


def test_reference_agrees_with_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the score matrix is cut into blocks of queries."""
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 300)
    rng = np.random.default_rng(0)
    q, v = rng.standard_normal((20, 8)), rng.standard_normal((100, 8))
    rows = [rng.integers(0, 100, n) for n in range(20)]
    scores = q @ v.T
    for row, hidden in enumerate(rows):
        scores[row, hidden] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :30]
    found = score_topk_reference(
        torch.from_numpy(q), torch.from_numpy(v), seen=JaggedBatch.from_lists(rows), k=30
    )
    np.testing.assert_array_equal(found[1].numpy(), order)
    np.testing.assert_allclose(found[0].numpy(), np.take_along_axis(scores, order, axis=1))


@pytest.mark.parametrize("dim", [8, 64, 300])
def test_error_is_at_most_twice_that_of_torch(dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    q = torch.randn(30, dim, generator=generator)
    v = torch.randn(1500, dim, generator=generator)
    exact = q.double() @ v.double().T
    allowed = 2 * ((q @ v.T).double() - exact).abs().max()
    scores, ids = score_topk(q, v, k=1500)
    assert (scores.double() - exact.gather(1, ids)).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_run_the_reference(dtype: torch.dtype) -> None:
    q, v = torch.eye(4, dtype=dtype), torch.eye(4, dtype=dtype)
    scores, ids = score_topk(q, v, k=2)
    assert scores.dtype == dtype
    assert ids.tolist() == [[0, 1], [1, 0], [2, 0], [3, 0]]


def test_quantized_items_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, v = torch.randn(5, 24, generator=generator), torch.randn(3000, 24, generator=generator)
    bias = torch.randn(3000, generator=generator)
    expected = score_topk(q, v, bias=bias, k=50)
    table = module.native.QuantizedItems(v.numpy(), bias.numpy())
    found = score_topk(q, table, k=50)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    with pytest.raises(InputError, match="bias: give it to QuantizedItems"):
        score_topk(q, table, bias=bias, k=50)
    with pytest.raises(InputError, match=r"items: expected torch.float64"):
        score_topk(q.double(), table, k=50)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "reference")
    assert torch.equal(score_topk(q, table, k=50)[1], expected[1])


def test_nan_is_never_chosen() -> None:
    v = torch.tensor([[torch.nan], [1.0], [torch.inf], [-torch.inf]])
    for function in (score_topk, score_topk_reference):
        _, ids = function(torch.ones(1, 1), v, k=4)
        assert ids.tolist() == [[2, 1, -1, -1]]


def test_no_gradient_flows_and_none_is_needed() -> None:
    q = torch.randn(2, 3, requires_grad=True)
    scores, _ = score_topk(q, torch.randn(5, 3, requires_grad=True), k=2)
    assert not scores.requires_grad


def test_seen_may_be_torch() -> None:
    q, v = torch.ones(2, 1), torch.arange(5.0)[:, None]
    seen = JaggedBatch.from_lists([[4], [3, 0]])
    assert score_topk(q, v, seen=seen.to_torch(), k=2)[1].tolist() == [[3, 2], [4, 2]]


def test_forced_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    q, v = torch.ones(1, 2), torch.ones(3, 2)
    calls: list[str] = []
    native = module.native.score_topk

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("native")
        return native(*args, **kwargs)

    monkeypatch.setattr(module.native, "score_topk", counted)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "reference")
    score_topk(q, v, k=1)
    assert not calls
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "native")
    score_topk(q, v, k=1)
    assert calls == ["native"]
    with pytest.raises(InputError, match="float32 on the cpu, found float64 on cpu"):
        score_topk(q.double(), v.double(), k=1)
    with pytest.raises(InputError, match="found float32 on meta"):
        score_topk(q.to("meta"), v.to("meta"), k=1)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "gpu")
    with pytest.raises(InputError, match=r"^SEQREC_FAST_BACKEND: found 'gpu'"):
        score_topk(q, v, k=1)
    monkeypatch.delenv("SEQREC_FAST_BACKEND")
    score_topk(q, v, k=1)
    assert calls == ["native", "native"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.ones(3)}, "queries, items: expected"),
        ({"queries": torch.ones(2, 4)}, "queries, items: expected"),
        ({"queries": torch.ones(2, 0), "items": torch.ones(5, 0)}, "items: expected at least 1"),
        ({"queries": torch.ones(2, 3, dtype=torch.int64)}, "queries: expected a floating dtype"),
        ({"items": torch.ones(5, 3).double()}, "items: expected torch.float32 like queries"),
        ({"bias": torch.ones(5).double()}, "bias: expected torch.float32 like queries"),
        ({"bias": torch.ones(4)}, r"bias: expected one number an item \(5\)"),
        ({"items": torch.ones(5, 3, device="meta")}, "items: expected on cpu like queries"),
        ({"blocked": torch.zeros(5)}, "blocked: expected bool"),
        ({"blocked": torch.zeros(4, dtype=torch.bool)}, "blocked: expected one number an item"),
        ({"k": 0}, "k: expected a whole number of at least 1, found 0"),
        ({"k": True}, "k: expected a whole number"),
        ({"seen": JaggedBatch.from_lists([[1]])}, r"seen: expected one row a query \(2\)"),
        ({"seen": JaggedBatch.from_lists([[1], [5]])}, "seen: found item 5"),
        ({"seen": JaggedBatch.from_lists([[1.0], []], dtype=np.float32)}, "seen: expected int32"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"queries": torch.ones(2, 3), "items": torch.ones(5, 3), "k": 2}
    for function in (score_topk, score_topk_reference):
        with pytest.raises(InputError, match=f"^{message}"):
            function(**(arguments | change))


def test_is_a_registered_operator_and_compiles() -> None:
    generator = torch.Generator().manual_seed(3)
    queries, items, bias = (torch.randn(s, generator=generator) for s in ((4, 6), (30, 6), (30,)))
    blocked = torch.arange(30) % 5 == 0
    seen = JaggedBatch.from_lists([[1, 2], [], [7], [9, 11, 3]]).to_torch()
    operator = torch.ops.seqrec_fast.score_topk.default
    torch.library.opcheck(operator, (queries, items, None, None, None, None, 3))
    torch.library.opcheck(operator, (queries, items, bias, seen.values, seen.offsets, blocked, 40))

    def best(queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores, ids = score_topk(queries * 2, items, bias=bias, seen=seen, blocked=blocked, k=k)
        return scores + 1, ids

    compiled = torch.compile(best, fullgraph=True, backend="aot_eager", dynamic=True)
    for k in (3, 40):
        for got, want in zip(compiled(queries, k), best(queries, k), strict=True):
            assert torch.equal(got, want)
    plain = torch.compile(lambda q: score_topk(q, items, k=5), fullgraph=True, backend="aot_eager")
    for got, want in zip(
        plain(queries.clone().requires_grad_()), score_topk(queries, items, k=5), strict=True
    ):
        assert torch.equal(got, want)
        assert not got.requires_grad


def test_wrong_seen_items_are_refused_where_values_are_not_known_in_a_trace() -> None:
    items = torch.randn(5, 3)
    compiled = torch.compile(
        lambda q, seen: score_topk(q, items, seen=seen, k=2), fullgraph=True, backend="aot_eager"
    )
    bad = JaggedBatch.from_lists([[5]]).to_torch()
    with pytest.raises(InputError, match="seen: found item 5"):
        compiled(torch.randn(1, 3), bad)


@pytest.mark.filterwarnings("error")
def test_items_in_read_only_memory() -> None:
    items = np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)
    bias = np.zeros(20, np.float32)
    for array in (items, bias):
        array.flags.writeable = False
    queries = torch.randn(2, 4)
    got = score_topk(queries, native.QuantizedItems(items, bias), k=3)
    want = score_topk(queries, torch.tensor(items), k=3)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_more_places_than_memory() -> None:
    for k in (2**40, 2**60, 2**61):
        with pytest.raises(
            InputError, match=r"k: .* places for each of 3 queries take more memory"
        ):
            score_topk(torch.randn(3, 2), torch.randn(4, 2), k=k)
