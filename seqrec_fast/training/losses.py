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


def chosen_interest(hidden: Tensor, model: SequenceModel, targets: Tensor) -> Tensor:
    """Of each token's interests the one that scores its target best, as ComiRec trains them.

    Args:
        hidden: ``[tokens, interests, dim]``; ``[tokens, dim]`` comes back as it is.
        model: gives the vectors of the items.
        targets: int64 ``[tokens]``.

    Returns:
        ``[tokens, dim]``. The choice itself has no gradient.
    """
    if hidden.ndim == 2:
        return hidden
    with torch.no_grad():
        vectors = torch.nn.functional.embedding(targets, model.output_table)
        best = torch.bmm(hidden, vectors.unsqueeze(2)).squeeze(2).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), best]


def make_objective(options: TrainingOptions, popularity: NDArray[np.int64]) -> Objective:
    """The objective that the options name, on the interest of each token that fits its target.

    Args:
        options: ``loss``, ``negatives`` and ``sampling_power`` are read.
        popularity: int64 ``[items]``, training events of each item.
    """
    plain = _objective(options, popularity)

    def objective(
        model: SequenceModel,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        generator: np.random.Generator,
    ) -> Tensor:
        chosen = chosen_interest(hidden, model, targets)
        return plain(model, chosen, targets, weights, generator)

    return objective


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
