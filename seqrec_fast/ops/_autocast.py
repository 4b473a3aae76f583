# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: what ``torch.autocast`` makes of the arguments of each operation.

As torch does it: products (linear layers, attention, recurrent layers, the loss over the catalogue)
take the narrow type, norms take float32, and float64 is left alone. The arguments are converted by
the public function, before the backend is chosen by their type.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["compute_dtype", "narrow", "wide"]


def _active(like: Tensor) -> bool:
    return torch.is_autocast_enabled("cuda" if like.is_cuda else "cpu")


def compute_dtype(like: Tensor) -> torch.dtype:
    """The type in which an operation of products computes a tensor such as this."""
    if not _active(like) or like.dtype == torch.float64 or not like.is_floating_point():
        return like.dtype
    return torch.get_autocast_dtype("cuda" if like.is_cuda else "cpu")


def narrow(first: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the type of :func:`compute_dtype`; as they are outside of autocast."""
    if not _active(first):
        return (first, *others)
    return tuple(None if t is None else t.to(compute_dtype(t)) for t in (first, *others))


def wide(first: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """The tensors in float32 where they are narrower and autocast is active."""
    if not _active(first):
        return (first, *others)
    return tuple(
        t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t
        for t in (first, *others)
    )
