# SPDX-License-Identifier: Apache-2.0
"""What every user encoder shares: the item table, the output table, and how users are encoded."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models.options import ModelOptions
from seqrec_fast.nn.interests import InterestHead

__all__ = ["SequenceModel"]

_INITIAL_STD = 0.02

A = TypeVar("A")  # numpy.ndarray or torch.Tensor


class SequenceModel(torch.nn.Module):
    """A user encoder: item sequences in, one embedding a token out.

    The score of item ``j`` after a token is ``embedding . output_table[j] + output_bias[j]``; with
    a ``temperature`` both vectors have unit length and the product is divided by it. With several
    ``interests`` a token has as many embeddings, and an item's score is the best of theirs.
    Parameters ``item_embedding.weight [items, dim]``; ``output.weight [items, dim]`` where the
    output is not tied; ``output_bias [items]`` where there is a bias.

    Args:
        options: the hyper-parameters.
        num_items: number of items; items are 0 to ``num_items - 1``.
    """

    def __init__(self, options: ModelOptions, num_items: int) -> None:
        super().__init__()
        if num_items < 1:
            raise InputError(f"num_items: must be at least 1, found {num_items}")
        self.options = options
        self.num_items = num_items
        self.item_embedding = torch.nn.Embedding(num_items, options.dim)
        torch.nn.init.normal_(self.item_embedding.weight, std=_INITIAL_STD)
        self.output: torch.nn.Embedding | None = None
        if not options.tied_output:
            self.output = torch.nn.Embedding(num_items, options.dim)
            torch.nn.init.normal_(self.output.weight, std=_INITIAL_STD)
        self.output_bias: torch.nn.Parameter | None = None
        if options.item_bias:
            self.output_bias = torch.nn.Parameter(torch.zeros(num_items))
        self.interest_head: InterestHead | None = None
        if options.interests > 1:
            self.interest_head = InterestHead(
                options.dim, options.interests, options.dropout, options.input_dropout
            )

    @property
    def output_table(self) -> Tensor:
        """``[items, dim]``: the vectors that items are scored with."""
        table = self.item_embedding.weight if self.output is None else self.output.weight
        if self.options.temperature is None:
            return table
        return torch.nn.functional.normalize(table, dim=1) / self.options.temperature

    def finish(self, hidden: Tensor, batch: JaggedBatch[Tensor]) -> Tensor:
        """Turns the encoder's last hidden states into user embeddings; see :meth:`forward`."""
        if self.interest_head is not None:
            items = torch.nn.functional.embedding(batch.values, self.item_embedding.weight)
            hidden = self.interest_head(hidden, items, batch.offsets)
        if self.options.temperature is None:
            return hidden
        return torch.nn.functional.normalize(hidden, dim=-1)

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of what a user is embedded as: ``(dim,)``, or ``(interests, dim)``."""
        interests = (self.options.interests,) if self.options.interests > 1 else ()
        return (*interests, self.options.dim)

    @torch.no_grad()
    def scorer(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The output table ``[items, dim]`` and bias ``[items]`` (or None) as numpy arrays."""
        table = self.output_table.float().cpu().numpy()
        bias = self.output_bias
        return table, None if bias is None else bias.detach().float().cpu().numpy()

    def window(self, histories: JaggedBatch[A]) -> JaggedBatch[A]:
        """The part of each history that :meth:`encode` reads: its last ``max_length`` events."""
        return histories.last(self.options.max_length)

    def config(self) -> dict[str, Any]:
        """The plain values from which the model can be made again."""
        return {**self.options.to_config(), "num_items": self.num_items}

    def forward(self, batch: JaggedBatch[Tensor]) -> Tensor:
        """Embeds every token with what came before it in its row.

        Args:
            batch: int64 or int32 items, rows of at most ``max_length`` events, oldest first.

        Returns:
            ``[tokens, dim]``, in the order of ``batch.values``; ``[tokens, interests, dim]`` where
            there are several.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")

    def encode(
        self, histories: JaggedBatch[NDArray[np.int32]], *, tokens_per_batch: int = 32_768
    ) -> NDArray[np.float32]:
        """User embeddings as a numpy array; see :meth:`embed`."""
        return self.embed(histories, tokens_per_batch=tokens_per_batch).cpu().numpy()

    @torch.no_grad()
    def embed(
        self, histories: JaggedBatch[NDArray[np.int32]], *, tokens_per_batch: int = 32_768
    ) -> Tensor:
        """User embeddings: the embedding after the last event of each history.

        Evaluation mode is used and the mode before it restored.

        Args:
            histories: int32 items (numpy), no row empty; :meth:`window` says what is read of them.
            tokens_per_batch: events encoded at once.

        Returns:
            float32 ``[rows, dim]`` on the device of the model; ``[rows, interests, dim]`` where
            there are several.

        Raises:
            InputError: a history is empty.
        """
        window = self.window(histories)
        lengths = np.diff(window.offsets)
        if len(lengths) and not lengths.all():
            raise InputError(f"histories: row {int(np.argmin(lengths))} is empty; drop empty rows")
        # longest first, so that rows of equal length stand together
        order = np.argsort(-lengths, kind="stable")
        device = self.item_embedding.weight.device
        result = torch.empty(
            (len(lengths), *self.embedding_shape), dtype=torch.float32, device=device
        )
        training = self.training
        self.eval()
        try:
            begin = 0
            while begin < len(order):
                rows = max(1, tokens_per_batch // int(lengths[order[begin]]))
                chosen = order[begin : begin + rows]
                batch = window.select(chosen).to_torch(device)
                embedded = self(batch).index_select(0, batch.offsets[1:] - 1)
                result.index_copy_(0, torch.from_numpy(chosen).to(device), embedded.float())
                begin += rows
        finally:
            self.train(training)
        return result
