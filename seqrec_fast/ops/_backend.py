# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an operation runs: by device and dtype, or as the user forces it.

Tensors of the CPU are computed by the native kernels in float32 and by the reference in plain torch
otherwise. On a GPU an operation has kernels of one kind, Triton or CUDA C++ (:data:`GPU_BACKENDS`),
for the types in :data:`GPU_DTYPES`; where they cannot run, the reference does, and says so once.

The kernels of a GPU can also be run on the CPU, which is how they are tested: Triton's by its
interpreter, those in CUDA C++ compiled for the CPU. Forcing their backend chooses them there.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from typing import Literal

import torch
from torch.autograd import forward_ad

from seqrec_fast.errors import InputError

__all__ = [
    "GPU_BACKENDS",
    "GPU_DTYPES",
    "GPU_WIDTHS",
    "Backend",
    "allows_tf32",
    "announce",
    "choose_backend",
    "emulates",
    "forced_kernels",
    "unavailable",
]

Backend = Literal["reference", "native", "cuda", "triton"]

#: operation -> the kind of its kernels for GPUs. The linear layer has none: torch's own product
#: (cuBLAS) is what the reference calls.
GPU_BACKENDS: dict[str, Backend] = {
    "attention": "triton",
    "cross_entropy": "triton",
    "decode_attention": "cuda",
    "dropout": "triton",
    "embedding": "cuda",
    "feed_forward": "triton",
    "hstu_attention": "triton",
    "layer_norm": "triton",
    "recurrent": "cuda",
    "topk": "cuda",
}

#: float64 goes to the reference
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: operation -> the widest rows that its kernels for GPUs hold in registers; heads of attention are
#: looked at where they are cut
GPU_WIDTHS = {"cross_entropy": 256, "feed_forward": 128, "layer_norm": 4096}

_VARIABLE = "SEQREC_FAST_BACKEND"
_NAMES = ("reference", "native", "cuda", "triton")
_TITLES = {"cuda": "CUDA", "triton": "Triton"}
# the module of each kind that knows whether kernels can be started, and the variable by which they
# run on the CPU
_LAUNCHERS = {"cuda": "cuda._module", "triton": "triton._launch"}
_EMULATION = {"cuda": "SEQREC_FAST_CUDA_MODULE", "triton": "TRITON_INTERPRET"}

# modules below seqrec_fast.ops that are named as implementations, "triton.attention"
_announced: set[str] = set()

_compiling = torch.compiler.is_compiling
_transform = torch._C._functorch.peek_interpreter_stack


def choose_backend(
    operation: str, device: torch.device, dtype: torch.dtype, width: int = 0
) -> Backend:
    """The backend for tensors of this device and dtype.

    The environment variable ``SEQREC_FAST_BACKEND`` (``reference``, ``native``, ``cuda`` or
    ``triton``) forces one; a forced backend that cannot run is an error and never replaced. Of
    several, separated by commas, an operation takes the first that it has kernels of.

    Args:
        operation: the name of its module.
        device: where the tensors are.
        dtype: their type.
        width: of their rows, where an operation is in :data:`GPU_WIDTHS`; what is wider goes to the
            reference, and is warned of once.

    Raises:
        InputError: the type is not a floating one, the variable names no backend or one that cannot
            run here or takes no rows so wide, or a transform of ``torch.func`` or forward-mode
            differentiation is at work, of which the kernels know nothing.
    """
    if not dtype.is_floating_point:
        raise InputError(
            f"{operation}: expected floating-point tensors, found {dtype}; convert them"
        )
    forced = os.environ.get(_VARIABLE, "")
    found: Backend = "reference"
    if forced:
        found = _forced(operation, device, dtype, forced)
    elif device.type == "cpu":
        if dtype == torch.float32:
            found = "native"
    elif device.type == "cuda" and dtype in GPU_DTYPES and _ready(operation):
        found = GPU_BACKENDS[operation]
    if found == "triton" and width > GPU_WIDTHS.get(operation, width):
        found = _too_wide(operation, width, forced)
    if (
        found != "reference"
        and not _compiling()
        and (_transform() is not None or forward_ad._current_level >= 0)
    ):
        raise InputError(
            f"{operation}: the {'native' if found == 'native' else 'GPU'} kernels know neither "
            "torch.func transforms (vmap, grad, jvp) nor forward-mode gradients; compute in "
            "float64 or set SEQREC_FAST_BACKEND=reference"
        )
    return found


def announce(module: str) -> None:
    """Makes known that a module below ``seqrec_fast.ops``, ``"triton.attention"``, has kernels."""
    _announced.add(module)


def forced_kernels() -> str:
    """The value of the variable where it forces kernels rather than the reference, else empty."""
    forced = os.environ.get(_VARIABLE, "")
    return "" if forced == "reference" else forced


