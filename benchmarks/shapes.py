# SPDX-License-Identifier: Apache-2.0
"""The sizes that are measured, one registry for all benchmarks."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["TOPK", "TopkShape"]


class TopkShape(NamedTuple):
    """A search: ``queries [queries, dim]`` over ``items [items, dim]`` for the ``k`` best.

    ``seen`` items of each query, drawn at random, must not be found.
    """

    queries: int
    items: int
    dim: int = 64
    k: int = 100
    seen: int = 50

    def __str__(self) -> str:
        """For instance ``16 x 100000 x 64, top 100``."""
        return f"{self.queries} x {self.items} x {self.dim}, top {self.k}"


TOPK = tuple(
    TopkShape(queries, items, dim)
    for items in (10_000, 100_000, 1_000_000)
    for dim in (64, 128)
    for queries in (1, 16, 256)
)
