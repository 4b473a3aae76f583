# SPDX-License-Identifier: Apache-2.0
"""Training windows hold every target once, and steps split into passes without changing the sum."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import JaggedBatch
from seqrec_fast.errors import InputError
from seqrec_fast.training import batches
from seqrec_fast.training.batches import Windows, epoch_generator

ROWS = st.lists(st.integers(0, 23), min_size=1, max_size=8)


def sequences(lengths: list[int]) -> Any:
    """Rows whose values are all different, so that an event can be told by its value."""
    return JaggedBatch.from_lengths(np.arange(sum(lengths), dtype=np.int32), lengths)


@given(lengths=ROWS, max_length=st.integers(1, 9), batch_size=st.integers(0, 5))
def test_every_event_but_the_first_is_a_target_once(
    lengths: list[int], max_length: int, batch_size: int
) -> None:
    rows = sequences(lengths)
    if max(lengths) < 2:
        with pytest.raises(InputError, match="no user has two events"):
            Windows(rows, None, max_length=max_length, whole_history=True)
        return
    windows = Windows(rows, None, max_length=max_length, whole_history=True)
    targets: Counter[int] = Counter()
    passes = list(windows.epoch(batch_size, np.random.default_rng(0)))
    for part in passes:
        # each target follows its input: the values count up inside a row
        assert torch.equal(part.targets, part.inputs.values + 1)
        assert int(part.inputs.lengths.max()) <= max_length
        assert part.inputs.lengths.tolist() == sorted(part.inputs.lengths.tolist(), reverse=True)
        targets.update(part.targets.tolist())
    firsts = set(rows.offsets[:-1].tolist())
    assert targets == Counter(v for v in range(sum(lengths)) if v not in firsts)
    assert windows.tokens == sum(targets.values())
    assert sum(part.last for part in passes) == windows.steps(batch_size)


@given(lengths=ROWS, max_length=st.integers(1, 9))
def test_last_window_only(lengths: list[int], max_length: int) -> None:
    if max(lengths) < 2:
        return
    windows = Windows(sequences(lengths), None, max_length=max_length, whole_history=False)
    assert windows.tokens == sum(min(max(n - 1, 0), max_length) for n in lengths)
    assert len(windows) == sum(n >= 2 for n in lengths)


def test_a_step_of_several_passes_has_shares_that_sum_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "TOKENS_PER_PASS", 5)
    lengths = [4, 3, 6, 2, 9]
    weights = np.arange(sum(lengths), dtype=np.float32)
    windows = Windows(sequences(lengths), weights, max_length=10, whole_history=True)
    parts = list(windows.epoch(0, np.random.default_rng(0)))
    assert len(parts) > 2
    assert sum(p.share for p in parts) == pytest.approx(1.0)
    assert [p.last for p in parts] == [False] * (len(parts) - 1) + [True]
    for part in parts:
        assert part.weights is not None
        assert part.weights.tolist() == part.targets.tolist(), "the weight is the target's own"


def test_an_epoch_draws_from_seed_and_epoch_alone() -> None:
    first, same = epoch_generator(1, 4).random(3), epoch_generator(1, 4).random(3)
    torch_first = (epoch_generator(1, 4), torch.rand(3))[1]
    torch_same = (epoch_generator(1, 4), torch.rand(3))[1]
    assert np.array_equal(first, same)
    assert torch.equal(torch_first, torch_same)
    assert not np.array_equal(first, epoch_generator(1, 5).random(3))
    assert not np.array_equal(first, epoch_generator(2, 4).random(3))
