# SPDX-License-Identifier: Apache-2.0
"""Layer norm (Ba, Kiros and Hinton 2016), alone and with the residual sum before it.

``layer_norm`` is ``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis.
``add_layer_norm`` is what a pre-norm transformer does between two of its parts: ``sum = residual +
dropout(x)``, which goes on, and ``layer_norm(sum)``, which the next part reads. One pass over the
tokens instead of three, and one call; the backward pass likewise. The gradients of weight and bias
are added up in shares of tokens that do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops._autocast import wide
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops._library import address, register
from seqrec_fast.ops.dropout import check_probability, dropout_reference, seed_tensor, seed_word

__all__ = ["add_layer_norm", "add_layer_norm_reference", "layer_norm", "layer_norm_reference"]


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Normalises over the last axis; native for float32 on the CPU.

    Args:
        x: floating ``[..., dim]``.
        weight: ``[dim]`` or None (ones), of the dtype and device of ``x``.
        bias: ``[dim]`` or None (zeros).
        eps: added to the variance.

    Returns:
        The shape of ``x``.

    Raises:
        InputError: shapes or dtypes do not fit.
    """
    x, weight, bias = wide(x, weight, bias)
    _check(x, weight, bias)
    if choose_backend("layer_norm", x.device, x.dtype, x.shape[-1]) == "reference":
        return layer_norm_reference(x, weight, bias, eps=eps)
    out: Tensor = _LAYER_NORM(x, weight, bias, eps)[0]
    return out


