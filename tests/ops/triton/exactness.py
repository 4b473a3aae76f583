# SPDX-License-Identifier: Apache-2.0
"""The rule for kernels of GPUs: as near to float64 as torch is in the same type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.ops.judge import outputs_and_gradients, worst

EPSILON = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def judge(
    mine: Callable[..., Any],
    reference: Callable[..., Any],
    tensors: Sequence[Tensor],
    dtype: torch.dtype,
) -> None:
    """Twice torch's error, five times for gradients in float32, and a few roundings."""
    given = [t.to(dtype) for t in tensors]
    exact = outputs_and_gradients(reference, given, torch.float64)
    theirs = outputs_and_gradients(reference, given, dtype)
    found = outputs_and_gradients(mine, given, dtype)
    for kind, m, t, e in zip(("output", "gradient"), found, theirs, exact, strict=True):
        factor = 5.0 if kind == "gradient" and dtype == torch.float32 else 2.0
        for number, (a, b, c) in enumerate(zip(m, t, e, strict=True)):
            assert a.dtype == b.dtype
            scale = float(c.detach().abs().max()) if c.numel() else 0.0
            error, limit = worst(a, c), factor * worst(b, c) + 4 * EPSILON[dtype] * scale
            assert error <= limit, f"{kind} {number}: error {error:.3g}, allowed {limit:.3g}"
