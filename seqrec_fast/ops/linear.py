# SPDX-License-Identifier: Apache-2.0
"""The linear layer ``activation(x W^T + b)``: its definition in plain torch, and its kernels.

The native product packs the weight into panels, multiplies tile by tile in registers and applies
bias and activation before a tile leaves the cache. The gradient of the weight, ``dy^T x``, adds the
tokens in ascending order whatever the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.native import ACTIVATIONS
from seqrec_fast.ops._autocast import narrow
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops._checks import check_like
from seqrec_fast.ops._library import address, needs_gradient, register

__all__ = ["linear", "linear_reference"]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none"
) -> Tensor:
    """``activation(x W^T + bias)``, native for float32 on the CPU.

    Args:
        x: floating ``[..., inputs]``.
        weight: ``[outputs, inputs]``, of the dtype and device of ``x``.
        bias: ``[outputs]`` or None.
        activation: none, relu, silu, gelu (exact), gelu_tanh, tanh or sigmoid.

    Returns:
        ``[..., outputs]``.

    Raises:
        InputError: shapes or dtypes do not fit, or the activation is unknown.
    """
    x, weight, bias = narrow(x, weight, bias)
    _check(x, weight, bias, activation)
    if choose_backend("linear", x.device, x.dtype) == "reference":
        return _FUNCTIONS[activation](torch.nn.functional.linear(x, weight, bias))
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    # with a gradient, what is before the activation must be kept, so it is a step of its own
    fused = "none" if needs_gradient(x, weight, bias) else activation
    y: Tensor = _LINEAR(rows, weight, bias, ACTIVATIONS.index(fused))
    if fused != activation:
        y = _FUNCTIONS[activation](y)
    return y.view(*x.shape[:-1], weight.shape[0])


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none"
) -> Tensor:
    """The definition of :func:`linear` in plain torch, any floating dtype and device."""
    _check(x, weight, bias, activation)
    return _FUNCTIONS[activation](torch.nn.functional.linear(x, weight, bias))


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    if activation not in _FUNCTIONS:
        raise InputError(
            f"activation: unknown {activation!r}; choose one of {', '.join(_FUNCTIONS)}"
        )
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"x, weight: expected [..., inputs] and [outputs, inputs], found {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias: expected [{weight.shape[0]}], found {tuple(bias.shape)}")
    check_like("x", x, weight=weight, bias=bias)


def multiply(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: int, transposed: bool
) -> Tensor:
    """``x W^T`` or, transposed, ``x W``; ``x`` is ``[rows, inputs]`` with dense rows."""
    if (x.shape[0] > 1 and x.stride(1) != 1) or x.shape[0] <= 1:
        x = x.contiguous()
    weight = weight.contiguous()
    outputs, inputs = weight.shape[::-1] if transposed else weight.shape
    strides = (1, weight.shape[1]) if transposed else (weight.shape[1], 1)
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(x.shape[0], outputs)
    _C.linear(
        x.data_ptr(),
        x.stride(0) if x.shape[0] > 1 else inputs,
        x.shape[0],
        weight.data_ptr(),
        *strides,
        outputs,
        inputs,
        address(bias),
        activation,
        y.data_ptr(),
        outputs,
    )
    return y


def weight_gradient(dy: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """``dy^T x [outputs, inputs]`` and, where wanted, the column sums of ``dy``."""
    dy, x = dy.contiguous(), x.contiguous()
    d_weight = x.new_empty(dy.shape[1], x.shape[1])
    d_bias = x.new_empty(dy.shape[1]) if bias else None
    _C.weight_gradient(
        dy.data_ptr(),
        x.data_ptr(),
        x.shape[0],
        dy.shape[1],
        x.shape[1],
        d_weight.data_ptr(),
        address(d_bias),
    )
    return d_weight, d_bias


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, activation: int) -> Tensor:
    return multiply(x, weight, bias, activation, transposed=False)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, activation: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _backward_cpu(
    dy: Tensor, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    none = dy.new_empty(0)
    d_x = multiply(dy, weight, None, 0, transposed=True) if want_x else none
    if not want_weight:
        return d_x, none, none
    d_weight, d_bias = weight_gradient(dy, x, bias=True)
    assert d_bias is not None
    return d_x, d_weight, d_bias


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        dy.new_empty(x.shape) if want_x else dy.new_empty(0),
        dy.new_empty(weight.shape) if want_weight else dy.new_empty(0),
        dy.new_empty(weight.shape[0]) if want_weight else dy.new_empty(0),
    )


_BACKWARD = register(
    "linear_backward(Tensor dy, Tensor x, Tensor weight, bool want_x, bool want_weight)"
    " -> (Tensor, Tensor, Tensor)",
    _backward_cpu,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, activation = inputs
    if activation:
        raise InputError("activation: the gradient is taken before it; use ops.linear")
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    want_x, *others = ctx.needs_input_grad[:3]
    d_x, d_weight, d_bias = _BACKWARD(dy, x, weight, want_x, any(others))
    return (
        d_x if want_x else None,
        d_weight if others[0] else None,
        d_bias if others[1] else None,
        None,
    )


_LINEAR = register(
    "linear(Tensor x, Tensor weight, Tensor? bias, int activation) -> Tensor",
    _forward,
    _fake,
    backward=_backward,
    setup_context=_save,
)
