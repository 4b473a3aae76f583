# SPDX-License-Identifier: Apache-2.0
"""The model of costs: its formulas against the tensors of the operators, its page against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from seqrec_fast.benchmarks import gpu_cases, gpu_model, shapes  # noqa: E402
from seqrec_fast.benchmarks.case import OURS, STANDARD  # noqa: E402
from seqrec_fast.benchmarks.gpu_layouts import call  # noqa: E402
from seqrec_fast.benchmarks.ragged import Ragged  # noqa: E402
from seqrec_fast.ops.recurrent import recurrent_reference  # noqa: E402
from tests.benchmarks.gpu_bytes import counted  # noqa: E402
from tests.benchmarks.gpu_small import CELLS, SMALL, directions  # noqa: E402


def shapes_of(operation: str) -> list[Any]:
    return list(CELLS.values()) if operation == "recurrent" else [SMALL[operation]]


@pytest.mark.parametrize("operation", SMALL)
def test_bytes_are_those_of_the_tensors(operation: str) -> None:
    for shape in shapes_of(operation):
        for backward in directions(operation):
            case = gpu_cases.GpuCase(operation, shape, "float32", backward)
            assert case.cost().bytes == counted(case), case.name


@pytest.mark.parametrize(
    "operation", ["feed_forward", "cross_entropy", "sampled_cross_entropy", "topk"]
)
def test_operations_are_those_of_plain_torch(operation: str) -> None:
    """Of the forward pass, whose products nobody makes twice."""
    case = gpu_cases.GpuCase(operation, SMALL[operation], "float32", False)
    run = call(case.build(torch.device("cpu"))[STANDARD], case.dtype, False)
    with FlopCounterMode(display=False) as counter:
        run()
    assert case.cost().flops == counter.get_total_flops()


@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrent_layer_counts_no_padding(cell: str) -> None:
    shape = CELLS[cell]
    case = gpu_cases.GpuCase("recurrent", shape, "float32", False)
    x, *weights = case.build(torch.device("cpu"))[OURS].inputs.values()
    offsets = Ragged(shape.lengths, shape.rows, shape.time).offsets
    with FlopCounterMode(display=False) as counter:
        recurrent_reference(cell, x, offsets, *weights)
    assert case.cost().flops == counter.get_total_flops()


def test_attention_counts_the_pairs_that_causality_leaves() -> None:
    shape = shapes.AttentionShape(2, 3, 1, 8)
    assert gpu_model.work("attention", shape, "bfloat16", False).flops == 4 * 12 * 8


def test_the_model_counts_what_can_be_counted_by_hand() -> None:
    cost = gpu_model.work("cross_entropy", shapes.CrossEntropyShape(10, 20, 4), "float32", False)
    assert cost == gpu_model.Work(4 * 4 * 30 + 120, 2 * 10 * 20 * 4)
    cost = gpu_model.work("attention", shapes.AttentionShape(2, 3, 1, 8), "bfloat16", False)
    assert cost == gpu_model.Work(4 * 2 * 6 * 8 + 8 * 6 + 8 * 3, 4 * 12 * 8)


def test_the_floor_is_the_longer_of_both_times() -> None:
    chip = gpu_model.Chip("c", 100.0, 1000.0, 10.0, "none")
    assert gpu_model.floor(gpu_model.Work(1e11, 1e12), chip, "bfloat16") == (1.0, "memory")
    assert gpu_model.floor(gpu_model.Work(1e11, 1e12), chip, "tf32") == (2.0, "arithmetic")
    assert gpu_model.floor(gpu_model.Work(1e11, 1e12), chip, "float32") == (100.0, "arithmetic")


def test_every_name_of_a_formula_is_explained() -> None:
    used = {c for formula in gpu_model.FORMULAS.values() for c in "".join(formula) if c.isalpha()}
    assert used == set(gpu_model.NAMES)


def test_the_page_holds_the_tables_of_the_model() -> None:
    page = Path(__file__).parents[2] / "docs" / "gpu.md"
    assert gpu_model.tables() in page.read_text(encoding="utf-8"), (
        "renew docs/gpu.md: python -m seqrec_fast.benchmarks.gpu_model"
    )
