# SPDX-License-Identifier: Apache-2.0
"""From sequences to training batches: windows, order of an epoch, passes of a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch, row_positions

__all__ = ["Pass", "Windows", "epoch_generator"]

#: events of one forward and backward pass; a larger step accumulates gradients over passes
TOKENS_PER_PASS = 65_536


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch, and torch's own seeded likewise.

    Every epoch starts from ``(seed, epoch)`` alone, so that training that is resumed at an epoch
    draws what an unbroken run draws.
    """
    sequence = np.random.SeedSequence([seed, epoch])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return np.random.Generator(np.random.PCG64(sequence.spawn(1)[0]))


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass, a part of a step.

    Attributes:
        inputs: int64 items, rows longest first.
        targets: int64 ``[tokens]``: the item after each input.
        weights: float32 ``[tokens]`` or None: weight of each target.
        share: this pass's part of the step's total weight; the shares of a step sum to 1.
        last: whether the step ends with it.
    """

    inputs: JaggedBatch[Tensor]
    targets: Tensor
    weights: Tensor | None
    share: float
    last: bool


class Windows:
    """Training windows: at most ``max_length`` inputs, each followed by its target.

    Args:
        sequences: int32 items of each user, oldest first.
        weights: float32 weight of each event as a target, or None.
        max_length: inputs of a window at most.
        whole_history: cut a longer sequence into consecutive windows (from its end, so that the
            most recent window is full); otherwise keep the last window only.

    Raises:
        InputError: no sequence has two events.
    """

    def __init__(
        self,
        sequences: JaggedBatch[NDArray[np.int32]],
        weights: NDArray[np.float32] | None,
        *,
        max_length: int,
        whole_history: bool,
    ) -> None:
        lengths = np.diff(sequences.offsets)
        targets = np.maximum(lengths - 1, 0)
        count = -(-targets // max_length) if whole_history else np.minimum(targets, 1)
        if not count.any():
            raise InputError(
                "training: no user has two events to learn from; keep more events or users"
            )
        user = np.repeat(np.arange(len(lengths)), count)
        offsets = np.zeros(len(count) + 1, dtype=np.int64)
        np.cumsum(count, out=offsets[1:])
        back = row_positions(offsets)  # 0 for the most recent window of a user
        # a window of n targets holds n + 1 events; neighbours share one event
        self._ends = sequences.offsets[1:][user] - back * max_length
        self._begins = np.maximum(self._ends - max_length - 1, sequences.offsets[:-1][user])
        self._values: NDArray[np.int32] = sequences.values
        self._weights = weights
        self.tokens = int((self._ends - self._begins - 1).sum())

    def __len__(self) -> int:
        return len(self._ends)

    def steps(self, batch_size: int) -> int:
        """Steps of an epoch."""
        return 1 if batch_size == 0 else -(-len(self) // batch_size)

    def epoch(self, batch_size: int, generator: np.random.Generator) -> Iterator[Pass]:
        """All windows in a random order, ``batch_size`` a step (0: all in one step)."""
        order = generator.permutation(len(self))
        size = batch_size or len(order)
        for begin in range(0, len(order), size):
            yield from self._passes(order[begin : begin + size])

    def _passes(self, rows: NDArray[np.int64]) -> Iterator[Pass]:
        inputs = self._ends[rows] - self._begins[rows] - 1
        # longest first: rows of equal length stand together, recurrent batches shrink in order
        rank = np.argsort(-inputs, kind="stable")
        rows, inputs = rows[rank], inputs[rank]
        parts = np.cumsum(inputs) // TOKENS_PER_PASS
        bounds = np.flatnonzero(np.diff(parts)) + 1
        pieces = np.split(rows, bounds)
        batches = [self._gather(piece) for piece in pieces]
        totals = [float(b[2].sum()) if b[2] is not None else float(len(b[1])) for b in batches]
        total = sum(totals) or 1.0
        for number, ((items, targets, weights), part) in enumerate(
            zip(batches, totals, strict=True)
        ):
            yield Pass(
                inputs=items.to_torch(),
                targets=torch.from_numpy(targets),
                weights=None if weights is None else torch.from_numpy(weights),
                share=part / total,
                last=number == len(batches) - 1,
            )

    def _gather(
        self, rows: NDArray[np.int64]
    ) -> tuple[JaggedBatch[Any], NDArray[np.int64], NDArray[np.float32] | None]:
        lengths = self._ends[rows] - self._begins[rows] - 1
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        at = row_positions(offsets) + np.repeat(self._begins[rows], lengths)
        items = JaggedBatch(self._values[at].astype(np.int64), offsets)
        weights = None if self._weights is None else self._weights[at + 1]
        return items, self._values[at + 1].astype(np.int64), weights
