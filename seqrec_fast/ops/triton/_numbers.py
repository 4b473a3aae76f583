# SPDX-License-Identifier: Apache-2.0
"""What several Triton kernels compute alike: rounding, products, sums of partial results."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_fast.ops.triton._launch import INTERPRETED

__all__ = ["add_up", "add_up_kernel", "multiply", "processors", "rounded"]

ADD_UP = {"BLOCK": 256}


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 ``x`` in another type, to nearest; the interpreter would cut bfloat16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        up = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, up.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr):
    """``total + a @ b``, summed in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


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
