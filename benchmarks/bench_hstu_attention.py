# SPDX-License-Identifier: Apache-2.0
"""HSTU attention, forward and backward, beside its plain-torch form on a padded batch.

    python -m benchmarks.bench_hstu_attention

The rival is written as one would write it: queries, keys and values padded and laid out by head,
two batched products, a causal mask, eager. Both are timed in turn; the results must agree first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.machine import describe_machine
from seqrec_fast import native
from seqrec_fast.ops import hstu_attention


class Shape(NamedTuple):
    """``rows`` rows of ``length`` tokens at most, ``mean`` in the mean, ``heads`` x ``width``."""

    rows: int
    length: int
    heads: int
    width: int
    mean: int

    def __str__(self) -> str:
        """For instance ``64 x 200 (mean 130), 2 x 32``."""
        ragged = f" (mean {self.mean})" if self.mean < self.length else ""
        return f"{self.rows} x {self.length}{ragged}, {self.heads} x {self.width}"


SHAPES = (
    Shape(64, 200, 2, 32, 200),
    Shape(64, 200, 2, 32, 130),
    Shape(16, 1024, 4, 32, 1024),
    Shape(16, 1024, 4, 32, 600),
    Shape(256, 50, 2, 32, 9),
)


def lengths_of(shape: Shape) -> list[int]:
    """Lengths with that mean, the longest one among them; all equal where it is the mean."""
    if shape.mean == shape.length:
        return [shape.length] * shape.rows
    random = torch.Generator().manual_seed(0)
    drawn = torch.rand(shape.rows, generator=random)
    # u^p has the mean 1 / (p + 1)
    power = shape.length / shape.mean - 1
    lengths = (shape.length * drawn**power).ceil().clamp(1, shape.length).long()
    lengths[0] = shape.length
    return list(lengths.tolist())


def contenders(shape: Shape, *, bias: bool) -> dict[str, Callable[[], list[Tensor]]]:
    """Calls that return the output (jagged) and then the gradients of q, k, v and the bias."""
    lengths = lengths_of(shape)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = int(offsets[-1])
    parts = [torch.randn(tokens, shape.heads, shape.width) for _ in range(4)]
    table = torch.randn(shape.heads, shape.length, requires_grad=True) if bias else None
    tables = [] if table is None else [table]
    padded = [
        torch.nn.utils.rnn.pad_sequence(list(x.split(lengths)), batch_first=True)
        .transpose(1, 2)
        .contiguous()
        for x in parts
    ]
    jagged_leaves = [x.clone().requires_grad_() for x in parts[:3]]
    padded_leaves = [x.requires_grad_() for x in padded[:3]]
    place = torch.arange(shape.length)
    distance = place[:, None] - place
    mask = distance >= 0
    inside = place < torch.tensor(lengths)[:, None]

    def mine() -> list[Tensor]:
        out = hstu_attention(*jagged_leaves, offsets, normaliser=shape.length, bias=table)
        return [out.detach(), *torch.autograd.grad(out, [*jagged_leaves, *tables], parts[3])]

    def torch_padded() -> list[Tensor]:
        q, k, v = padded_leaves
        scores = q @ k.transpose(2, 3) * shape.width**-0.5
        if table is not None:
            scores = scores + table[:, distance.clamp(min=0)]
        weights = torch.nn.functional.silu(scores) * (mask / shape.length)
        out = weights @ v
        gradients = torch.autograd.grad(out, [*padded_leaves, *tables], padded[3])
        return [out.detach(), *gradients]

    def unpadded(found: list[Tensor]) -> list[Tensor]:
        return [x.transpose(1, 2)[inside] if x.ndim == 4 else x for x in found]

    for a, b in zip(mine(), unpadded(torch_padded()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    return {"seqrec_fast": mine, "torch, padded": torch_padded}


def measure(shape: Shape, repeats: int, *, bias: bool) -> dict[str, Any]:
    """Medians in milliseconds, forward and backward together."""
    entries = contenders(shape, bias=bias)
    times: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(repeats):
        for name, run in entries.items():
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    print(f"{describe_machine()['cpu']}, load {os.getloadavg()[0]:.2f}, {native.build_info()}")
    for threads in given.threads:
        torch.set_num_threads(threads)
        native.set_num_threads(threads)
        peak = native.measure_peak(threads).gflops
        for shape in SHAPES:
            pairs = sum(n * (n + 1) / 2 for n in lengths_of(shape)) * shape.heads
            operations = pairs * shape.width * 2 * 7  # two products forward, five backward
            for bias in (False, True):
                found = measure(shape, given.repeats, bias=bias)
                mine, rival = found["seqrec_fast"], found["torch, padded"]
                rate = operations / mine / 1e6
                print(
                    f"{threads} threads  {shape}{', bias' if bias else ''}: {mine:.2f} ms, "
                    f"torch {rival:.1f} ms, {rival / mine:.1f}x, {rate:.0f} GFLOP/s, "
                    f"{100 * rate / peak:.0f} % of the peak",
                    flush=True,
                )


if __name__ == "__main__":
    main()
