# SPDX-License-Identifier: Apache-2.0
"""The feed-forward layer of a transformer: its definition in plain torch, and its kernels.

``down(dropout(activation(up(x))))`` (Vaswani et al. 2017, section 3.3). Natively, rows pass through
both products in blocks that stay in the cache; for the gradient only what the activation was
applied to is kept, and value, slope and dropout are made from it again in one pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.native import ACTIVATIONS
from seqrec_fast.ops._autocast import narrow
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops._checks import check_like
from seqrec_fast.ops._library import needs_gradient, register
from seqrec_fast.ops.dropout import check_probability, dropout_reference, seed_tensor, seed_word
from seqrec_fast.ops.linear import linear_reference

__all__ = ["feed_forward", "feed_forward_reference"]

_CHOICES = ("gelu_tanh", "gelu", "relu", "silu")


def feed_forward(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    *,
    activation: str = "gelu_tanh",
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """``down(dropout(activation(up(x))))``, native for float32 on the CPU.

    Args:
        x: floating ``[..., inputs]``.
        up_weight: ``[inner, inputs]``, of the dtype and device of ``x``.
        up_bias: ``[inner]``.
        down_weight: ``[outputs, inner]``.
        down_bias: ``[outputs]``.
        activation: gelu_tanh, gelu (exact), relu or silu.
        dropout: probability of dropping a hidden element (see :func:`seqrec_fast.ops.dropout`).
        seed: of the dropout; drawn from torch's generator where None.

    Returns:
        ``[..., outputs]``.

    Raises:
        InputError: shapes or dtypes do not fit, or an option is unknown or out of range.
    """
    x, up_weight, up_bias, down_weight, down_bias = narrow(
        x, up_weight, up_bias, down_weight, down_bias
    )
    _check(x, up_weight, up_bias, down_weight, down_bias, activation)
    check_probability(dropout)
    key = seed_tensor(seed, x.device) if dropout else None
    width = max(x.shape[-1], down_weight.shape[0])
    if choose_backend("feed_forward", x.device, x.dtype, width) == "reference":
        return feed_forward_reference(
            x,
            up_weight,
            up_bias,
            down_weight,
            down_bias,
            activation=activation,
            dropout=dropout,
            seed=key,
        )
    tensors = (x, up_weight, up_bias, down_weight, down_bias)
    wanted = needs_gradient(*tensors)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y: Tensor
    y, _ = _FEED_FORWARD(rows, *tensors[1:], ACTIVATIONS.index(activation), dropout, key, wanted)
    return y.view(*x.shape[:-1], down_weight.shape[0])


def feed_forward_reference(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    *,
    activation: str = "gelu_tanh",
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """The definition of :func:`feed_forward` in plain torch, any floating dtype and device."""
    _check(x, up_weight, up_bias, down_weight, down_bias, activation)
    hidden = linear_reference(x, up_weight, up_bias, activation=activation)
    hidden = dropout_reference(hidden, dropout, seed=seed)
    return torch.nn.functional.linear(hidden, down_weight, down_bias)


def check_activation(activation: str) -> None:
    """Refuses what is no activation of the layer."""
    if activation not in _CHOICES:
        raise InputError(f"activation: unknown {activation!r}; choose one of {', '.join(_CHOICES)}")


def _check(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    activation: str,
) -> None:
    check_activation(activation)
    if x.ndim < 1 or up_weight.ndim != 2 or x.shape[-1] != up_weight.shape[1]:
        raise InputError(
            f"x, up_weight: expected [..., inputs] and [inner, inputs], found {tuple(x.shape)} and "
            f"{tuple(up_weight.shape)}"
        )
    inner = up_weight.shape[0]
    if down_weight.ndim != 2 or down_weight.shape[1] != inner:
        raise InputError(
            f"down_weight: expected [outputs, {inner}], found {tuple(down_weight.shape)}"
        )
    if up_bias.shape != (inner,) or down_bias.shape != down_weight.shape[:1]:
        raise InputError(
            f"up_bias, down_bias: expected [{inner}] and [{down_weight.shape[0]}], found "
            f"{tuple(up_bias.shape)} and {tuple(down_bias.shape)}"
        )
    check_like(
        "x",
        x,
        up_weight=up_weight,
        up_bias=up_bias,
        down_weight=down_weight,
        down_bias=down_bias,
    )


# ------------------------------------------------------------------------------- the kernels


def _forward(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    activation: int,
    p: float,
    seed: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    x, up_weight, down_weight = x.contiguous(), up_weight.contiguous(), down_weight.contiguous()
    up_bias, down_bias = up_bias.contiguous(), down_bias.contiguous()
    rows, inputs = x.shape
    outputs, inner = down_weight.shape
    y = x.new_empty(rows, outputs)
    z = x.new_empty(rows, inner) if keep else x.new_empty(0)
    _C.feed_forward(
        x.data_ptr(),
        up_weight.data_ptr(),
        up_bias.data_ptr(),
        down_weight.data_ptr(),
        down_bias.data_ptr(),
        z.data_ptr() if keep else 0,
        y.data_ptr(),
        rows,
        inputs,
        inner,
        outputs,
        activation,
        seed_word(seed),
        p,
    )
    return y, z


def _fake(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    activation: int,
    p: float,
    seed: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    rows = x.shape[0]
    z = x.new_empty(rows, up_weight.shape[0]) if keep else x.new_empty(0)
    return x.new_empty(rows, down_weight.shape[0]), z


def _backward_cpu(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    activation: int,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy, x, z = dy.contiguous(), x.contiguous(), z.contiguous()
    up_weight, down_weight = up_weight.contiguous(), down_weight.contiguous()
    rows, inputs = x.shape
    outputs, inner = down_weight.shape
    found = _backward_fake(dy, x, z, up_weight, down_weight, activation, p, seed)
    _C.feed_forward_backward(
        x.data_ptr(),
        up_weight.data_ptr(),
        down_weight.data_ptr(),
        z.data_ptr(),
        dy.data_ptr(),
        found[0].data_ptr(),
        found[1].data_ptr(),
        found[2].data_ptr(),
        found[3].data_ptr(),
        found[4].data_ptr(),
        rows,
        inputs,
        inner,
        outputs,
        activation,
        seed_word(seed),
        p,
    )
    return found


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    activation: int,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inner, inputs = up_weight.shape
    outputs = down_weight.shape[0]
    return (
        x.new_empty(x.shape[0], inputs),
        x.new_empty(inner, inputs),
        x.new_empty(inner),
        x.new_empty(outputs, inner),
        x.new_empty(outputs),
    )


_BACKWARD = register(
    "feed_forward_backward(Tensor dy, Tensor x, Tensor z, Tensor up_weight, Tensor down_weight,"
    " int activation, float p, Tensor? seed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_cpu,
    _backward_fake,
    gpu="triton.feed_forward:feed_forward_backward",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, up_weight, _, down_weight, _, ctx.activation, ctx.p, seed, keep = inputs
    if not keep:
        raise InputError("keep: the gradient needs what is before the activation")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], up_weight, down_weight, seed)


def _backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 9
    x, z, up_weight, down_weight, seed = ctx.saved_tensors
    found = _BACKWARD(dy, x, z, up_weight, down_weight, ctx.activation, ctx.p, seed)
    wanted = (g if n else None for g, n in zip(found, ctx.needs_input_grad, strict=False))
    return (*wanted, None, None, None, None)


_FEED_FORWARD = register(
    "feed_forward(Tensor x, Tensor up_weight, Tensor up_bias, Tensor down_weight,"
    " Tensor down_bias, int activation, float p, Tensor? seed, bool keep) -> (Tensor, Tensor)",
    _forward,
    _fake,
    backward=_backward,
    setup_context=_save,
    gpu="triton.feed_forward:feed_forward",
)
