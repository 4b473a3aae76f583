# SPDX-License-Identifier: Apache-2.0
"""What several Triton kernels need alike: sums of partial results, processors of the device."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_fast.ops.triton._launch import rounded

__all__ = ["ADD_UP", "ODD", "add_up", "add_up_kernel", "processors"]

#: padded widths for which kernels are also compiled as for widths that are no multiple of 16
ODD = (64, 128)

# few numbers of many parts are the rule: parts are read side by side, not one after the other
ADD_UP = {"PARTS": 16, "BLOCK": 64}


@triton.jit(do_not_specialize=["parts"])
def add_up_kernel(
    partial, first, second, parts, split, count, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.zeros([PARTS, BLOCK], tl.float32)
    for begin in range(0, parts, PARTS):
        part = begin + tl.arange(0, PARTS)
        total += tl.load(
            partial + part[:, None] * tl.cast(count, tl.int64) + at[None, :],
            mask=(part < parts)[:, None] & inside[None, :],
            other=0.0,
        )
    result = rounded(tl.sum(total, axis=0), first.dtype.element_ty)
    tl.store(first + at, result, mask=at < split)
    tl.store(second + (at - split), result, mask=inside & (at >= split))


def add_up(partial: Tensor, first: Tensor, second: Tensor) -> None:
    """Adds up ``partial [parts, first.numel() + second.numel()]``, always in one order."""
    count = partial.shape[1]
    if count:
        add_up_kernel[(triton.cdiv(count, ADD_UP["BLOCK"]),)](
            partial, first, second, partial.shape[0], first.numel(), count, **ADD_UP
        )


@cache
def _processors(index: int) -> int:
    count: int = torch.cuda.get_device_properties(index).multi_processor_count
    return count


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the device; 2 in the interpreter."""
    return _processors(tensor.device.index or 0) if tensor.is_cuda else 2
