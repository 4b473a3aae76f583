# SPDX-License-Identifier: Apache-2.0
"""A block of SASRec is six kernels at most: ours where they are started, torch's between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models import ModelOptions, build_model
from tests.ops.launches import torch_launches
from tests.ops.triton.guards import MISSING

pytest.importorskip("triton", reason=MISSING)
from triton.runtime import interpreter


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of kernels that are started; none is run."""
    names: list[str] = []
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton,reference")
    monkeypatch.setattr(
        interpreter.GridExecutor,
        "__call__",
        lambda executor, *_, **__: names.append(executor.fn.__name__),
    )
    return names


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[1], [3, 0, 1, 6], [1] * 40])
def test_a_block_is_six_kernels_whatever_the_batch(
    training: bool, heads: int, lengths: list[int], started: list[str]
) -> None:
    options = ModelOptions(dim=64, heads=heads, layers=1, max_length=6, dropout=0.2)
    model: Any = build_model(options, 9).train(training)
    batch = JaggedBatch.from_lengths(torch.ones(sum(lengths)).long().numpy(), lengths).to_torch()
    counts = []
    for blocks in (1, 2):
        model.blocks.extend([model.blocks[0]] * (blocks - 1))
        with torch.no_grad():
            model(batch)  # what is kept from call to call
            started.clear()
            between = torch_launches(lambda: model(batch))
        counts.append((len(started), len(between)))
    own, theirs = counts[1][0] - counts[0][0], counts[1][1] - counts[0][1]
    # attention, two norms with the sums before them, feed-forward; the two products of attention
    assert (own, theirs) == (4, 2), (started, between)


def test_what_is_counted_is_found() -> None:
    x = torch.randn(4, 3)
    layer = torch.nn.Linear(3, 3)

    def call() -> None:
        with torch.no_grad():
            layer(x.t().contiguous().t()).view(2, 6).unbind(0)
        torch.nn.functional.pad(x, (0, 1))

    assert torch_launches(call) == ["copy_", "addmm", "fill_", "copy_"]