def emulates(backend: Backend) -> bool:
    """Whether tensors of the CPU are computed by the kernels for a GPU, of this kind."""
    forced = os.environ.get(_VARIABLE)
    if not forced or backend not in forced:
        return False
    return next((n for n in forced.split(",") if n in (backend, "native")), "") == backend


def unavailable(operation: str, device_type: str = "cuda") -> str | None:
    """Why the GPU kernels of an operation cannot run here; None where they can.

    Args:
        operation: the name of its module.
        device_type: where the tensors are; on the CPU the kernels run in an emulation alone.
    """
    if operation not in GPU_BACKENDS:
        return "torch's own kernels compute it on a GPU"
    backend = GPU_BACKENDS[operation]
    if f"{backend}.{operation}" not in _announced:
        return f"no {_TITLES[backend]} kernel in this version"
    launcher = import_module(f"seqrec_fast.ops.{_LAUNCHERS[backend]}")
    reason: str | None = launcher.unavailable()
    if reason is not None:
        return reason
    variable = _EMULATION[backend]
    emulated = os.environ.get(variable, "").lower() not in ("", "0", "false", "off", "n", "no")
    if device_type == "cpu":
        return None if emulated else "the tensors are on the cpu; move them to a GPU"
    if emulated:
        return f"{variable} is set, by which the kernels take tensors of the cpu; unset it"
    return None if torch.cuda.is_available() else "torch finds no GPU"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _ready(operation: str) -> bool:
    """Whether a GPU has kernels of this operation that can run; warns once where not."""
    if operation not in GPU_BACKENDS:
        return False
    reason = _reason(operation)
    if reason is not None and operation not in _warned:
        _warned.add(operation)
        warnings.warn(
            f"{operation}: computed on the GPU by plain torch, without kernels of its own: "
            f"{reason} (see seqrec-fast info)",
            stacklevel=4,
        )
    return reason is None


def _too_wide(operation: str, width: int, forced: str) -> Backend:
    """The reference, for rows that fit no kernel; refused where kernels are forced."""
    most = GPU_WIDTHS[operation]
    if forced:
        raise InputError(
            f"{_VARIABLE}={forced}: {operation} has Triton kernels up to a width of {most}, found "
            f"{width}; unset the variable or set it to reference"
        )
    if not _compiling() and f"width of {operation}" not in _warned:
        _warned.add(f"width of {operation}")
        warnings.warn(
            f"{operation}: computed on the GPU by plain torch: its kernels take a width up to "
            f"{most}, found {width}",
            stacklevel=4,
        )
    return "reference"


_warned: set[str] = set()
_reason = cache(unavailable)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _forced(operation: str, device: torch.device, dtype: torch.dtype, forced: str) -> Backend:
    """The first backend of ``forced`` that the operation has; refused where it cannot run."""
    names = forced.split(",")
    for name in names:
        if name not in _NAMES:
            raise InputError(
                f"{_VARIABLE}: found {forced!r}; set it to reference, native, cuda or triton (or "
                "several of them, separated by commas), or unset it"
            )
    for name in names:
        if name == "reference":
            return "reference"
        if name == "native":
            if device.type != "cpu" or dtype != torch.float32:
                raise InputError(
                    f"{_VARIABLE}={forced}: {operation} has native kernels for float32 on the cpu, "
                    f"found {str(dtype).removeprefix('torch.')} on {device}; convert or unset the "
                    "variable"
                )
            return "native"
        if GPU_BACKENDS.get(operation) == name:
            _check_gpu(operation, device, dtype, forced)
            return GPU_BACKENDS[operation]
    raise InputError(
        f"{_VARIABLE}={forced}: {operation} has no {' or '.join(_TITLES[n] for n in names)} "
        "kernels; name another backend after a comma or unset the variable"
    )


def _check_gpu(operation: str, device: torch.device, dtype: torch.dtype, forced: str) -> None:
    """Refuses what the GPU kernels of an operation cannot compute."""
    if device.type not in ("cpu", "cuda") or dtype not in GPU_DTYPES:
        raise InputError(
            f"{_VARIABLE}={forced}: {operation} has {_TITLES[GPU_BACKENDS[operation]]} kernels for "
            f"float32, float16 and bfloat16 on a GPU, found {str(dtype).removeprefix('torch.')} on "
            f"{device}; convert or unset the variable"
        )
    reason = unavailable(operation, device.type)
    if reason is not None:
        raise InputError(f"{_VARIABLE}={forced}: {operation} cannot run: {reason}")


def allows_tf32() -> bool:
    """Whether torch's own products of float32 may round to tf32."""
    matmul = torch.backends.cuda.matmul
    # since torch 2.9, which refuses to say allow_tf32 to who has set this
    precision = getattr(matmul, "fp32_precision", "none")
    return bool(matmul.allow_tf32 if precision == "none" else precision == "tf32")
