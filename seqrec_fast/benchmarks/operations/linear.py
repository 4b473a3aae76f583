# SPDX-License-Identifier: Apache-2.0
"""Matrix products with weights prepared beforehand, one row among them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqrec_fast.benchmarks import rivals
from seqrec_fast.benchmarks.case import OURS, STANDARD, Bar, Case, Outputs, Prepared
from seqrec_fast.benchmarks.shapes import LINEAR, LinearShape
from seqrec_fast.native import PackedLinear

__all__ = ["cases"]

Floats = NDArray[np.float32]


def cases() -> list[Case]:
    """The products, with their shares of the peak; one row is held to the best rival."""
    bars = {
        LinearShape(512, 512, 512): Bar(share_of_peak=0.85),
        LinearShape(16, 256, 1024): Bar(share_of_peak=0.75),
        LinearShape(1, 256, 1024): Bar(ratio=1.0),
    }
    return [
        Case(
            "linear",
            shape,
            "forward",
            flops=2.0 * shape.rows * shape.inner * shape.columns,
            bytes=4.0
            * (shape.rows * shape.inner + shape.inner * shape.columns + shape.rows * shape.columns),
            prepare=functools.partial(_prepare, shape),
            bar=bars.get(shape, Bar()),
        )
        for shape in LINEAR
    ]


def _prepare(shape: LinearShape, threads: int, without: tuple[str, ...]) -> Prepared:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.rows, shape.inner, generator=generator)
    weight = torch.randn(shape.columns, shape.inner, generator=generator)
    array = x.numpy()

    def ours() -> Any:
        packed = PackedLinear(weight.numpy())
        return lambda: packed(array), _read

    def standard() -> Any:
        def run() -> Floats:
            with torch.inference_mode():
                return torch.nn.functional.linear(x, weight).numpy()

        return run, _read

    found = Prepared(lambda: _read((x.double() @ weight.double().t()).numpy()), without)
    found.offer(OURS, ours)
    found.offer(STANDARD, standard)
    size, feeds = (shape.rows, shape.columns), {"x": array}
    for name, call in (
        ("onnxruntime", rivals.onnxruntime_call),
        ("openvino", rivals.openvino_call),
    ):

        def build(call: Any = call) -> Any:
            graph = rivals.matmul_graph(weight.t().contiguous().numpy(), shape.rows)
            return call(graph, feeds, size, threads), _read

        found.offer(name, build)
    return found


def _read(y: NDArray[Any]) -> Outputs:
    return {"y": y}
