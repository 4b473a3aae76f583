# SPDX-License-Identifier: Apache-2.0
"""The layer of HSTU (Zhai et al. 2024, "Actions Speak Louder than Words") on jagged batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from seqrec_fast.errors import InputError
from seqrec_fast.ops.dropout import check_probability
from seqrec_fast.ops.hstu_attention import hstu_attention

__all__ = ["HSTULayer"]

_INITIAL_STD = 0.02


class HSTULayer(torch.nn.Module):
    """``x + out(dropout(norm(attention(q, k, v)) * u))`` with ``u, v, q, k = silu(uvqk(norm(x)))``.

    One projection makes gate, values, queries and keys; the attention is
    :func:`seqrec_fast.ops.hstu_attention` with biases by distance and, where asked for, by time;
    the gate takes the place of a feed-forward part.

    Parameters: ``uvqk.weight [4 * heads * width, dim]`` and its bias, ``out.weight
    [dim, heads * width]`` and its bias, ``input_norm`` over ``dim``, ``attention_norm`` over
    ``heads * width``, ``bias [heads, max_length]`` and ``time_bias [heads, time_buckets]`` (None
    without buckets).

    Args:
        dim: width of a token.
        heads: number of heads.
        max_length: longest row, which every attention weight is divided by; longer rows are
            computed too, their far distances sharing the last entry of the bias.
        width: of a head; ``dim / heads`` where None.
        time_buckets: entries of the bias by time difference; 0 leaves it out.
        dropout: probability of dropping an input of ``out`` while training.
    """

    time_bias: torch.nn.Parameter | None

    def __init__(
        self,
        dim: int,
        heads: int,
        max_length: int,
        *,
        width: int | None = None,
        time_buckets: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width is None and (heads < 1 or dim < 1 or dim % heads):
            raise InputError(f"heads: {heads} heads do not divide dim {dim}; give a width")
        width = dim // heads if width is None else width
        if min(dim, heads, max_length, width) < 1 or time_buckets < 0:
            raise InputError("dim, heads, max_length, width: must be at least 1")
        check_probability(dropout)
        self.heads = heads
        self.width = width
        self.max_length = max_length
        self.input_norm = torch.nn.LayerNorm(dim)
        self.uvqk = torch.nn.Linear(dim, 4 * heads * width)
        self.attention_norm = torch.nn.LayerNorm(heads * width)
        self.dropout = torch.nn.Dropout(dropout)
        self.out = torch.nn.Linear(heads * width, dim)
        self.bias = torch.nn.Parameter(torch.empty(heads, max_length))
        torch.nn.init.normal_(self.bias, std=_INITIAL_STD)
        self.time_bias = None
        if time_buckets:
            self.time_bias = torch.nn.Parameter(torch.empty(heads, time_buckets))
            torch.nn.init.normal_(self.time_bias, std=_INITIAL_STD)

    def forward(self, values: Tensor, offsets: Tensor, times: Tensor | None = None) -> Tensor:
        """Applies the layer.

        Args:
            values: ``[tokens, dim]``, rows end to end.
            offsets: int64 ``[rows + 1]``.
            times: int64 ``[tokens]``, when each event happened; needed where there are buckets.

        Returns:
            ``[tokens, dim]``.

        Raises:
            InputError: shapes do not fit, or the times are missing.
        """
        if self.time_bias is not None and times is None:
            raise InputError("times: the layer has a bias by time; give when each event happened")
        if values.ndim != 2 or values.shape[1] != self.uvqk.in_features:
            raise InputError(
                f"values: expected [tokens, {self.uvqk.in_features}], found {tuple(values.shape)}"
            )
        tokens = values.shape[0]
        parts = silu(self.uvqk(self.input_norm(values)))
        u, v, q, k = parts.view(tokens, 4, self.heads, self.width).unbind(1)
        mixed = hstu_attention(
            q,
            k,
            v,
            offsets,
            normaliser=float(self.max_length),
            bias=self.bias,
            time_bias=self.time_bias,
            times=None if self.time_bias is None else times,
        )
        normed = self.attention_norm(mixed.reshape(tokens, self.heads * self.width))
        gated = normed * u.reshape(tokens, self.heads * self.width)
        result: Tensor = values + self.out(self.dropout(gated))
        return result
