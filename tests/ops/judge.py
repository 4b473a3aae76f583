# SPDX-License-Identifier: Apache-2.0
"""The rule that native kernels are held to: as near to float64 as torch's own float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    exact = outputs_and_gradients(reference, tensors, torch.float64)
    theirs = outputs_and_gradients(reference, tensors, torch.float32)
    found = outputs_and_gradients(mine, tensors, torch.float32)
    for kind, factor, m, t, e in zip(
        ("output", "gradient"), (2.0, 5.0), found, theirs, exact, strict=True
    ):
        for number, (a, b, c) in enumerate(zip(m, t, e, strict=True)):
            error, limit = worst(a, c), allowed(worst(b, c), c, factor)
            assert error <= limit, f"{kind} {number}: error {error:.3g}, allowed {limit:.3g}"
