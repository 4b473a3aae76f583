# SPDX-License-Identifier: Apache-2.0
"""A recurrent layer is two kernels: the product of all its inputs, and the walk through time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seqrec_fast import nn
from seqrec_fast.jagged import JaggedBatch
from tests.ops.launches import torch_launches


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("lengths", [[1], [2, 0, 1, 5], [1] * 20])
def test_a_layer_is_two_kernels_whatever_the_batch(
    cell: str, keep: bool, lengths: list[int], emulated: Any
) -> None:
    layer: Any = getattr(nn, cell)(6, 10)
    values = torch.randn(sum(lengths), 6)
    batch = JaggedBatch.from_lengths(values.numpy(), lengths).to_torch()
    with torch.set_grad_enabled(keep):
        layer(batch)
        emulated.take_launches()
        between = torch_launches(lambda: layer(batch))
    assert between == ["mm"]
    assert [name for name, *_ in emulated.take_launches()] == ["recurrent_forward_kernel"]
