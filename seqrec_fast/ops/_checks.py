# SPDX-License-Identifier: Apache-2.0
"""Refusals that several operations share, each with one clear line."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError

__all__ = [
    "check_device",
    "check_heads",
    "check_jagged",
    "check_like",
    "check_offsets",
    "check_values",
    "check_without_gradient",
]


def check_offsets(offsets: Tensor) -> None:
    """Refuses what is not int64 ``[rows + 1]``, by type and shape alone."""
    if offsets.ndim != 1 or offsets.shape[0] < 1 or offsets.dtype != torch.int64:
        raise InputError(
            f"offsets: expected int64 [rows + 1], found {offsets.dtype} {tuple(offsets.shape)}"
        )


def check_jagged(name: str, x: Tensor, offsets: Tensor) -> None:
    """Refuses offsets that do not fit ``x`` (``[tokens, ...]``).

    Their values are read on the CPU alone: on a GPU the host would have to wait for them.
    """
    check_offsets(offsets)
    if offsets.is_cuda:
        return
    if offsets.is_meta:
        check_values(offsets=offsets)
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != x.shape[0]:
        raise InputError(
            f"offsets: must run from 0 to the {x.shape[0]} tokens of {name}, "
            f"found {first} to {last}"
        )


def check_like(like: str, reference: Tensor, **tensors: Tensor | None) -> None:
    """Refuses tensors of another dtype or device than the argument called ``like``."""
    for name, tensor in tensors.items():
        if tensor is not None and (
            tensor.dtype != reference.dtype or tensor.device != reference.device
        ):
            raise InputError(
                f"{name}: expected {reference.dtype} on {reference.device} like {like}, found "
                f"{tensor.dtype} on {tensor.device}; convert it"
            )


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuses queries, keys and values that are not of one shape ``[tokens, heads, width]``."""
    if q.ndim != 3 or k.shape != q.shape or v.shape != q.shape:
        raise InputError(
            "q, k, v: expected three equal shapes [tokens, heads, width], found "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )


def check_device(like: str, reference: Tensor, **tensors: Tensor | None) -> None:
    """Refuses tensors on another device than the argument called ``like``."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != reference.device:
            raise InputError(
                f"{name}: expected on {reference.device} like {like}, found on {tensor.device}; "
                "move it there"
            )


def check_values(**tensors: Tensor | None) -> None:
    """Refuses tensors whose values are needed and that have none."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.is_meta:
            raise InputError(
                f"{name}: a tensor on meta has no values, and the result depends on them; "
                "give it on a device of data"
            )


def check_without_gradient(**tensors: Tensor | None) -> None:
    """Refuses tensors that want a gradient where none is computed."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise InputError(f"{name}: no gradient is computed for it; detach it")
