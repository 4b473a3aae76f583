# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an operation runs: by device and dtype, or as the user forces it."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch.autograd import forward_ad

from seqrec_fast.errors import InputError

__all__ = ["Backend", "choose_backend"]

Backend = Literal["reference", "native"]

_compiling = torch.compiler.is_compiling
_transform = torch._C._functorch.peek_interpreter_stack


def choose_backend(operation: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend for tensors of this device and dtype, of an operation that has native kernels.

    Native kernels compute float32 on the CPU; everything else is computed by the reference in
    plain torch. The environment variable ``SEQREC_FAST_BACKEND`` (``reference`` or ``native``)
    forces one; a forced backend that cannot run is an error and never replaced.

    Args:
        operation: its name, for the message.
        device: where the tensors are.
        dtype: their type.

    Raises:
        InputError: the type is not a floating one, the variable names no backend or one that cannot
            run here, or a transform of ``torch.func`` or forward-mode differentiation is at work,
            of which the kernels know nothing.
    """
    forced = os.environ.get("SEQREC_FAST_BACKEND", "")
    if forced not in ("", "reference", "native"):
        raise InputError(
            f"SEQREC_FAST_BACKEND: found {forced!r}; set it to reference or native, or unset it"
        )
    runs = device.type == "cpu" and dtype == torch.float32
    if not runs and not dtype.is_floating_point:
        raise InputError(
            f"{operation}: expected floating-point tensors, found {dtype}; convert them"
        )
    if forced == "reference":
        return "reference"
    if forced == "native" and not runs:
        raise InputError(
            f"SEQREC_FAST_BACKEND=native: {operation} has native kernels for float32 on the cpu, "
            f"found {str(dtype).removeprefix('torch.')} on {device}; convert or unset the variable"
        )
    if runs and not _compiling() and (_transform() is not None or forward_ad._current_level >= 0):
        raise InputError(
            f"{operation}: the native kernels know neither torch.func transforms (vmap, grad, jvp) "
            "nor forward-mode gradients; compute in float64 or set SEQREC_FAST_BACKEND=reference"
        )
    return "native" if runs else "reference"
