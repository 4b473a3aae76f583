# SPDX-License-Identifier: Apache-2.0
"""Training objectives over a catalogue: full cross-entropy, sampled softmax, BCE with negatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.models import SequenceModel
from seqrec_fast.ops.cross_entropy import linear_cross_entropy, sampled_cross_entropy
from seqrec_fast.training.options import TrainingOptions

__all__ = ["NegativeSampler", "Objective", "bce_with_negatives", "make_objective"]

#: mean loss of ``hidden [tokens, dim]`` against ``targets [tokens]`` with optional weights
Objective = Callable[[SequenceModel, Tensor, Tensor, "Tensor | None", np.random.Generator], Tensor]

_CHUNK_NEGATIVES = 65_536
_CHUNK_LOGITS = 1 << 18  # held at once; a second-level cache has room for them


class NegativeSampler:
    """Draws items with probability proportional to ``popularity ** power``.

    Args:
        popularity: events of each item; items without events are drawn as if they had one.
        power: 0 is uniform, 1 by popularity.
    """

    def __init__(self, popularity: NDArray[np.int64], power: float) -> None:
        mass = np.maximum(popularity, 1).astype(np.float64) ** power
        self._edges = np.cumsum(mass)
        self.log_probability = torch.from_numpy(np.log(mass / self._edges[-1])).float()

    def draw(self, count: int, generator: np.random.Generator) -> Tensor:
        """int64 ``[count]`` items, with replacement."""
        at = generator.random(count) * self._edges[-1]
        drawn = np.searchsorted(self._edges, at, side="right")
        return torch.from_numpy(np.minimum(drawn, len(self._edges) - 1))


def bce_with_negatives(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    bias: Tensor | None = None,
    *,
    token_weights: Tensor | None = None,
) -> Tensor:
    """Weighted mean over tokens of ``-log sigmoid(s+) - sum log sigmoid(-s-)``.

    With one negative this is the loss of SASRec (Kang and McAuley 2018). A negative that is the
    token's own target does not count.

    Args:
        hidden: ``[tokens, dim]``.
        weight: ``[items, dim]``.
        targets: int64 ``[tokens]``.
        negatives: int64 ``[tokens, samples]``.
        bias: ``[items]`` or None.
        token_weights: ``[tokens]`` or None.
    """
    if negatives.ndim != 2 or negatives.shape[0] != targets.shape[0]:
        raise InputError(
            f"negatives: expected [{targets.shape[0]}, samples], found {tuple(negatives.shape)}"
        )
    softplus = torch.nn.functional.softplus
    losses = []
    step = max(1, _CHUNK_NEGATIVES // negatives.shape[1])
    for begin in range(0, hidden.shape[0], step):
        part = slice(begin, begin + step)
        h, y, n = hidden[part], targets[part], negatives[part]
        right = (h * weight[y]).sum(dim=1)
        wrong = torch.bmm(weight[n], h.unsqueeze(2)).squeeze(2)
        if bias is not None:
            right, wrong = right + bias[y], wrong + bias[n]
        other = (n != y[:, None]).to(h.dtype)
        losses.append(softplus(-right) + (softplus(wrong) * other).sum(dim=1))
    loss = torch.cat(losses) if losses else hidden.new_zeros(0)
    if token_weights is None:
        return loss.sum() / max(len(loss), 1)
    return (loss * token_weights).sum() / token_weights.sum().clamp(min=1e-12)


def interests_objective(plain: Objective) -> Objective:
    """The objective of tokens with several interests, from that of a token's single embedding.

    The classes are the pairs of an item and an interest, ``p(j, k) ~ exp(h_k . w_j + b_j)``, and a
    token's loss is ``-log sum_k p(target, k)``: all interests compete for every item, as they do
    when the model serves. With ``Z_k = sum_j exp(h_k . w_j + b_j)`` this is
    ``log sum_k Z_k - log sum_k exp(s_k)``, ``s_k`` being the target's scores. The gradient of the
    first part is that of every interest's own ``log Z_k`` weighted by its share of the sum, so
    that one call of ``plain`` with the shares as weights gives it.

    Args:
        plain: mean loss ``log Z - s`` of ``hidden [tokens, dim]`` with weights.
    """

    def objective(
        model: SequenceModel,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        generator: np.random.Generator,
    ) -> Tensor:
        if hidden.ndim == 2:
            return plain(model, hidden, targets, weights, generator)
        tokens, interests, dim = hidden.shape
        table, bias = model.output_table, model.output_bias
        vectors = torch.nn.functional.embedding(targets, table)
        scores = torch.bmm(hidden, vectors.unsqueeze(2)).squeeze(2)
        if bias is not None:
            scores = scores + bias[targets].unsqueeze(1)
        if weights is None:
            weights = hidden.new_ones(tokens)
        rows = hidden.reshape(-1, dim)
        masses = log_masses(rows.detach(), table.detach(), bias).view(tokens, interests)
        share = masses.softmax(dim=1)
        each = plain(
            model,
            rows,
            targets.repeat_interleave(interests),
            (share * weights.unsqueeze(1)).reshape(-1),
            generator,
        )
        # What `each` has beside the gradient that is wanted: the shares' own targets, and a value.
        value = masses.logsumexp(dim=1) - (share * masses).sum(dim=1)
        rest = (share * scores).sum(dim=1) - scores.logsumexp(dim=1) + value
        return each + (rest * weights).sum() / weights.sum().clamp(min=1e-12)

    return objective


@torch.no_grad()
def log_masses(hidden: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
    """``log sum_j exp(h . w_j + b_j)`` of each row of ``hidden [rows, dim]``, without gradient."""
    found = hidden.new_empty(len(hidden))
    step = max(1, _CHUNK_LOGITS // len(table))
    for begin in range(0, len(hidden), step):
        part = slice(begin, begin + step)
        logits = hidden[part] @ table.T
        if bias is not None:
            logits += bias
        top = logits.amax(dim=1, keepdim=True)
        # in place: torch.logsumexp makes further tensors of this size
        found[part] = logits.sub_(top).exp_().sum(dim=1).log_().add_(top.squeeze(1))
    return found


def make_objective(options: TrainingOptions, popularity: NDArray[np.int64]) -> Objective:
    """The objective that the options name, for tokens of one interest or several.

    Args:
        options: ``loss``, ``negatives`` and ``sampling_power`` are read.
        popularity: int64 ``[items]``, training events of each item.
    """
    return interests_objective(_objective(options, popularity))


def _objective(options: TrainingOptions, popularity: NDArray[np.int64]) -> Objective:
    if options.loss == "cross_entropy":
        return _full
    sampler = NegativeSampler(popularity, options.sampling_power)
    count = options.negatives

    def sampled(
        model: SequenceModel,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        generator: np.random.Generator,
    ) -> Tensor:
        drawn = sampler.draw(count, generator)
        # log of the expected number of times an item is among the samples
        log_q = sampler.log_probability + float(np.log(count))
        return sampled_cross_entropy(
            hidden,
            model.output_table,
            targets,
            drawn,
            model.output_bias,
            log_q_negatives=log_q[drawn],
            token_weights=weights,
        )

    def bce(
        model: SequenceModel,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        generator: np.random.Generator,
    ) -> Tensor:
        drawn = sampler.draw(count * len(targets), generator).view(len(targets), count)
        return bce_with_negatives(
            hidden,
            model.output_table,
            targets,
            drawn,
            model.output_bias,
            token_weights=weights,
        )

    return sampled if options.loss == "sampled_softmax" else bce


def _full(
    model: SequenceModel,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    generator: np.random.Generator,
) -> Tensor:
    return linear_cross_entropy(
        hidden, model.output_table, targets, model.output_bias, token_weights=weights
    )