def layer_norm_reference(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """The definition of :func:`layer_norm` in plain torch, any floating dtype and device."""
    _check(x, weight, bias)
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``sum = residual + dropout(x)`` and ``layer_norm(sum)``; native for float32 on the CPU.

    Args:
        x: floating ``[..., dim]``.
        residual: as ``x``.
        weight: ``[dim]`` or None (ones), of the dtype and device of ``x``.
        bias: ``[dim]`` or None (zeros).
        eps: added to the variance.
        dropout: probability of dropping an element of ``x`` (see :func:`seqrec_fast.ops.dropout`).
        seed: of the dropout; drawn from torch's generator where None.

    Returns:
        The sum and its norm, each the shape of ``x``.

    Raises:
        InputError: shapes or dtypes do not fit, or the probability is out of range.
    """
    x, residual, weight, bias = wide(x, residual, weight, bias)
    _check_residual(x, residual)
    _check(x, weight, bias)
    check_probability(dropout)
    key = seed_tensor(seed, x.device) if dropout else None
    if choose_backend("layer_norm", x.device, x.dtype, x.shape[-1]) == "reference":
        return add_layer_norm_reference(
            x, residual, weight, bias, eps=eps, dropout=dropout, seed=key
        )
    total, out, _, _ = _ADD_LAYER_NORM(x, residual, weight, bias, eps, dropout, key)
    return total, out


def add_layer_norm_reference(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of :func:`add_layer_norm` in plain torch, any floating dtype and device."""
    _check_residual(x, residual)
    total = residual + dropout_reference(x, dropout, seed=seed)
    return total, layer_norm_reference(total, weight, bias, eps=eps)


def _check_residual(x: Tensor, residual: Tensor) -> None:
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise InputError(
            f"residual: expected {x.dtype} {tuple(x.shape)} on {x.device} like x, found "
            f"{residual.dtype} {tuple(residual.shape)} on {residual.device}"
        )


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if x.ndim < 1 or x.shape[-1] < 1:
        raise InputError(f"x: expected [..., dim] with at least one column, found {tuple(x.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.shape != x.shape[-1:] or tensor.dtype != x.dtype or tensor.device != x.device:
            raise InputError(
                f"{name}: expected {x.dtype} [{x.shape[-1]}] on {x.device} like x, found "
                f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )


# ------------------------------------------------------------------------------- the kernels


def _run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    x = x.contiguous()
    dim = x.shape[-1]
    rows = x.numel() // dim
    out = torch.empty_like(x)
    total = None if residual is None else torch.empty_like(x)
    mean, rstd = _statistics(x)
    residual = None if residual is None else residual.contiguous()
    weight = None if weight is None else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    _C.layer_norm(
        x.data_ptr(),
        address(residual),
        address(weight),
        address(bias),
        address(total),
        out.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        rows,
        dim,
        eps,
        seed_word(seed),
        p,
    )
    return total, out, mean, rstd


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Memory of mean and inverse deviation of each row, float32 whatever the type of ``x``."""
    rows = x.numel() // x.shape[-1]
    return x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _run(x, None, weight, bias, eps, 0.0, None)[1:]


def _fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), *_statistics(x)


def _add_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    return _run(x, residual, weight, bias, eps, p, seed)


def _add_fake(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        *_fake(x, weight, bias, eps),
    )


def _backward_cpu(
    d_out: Tensor,
    d_sum: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_out, total = d_out.contiguous(), total.contiguous()
    d_sum = None if d_sum is None else d_sum.contiguous()
    weight = None if weight is None else weight.contiguous()
    dim = total.shape[-1]
    d_residual = torch.empty_like(total)
    dx = total.new_empty(total.shape if seed is not None else 0)
    d_weight, d_bias = total.new_empty(dim), total.new_empty(dim)
    _C.layer_norm_backward(
        d_out.data_ptr(),
        address(d_sum),
        total.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        address(weight),
        d_residual.data_ptr(),
        dx.data_ptr() if seed is not None else 0,
        d_weight.data_ptr(),
        d_bias.data_ptr(),
        mean.shape[0],
        dim,
        seed_word(seed),
        p,
    )
    return d_residual, dx, d_weight, d_bias


def _backward_fake(
    d_out: Tensor,
    d_sum: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = torch.empty_like(total, memory_format=torch.contiguous_format)
    dx = total.new_empty(total.shape if seed is not None else 0)
    return like, dx, total.new_empty(total.shape[-1]), total.new_empty(total.shape[-1])


_BACKWARD = register(
    "layer_norm_backward(Tensor d_out, Tensor? d_sum, Tensor total, Tensor mean, Tensor rstd,"
    " Tensor? weight, float p, Tensor? seed) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_cpu,
    _backward_fake,
    gpu="triton.layer_norm:layer_norm_backward",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], output[2], weight)


def _backward(ctx: Any, d_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return None, None, None, None
    x, mean, rstd, weight = ctx.saved_tensors
    d_x, _, d_weight, d_bias = _BACKWARD(d_out, None, x, mean, rstd, weight, 0.0, None)
    needs = ctx.needs_input_grad
    return d_x, d_weight if needs[1] else None, d_bias if needs[2] else None, None


def _add_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, _, _, ctx.p, seed = inputs
    total, _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, mean, rstd, weight, seed)


def _add_backward(
    ctx: Any, d_sum: Tensor | None, d_out: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    total, mean, rstd, weight, seed = ctx.saved_tensors
    if d_out is None:
        if d_sum is None:
            return (None,) * 7
        d_out = torch.zeros_like(total)
    d_residual, d_x, d_weight, d_bias = _BACKWARD(
        d_out, d_sum, total, mean, rstd, weight, ctx.p, seed
    )
    needs = ctx.needs_input_grad
    return (
        d_residual if seed is None else d_x,
        d_residual,
        d_weight if needs[2] else None,
        d_bias if needs[3] else None,
        None,
        None,
        None,
    )


_LAYER_NORM = register(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    backward=_backward,
    setup_context=_save,
    gpu="triton.layer_norm:layer_norm",
)

_ADD_LAYER_NORM = register(
    "add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, float p,"
    " Tensor? seed) -> (Tensor, Tensor, Tensor, Tensor)",
    _add_forward,
    _add_fake,
    backward=_add_backward,
    setup_context=_add_save,
    gpu="triton.layer_norm:add_layer_norm",
)
