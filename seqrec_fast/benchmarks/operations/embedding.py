# SPDX-License-Identifier: Apache-2.0
"""Rows of an item table gathered, and their gradients scattered into a table of the same size."""

from __future__ import annotations

import functools
from importlib import import_module

import torch
from torch import Tensor

from seqrec_fast.benchmarks.case import Case, Direction, Prepared
from seqrec_fast.benchmarks.shapes import EMBEDDING, EmbeddingShape
from seqrec_fast.benchmarks.tensors import prepare_function

__all__ = ["cases"]


def cases() -> list[Case]:
    """Every shape in both directions; nothing is asked of them but their errors."""
    directions: tuple[Direction, ...] = ("forward", "forward+backward")
    return [
        Case(
            "embedding",
            shape,
            direction,
            flops=0.0 if direction == "forward" else 1.0 * shape.tokens * shape.dim,
            bytes=4.0
            * shape.dim
            * (2 * shape.tokens if direction == "forward" else 3 * shape.tokens + shape.items),
            prepare=functools.partial(_prepare, shape, direction),
        )
        for direction in directions
        for shape in EMBEDDING
    ]


def _prepare(
    shape: EmbeddingShape, direction: Direction, threads: int, without: tuple[str, ...]
) -> Prepared:
    ours = import_module("seqrec_fast.ops.embedding").embedding

    def standard(weight: Tensor, ids: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids, weight)

    generator = torch.Generator().manual_seed(0)
    # as in logs, some items are far more frequent than others
    drawn = torch.rand(shape.tokens, generator=generator) ** 3 * shape.items
    inputs = {
        "weight": torch.randn(shape.items, shape.dim, generator=generator),
        "ids": drawn.long().clamp(max=shape.items - 1),
    }
    return prepare_function(ours, standard, inputs, direction, without)
