# SPDX-License-Identifier: Apache-2.0
"""Orders of rows and tokens that let plain torch work on jagged batches without padding."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["EqualRun", "TimeMajor", "equal_runs", "permute_tokens", "time_major", "token_positions"]


@dataclass(frozen=True, slots=True)
class EqualRun:
    """Consecutive rows of one length: ``values[begin:end]`` reshapes to ``[rows, length, ...]``."""

    begin: int
    end: int
    rows: int
    length: int


def equal_runs(offsets: Tensor) -> list[EqualRun]:
    """Cuts a batch into runs of consecutive rows of equal length; empty rows belong to none.

    A batch whose rows are sorted by length has as many runs as it has different lengths, so that a
    dense operation a run costs no padding and few calls.

    Args:
        offsets: int64 ``[rows + 1]``.
    """
    ends: NDArray[np.int64] = offsets.cpu().numpy()
    lengths = np.diff(ends)
    if len(lengths) == 0:
        return []
    cuts = np.flatnonzero(np.diff(lengths)) + 1
    bounds = [0, *cuts.tolist(), len(lengths)]
    return [
        EqualRun(int(ends[a]), int(ends[b]), b - a, int(lengths[a]))
        for a, b in pairwise(bounds)
        if lengths[a] > 0
    ]


@dataclass(frozen=True, slots=True)
class TimeMajor:
    """The order in which a recurrent layer reads a jagged batch: all first events, all second, ….

    Rows are taken longest first, so that the rows still running at step ``t`` are the first
    ``sizes[t]`` ones and a batch shrinks as its sequences end.

    Attributes:
        order: int64 ``[rows]``, the rows, longest first (stable).
        sizes: number of rows still running at each time step; sums to the number of tokens.
        to_time: int64 ``[tokens]``: token at each place of the time-major order.
        to_row: int64 ``[tokens]``: the inverse of ``to_time``.
        last: int64 ``[rows]``: place, in time-major order, of the last token of ``order[i]``; -1
            for an empty row.
    """

    order: Tensor
    sizes: list[int]
    to_time: Tensor
    to_row: Tensor
    last: Tensor


def time_major(offsets: Tensor) -> TimeMajor:
    """Plans the time-major reading of a batch (see :class:`TimeMajor`).

    Args:
        offsets: int64 ``[rows + 1]``.
    """
    ends: NDArray[np.int64] = offsets.cpu().numpy()
    lengths = np.diff(ends)
    order = np.argsort(-lengths, kind="stable")
    sorted_lengths = lengths[order]
    steps = int(sorted_lengths[0]) if len(order) else 0
    # rows still running at step t = rows with length > t
    sizes = np.searchsorted(-sorted_lengths, -np.arange(steps), side="left")
    starts = np.cumsum(sizes) - sizes
    place = np.arange(int(sizes.sum())) - np.repeat(starts, sizes)
    to_time = ends[:-1][order][place] + np.repeat(np.arange(steps), sizes)
    to_row = np.empty_like(to_time)
    to_row[to_time] = np.arange(len(to_time))
    last = np.full(len(order), -1, dtype=np.int64)
    running = sorted_lengths > 0
    last[running] = starts[sorted_lengths[running] - 1] + np.flatnonzero(running)
    device = offsets.device
    return TimeMajor(
        order=torch.from_numpy(order).to(device),
        sizes=sizes.tolist(),
        to_time=torch.from_numpy(to_time).to(device),
        to_row=torch.from_numpy(to_row).to(device),
        last=torch.from_numpy(last).to(device),
    )


class _Permute(torch.autograd.Function):
    """``x[index]`` for a permutation: its gradient is a gather too, not a scatter-add."""

    @staticmethod
    def forward(ctx: object, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse  # type: ignore[attr-defined]
        ctx.index = index  # type: ignore[attr-defined]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None]:
        inverse: Tensor = ctx.inverse  # type: ignore[attr-defined]
        index: Tensor = ctx.index  # type: ignore[attr-defined]
        return permute_tokens(gradient, inverse, index), None, None


def permute_tokens(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """``x[index]`` for a permutation ``index`` of the rows of ``x``, undone by ``inverse``."""
    result: Tensor = _Permute.apply(x, index, inverse)  # type: ignore[no-untyped-call]
    return result


def token_positions(offsets: Tensor, tokens: int) -> Tensor:
    """int64 ``[tokens]``: position of each token in its row, counted from the start of the row.

    Args:
        offsets: int64 ``[rows + 1]``.
        tokens: its last entry, which a GPU is not asked for.
    """
    place = torch.arange(tokens, device=offsets.device)
    row = torch.bucketize(place, offsets[1:], right=True)
    return place - offsets[row]
