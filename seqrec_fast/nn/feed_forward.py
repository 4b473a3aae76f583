# SPDX-License-Identifier: Apache-2.0
"""The feed-forward layer of a transformer block."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops.dropout import check_probability
from seqrec_fast.ops.feed_forward import check_activation, feed_forward

__all__ = ["FeedForward"]


class FeedForward(torch.nn.Module):
    """``down(dropout(activation(up(x))))``.

    Parameters ``up.weight [inner, dim]`` and ``down.weight [dim, inner]``, each with a bias.

    Args:
        dim: width of a token.
        inner: width between the two products.
        dropout: probability of dropping a hidden element while training.
        activation: gelu_tanh (Hendrycks and Gimpel 2016), gelu, relu or silu.
    """

    def __init__(
        self, dim: int, inner: int, dropout: float = 0.0, activation: str = "gelu_tanh"
    ) -> None:
        super().__init__()
        if dim < 1 or inner < 1:
            raise InputError(f"dim, inner: must be at least 1, found {dim} and {inner}")
        check_activation(activation)
        check_probability(dropout)
        self.up = torch.nn.Linear(dim, inner)
        self.down = torch.nn.Linear(inner, dim)
        self.dropout = dropout
        self.activation = activation

    def forward(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        """Applies the layer to ``[..., dim]``; the seed of its dropout is drawn where None."""
        return feed_forward(
            x,
            self.up.weight,
            self.up.bias,
            self.down.weight,
            self.down.bias,
            activation=self.activation,
            dropout=self.dropout if self.training else 0.0,
            seed=seed,
        )
