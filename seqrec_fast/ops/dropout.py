# SPDX-License-Identifier: Apache-2.0
"""Dropout whose mask is a function of a seed: its definition in plain torch, and its kernel.

Whether an element is dropped depends on the seed, its row and its column alone: a 64-bit mixer
(Steele, Lea and Flood 2014) makes two keys of seed and row, and two multiplications between shifts
make 24 bits of keys and column, which are compared with the probability. The backward pass and
fused kernels repeat the draw instead of keeping a mask; neither threads nor instruction sets
change it.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops._checks import check_values
from seqrec_fast.ops._library import register

__all__ = ["dropout", "dropout_reference"]

_DRAWS = 1 << 24
_WORD = (1 << 32) - 1


def dropout(x: Tensor, p: float, *, seed: int | Tensor | None = None) -> Tensor:
    """``x`` with a share ``p`` of its elements set to 0 and the others divided by ``1 - p``.

    Native for float32 on the CPU.

    Args:
        x: floating ``[..., columns]``; a row is one index of all axes but the last.
        p: probability of dropping, at least 0 and below 1; a multiple of 2^-24 is taken.
        seed: what the draw depends on, an int or an int64 tensor of one element; drawn from torch's
            generator where None.

    Returns:
        The shape of ``x``.

    Raises:
        InputError: ``p`` is out of range or the seed is no such number.
    """
    check_probability(p)
    if x.ndim < 1:
        raise InputError("x: expected [..., columns], found a scalar")
    if p == 0.0:
        return x
    key = seed_tensor(seed, x.device)
    if choose_backend("dropout", x.device, x.dtype) == "reference":
        return x * keep_factors(x, p, key)
    out: Tensor = _DROPOUT(x, p, key)
    return out


def dropout_reference(x: Tensor, p: float, *, seed: int | Tensor | None = None) -> Tensor:
    """The definition of :func:`dropout` in plain torch, any floating dtype and device."""
    check_probability(p)
    return x if p == 0.0 else x * keep_factors(x, p, seed_tensor(seed, x.device))


def check_probability(p: float) -> None:
    """Refuses a probability of dropping that is not in [0, 1)."""
    try:
        fits = 0.0 <= p < 1.0
    except TypeError:
        fits = False
    if not fits:
        raise InputError(f"dropout: must be at least 0 and below 1, found {p}")


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed as an int64 tensor of one element, drawn where None.

    It lies on the CPU, or for a GPU on that: the host need not wait for it, and the replay of a
    CUDA graph draws anew.
    """
    if seed is None:
        return draw_seeds(1, device)[0]
    where = _home(device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise InputError(
                f"seed: expected one int64, found {seed.dtype} of shape {tuple(seed.shape)}"
            )
        check_values(seed=seed)
        return seed.reshape(1).to(where)
    try:
        number = operator.index(seed)
    except TypeError:
        raise InputError(f"seed: expected a whole number, found {seed!r}") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise InputError(f"seed: must fit in 64 bits, found {number}")
    return torch.full((1,), number, dtype=torch.int64, device=where)


def draw_seeds(count: int, device: torch.device) -> tuple[Tensor, ...]:
    """As many seeds for tensors on this device, drawn at once: for a GPU that is one launch."""
    low, high = -(1 << 63), (1 << 63) - 1
    drawn = torch.randint(low, high, (count,), dtype=torch.int64, device=_home(device))
    return tuple(drawn.unsqueeze(1).unbind(0))


def _home(device: torch.device) -> torch.device:
    return device if device.type == "cuda" else torch.device("cpu")


def _signed(word: int) -> int:
    """The 64-bit word as torch's int64 holds it."""
    return word - (1 << 64) if word >> 63 else word


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of 64-bit words held in int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def keep_factors(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """What dropout multiplies the elements of ``x`` with: 0 or ``1 / (1 - p)``."""
    columns = x.shape[-1]
    rows = math.prod(x.shape[:-1])
    threshold = min(round(p * _DRAWS), _DRAWS - 1)
    at = torch.arange(1, rows + 1, device=x.device)
    z = seed.to(x.device) + at * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift(z, 31)
    first, second = (z & _WORD)[:, None], _shift(z, 32)[:, None]
    column = torch.arange(columns, device=x.device) * 0x9E3779B9
    word = (first + column) & _WORD
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D + second) & _WORD
    word = word ^ (word >> 15)
    word = (word * 0x846CA68B) & _WORD
    kept = (word >> 8) >= threshold
    return kept.view(x.shape).to(x.dtype) * (_DRAWS / (_DRAWS - threshold))


def seed_word(seed: Tensor | None) -> int:
    """The seed as the kernels take it, an unsigned 64-bit word; 0 for None."""
    return 0 if seed is None else int(seed.item()) & ((1 << 64) - 1)


def _cpu(x: Tensor, p: float, seed: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    columns = x.shape[-1]
    rows = x.numel() // columns if columns else 0
    _C.dropout(x.data_ptr(), out.data_ptr(), rows, columns, seed_word(seed), p)
    return out


def _fake(x: Tensor, p: float, seed: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, seed = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (seed,) = ctx.saved_tensors
    return _DROPOUT(gradient, ctx.p, seed), None, None


_DROPOUT = register(
    "dropout(Tensor x, float p, Tensor seed) -> Tensor",
    _cpu,
    _fake,
    backward=_backward,
    setup_context=_save,
    gpu="triton.dropout:dropout",
)
