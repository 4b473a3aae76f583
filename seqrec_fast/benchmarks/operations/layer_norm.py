# SPDX-License-Identifier: Apache-2.0
"""Layer norm of the sizes of SASRec."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from seqrec_fast.benchmarks.case import Case, Direction, Prepared
from seqrec_fast.benchmarks.shapes import LAYER_NORM, LayerNormShape
from seqrec_fast.benchmarks.tensors import prepare_function

__all__ = ["cases"]


def cases() -> list[Case]:
    """Every shape in both directions; nothing is asked of them but their errors."""
    directions: tuple[Direction, ...] = ("forward", "forward+backward")
    return [
        Case(
            "layer_norm",
            shape,
            direction,
            # mean, variance, scaling; the backward about twice that
            flops=(7.0 if direction == "forward" else 21.0) * shape.tokens * shape.dim,
            bytes=4.0 * (2 if direction == "forward" else 5) * shape.tokens * shape.dim,
            prepare=functools.partial(_prepare, shape, direction),
        )
        for direction in directions
        for shape in LAYER_NORM
    ]


def _prepare(
    shape: LayerNormShape, direction: Direction, threads: int, without: tuple[str, ...]
) -> Prepared:
    from seqrec_fast.ops import layer_norm

    def standard(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, (shape.dim,), weight, bias)

    generator = torch.Generator().manual_seed(0)
    inputs = {
        "x": torch.randn(shape.tokens, shape.dim, generator=generator),
        "weight": torch.rand(shape.dim, generator=generator) + 0.5,
        "bias": torch.randn(shape.dim, generator=generator),
    }
    return prepare_function(layer_norm, standard, inputs, direction, without)
