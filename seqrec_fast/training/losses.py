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
from seqrec_fast.training.feeding import to_device
from seqrec_fast.training.options import TrainingOptions

__all__ = ["NegativeSampler", "Objective", "bce_with_negatives", "make_objective"]

#: mean loss of ``hidden [tokens, dim]`` against ``targets [tokens]`` with optional weights
Objective = Callable[[SequenceModel, Tensor, Tensor, "Tensor | None", np.random.Generator], Tensor]

#: weighted mean loss of rows ``[rows, dim]`` with weights ``[rows]``
RowLoss = Callable[[Tensor, Tensor], Tensor]

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
        hidden: ``[tokens, dim]``, or ``[tokens, interests, dim]``: a score is the best of them.
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
        several = h if h.ndim == 3 else h.unsqueeze(1)
        right = torch.bmm(several, weight[y].unsqueeze(2)).squeeze(2).amax(dim=1)
        wrong = torch.bmm(weight[n], several.transpose(1, 2)).amax(dim=2)
        if bias is not None:
            right, wrong = right + bias[y], wrong + bias[n]
        other = (n != y[:, None]).to(h.dtype)
        losses.append(softplus(-right) + (softplus(wrong) * other).sum(dim=1))
    loss = torch.cat(losses) if losses else hidden.new_zeros(0)
    if token_weights is None:
        return loss.sum() / max(len(loss), 1)
    return (loss * token_weights).sum() / token_weights.sum().clamp(min=1e-12)


def interests_loss(
    hidden: Tensor, scores: Tensor, weights: Tensor | None, masses: Tensor, each: RowLoss
) -> Tensor:
    """Weighted mean cross-entropy of tokens with several interests.

    The classes are the pairs of an item and an interest, ``p(j, k) ~ exp(h_k . w_j + b_j)``, and a
    token's loss is ``-log sum_k p(target, k)``: all interests compete for every item, as they do
    when the model serves. With ``Z_k = sum_j exp(h_k . w_j + b_j)`` and the target's scores ``s_k``
    this is ``log sum_k Z_k - log sum_k exp(s_k)``. The gradient of its first part is that of every
    interest's own ``log Z_k``, weighted by its share of the sum: one call of the loss of single
    embeddings, with the shares as weights, gives it.

    Args:
        hidden: ``[tokens, interests, dim]``.
        scores: ``[tokens, interests]``, ``s_k``.
        weights: ``[tokens]`` or None.
        masses: ``[tokens, interests]``, ``log Z_k`` without gradient.
        each: weighted mean of ``log Z - s`` over rows ``[tokens * interests, dim]``, given weights.
    """
    share = masses.softmax(dim=1)
    if weights is None:
        weights = hidden.new_ones(len(hidden))
    mean = each(hidden.reshape(-1, hidden.shape[2]), (share * weights.unsqueeze(1)).reshape(-1))
    # What `mean` has beside the gradient that is wanted: the shares' own targets, and a value.
    value = masses.logsumexp(dim=1) - (share * masses).sum(dim=1)
    rest = (share * scores).sum(dim=1) - scores.logsumexp(dim=1) + value
    return mean + (rest * weights).sum() / weights.sum().clamp(min=1e-12)


@torch.no_grad()
def log_masses(hidden: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
    """``log sum_j exp(h . w_j + b_j)`` of each row of ``hidden [rows, dim]``, without gradient.

    In float32 at least: in mixed precision the sum over many items is more than float16 holds.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    found = hidden.new_empty(len(hidden), dtype=dtype)
    step = max(1, _CHUNK_LOGITS // len(table))
    for begin in range(0, len(hidden), step):
        part = slice(begin, begin + step)
        logits = (hidden[part] @ table.T).to(dtype)
        if bias is not None:
            logits += bias
        top = logits.amax(dim=1, keepdim=True)
        # in place: torch.logsumexp makes further tensors of this size
        found[part] = logits.sub_(top).exp_().sum(dim=1).log_().add_(top.squeeze(1))
    return found


def make_objective(options: TrainingOptions, popularity: NDArray[np.int64]) -> Objective:
    """The objective that the options name; ``hidden`` may be ``[tokens, interests, dim]``.

    Args:
        options: ``loss``, ``negatives`` and ``sampling_power`` are read.
        popularity: int64 ``[items]``, training events of each item.
    """
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
        log_q = sampler.log_probability[drawn] + float(np.log(count))
        drawn, log_q = (to_device(t, hidden.device) for t in (drawn, log_q))
        table, bias = model.output_table, model.output_bias
        interests = hidden.shape[1] if hidden.ndim == 3 else 1

        def each(rows: Tensor, row_weights: Tensor | None) -> Tensor:
            return sampled_cross_entropy(
                rows,
                table,
                targets.repeat_interleave(interests) if interests > 1 else targets,
                drawn,
                bias,
                log_q_negatives=log_q,
                token_weights=row_weights,
            )

        if hidden.ndim == 2:
            return each(hidden, weights)
        scores = _target_scores(hidden, table, targets, bias)
        with torch.no_grad():
            shift = -log_q if bias is None else bias[drawn] - log_q
            wrong = hidden @ table[drawn].T + shift
            same = drawn == targets.unsqueeze(1)
            wrong = wrong.masked_fill(same.unsqueeze(1), -torch.inf)
            masses = torch.logaddexp(wrong.logsumexp(dim=2), scores)
        return interests_loss(hidden, scores, weights, masses, each)

    def bce(
        model: SequenceModel,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        generator: np.random.Generator,
    ) -> Tensor:
        drawn = sampler.draw(count * len(targets), generator).view(len(targets), count)
        drawn = to_device(drawn, hidden.device)
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
    table, bias = model.output_table, model.output_bias
    if hidden.ndim == 2:
        return linear_cross_entropy(hidden, table, targets, bias, token_weights=weights)
    interests = hidden.shape[1]
    rows = hidden.detach().reshape(-1, hidden.shape[2])
    masses = log_masses(rows, table.detach(), bias).view(-1, interests)
    repeated = targets.repeat_interleave(interests)

    def each(vectors: Tensor, row_weights: Tensor) -> Tensor:
        return linear_cross_entropy(vectors, table, repeated, bias, token_weights=row_weights)

    scores = _target_scores(hidden, table, targets, bias)
    return interests_loss(hidden, scores, weights, masses, each)


def _target_scores(hidden: Tensor, table: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    """``[tokens, interests]``: what each interest gives the target."""
    vectors = torch.nn.functional.embedding(targets, table)
    scores = torch.bmm(hidden, vectors.unsqueeze(2)).squeeze(2)
    return scores if bias is None else scores + bias[targets].unsqueeze(1)
