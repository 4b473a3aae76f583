# SPDX-License-Identifier: Apache-2.0
"""SASRec: a causal transformer over item sequences (Kang and McAuley 2018), in pre-norm form."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models.base import _INITIAL_STD, SequenceModel
from seqrec_fast.models.options import ModelOptions
from seqrec_fast.nn.attention import CausalSelfAttention
from seqrec_fast.ops._rows import EqualRun, equal_runs, token_positions

__all__ = ["SASRec"]


class FeedForward(torch.nn.Module):
    """``down(dropout(gelu(up(x))))``, GELU in its tanh form (Hendrycks, Gimpel 2016)."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.up = torch.nn.Linear(dim, inner)
        self.down = torch.nn.Linear(inner, dim)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(
            self.dropout(torch.nn.functional.gelu(self.up(x), approximate="tanh"))
        )
        return result


class Block(torch.nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        dim = options.dim
        self.attention_norm = torch.nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, options.heads)
        self.feed_forward_norm = torch.nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, options.feed_forward * dim, options.dropout)
        self.dropout = torch.nn.Dropout(options.dropout)

    def forward(self, x: Tensor, offsets: Tensor, runs: list[EqualRun]) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), offsets, runs=runs))
        result: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return result


class SASRec(SequenceModel):
    """Item and position embedding, dropout, ``layers`` blocks, a last layer norm.

    Positions count from the first event of the row that is given, so that the state of a prefix
    stays valid when events follow. Parameters beside the tables: ``position_embedding.weight
    [max_length, dim]``, ``blocks.{i}.attention_norm|attention.qkv|attention.out|
    feed_forward_norm|feed_forward.up|feed_forward.down``, ``final_norm``.
    """

    def __init__(self, options: ModelOptions, num_items: int) -> None:
        super().__init__(options, num_items)
        self.position_embedding = torch.nn.Embedding(options.max_length, options.dim)
        self.input_dropout = torch.nn.Dropout(options.input_dropout)
        self.blocks = torch.nn.ModuleList(Block(options) for _ in range(options.depth))
        self.final_norm = torch.nn.LayerNorm(options.dim)
        torch.nn.init.normal_(self.position_embedding.weight, std=_INITIAL_STD)
        for module in self.blocks.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=_INITIAL_STD)
                torch.nn.init.zeros_(module.bias)

    def forward(self, batch: JaggedBatch[Tensor]) -> Tensor:
        """Embeds every token; see :meth:`SequenceModel.forward`."""
        positions = token_positions(batch.offsets)
        if len(positions) and int(positions.max()) >= self.options.max_length:
            raise InputError(
                f"batch: a row has {int(positions.max()) + 1} events, the model was made for "
                f"{self.options.max_length}; pass batch.last({self.options.max_length})"
            )
        runs = equal_runs(batch.offsets)
        x = self.item_embedding(batch.values) + self.position_embedding(positions)
        x = self.input_dropout(x)
        for block in self.blocks:
            x = block(x, batch.offsets, runs)
        return self.finish(self.final_norm(x))
