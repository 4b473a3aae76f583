# SPDX-License-Identifier: Apache-2.0
"""User encoders from recurrent layers: RNN, LSTM and GRU (GRU4Rec; Hidasi et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models.base import A, SequenceModel
from seqrec_fast.models.options import ModelOptions
from seqrec_fast.nn.recurrent import GRU, LSTM, RNN, Recurrent

__all__ = ["RecurrentModel"]

_LAYERS: dict[str, type[Recurrent]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class RecurrentModel(SequenceModel):
    """Item embedding, dropout, recurrent layers, dropout, linear projection to ``dim``.

    Parameters beside the tables: ``recurrent.*`` as in torch, ``projection.weight [dim, hidden]``
    and ``projection.bias [dim]``.
    """

    def __init__(self, options: ModelOptions, num_items: int) -> None:
        super().__init__(options, num_items)
        self.input_dropout = torch.nn.Dropout(options.input_dropout)
        self.recurrent = _LAYERS[options.model](
            options.dim,
            options.hidden_size,
            options.depth,
            dropout=options.dropout,
            cell_activation="sigmoid" if options.cell_activation == "sigmoid" else "tanh",
        )
        self.output_dropout = torch.nn.Dropout(options.dropout)
        self.projection = torch.nn.Linear(options.hidden_size, options.dim)

    def window(self, histories: JaggedBatch[A]) -> JaggedBatch[A]:
        """All of each history: training alone cuts it, so that a state can be kept for ever."""
        return histories

    def forward(self, batch: JaggedBatch[Tensor]) -> Tensor:
        """Embeds every token; see :meth:`SequenceModel.forward`."""
        x = self.input_dropout(self.item_embedding(batch.values))
        hidden, _ = self.recurrent(batch.with_values(x))
        return self.finish(self.projection(self.output_dropout(hidden.values)), batch)
