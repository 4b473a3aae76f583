# SPDX-License-Identifier: Apache-2.0
"""``bench gpu`` with a device that computes on the CPU and tells invented times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from seqrec_fast.benchmarks import (  # noqa: E402
    gpu,
    gpu_cases,
    gpu_device,
    gpu_model,
    gpu_report,
    shapes,
)
from seqrec_fast.benchmarks.case import OURS, STANDARD  # noqa: E402
from seqrec_fast.errors import DeviceError  # noqa: E402
from tests.benchmarks.stub_device import StubDevice  # noqa: E402

SMALL: dict[str, Any] = {
    "recurrent": shapes.RecurrentShape("lstm", 3, 8, 16, inputs=8, lengths="ml1m"),
    "attention": shapes.AttentionShape(3, 20, 2, 16, "ml1m"),
    "hstu_attention": shapes.AttentionShape(3, 20, 2, 16, "ml1m"),
    "decode_attention": shapes.DecodeAttentionShape(3, 9, 2, 16),
    "cross_entropy": shapes.CrossEntropyShape(12, 40, 16),
    "layer_norm": shapes.LayerNormShape(12, 16),
    "feed_forward": shapes.FeedForwardShape(12, 16, 32),
    "embedding": shapes.EmbeddingShape(12, 9, 16),
    "topk": shapes.TopkShape(3, 40, 16, 5),
}


def small(operation: str, dtype: str, backward: bool) -> gpu_cases.GpuCase:
    _, make, _ = gpu_cases._OPERATIONS[operation]
    shape = SMALL[operation]
    return gpu_cases.GpuCase(operation, shape, dtype, backward, lambda device: make(shape, device))


def test_the_small_shapes_cover_every_operation() -> None:
    assert set(SMALL) == set(gpu_cases.operations()) == set(gpu_model.FORMULAS)
    assert set(gpu_model.EXPECTED) == set(SMALL)


@pytest.mark.parametrize("operation", SMALL)
def test_every_operation_is_judged_and_timed(operation: str) -> None:
    trains = gpu_cases._OPERATIONS[operation][2]
    cases = [small(operation, "float32", b) for b in ((False, True) if trains else (False,))]
    device = StubDevice()
    for case, row in zip(cases, gpu.measure(cases, device, budget=0.0), strict=True):
        assert "reason" not in row, row["reason"]
        assert row["red"] is False, row["errors"]
        assert ("d_" in "".join(row["errors"])) == case.backward
        mine = row["contenders"][OURS]
        assert mine["warm_ms"] == pytest.approx(1e-3)
        assert mine["cold_ms"] == pytest.approx(3e-3)
        assert row["best_rival"] in row["contenders"]
        assert row["ratio"] == pytest.approx(1.0)
        cost = gpu_model.work(operation, case.shape, "float32", case.backward)
        assert row["gigabytes"] == pytest.approx(cost.bytes / 1e-6 / 1e9)
        assert len(gpu.cells(row)) == len(gpu.HEADER)
        assert json.loads(json.dumps(row)) == row
    assert device.flushed > 0


def test_a_wrong_result_is_red_and_gets_no_times() -> None:
    good = small("layer_norm", "float32", True)

    def make(device: torch.device) -> dict[str, gpu_cases.Layout]:
        found = good.build(device)
        mine = found[OURS]
        return {**found, OURS: gpu_cases.Layout(lambda *a: mine.function(*a) * 1.001, mine.inputs)}

    bad = gpu_cases.GpuCase("layer_norm", good.shape, "float32", True, make)
    (row,) = gpu.measure([bad], StubDevice(), budget=0.0)
    assert (row["red"], "contenders" in row) == (True, False)
    assert gpu.cells(row)[-1] == "red"


def test_what_fails_is_left_out_with_its_reason(tmp_path: Path) -> None:
    good = small("embedding", "float32", False)

    def fail(*_: Any) -> Any:
        raise RuntimeError("no such kernel")

    def make(device: torch.device) -> dict[str, gpu_cases.Layout]:
        found = good.build(device)
        inputs = found[OURS].inputs
        return {**found, "other": gpu_cases.Layout(fail, inputs), "unwanted": found[STANDARD]}

    case = gpu_cases.GpuCase("embedding", good.shape, "float32", False, make)
    ours = gpu_cases.GpuCase(
        "embedding",
        good.shape,
        "float32",
        False,
        lambda d: {**good.build(d), OURS: gpu_cases.Layout(fail, good.build(d)[OURS].inputs)},
    )
    row, without = gpu.measure([case, ours], StubDevice(), budget=0.0, without=["unw"])
    assert row["missing"] == {
        "other": "RuntimeError: no such kernel",
        "unwanted": "not wanted",
    }
    assert without["reason"] == "RuntimeError: no such kernel"
    assert "contenders" not in without
    pytest.importorskip("matplotlib")
    results = {"machine": {"device": {"gpu": "a stub"}}, "rows": [row, without]}
    written = gpu_report.write(tmp_path, results, plot=True)
    assert [path.name for path in written] == ["gpu.json", "gpu-ratio.svg", "gpu-ceilings.svg"]
    assert json.loads(written[0].read_text()) == results


def test_without_a_gpu_one_error_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"^bench gpu: "):
        gpu_device.require_gpu()


def test_cases_come_from_the_registry_of_shapes() -> None:
    found = gpu_cases.cases(("attention",), "bfloat16, forward+backward")
    assert [case.shape for case in found] == list(shapes.ATTENTION)
    assert len({(c.operation, c.name) for c in gpu_cases.cases()}) == len(gpu_cases.cases())


# -------------------------------------------------------------------------------- model


def test_the_model_counts_what_can_be_counted_by_hand() -> None:
    cost = gpu_model.work("cross_entropy", shapes.CrossEntropyShape(10, 20, 4), "float32", False)
    assert cost == gpu_model.Work(4 * 4 * 30 + 120, 2 * 10 * 20 * 4)
    cost = gpu_model.work("attention", shapes.AttentionShape(2, 3, 1, 8), "bfloat16", False)
    assert cost == gpu_model.Work(4 * 2 * 6 * 8 + 4 * 6, 4 * 12 * 8)


def test_the_floor_is_the_longer_of_both_times() -> None:
    chip = gpu_model.Chip("c", 100.0, 1000.0, 10.0, "none")
    assert gpu_model.floor(gpu_model.Work(1e11, 1e12), chip, "bfloat16") == (1.0, "memory")
    assert gpu_model.floor(gpu_model.Work(1e11, 1e12), chip, "float32") == (100.0, "arithmetic")


def test_the_page_holds_the_tables_of_the_model() -> None:
    page = Path(__file__).parents[2] / "docs" / "gpu.md"
    assert gpu_model.tables() in page.read_text(encoding="utf-8"), (
        "renew docs/gpu.md: python -m seqrec_fast.benchmarks.gpu_model"
    )
