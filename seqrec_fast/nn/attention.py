# SPDX-License-Identifier: Apache-2.0
"""Multi-head self-attention on jagged batches, causal or in both directions."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops._rows import EqualRun
from seqrec_fast.ops.attention import packed_attention
from seqrec_fast.ops.dropout import check_probability

__all__ = ["CausalSelfAttention", "SelfAttention"]


class SelfAttention(torch.nn.Module):
    """Projects to queries, keys and values, attends inside each row, projects back.

    Parameters ``qkv.weight [3 * dim, dim]`` (queries, keys, values) and ``out.weight [dim, dim]``,
    each with a bias.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: number of heads.
        dropout: probability of dropping an attention weight while training.
        causal: whether a token sees only itself and earlier tokens of its row; both directions
            (BERT4Rec) where false.
    """

    def __init__(
        self, dim: int, heads: int = 2, dropout: float = 0.0, *, causal: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise InputError(f"heads: {heads} heads do not divide dim {dim}; choose a divisor")
        check_probability(dropout)
        self.heads = heads
        self.dropout = dropout
        self.causal = causal
        self.qkv = torch.nn.Linear(dim, 3 * dim)
        self.out = torch.nn.Linear(dim, dim)

    def forward(
        self, values: Tensor, offsets: Tensor, *, runs: list[EqualRun] | None = None
    ) -> Tensor:
        """Attends.

        Args:
            values: ``[tokens, dim]``, rows end to end.
            offsets: int64 ``[rows + 1]``.
            runs: ``equal_runs(offsets)`` if it is at hand; only the reference uses it.

        Returns:
            ``[tokens, dim]``.

        Raises:
            InputError: shapes do not fit.
        """
        if values.ndim != 2 or values.shape[1] != self.qkv.in_features:
            raise InputError(
                f"values: expected [tokens, {self.qkv.in_features}], found {tuple(values.shape)}"
            )
        tokens, dim = values.shape
        mixed = packed_attention(
            self.qkv(values).view(tokens, 3, self.heads, dim // self.heads),
            offsets,
            causal=self.causal,
            dropout=self.dropout if self.training else 0.0,
            runs=runs,
        )
        result: Tensor = self.out(mixed.reshape(tokens, dim))
        return result


class CausalSelfAttention(SelfAttention):
    """:class:`SelfAttention` in which a token sees only itself and earlier tokens of its row.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: number of heads.
        dropout: probability of dropping an attention weight while training.
    """

    def __init__(self, dim: int, heads: int = 2, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout, causal=True)
