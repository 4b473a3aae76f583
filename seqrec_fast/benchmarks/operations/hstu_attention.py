# SPDX-License-Identifier: Apache-2.0
"""Pointwise SiLU attention (HSTU), forward and with gradients, beside its plain form in torch."""

from __future__ import annotations

import functools
from importlib import import_module

import torch
from torch import Tensor

from seqrec_fast.benchmarks import rivals
from seqrec_fast.benchmarks.case import OURS, STANDARD, Bar, Case, Direction, Prepared
from seqrec_fast.benchmarks.jagged_attention import JaggedInputs, attention_case
from seqrec_fast.benchmarks.shapes import HSTU_ATTENTION, AttentionShape

__all__ = ["cases"]


def cases() -> list[Case]:
    """Every shape in both directions; with gradients four times the plain form is asked."""
    directions: tuple[Direction, ...] = ("forward", "forward+backward")
    found = []
    for direction in directions:
        for shape in HSTU_ATTENTION:
            bar = Bar() if direction == "forward" else Bar(ratio=4.0, against=STANDARD)
            prepare = functools.partial(_prepare, shape, direction)
            found.append(attention_case("hstu_attention", shape, direction, prepare, bar))
    return found


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``silu(q k^T / sqrt(width)) v / time`` on ``[rows, heads, time, width]``, causal."""
    time = q.shape[2]
    hidden = torch.ones(time, time, dtype=torch.bool).triu(1)
    scores = torch.nn.functional.silu(q @ k.transpose(2, 3) * q.shape[3] ** -0.5)
    return scores.masked_fill(hidden, 0.0) @ v / time


def _prepare(
    shape: AttentionShape, direction: Direction, threads: int, without: tuple[str, ...]
) -> Prepared:
    ours = import_module("seqrec_fast.ops.hstu_attention").hstu_attention
    inputs = JaggedInputs(shape, backward=direction == "forward+backward")
    found = Prepared(lambda: inputs.judge(_plain), without)
    offsets, time = inputs.ragged.offsets, float(shape.time)
    found.offer(
        OURS, lambda: inputs.jagged(lambda q, k, v: ours(q, k, v, offsets, normaliser=time))
    )
    padded = inputs.ragged.padding > 1
    found.offer(STANDARD, lambda: inputs.padded(_plain), padded=padded)
    found.offer("torch.compile", lambda: inputs.padded(rivals.compiled(_plain)), padded=padded)
    return found
