# SPDX-License-Identifier: Apache-2.0
"""The registry covers every bar; each operation can be measured on small shapes."""

from __future__ import annotations

from itertools import product
from statistics import mean
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from seqrec_fast import benchmarks, native  # noqa: E402
from seqrec_fast.benchmarks import harness, shapes  # noqa: E402
from seqrec_fast.benchmarks.ragged import Ragged  # noqa: E402
from seqrec_fast.errors import InputError  # noqa: E402


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    before = torch.get_num_threads(), native.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    native.set_num_threads(before[1])


@pytest.mark.parametrize("rows", [64, 256])
def test_lengths_have_the_means_of_the_data(rows: int) -> None:
    beauty, films = shapes.row_lengths("beauty", rows, 50), shapes.row_lengths("ml1m", rows, 200)
    assert mean(beauty) == pytest.approx(9, rel=0.01)
    assert mean(films) == pytest.approx(130, rel=0.01)
    assert max(beauty) <= 50
    assert max(films) == 200
    assert min(beauty + films) >= 4
    assert beauty == shapes.row_lengths("beauty", rows, 50)
    assert beauty != shapes.row_lengths("beauty", rows, 50, seed=1)
    assert sorted(beauty) == sorted(shapes.row_lengths("beauty", rows, 50, seed=1))
    assert shapes.row_lengths("equal", 3, 7) == [7, 7, 7]


def test_registry_covers_every_bar() -> None:
    assert {(512, 512, 512), (16, 256, 1024), (1, 256, 1024)} <= set(shapes.GEMM)
    found = {(s.cell, s.rows, s.time, s.hidden, s.lengths) for s in shapes.RECURRENT}
    cells, widths = ("lstm", "gru", "rnn"), (64, 128, 256)
    assert set(product(cells, (1, 64, 256), (50, 200), widths, ("equal",))) <= found
    assert set(product(cells, (64, 256), (50,), widths, ("beauty",))) <= found
    assert set(product(cells, (64, 256), (200,), widths, ("ml1m",))) <= found
    assert len(found) == len(shapes.RECURRENT)
    for kinds in (shapes.ATTENTION, shapes.HSTU_ATTENTION):
        sizes = {(s.rows, s.time, s.heads, s.width) for s in kinds}
        assert {(64, 200, 2, 32), (16, 1024, 4, 32)} <= sizes
        assert {s.time for s in kinds if s.lengths != "equal"} >= {200, 1024}
    catalogues = {s.items for s in shapes.CROSS_ENTROPY}
    assert catalogues == {12_000, 100_000, 1_000_000}


@pytest.mark.parametrize("operation", benchmarks.OPERATIONS)
def test_cases_have_names_and_counts_of_their_own(operation: str) -> None:
    cases = benchmarks.cases(operation)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for case in cases:
        assert case.operation == operation
        assert case.flops >= 0
        assert case.bytes > 0
        assert case.equal is None or case.equal in names
        assert (case.padding > 1) == (getattr(case.shape, "lengths", "equal") != "equal")


def test_bars_of_the_recurrent_layers() -> None:
    bars = {case.name: case.bar for case in benchmarks.cases("recurrent")}
    gru = bars["gru 256 x 50, 64 to 128, equal, forward"]
    assert (gru.ratio_on(1), gru.ratio_on(2), gru.share_of_peak) == (1.7, 2.0, 0.72)
    assert bars["lstm 1 x 200, 64 to 64, equal, forward"].ratio_on(2) == 1.9
    assert bars["lstm 64 x 200, 64 to 64, equal, forward+backward"].ratio == 2.0


def test_unknown_operation_is_refused() -> None:
    with pytest.raises(InputError, match="operation"):
        benchmarks.cases("sorting")


def test_layouts_are_turned_into_one_another() -> None:
    ragged = Ragged("beauty", 16, 50)
    values = torch.randn(ragged.tokens, 3)
    assert torch.equal(ragged.from_padded(ragged.to_padded(values)), values)
    time_major = ragged.to_padded(values, time_major=True)
    assert time_major.shape == (50, 16, 3)
    assert torch.equal(ragged.from_padded(time_major, time_major=True), values)
    assert torch.equal(ragged.from_packed(ragged.packed(values).data), values)
    assert ragged.padding == pytest.approx(800 / ragged.tokens)


def small(operation: str, monkeypatch: pytest.MonkeyPatch) -> list[benchmarks.Case]:
    """The cases of an operation with its shapes made small."""
    from importlib import import_module

    module = import_module(f"seqrec_fast.benchmarks.operations.{operation}")
    kinds: dict[str, list[Any]] = {
        "gemm": [shapes.GemmShape(5, 7, 9)],
        "recurrent": [
            shapes.RecurrentShape(cell, 5, 6, 7, 3, lengths)
            for cell in ("rnn", "lstm", "gru")
            for lengths in ("equal", "beauty")
        ],
        "attention": [
            shapes.AttentionShape(3, 9, 2, 4),
            shapes.AttentionShape(3, 50, 2, 4, "beauty"),
        ],
        "hstu_attention": [
            shapes.AttentionShape(3, 9, 2, 4),
            shapes.AttentionShape(3, 50, 2, 4, "beauty"),
        ],
        "cross_entropy": [shapes.CrossEntropyShape(5, 11, 3)],
    }
    monkeypatch.setattr(module, operation.upper(), kinds[operation])
    return module.cases()


@pytest.mark.parametrize("operation", benchmarks.OPERATIONS)
def test_every_contender_computes_the_same(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SAMPLE_SECONDS", 1e-6)
    monkeypatch.setattr(native, "measure_peak", lambda threads: native.Peak(100.0, 10.0))
    for case in small(operation, monkeypatch):
        # torch.compile takes seconds a case and has nothing of ours in it
        row = harness.measure(case, 1, budget=0.01, without=["torch.compile"])
        assert not row["red"], (case.name, row["errors"])
        assert len(row["contenders"]) >= 2
        allowed = ("not installed", "not wanted", "leaves RNN", "same kernel")
        assert all(any(a in why for a in allowed) for why in row["missing"].values()), row
