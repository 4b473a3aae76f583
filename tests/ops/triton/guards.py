# SPDX-License-Identifier: Apache-2.0
"""Memory in which a kernel that writes or reads past the end of a tensor is noticed.

The interpreter of Triton lets stores outside of a tensor pass. So every tensor that an operation
makes is a part of a larger one: NaN inside (what is not written shows), a known number on both
sides (what is written outside shows). Inputs can lie among NaN too (what is read outside shows).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

#: why tests are skipped
MISSING = "Triton is not installed (pip install triton)"

MARGIN = 4096  # elements; more than the largest tile
CANARY = {True: -12345.0, False: -77}


class Guards:
    """Takes the place of ``torch.empty``, ``torch.empty_like`` and ``Tensor.new_empty``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[Tensor, Tensor, Tensor]] = []
        self._empty: Callable[..., Tensor] = torch.empty
        monkeypatch.setattr(torch, "empty", self.empty)
        monkeypatch.setattr(torch, "empty_like", lambda t, **k: self._like(t, t.shape, **k))
        monkeypatch.setattr(
            Tensor, "new_empty", lambda t, *shape, **k: self._like(t, _shape(shape), **k)
        )

    def empty(self, *shape: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        """A tensor of NaN (integers: the largest) between canaries."""
        sizes = _shape(shape)
        dtype = dtype or torch.get_default_dtype()
        if torch.device(options.get("device") or "cpu").type != "cpu" or not sizes.numel():
            return self._empty(sizes, dtype=dtype, **options)
        if dtype.is_complex or dtype == torch.bool:
            return self._empty(sizes, dtype=dtype, **options)
        whole = self._empty(sizes.numel() + 2 * MARGIN, dtype=dtype)
        whole.fill_(CANARY[dtype.is_floating_point])
        before, inside, after = whole.split([MARGIN, sizes.numel(), MARGIN])
        inside.fill_(torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max)
        self.made.append((before.clone(), before, after))
        return torch.as_strided(whole, sizes, _dense(sizes), MARGIN)

    def _like(self, like: Tensor, shape: torch.Size, **options: Any) -> Tensor:
        return self.empty(shape, **{"dtype": like.dtype, "device": like.device, **options})

    def among_nan(self, tensor: Tensor) -> Tensor:
        """A dense copy with NaN (integers: the largest) on both sides of it."""
        dtype = tensor.dtype
        whole = self._empty(tensor.numel() + 2 * MARGIN, dtype=dtype)
        whole.fill_(torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max)
        copy = torch.as_strided(whole, tensor.shape, _dense(tensor.shape), MARGIN)
        copy.copy_(tensor.detach())
        return copy

    def check(self) -> None:
        """Every canary is as it was."""
        for number, (wanted, before, after) in enumerate(self.made):
            assert torch.equal(before, wanted), f"written before tensor {number}"
            assert torch.equal(after, wanted), f"written after tensor {number}"


def _shape(shape: tuple[Any, ...]) -> torch.Size:
    return torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)


def _dense(shape: torch.Size) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
