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

__all__ = ["ADD_UP", "add_up", "add_up_kernel", "processors"]

ADD_UP = {"BLOCK": 256}


@triton.jit(do_not_specialize=["parts"])
def add_up_kernel(partial, first, second, parts, split, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(parts):
        total += tl.load(partial + part * tl.cast(count, tl.int64) + at, mask=inside, other=0.0)
    result = rounded(total, first.dtype.element_ty)
    tl.store(first + at, result, mask=at < split)
    tl.store(second + (at - split), result, mask=inside & (at >= split))


def add_up(partial: Tensor, first: Tensor, second: Tensor) -> None:
    """Adds up ``partial [parts, first.numel() + second.numel()]`` in order, in one launch."""
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
