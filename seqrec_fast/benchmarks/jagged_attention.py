# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the kinds of attention share: inputs in both layouts, and the counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec_fast.benchmarks import rivals
from seqrec_fast.benchmarks.case import Bar, Case, Direction, Outputs, Prepared
from seqrec_fast.benchmarks.ragged import Ragged
from seqrec_fast.benchmarks.shapes import AttentionShape

__all__ = ["JaggedInputs", "attention_case"]

_Function = Callable[[Tensor, Tensor, Tensor], Tensor]
_Job = tuple[Callable[[], Any], Callable[[Any], Outputs]]


def attention_case(
    operation: str,
    shape: AttentionShape,
    direction: Direction,
    prepare: Callable[[int, tuple[str, ...]], Prepared],
    bar: Bar,
) -> Case:
    """A case, with operations counted over the pairs that the causal mask leaves.

    Forward two products; backward five, the scores once more among them. A ragged case is held to
    0.8 x the bar of equal lengths x its padding; short rows are shown without a bar.
    """
    ragged = Ragged(shape.lengths, shape.rows, shape.time)
    pairs = float((ragged.lengths * (ragged.lengths + 1) // 2).sum())
    backward = direction == "forward+backward"
    tokens = ragged.tokens * shape.heads * shape.width
    if shape.lengths == "beauty":
        bar = Bar()
    elif shape.lengths != "equal" and bar.ratio is not None:
        bar = Bar(ratio=0.8 * bar.ratio * ragged.padding, against=bar.against)
    return Case(
        operation,
        shape,
        direction,
        flops=2.0 * (7 if backward else 2) * pairs * shape.heads * shape.width,
        bytes=4.0 * (12 if backward else 4) * tokens,
        prepare=prepare,
        bar=bar,
        padding=ragged.padding,
    )


class JaggedInputs:
    """Queries, keys, values and the gradient of the result, drawn once, in either layout."""

    def __init__(self, shape: AttentionShape, *, backward: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ragged = Ragged(shape.lengths, shape.rows, shape.time)
        self.backward = backward
        size = (self.ragged.tokens, shape.heads, shape.width)
        drawn = [torch.randn(size, generator=generator) for _ in range(4)]
        self.values, self.upstream = drawn[:3], drawn[3]

    def dense(self, values: Tensor) -> Tensor:
        """``[tokens, heads, width]`` -> ``[rows, heads, time, width]``."""
        return self.ragged.to_padded(values).transpose(1, 2).contiguous()

    def dense_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The padded inputs as arrays named q, k, v."""
        return {n: self.dense(t).numpy() for n, t in zip("qkv", self.values, strict=True)}

    def sparse(self, dense: Tensor) -> Tensor:
        """The inverse of :meth:`dense`."""
        return self.ragged.from_padded(dense.transpose(1, 2))

    def read_array(self, y: NDArray[np.float32]) -> Outputs:
        """Outputs of a rival whose result is a padded array."""
        return {"y": self.sparse(torch.from_numpy(y)).numpy()}

    def jagged(self, function: _Function) -> _Job:
        """Run and read of a function on jagged tensors."""
        return self._job(function, [t.clone() for t in self.values], self.upstream, lambda t: t)

    def padded(self, function: _Function) -> _Job:
        """Run and read of a function on padded tensors."""
        leaves = [self.dense(t) for t in self.values]
        return self._job(function, leaves, self.dense(self.upstream), self.sparse)

    def judge(self, function: _Function) -> Outputs:
        """Outputs of a function on padded tensors in float64, a few rows at a time."""
        parts: list[Outputs] = []
        time = self.ragged.time
        step = max(1, 2**23 // (time * time * self.upstream.shape[1]))
        dense = [self.dense(t.double()) for t in (*self.values, self.upstream)]
        for begin in range(0, len(dense[0]), step):
            part = [t[begin : begin + step] for t in dense]
            run, read = self._job(function, part[:3], part[3], lambda t: t)
            parts.append(read(run()))
        return {
            name: self.sparse(
                torch.from_numpy(np.concatenate([part[name] for part in parts]))
            ).numpy()
            for name in parts[0]
        }

    def _job(
        self,
        function: _Function,
        leaves: list[Tensor],
        upstream: Tensor,
        to_values: Callable[[Tensor], Tensor],
    ) -> _Job:
        q, k, v = leaves
        if not self.backward:

            def run() -> Tensor:
                with torch.inference_mode():
                    return function(q, k, v)

            return run, lambda y: {"y": to_values(y).numpy()}
        for leaf in leaves:
            leaf.requires_grad_()

        def read(result: tuple[Tensor, tuple[Tensor, ...]]) -> Outputs:
            y, grads = result
            outputs = {"y": to_values(y.detach()).numpy()}
            named = zip("qkv", grads, strict=True)
            return outputs | {f"d_{n}": to_values(g).numpy() for n, g in named}

        return rivals.gradients(lambda: function(q, k, v), leaves, upstream), read
