# SPDX-License-Identifier: Apache-2.0
"""Causal multi-head self-attention on jagged batches."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops._rows import EqualRun
from seqrec_fast.ops.attention import attention

__all__ = ["CausalSelfAttention"]


class CausalSelfAttention(torch.nn.Module):
    """Projects to queries, keys and values, attends causally inside each row, projects back.

    Parameters ``qkv.weight [3 * dim, dim]`` (queries, keys, values) and ``out.weight [dim, dim]``,
    each with a bias.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: number of heads.
        dropout: probability of dropping an attention weight while training.
    """

    def __init__(self, dim: int, heads: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise InputError(f"heads: {heads} heads do not divide dim {dim}; choose a divisor")
        self.heads = heads
        self.dropout = dropout
        self.qkv = torch.nn.Linear(dim, 3 * dim)
        self.out = torch.nn.Linear(dim, dim)

    def forward(
        self, values: Tensor, offsets: Tensor, *, runs: list[EqualRun] | None = None
    ) -> Tensor:
        """Attends.

        Args:
            values: ``[tokens, dim]``, rows end to end.
            offsets: int64 ``[rows + 1]``.
            runs: ``equal_runs(offsets)`` if it is at hand.

        Returns:
            ``[tokens, dim]``.
        """
        tokens, dim = values.shape
        q, k, v = self.qkv(values).view(tokens, 3, self.heads, dim // self.heads).unbind(1)
        mixed = attention(
            q, k, v, offsets, dropout=self.dropout if self.training else 0.0, runs=runs
        )
        result: Tensor = self.out(mixed.reshape(tokens, dim))
        return result
