# SPDX-License-Identifier: Apache-2.0
"""Layer norm, alone and with the residual sum before it."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops.layer_norm import add_layer_norm, layer_norm

__all__ = ["LayerNorm"]


class LayerNorm(torch.nn.Module):
    """Normalises over the last axis; parameters ``weight [dim]`` and ``bias [dim]`` as torch's.

    Args:
        dim: width of the last axis.
        eps: added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        if dim < 1:
            raise InputError(f"dim: must be at least 1, found {dim}")
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(dim))
        self.bias = torch.nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``[..., dim]``."""
        return layer_norm(x, self.weight, self.bias, eps=self.eps)

    def add(
        self, x: Tensor, residual: Tensor, dropout: float = 0.0, seed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``residual + dropout(x)`` and its norm; see :func:`seqrec_fast.ops.add_layer_norm`.

        The dropout is applied in training mode alone; its seed is drawn where None.
        """
        p = dropout if self.training else 0.0
        return add_layer_norm(
            x, residual, self.weight, self.bias, eps=self.eps, dropout=p, seed=seed
        )
