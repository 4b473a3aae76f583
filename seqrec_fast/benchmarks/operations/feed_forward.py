# SPDX-License-Identifier: Apache-2.0
"""The feed-forward layer of SASRec: two linear layers with GELU (its tanh form) between them."""

from __future__ import annotations

import functools
from importlib import import_module

import torch
from torch import Tensor

from seqrec_fast.benchmarks.case import Case, Direction, Prepared
from seqrec_fast.benchmarks.shapes import FEED_FORWARD, FeedForwardShape
from seqrec_fast.benchmarks.tensors import prepare_function

__all__ = ["cases"]


def cases() -> list[Case]:
    """Every shape in both directions; nothing is asked of them but their errors."""
    directions: tuple[Direction, ...] = ("forward", "forward+backward")
    return [
        Case(
            "feed_forward",
            shape,
            direction,
            flops=4.0
            * (1 if direction == "forward" else 3)
            * (shape.tokens * shape.dim * shape.inner),
            bytes=4.0
            * (1 if direction == "forward" else 2)
            * (2 * shape.tokens * shape.dim + 2 * shape.dim * shape.inner),
            prepare=functools.partial(_prepare, shape, direction),
        )
        for direction in directions
        for shape in FEED_FORWARD
    ]


def _prepare(
    shape: FeedForwardShape, direction: Direction, threads: int, without: tuple[str, ...]
) -> Prepared:
    ours = import_module("seqrec_fast.ops.feed_forward").feed_forward

    def standard(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
        hidden = torch.nn.functional.linear(x, up, up_bias)
        hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
        return torch.nn.functional.linear(hidden, down, down_bias)

    generator = torch.Generator().manual_seed(0)
    dim, inner = shape.dim, shape.inner
    inputs = {
        "x": torch.randn(shape.tokens, dim, generator=generator),
        "up_weight": torch.randn(inner, dim, generator=generator) / dim**0.5,
        "up_bias": torch.randn(inner, generator=generator),
        "down_weight": torch.randn(dim, inner, generator=generator) / inner**0.5,
        "down_bias": torch.randn(dim, generator=generator),
    }
    return prepare_function(ours, standard, inputs, direction, without)
