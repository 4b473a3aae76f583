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
from seqrec_fast.nn.feed_forward import FeedForward
from seqrec_fast.nn.layer_norm import LayerNorm
from seqrec_fast.ops._rows import EqualRun
from seqrec_fast.ops.attention import runs_for
from seqrec_fast.ops.dropout import draw_seeds
from seqrec_fast.ops.embedding import sequence_embedding

__all__ = ["SASRec"]


class Block(torch.nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        dim = options.dim
        self.attention_norm = LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, options.heads)
        self.feed_forward_norm = LayerNorm(dim)
        self.feed_forward = FeedForward(dim, options.feed_forward * dim, options.dropout)
        self.dropout = options.dropout

    def forward(
        self,
        x: Tensor,
        normed: Tensor,
        offsets: Tensor,
        runs: list[EqualRun] | None,
        following: LayerNorm,
        seeds: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    ) -> tuple[Tensor, Tensor]:
        """Takes ``x``, its norm, and seeds of its dropouts; returns the result and its norm.

        A sum is normalised as it is made, so the norm that a block begins with is computed at the
        end of the one before: ``following`` is that of the next.
        """
        change = self.attention(normed, offsets, runs=runs)
        x, normed = self.feed_forward_norm.add(change, x, self.dropout, seeds[0])
        return following.add(self.feed_forward(normed, seeds[1]), x, self.dropout, seeds[2])


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
        self.blocks = torch.nn.ModuleList(Block(options) for _ in range(options.depth))
        self.final_norm = LayerNorm(options.dim)
        torch.nn.init.normal_(self.position_embedding.weight, std=_INITIAL_STD)
        for module in self.blocks.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=_INITIAL_STD)
                torch.nn.init.zeros_(module.bias)

    def forward(self, batch: JaggedBatch[Tensor]) -> Tensor:
        """Embeds every token; see :meth:`SequenceModel.forward`."""
        if not batch.offsets.is_cuda:  # the host must not wait for a GPU
            self._check_lengths(batch)
        first, *seeds = self._seeds(batch.values.device)
        x = sequence_embedding(
            self.item_embedding.weight,
            batch.values,
            self.position_embedding.weight,
            batch.offsets,
            dropout=self.options.input_dropout if self.training else 0.0,
            seed=first,
        )
        norms = self._norms()
        normed = norms[0](x)
        runs = runs_for(normed, batch.offsets)
        for number, (block, following) in enumerate(zip(self.blocks, norms[1:], strict=True)):
            own = tuple(seeds[3 * number : 3 * number + 3])
            x, normed = block(x, normed, batch.offsets, runs, following, own)
        return self.finish(normed, batch)

    def _seeds(self, device: torch.device) -> list[Tensor | None]:
        """Of the input's dropout and of three a block, in their order; None for one without."""
        inner = 3 * len(self.blocks)
        drops = [self.options.input_dropout > 0, *[self.options.dropout > 0] * inner]
        if not self.training or not any(drops):
            return [None] * len(drops)
        drawn = iter(draw_seeds(sum(drops), device))
        return [next(drawn) if drop else None for drop in drops]

    def _check_lengths(self, batch: JaggedBatch[Tensor]) -> None:
        lengths = batch.offsets[1:] - batch.offsets[:-1]
        longest = int(lengths.max()) if len(lengths) else 0
        if longest > self.options.max_length:
            raise InputError(
                f"batch: a row has {longest} events, the model was made for "
                f"{self.options.max_length}; pass batch.last({self.options.max_length})"
            )

    def _norms(self) -> list[LayerNorm]:
        """The norm that each block begins with, and the last one."""
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return [*(block.attention_norm for block in blocks), self.final_norm]
