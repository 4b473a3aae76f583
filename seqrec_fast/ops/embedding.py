# SPDX-License-Identifier: Apache-2.0
"""Embeddings: rows of a table by their numbers; the definition in plain torch, and the kernels.

``sequence_embedding`` is what a transformer over sequences begins with: the embedding of each item,
plus that of its place in its row, then dropout, in one pass over the tokens. The gradients are
dense; every row of a table gets its tokens' gradients in ascending order, whatever the threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops._checks import check_device, check_jagged, check_offsets, check_values
from seqrec_fast.ops._library import address, register
from seqrec_fast.ops._rows import token_positions
from seqrec_fast.ops.dropout import check_probability, dropout_reference, seed_tensor, seed_word

__all__ = [
    "embedding",
    "embedding_reference",
    "sequence_embedding",
    "sequence_embedding_reference",
]


def embedding(weight: Tensor, ids: Tensor) -> Tensor:
    """``weight[ids]``, native for float32 on the CPU.

    Args:
        weight: floating ``[items, dim]``.
        ids: int64 or int32, any shape.

    Returns:
        The shape of ``ids`` and ``dim`` behind it.

    Raises:
        InputError: the types do not fit or a number is no row of ``weight``.
    """
    _check(weight, ids)
    if choose_backend("embedding", weight.device, weight.dtype) == "reference":
        return embedding_reference(weight, ids)
    out: Tensor = _EMBEDDING(weight, ids.reshape(-1).long(), None, None, 0.0, None)
    return out.view(*ids.shape, weight.shape[1])


def embedding_reference(weight: Tensor, ids: Tensor) -> Tensor:
    """The definition of :func:`embedding` in plain torch, any floating dtype and device."""
    _check(weight, ids)
    check_values(ids=ids)
    if (
        ids.numel()
        and not ids.is_cuda
        and not (0 <= int(ids.min()) and int(ids.max()) < weight.shape[0])
    ):
        raise InputError(
            f"ids: found {int(ids.min())} to {int(ids.max())}, but the rows of weight are 0 to "
            f"{weight.shape[0] - 1}"
        )
    return torch.nn.functional.embedding(ids, weight)


def sequence_embedding(
    weight: Tensor,
    ids: Tensor,
    position_weight: Tensor,
    offsets: Tensor,
    *,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """``dropout(weight[ids] + position_weight[place in the row])``, native for float32 on the CPU.

    Args:
        weight: floating ``[items, dim]``.
        ids: int64 or int32 ``[tokens]``, rows end to end.
        position_weight: ``[positions, dim]``, of the dtype and device of ``weight``; places count
            from 0 at the start of each row.
        offsets: int64 ``[rows + 1]``.
        dropout: probability of dropping an element (see :func:`seqrec_fast.ops.dropout`).
        seed: of the dropout; drawn from torch's generator where None.

    Returns:
        ``[tokens, dim]``.

    Raises:
        InputError: shapes or dtypes do not fit, a number is no row of ``weight``, or a row has more
            tokens than there are positions.
    """
    _check_sequences(weight, ids, position_weight, offsets)
    check_probability(dropout)
    key = seed_tensor(seed, weight.device) if dropout else None
    if choose_backend("embedding", weight.device, weight.dtype) == "reference":
        return sequence_embedding_reference(
            weight, ids, position_weight, offsets, dropout=dropout, seed=key
        )
    out: Tensor = _EMBEDDING(weight, ids.long(), position_weight, offsets, dropout, key)
    return out


def sequence_embedding_reference(
    weight: Tensor,
    ids: Tensor,
    position_weight: Tensor,
    offsets: Tensor,
    *,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """The definition of :func:`sequence_embedding` in plain torch, any dtype and device."""
    _check_sequences(weight, ids, position_weight, offsets)
    check_jagged("ids", ids, offsets)
    places = token_positions(offsets, ids.shape[0])
    # on a GPU torch itself refuses rows that are not there; a look here would wait for it
    if len(places) and not places.is_cuda and int(places.max()) >= position_weight.shape[0]:
        raise InputError(
            f"offsets: a row has {int(places.max()) + 1} tokens, but there are "
            f"{position_weight.shape[0]} positions"
        )
    x = embedding_reference(weight, ids) + torch.nn.functional.embedding(places, position_weight)
    return dropout_reference(x, dropout, seed=seed)


def _check(weight: Tensor, ids: Tensor) -> None:
    if weight.ndim != 2 or not weight.is_floating_point():
        raise InputError(
            f"weight: expected floating [items, dim], found {weight.dtype} {tuple(weight.shape)}"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"ids: expected int64 or int32, found {ids.dtype}")
    check_device("weight", weight, ids=ids)


def _check_sequences(weight: Tensor, ids: Tensor, position_weight: Tensor, offsets: Tensor) -> None:
    _check(weight, ids)
    if ids.ndim != 1:
        raise InputError(f"ids: expected [tokens], found {tuple(ids.shape)}")
    if (
        position_weight.ndim != 2
        or position_weight.shape[1] != weight.shape[1]
        or position_weight.dtype != weight.dtype
        or position_weight.device != weight.device
    ):
        raise InputError(
            f"position_weight: expected {weight.dtype} [positions, {weight.shape[1]}] on "
            f"{weight.device}, found {position_weight.dtype} {tuple(position_weight.shape)} on "
            f"{position_weight.device}"
        )
    check_offsets(offsets)
    check_device("weight", weight, offsets=offsets)


# ------------------------------------------------------------------------------- the kernels


def _forward(
    weight: Tensor,
    ids: Tensor,
    position_weight: Tensor | None,
    offsets: Tensor | None,
    p: float,
    seed: Tensor | None,
) -> Tensor:
    weight, ids = weight.contiguous(), ids.contiguous()
    position_weight = None if position_weight is None else position_weight.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    out = weight.new_empty(ids.shape[0], weight.shape[1])
    _C.embed(
        weight.data_ptr(),
        ids.data_ptr(),
        address(position_weight),
        address(offsets),
        out.data_ptr(),
        ids.shape[0],
        weight.shape[0],
        0 if offsets is None else offsets.shape[0] - 1,
        0 if position_weight is None else position_weight.shape[0],
        weight.shape[1],
        seed_word(seed),
        p,
    )
    return out


def _fake(
    weight: Tensor,
    ids: Tensor,
    position_weight: Tensor | None,
    offsets: Tensor | None,
    p: float,
    seed: Tensor | None,
) -> Tensor:
    return weight.new_empty(ids.shape[0], weight.shape[1])


def _backward_cpu(
    gradient: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    items: int,
    positions: int,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    gradient, ids = gradient.contiguous(), ids.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    dim = gradient.shape[1]
    d_weight = gradient.new_empty(items, dim)
    d_positions = gradient.new_empty(positions, dim)
    _C.embed_backward(
        gradient.data_ptr(),
        ids.data_ptr(),
        address(offsets),
        d_weight.data_ptr(),
        d_positions.data_ptr(),
        ids.shape[0],
        items,
        0 if offsets is None else offsets.shape[0] - 1,
        positions,
        dim,
        seed_word(seed),
        p,
    )
    return d_weight, d_positions


def _backward_fake(
    gradient: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    items: int,
    positions: int,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dim = gradient.shape[1]
    return gradient.new_empty(items, dim), gradient.new_empty(positions, dim)


_BACKWARD = register(
    "embedding_backward(Tensor gradient, Tensor ids, Tensor? offsets, SymInt items,"
    " SymInt positions, float p, Tensor? seed) -> (Tensor, Tensor)",
    _backward_cpu,
    _backward_fake,
    gpu="cuda.embedding:embedding_backward",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, ids, position_weight, offsets, ctx.p, seed = inputs
    ctx.items = weight.shape[0]
    ctx.positions = 0 if position_weight is None else position_weight.shape[0]
    ctx.save_for_backward(ids, offsets, seed)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    ids, offsets, seed = ctx.saved_tensors
    d_weight, d_positions = _BACKWARD(gradient, ids, offsets, ctx.items, ctx.positions, ctx.p, seed)
    needs = ctx.needs_input_grad
    return d_weight if needs[0] else None, None, d_positions if needs[2] else None, None, None, None


_EMBEDDING = register(
    "embedding(Tensor weight, Tensor ids, Tensor? position_weight, Tensor? offsets, float p,"
    " Tensor? seed) -> Tensor",
    _forward,
    _fake,
    backward=_backward,
    setup_context=_save,
    gpu="cuda.embedding:embedding",
)
