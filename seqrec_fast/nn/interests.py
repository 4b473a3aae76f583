# SPDX-License-Identifier: Apache-2.0
"""Several interests of a user: self-attentive pooling of the events beside an encoder's state.

The attention is that of ComiRec-SA (Cen et al. 2020, arXiv:2005.09347): interest ``k`` weighs the
items ``e`` of a history by ``softmax(W2[k] . tanh(W1 e + b1))``. Here it is causal, so that every
event of a training window has the interests of the events up to it, and what it finds is added to
the encoder's own embedding, so that no interest forgets the order of the events.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops._rows import token_positions

__all__ = ["InterestHead"]

# Weights before the softmax are kept within this of 0, so that a sum over the beginning of a row
# can be told apart beside its largest term: exp(2 * 20) is below 1 / float32's least normal number.
_MOST = 20.0


class InterestHead(torch.nn.Module):
    """From an embedding a token to ``interests`` embeddings a token.

    ``out[t, k] = hidden[t] + P[k] sum_s a[s, k] e[s] / sum_s a[s, k]`` with
    ``a[s, k] = exp(W2[k] . tanh(W1 e[s] + b1))`` and the sums over ``s <= t`` in the row of ``t``.

    Parameters ``hidden.weight [width, dim]``, ``hidden.bias [width]`` (W1, b1),
    ``scores.weight [interests, width]`` (W2), ``projection [interests, dim, dim]`` (P). Each
    interest has a projection of its own, so that a history of one event has several interests too.

    Args:
        dim: width of embeddings and items.
        interests: how many, at least 2.
        dropout: share of what an interest pools that is dropped in training.
        item_dropout: share of each item vector that is dropped before it is pooled.
    """

    def __init__(
        self, dim: int, interests: int, dropout: float = 0.0, item_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if interests < 2:
            raise InputError(f"interests: a head needs at least 2, found {interests}")
        self.interests = interests
        self.dropout = torch.nn.Dropout(dropout)
        self.item_dropout = torch.nn.Dropout(item_dropout)
        width = 4 * interests
        self.hidden = torch.nn.Linear(dim, width)
        self.scores = torch.nn.Linear(width, interests, bias=False)
        self.projection = torch.nn.Parameter(torch.empty(interests, dim, dim))
        # Interests differ from the first step on; else all of them would learn the same.
        torch.nn.init.normal_(self.hidden.weight, std=2.0)
        torch.nn.init.normal_(self.scores.weight, std=0.5)
        torch.nn.init.normal_(self.projection, std=0.02)

    def forward(self, hidden: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        """Interests after every event.

        Args:
            hidden: ``[tokens, dim]``, the encoder's embeddings.
            items: ``[tokens, dim]``, the vectors of the events' items.
            offsets: int64 ``[rows + 1]``.

        Returns:
            ``[tokens, interests, dim]``.
        """
        logits = self.scores(torch.tanh(self.hidden(items)))
        weights = logits.clamp(-_MOST, _MOST).exp()
        items = self.item_dropout(items)
        # The weights themselves are one more column, so that one sum gives both.
        terms = torch.cat([items, items.new_ones(len(items), 1)], dim=1)
        sums = _prefix_sums(weights.unsqueeze(2) * terms.unsqueeze(1), offsets)
        pooled = self.dropout(sums[:, :, :-1] / sums[:, :, -1:])
        return hidden.unsqueeze(1) + torch.einsum("tkd,ked->tke", pooled, self.projection)


def _prefix_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums over the beginning of each row up to every token; ``values`` is ``[tokens, ...]``.

    Rows are laid side by side, padded with zeros: a running sum over all tokens would carry the
    rounding of every row into all that follow.
    """
    if values.is_cuda:
        return _doubled_sums(values, token_positions(offsets, len(values)))
    lengths = offsets[1:] - offsets[:-1]
    longest = int(lengths.max()) if len(lengths) else 0
    if longest * len(lengths) == len(values):
        shape = (len(lengths), longest, *values.shape[1:])
        return values.view(shape).cumsum(dim=1).view(values.shape)
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
    places = torch.arange(len(values), device=values.device) - offsets[rows]
    padded = values.new_zeros(len(lengths), longest, *values.shape[1:])
    padded = padded.index_put((rows, places), values)
    return padded.cumsum(dim=1)[rows, places]


def _doubled_sums(values: Tensor, places: Tensor) -> Tensor:
    """The same sums where the host does not know the lengths of the rows, as on a GPU.

    Each pass adds what twice as many tokens before summed up (Hillis and Steele 1986): as many
    passes as the number of tokens has bits, none of which looks at a length.

    Args:
        values: ``[tokens, ...]``.
        places: int64 ``[tokens]``, the place of each token in its row.
    """
    shape = (-1, *(1,) * (values.ndim - 1))
    step = 1
    while step < len(values):
        reached = torch.cat([torch.zeros_like(values[:step]), values[:-step]])
        values = values + reached * (places >= step).view(shape)
        step *= 2
    return values
