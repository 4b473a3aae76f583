# SPDX-License-Identifier: Apache-2.0
"""The rule that native kernels are held to: as near to float64 as torch's own float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from seqrec_fast import native

ISAS: list[str] = native.build_info()["isa_supported"]


def worst(found: Tensor, exact: Tensor) -> float:
    """The largest absolute error; infinite where the shapes differ or a number is missing."""
    if found.shape != exact.shape:
        return float("inf")
    if not exact.numel():
        return 0.0
    error = float((found.detach().double() - exact.detach()).abs().max())
    return error if error == error else float("inf")


def allowed(theirs: float, exact: Tensor, factor: float) -> float:
    """A multiple of torch's own error, and a few roundings where torch has none."""
    scale = float(exact.detach().abs().max()) if exact.numel() else 0.0
    return factor * theirs + 4 * 2.0**-24 * scale


def root_mean_squares(rows: Sequence[tuple[float, ...]]) -> list[float]:
    """Of each column."""
    return [math.sqrt(sum(x * x for x in c) / len(rows)) for c in zip(*rows, strict=True)]


def outputs_and_gradients(
    function: Callable[..., Any], tensors: Sequence[Tensor | None], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of ``function`` and the gradients of all floating inputs, in ``dtype``."""
    leaves = [
        t.detach().to(dtype).requires_grad_() if t is not None and t.is_floating_point() else t
        for t in tensors
    ]
    found = function(*leaves)
    outputs = list(found) if isinstance(found, tuple) else [found]
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator).to(dtype) for o in outputs]
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    return outputs, list(torch.autograd.grad(outputs, wanted, upstream))


def judge(
    mine: Callable[..., Any], reference: Callable[..., Any], tensors: Sequence[Tensor | None]
) -> None:
    """Holds ``mine`` to the rule: twice torch's error for outputs, five times for gradients."""
    judge_over_inputs(mine, reference, [tensors])


def judge_over_inputs(
    mine: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Iterable[Sequence[Tensor | None]],
) -> None:
    """The rule for the root mean square, over several inputs, of the largest error of each.

    Where a result is a sum of few numbers, or all but cancels, which of two right computations
    comes nearer on one input is chance: one of them may have no error at all.
    """
    errors: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for tensors in inputs:
        exact = outputs_and_gradients(reference, tensors, torch.float64)
        theirs = outputs_and_gradients(reference, tensors, torch.float32)
        found = outputs_and_gradients(mine, tensors, torch.float32)
        for kind, m, t, e in zip(("output", "gradient"), found, theirs, exact, strict=True):
            for number, (a, b, c) in enumerate(zip(m, t, e, strict=True)):
                errors.setdefault((kind, number), []).append(
                    (worst(a, c), worst(b, c), allowed(0.0, c, 0.0))
                )
    for (kind, number), each in errors.items():
        error, their, rounding = root_mean_squares(each)
        limit = {"output": 2.0, "gradient": 5.0}[kind] * their + rounding
        assert error <= limit, f"{kind} {number}: error {error:.3g}, allowed {limit:.3g}"
