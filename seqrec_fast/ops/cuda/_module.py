# SPDX-License-Identifier: Apache-2.0
"""The compiled module ``seqrec_fast._cuda``, and what its functions are given beside tensors.

Without a GPU the same kernels can be compiled for the CPU; ``SEQREC_FAST_CUDA_MODULE`` names that
module, whose kernels take tensors of the CPU. It is meant for tests: it is exact and slow.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from seqrec_fast.errors import DeviceError, InputError

__all__ = ["kernels", "kernels_for", "number", "stream", "unavailable"]

_VARIABLE = "SEQREC_FAST_CUDA_MODULE"
_NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def kernels() -> Any:
    """The module of the kernels.

    Raises:
        DeviceError: it was not built, or what ``SEQREC_FAST_CUDA_MODULE`` names is no such module.
    """
    return _load(os.environ.get(_VARIABLE, ""))


def kernels_for(tensor: Tensor) -> Any:
    """The module of the kernels, for the device of a tensor.

    The CUDA runtime in the module is not the one of torch, and what torch's calls the current
    device need not be known to it.
    """
    module = kernels()
    if tensor.is_cuda:
        module.use_device(tensor.device.index)
    return module


def unavailable() -> str | None:
    """Why the kernels cannot run; None where they can."""
    try:
        reason: str = kernels().why_not()
    except DeviceError as error:
        return str(error)
    return reason or None


def number(dtype: torch.dtype) -> int:
    """The number by which the kernels know a type: float32, float16 or bfloat16.

    Raises:
        InputError: it is another one.
    """
    if dtype not in _NUMBERS:
        raise InputError(
            f"expected float32, float16 or bfloat16 for the CUDA kernels, found {dtype}; convert "
            "or set SEQREC_FAST_BACKEND=reference"
        )
    return _NUMBERS[dtype]


def stream(tensor: Tensor) -> int:
    """The current stream of torch on the device of a tensor; 0 for the emulation."""
    if not tensor.is_cuda:
        return 0
    found: int = torch.cuda.current_stream(tensor.device).cuda_stream
    return found


@cache
def _load(path: str) -> Any:
    if not path:
        try:
            return importlib.import_module("seqrec_fast._cuda")
        except ModuleNotFoundError:
            raise DeviceError(
                "seqrec_fast was built without its CUDA kernels; build it again where an nvcc is, "
                "with SEQREC_FAST_CUDA=1 (see docs/building.md)"
            ) from None
        except ImportError as error:
            raise DeviceError(
                f"the CUDA kernels of seqrec_fast cannot be loaded: {error}; build them again here"
            ) from error
    spec = importlib.util.spec_from_file_location("_cuda", path)
    try:
        if spec is None or spec.loader is None:
            raise ImportError("its name ends like no module of this Python")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        raise DeviceError(f"{_VARIABLE}={path}: cannot be loaded: {error}") from error
    return module
