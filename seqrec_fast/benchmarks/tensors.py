# SPDX-License-Identifier: Apache-2.0
"""Contenders that are one function of named dense tensors, with or without gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from seqrec_fast.benchmarks import rivals
from seqrec_fast.benchmarks.case import OURS, STANDARD, Direction, Outputs, Prepared

__all__ = ["prepare_function"]


def prepare_function(
    ours: Callable[..., Tensor],
    standard: Callable[..., Tensor],
    inputs: Mapping[str, Tensor],
    direction: Direction,
    without: tuple[str, ...],
) -> Prepared:
    """Ours beside a function of torch, eager and compiled; the function in float64 is the judge.

    Args:
        ours: takes the values of ``inputs`` in their order, returns one tensor.
        standard: the same in plain torch.
        inputs: floating ones get gradients.
        direction: whether gradients are computed.
        without: rivals that are not wanted.
    """
    backward = direction == "forward+backward"
    with torch.no_grad():
        upstream = torch.randn(
            standard(*inputs.values()).shape, generator=torch.Generator().manual_seed(1)
        )

    def job(function: Callable[..., Tensor], dtype: torch.dtype) -> Any:
        given = {
            name: t.to(dtype, copy=True) if t.is_floating_point() else t
            for name, t in inputs.items()
        }
        if not backward:

            def run() -> Tensor:
                with torch.inference_mode():
                    return function(*given.values())

            return run, lambda y: {"y": y.numpy()}
        leaves = {n: t.requires_grad_() for n, t in given.items() if t.is_floating_point()}

        def read(result: tuple[Tensor, tuple[Tensor, ...]]) -> Outputs:
            named = zip(leaves, result[1], strict=True)
            return {"y": result[0].detach().numpy()} | {f"d_{n}": g.numpy() for n, g in named}

        call = rivals.gradients(
            lambda: function(*given.values()), list(leaves.values()), upstream.to(dtype)
        )
        return call, read

    def judge() -> Outputs:
        run, read = job(standard, torch.float64)
        found: Outputs = read(run())
        return found

    found = Prepared(judge, without)
    found.offer(OURS, lambda: job(ours, torch.float32))
    found.offer(STANDARD, lambda: job(standard, torch.float32))
    found.offer("torch.compile", lambda: job(rivals.compiled(standard), torch.float32))
    return found
