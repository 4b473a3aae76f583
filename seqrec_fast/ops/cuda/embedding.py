# SPDX-License-Identifier: Apache-2.0
"""Embeddings on a GPU: one kernel gathers, adds the positions and drops.

The gradients of a table are summed in float32 by atomic additions, whose order, and so the last
bits, differ from run to run, or in the order of the ids: a stable sort, and two kernels. The second
is taken for 16-bit types, and where ``torch.use_deterministic_algorithms`` asks for it. Positions
are always summed in the order of the rows. The host does not look at ids and offsets: what is
gathered for an id that is no row of the table is NaN, and its gradient is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.ops._library import address
from seqrec_fast.ops.cuda._module import kernels_for, number, stream

__all__ = ["embedding", "embedding_backward"]


def embedding(
    weight: Tensor,
    ids: Tensor,
    position_weight: Tensor | None,
    offsets: Tensor | None,
    p: float,
    seed: Tensor | None,
) -> Tensor:
    """The operator ``embedding``; see :func:`seqrec_fast.ops.sequence_embedding`."""
    weight, ids = weight.contiguous(), ids.contiguous()
    position_weight = None if position_weight is None else position_weight.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    seed = _beside(seed, weight)
    out = weight.new_empty(ids.shape[0], weight.shape[1])
    kernels_for(weight).embed(
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
        address(seed),
        p,
        number(weight.dtype),
        stream(weight),
    )
    return out


def embedding_backward(
    gradient: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    items: int,
    positions: int,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The operator ``embedding_backward``: the gradients of both tables."""
    gradient, ids = gradient.contiguous(), ids.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    seed = _beside(seed, gradient)
    tokens, dim = gradient.shape
    rows = 0 if offsets is None else offsets.shape[0] - 1
    # every row is written where there are positions and offsets; else nothing reaches them
    d_positions = gradient.new_empty(positions, dim) if offsets is not None else None
    d_weight = gradient.new_zeros(items, dim)
    exact = gradient.dtype != torch.float32 or torch.are_deterministic_algorithms_enabled()
    ordered = exact and tokens > 0
    sorted_ids, sorted_tokens = torch.sort(ids, stable=True) if ordered else (None, None)
    module = kernels_for(gradient)
    size = module.embed_scratch_size(tokens, dim, rows, positions, ordered)
    scratch = torch.empty(size, dtype=torch.float32, device=gradient.device)
    module.embed_backward(
        gradient.data_ptr(),
        ids.data_ptr(),
        address(sorted_ids),
        address(sorted_tokens),
        address(offsets),
        d_weight.data_ptr(),
        address(d_positions),
        scratch.data_ptr(),
        size,
        tokens,
        items,
        rows,
        positions,
        dim,
        address(seed),
        p,
        number(gradient.dtype),
        stream(gradient),
    )
    return d_weight, gradient.new_zeros(positions, dim) if d_positions is None else d_positions


def _beside(seed: Tensor | None, tensor: Tensor) -> Tensor | None:
    """The seed on the device of the tensor, where the kernels read it."""
    return None if seed is None else seed.to(tensor.device, non_blocking=True).contiguous()
