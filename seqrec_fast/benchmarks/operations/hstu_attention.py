# SPDX-License-Identifier: Apache-2.0
"""Pointwise SiLU attention of HSTU, forward and with gradients, on equal and on ragged lengths.

The rival is the plain-torch form as it is usually written: a padded batch laid out by head, two
batched products, ``silu(scores) / length * mask``, eager.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from seqrec_fast.benchmarks.case import OURS, STANDARD, Bar, Case, Direction, Prepared
from seqrec_fast.benchmarks.jagged_attention import JaggedInputs, attention_case
from seqrec_fast.benchmarks.shapes import HSTU_ATTENTION, AttentionShape
from seqrec_fast.ops import hstu_attention

__all__ = ["cases"]


def cases() -> list[Case]:
    """Every shape in both directions; gradients are held to a bar."""
    directions: tuple[Direction, ...] = ("forward", "forward+backward")
    found = []
    for direction in directions:
        for shape in HSTU_ATTENTION:
            backward = direction == "forward+backward"
            bar = Bar(ratio=4.0, against=STANDARD) if backward else Bar()
            prepare = functools.partial(_prepare, shape, direction)
            found.append(attention_case("hstu_attention", shape, direction, prepare, bar))
    return found


def _plain(shape: AttentionShape, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The formula on ``[rows, heads, time, width]``."""
    mask = torch.ones(shape.time, shape.time, dtype=dtype).tril()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(2, 3) * shape.width**-0.5
        return (torch.nn.functional.silu(scores) / shape.time * mask) @ v

    return run


def _prepare(
    shape: AttentionShape, direction: Direction, threads: int, without: tuple[str, ...]
) -> Prepared:
    inputs = JaggedInputs(shape, backward=direction == "forward+backward")
    exact = _plain(shape, torch.float64)
    found = Prepared(lambda: inputs.judge(exact), without)
    offsets = inputs.ragged.offsets
    found.offer(
        OURS,
        lambda: inputs.jagged(
            lambda q, k, v: hstu_attention(q, k, v, offsets, normaliser=float(shape.time))
        ),
    )
    padded = inputs.ragged.padding > 1
    plain = _plain(shape, torch.float32)
    found.offer(STANDARD, lambda: inputs.padded(plain), padded=padded)
    found.offer(
        "torch.compile",
        lambda: inputs.padded(torch.compile(plain, dynamic=False)),
        padded=padded,
    )
    return found
