# SPDX-License-Identifier: Apache-2.0
"""Losses that are looked at now and then: the same sums, and the first bad step is found."""

from __future__ import annotations

import math

import pytest
import torch

from seqrec_fast.training.step_losses import StepLosses


@pytest.mark.parametrize("every", [1, 3, 50])
def test_sums_do_not_depend_on_the_looks(every: int) -> None:
    losses = StepLosses(every)
    assert math.isnan(losses.latest)
    for step in range(7):
        # two passes a step
        assert losses.add(torch.tensor(float(step)), last=False) is None
        assert losses.add(torch.tensor(0.5), last=True) is None
    assert losses.look() is None
    assert losses.look() is None
    assert losses.total == sum(range(7)) + 7 * 0.5
    assert losses.latest == 6.5


@pytest.mark.parametrize("every", [1, 3, 50])
def test_the_first_bad_step_is_named(every: int) -> None:
    losses = StepLosses(every)
    found = None
    for step in range(9):
        value = torch.inf if step in (4, 5) else 1.0
        found = losses.add(torch.tensor(value), last=True)
        if found is not None:
            break
    found = found or losses.look()
    assert found == (4, torch.inf)


def test_looking_at_each_pass_finds_a_bad_one_before_its_step_ends() -> None:
    losses = StepLosses(1)
    assert losses.add(torch.tensor(1.0), last=True) is None
    found = losses.add(torch.tensor(torch.nan), last=False)
    assert found is not None
    assert found[0] == 1
