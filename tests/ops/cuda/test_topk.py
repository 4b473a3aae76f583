# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of the search for the best items, run on the CPU, against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.ops.cuda import topk as module
from seqrec_fast.ops.topk import score_topk, score_topk_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def whole(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Small whole numbers, whose products and sums every type holds exactly."""
    return torch.from_numpy(rng.integers(-2, 3, shape).astype(np.float32)).to(dtype)


def agree(
    queries: torch.Tensor, items: torch.Tensor, *, k: int, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same scores and items as the reference, bit for bit."""
    scores, ids = score_topk(queries, items, k=k, **options)
    wanted = score_topk_reference(queries, items, k=k, **options)
    assert torch.equal(ids, wanted[1])
    assert torch.equal(scores, wanted[0])
    return scores, ids


def hidden(rng: np.random.Generator, queries: int, items: int, most: int) -> JaggedBatch[Any]:
    """Lists in no order, of which some items stand twice."""
    return JaggedBatch.from_lists(
        [rng.integers(0, items, rng.integers(0, most + 1) if items else 0) for _ in range(queries)]
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    queries=st.integers(0, 40),
    items=st.integers(0, 300),
    dim=st.integers(1, 40),
    k=st.integers(1, 200),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_equals_the_reference(
    queries: int, items: int, dim: int, k: int, dtype: torch.dtype, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q, v = whole(rng, (queries, dim), dtype), whole(rng, (items, dim), dtype)
    agree(q, v, k=k)
    agree(
        q,
        v,
        k=k,
        bias=whole(rng, (items,), dtype),
        seen=hidden(rng, queries, items, 9),
        blocked=torch.from_numpy(rng.random(items) < 0.2),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "items", "dim", "k"),
    [
        (1, 1, 1, 1),
        (15, 127, 15, 85),
        (16, 128, 16, 86),
        (17, 129, 17, 256),
        (63, 255, 31, 257),
        (65, 257, 33, 5),
        (2, 4100, 32, 20),  # several ranges of items
        (3, 3000, 8, 1024),
    ],
)
def test_around_the_edges_of_tiles(
    queries: int, items: int, dim: int, k: int, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(items)
    q, v = whole(rng, (queries, dim), dtype), whole(rng, (items, dim), dtype)
    agree(q, v, k=k, seen=hidden(rng, queries, items, 70))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 64, 200])
def test_error_is_at_most_twice_that_of_torch(dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dim)
    q = torch.randn(20, dim, generator=generator).to(dtype)
    v = torch.randn(1000, dim, generator=generator).to(dtype)
    exact = q.double() @ v.double().T
    theirs = float(((q @ v.T).double() - exact).abs().max())
    scores, ids = score_topk(q, v, k=1000)
    assert torch.equal(ids.sort(1).values, torch.arange(1000).expand(20, 1000))
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    assert float((scores.double() - exact.gather(1, ids)).abs().max()) <= 2 * theirs


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("tf32")
def test_tensor_cores_in_tf32_by_choice() -> None:
    """Products of numbers rounded to 10 bits behind the point, summed in float32."""
    generator = torch.Generator().manual_seed(0)
    q, v = torch.randn(5, 40, generator=generator), torch.randn(200, 40, generator=generator)
    exact = q.double() @ v.double().T
    scores, ids = score_topk(q, v, k=200)
    error = (scores.double() - exact.gather(1, ids)).abs()
    size = q.double().norm(dim=1)[:, None] * v.double().norm(dim=1)
    assert (error <= 2**-10 * size.gather(1, ids)).all()
    assert error.max() > 1e-4  # which float32 keeps below 1e-5
    rng = np.random.default_rng(0)
    agree(whole(rng, (17, 20), torch.float32), whole(rng, (300, 20), torch.float32), k=50)


def test_near_ties_and_duplicates() -> None:
    """Items a last bit apart keep their order, equal ones that of their numbers."""
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(40, 12, generator=generator).repeat(20, 1)
    bits = v.view(torch.int32)
    bits += torch.randint(-1, 2, bits.shape, generator=generator, dtype=torch.int32)
    q = 2.0 ** torch.arange(-6, 6).diag_embed().float() * torch.eye(12)  # products are exact
    for k in (3, 100, 500):
        scores, ids = agree(q, v, k=k)
        tied = scores[:, 1:] == scores[:, :-1]
        assert tied.any()
        assert (ids[:, 1:] > ids[:, :-1])[tied].all()


@pytest.mark.parametrize("order", [1.0, -1.0])
@pytest.mark.parametrize("k", [10, 600])
def test_scores_that_only_rise_or_only_fall(order: float, k: int) -> None:
    """Every item passes the threshold, and lists are cut again and again; or none does."""
    v = order * torch.arange(2000.0)[:, None]
    agree(torch.tensor([[1.0], [0.5]]), v, k=k, seen=JaggedBatch.from_lists([[1999, 0], [1998]]))


def test_not_finite_as_on_the_cpu() -> None:
    inf, nan = torch.inf, torch.nan
    v = torch.tensor([[nan], [1.0], [inf], [-inf], [inf], [-1.0], [0.0], [-0.0]])
    q = torch.tensor([[1.0], [-1.0], [0.0], [nan], [inf]])
    for dtype in DTYPES:
        _, ids = agree(q.to(dtype), v.to(dtype), k=9)
    assert ids[0].tolist() == [2, 4, 1, 6, 7, 5, -1, -1, -1]
    bias = torch.tensor([0.0, inf, -inf, 0.0, nan, 3.0, 0.0, 0.0])
    agree(q, v, k=9, bias=bias)
    big = torch.full((3, 1), 300.0, dtype=torch.float16)
    scores, _ = agree(big, big, k=2)
    assert scores.isinf().all()


def test_nothing_left() -> None:
    q, v = torch.ones(3, 4), torch.ones(150, 4)
    everything = [np.arange(150)[::-1], [], list(range(149)) * 2]
    scores, ids = agree(q, v, k=200, seen=JaggedBatch.from_lists(everything))
    assert (ids[0] == -1).all()
    assert ids[2, :2].tolist() == [149, -1]
    scores, ids = agree(q, v, k=3, blocked=torch.ones(150, dtype=torch.bool))
    assert (ids == -1).all()
    assert (scores == -torch.inf).all()


def test_views_and_numbers_out_of_place() -> None:
    """Rows apart from each other, at odd addresses, and columns that do not lie side by side."""
    rng = np.random.default_rng(2)
    for dtype in DTYPES:
        wide = whole(rng, (130, 40), dtype)
        agree(wide[:5, 3:19], wide[:, 3:19], k=7)
        agree(wide[:5, :16], wide[:, 8:24], k=7)
        agree(wide[:5, ::2], wide[:, ::2], k=7, bias=wide[:, 1])
        agree(wide[1:2].expand(4, 40), wide, k=7)


def test_long_lists_and_items_that_do_not_exist() -> None:
    """Beyond what is sorted in shared memory; the operator is told of items out of range."""
    rng = np.random.default_rng(3)
    q, v = torch.ones(2, 1), torch.arange(9000.0)[:, None] % 501
    seen = JaggedBatch.from_lists([rng.permutation(9000)[:6000], rng.permutation(9000)[:4096]])
    agree(q, v, k=30, seen=seen)
    values = torch.tensor([-1, 2**40 + 2, 9000, 500, 2**31, 2**32 + 1001])
    offsets = torch.tensor([0, 6, 6])
    operator = torch.ops.seqrec_fast.score_topk.default
    _, ids = operator(q, v, None, values, offsets, None, 2)
    assert ids.tolist() == [[1001, 1502], [500, 1001]]
    beyond = torch.tensor([-5, 100, 50])  # offsets that lie touch nothing beyond the values
    operator(q, v, None, values, beyond, None, 2)


def test_more_places_or_wider_rows_than_the_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    monkeypatch.setattr(module, "_SCORES", 300_000)  # chunks of 1171 items
    calls: list[int] = []
    chunks = module._in_chunks

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return chunks(*arguments)

    monkeypatch.setattr(module, "_in_chunks", counted)
    for dtype in DTYPES:
        q, v = whole(rng, (300, 3), dtype), whole(rng, (2500, 3), dtype)
        options = {
            "bias": whole(rng, (2500,), dtype),
            "blocked": torch.from_numpy(rng.random(2500) < 0.2),
        }
        agree(q, v, k=1025, seen=hidden(rng, 300, 2500, 30), **options)
        agree(whole(rng, (2, 5000), dtype), whole(rng, (20, 5000), dtype), k=3)
    agree(torch.tensor([[torch.nan], [1.0]]), torch.tensor([[1.0], [-torch.inf]]), k=1500)
    assert len(calls) == 7


def test_many_queries_are_searched_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LISTS", 1)
    rng = np.random.default_rng(5)
    q, v = whole(rng, (150, 8), torch.float32), whole(rng, (200, 8), torch.float32)
    agree(q, v, k=5, seen=hidden(rng, 150, 200, 20))


def test_a_query_alone_gets_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(6)
    for dtype in DTYPES:
        q = torch.randn(40, 24, generator=generator).to(dtype)
        v = torch.randn(700, 24, generator=generator).to(dtype)
        scores, ids = score_topk(q, v, k=20)
        for i in (0, 17, 39):
            alone = score_topk(q[i : i + 1], v, k=20)
            assert torch.equal(alone[0][0], scores[i])
            assert torch.equal(alone[1][0], ids[i])


def test_is_an_operator_and_compiles() -> None:
    generator = torch.Generator().manual_seed(3)
    q, v, bias = (torch.randn(s, generator=generator) for s in ((4, 6), (30, 6), (30,)))
    blocked = torch.arange(30) % 5 == 0
    seen = JaggedBatch.from_lists([[1, 2], [], [7], [9, 11, 3]]).to_torch()
    operator = torch.ops.seqrec_fast.score_topk.default
    torch.library.opcheck(operator, (q, v, bias, seen.values, seen.offsets, blocked, 40))
    compiled = torch.compile(
        lambda q: score_topk(q, v, seen=seen, k=5), fullgraph=True, backend="aot_eager"
    )
    for got, want in zip(compiled(q), score_topk(q, v, seen=seen, k=5), strict=True):
        assert torch.equal(got, want)


def test_too_many_items() -> None:
    v = torch.empty(1).expand(2**31 - 256, 1)
    with pytest.raises(InputError, match="items: expected fewer than 2147483392 rows"):
        score_topk(torch.ones(1, 1), v, k=1)


# ------------------------------------------------------------------ launches and bytes, counted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 64, 130])
def test_items_are_read_once_a_tile_of_queries(
    emulated: Any, queries: int, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(7)
    q, v = whole(rng, (queries, 40), dtype), whole(rng, (5000, 40), dtype)
    bias = whole(rng, (5000,), dtype)
    blocked = torch.from_numpy(rng.random(5000) < 0.2)
    seen = hidden(rng, queries, 5000, 30).to_torch()
    watched = [(t.data_ptr(), t.nbytes) for t in (v, q, bias)]
    emulated.take_launches()
    emulated.start_counting(watched)
    score_topk(q, v, bias=bias, seen=seen, blocked=blocked, k=10)
    _, items, given, biases = emulated.stop_counting()
    launches = emulated.take_launches()
    assert [name for name, *_ in launches] == ["topk_seen", "topk_scan", "topk_merge"]
    tiles = -(-queries // (16 if queries <= 16 else 64))
    blocks = launches[1][1][0]
    assert blocks > tiles  # several ranges of items
    assert items[1] == tiles * v.nbytes
    assert given[1] == blocks // tiles * q.nbytes
    assert biases[1] <= tiles * bias.nbytes  # not of what is blocked
    emulated.take_launches()
    score_topk(q, v, k=10)
    assert len(emulated.take_launches()) == 2


def test_neither_the_device_nor_the_order_of_threads_changes_anything(emulated: Any) -> None:
    generator = torch.Generator().manual_seed(8)
    q, v = torch.randn(3, 12, generator=generator), torch.randn(3000, 12, generator=generator)
    scores, ids = score_topk(q, v, k=40)
    for seed, multiprocessors, shared in ((2, 1, 101376), (3, 108, 166912), (4, 16, 232448)):
        emulated.set_order(seed)
        emulated.set_device(multiprocessors, shared)
        again = score_topk(q, v, k=40)
        assert torch.equal(again[0], scores)
        assert torch.equal(again[1], ids)
