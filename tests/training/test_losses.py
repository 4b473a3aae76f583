# SPDX-License-Identifier: Apache-2.0
"""Objectives against their formulas; the sampler against its distribution; learning rates."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from seqrec_fast.errors import InputError
from seqrec_fast.models import ModelOptions, build_model
from seqrec_fast.training import NegativeSampler, TrainingOptions, bce_with_negatives
from seqrec_fast.training.losses import log_masses, make_objective
from seqrec_fast.training.optimizers import learning_rate_factor, make_optimizer


def test_bce_is_its_formula() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3])
    negatives = torch.tensor([[1, 2], [1, 5], [3, 4], [0, 0]])  # row 1 draws its own target
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5], dtype=torch.float64)
    scores = hidden @ weight.T + bias
    want = []
    for token in range(4):
        loss = -torch.nn.functional.logsigmoid(scores[token, targets[token]])
        for negative in negatives[token]:
            if negative != targets[token]:
                loss = loss - torch.nn.functional.logsigmoid(-scores[token, negative])
        want.append(loss)
    got = bce_with_negatives(hidden, weight, targets, negatives, bias, token_weights=weights)
    torch.testing.assert_close(got, (torch.stack(want) * weights).sum() / weights.sum())
    assert torch.autograd.gradcheck(
        lambda h, w, b: bce_with_negatives(h, w, targets, negatives, b), (hidden, weight, bias)
    )
    with pytest.raises(InputError, match=r"negatives: expected \[4, samples\]"):
        bce_with_negatives(hidden, weight, targets, negatives[:2])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_sampler_draws_by_popularity_to_a_power(power: float) -> None:
    popularity = np.array([100, 0, 25, 4])
    sampler = NegativeSampler(popularity, power)
    drawn = sampler.draw(200_000, np.random.default_rng(0))
    share = torch.bincount(drawn, minlength=4).double() / 200_000
    mass = np.array([100.0, 1.0, 25.0, 4.0]) ** power
    np.testing.assert_allclose(share, mass / mass.sum(), atol=0.005)
    np.testing.assert_allclose(sampler.log_probability.exp(), mass / mass.sum(), rtol=1e-5)


def test_sampled_softmax_with_correction_tends_to_the_full_loss() -> None:
    """Over many draws the corrected estimate comes near the full loss; the raw one does not."""
    torch.manual_seed(0)
    model = build_model(ModelOptions(dim=4, heads=1), 50)
    torch.nn.init.normal_(model.item_embedding.weight)
    popularity = np.arange(1, 51) ** 2
    hidden, targets = torch.randn(64, 4), torch.randint(50, (64,))
    full = make_objective(TrainingOptions(), popularity)
    options = TrainingOptions(loss="sampled_softmax", negatives=4000, sampling_power=1.0)
    sampled = make_objective(options, popularity)
    generator = np.random.default_rng(0)
    want = full(model, hidden, targets, None, generator).item()
    got = [sampled(model, hidden, targets, None, generator).item() for _ in range(20)]
    assert np.mean(got) == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax", "bce"])
@pytest.mark.parametrize("weighted", [True, False])
def test_losses_of_several_interests_are_their_formulas(loss: str, weighted: bool) -> None:
    torch.manual_seed(0)
    model = build_model(ModelOptions(dim=4, heads=1, item_bias=True), 20).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(7, 3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(20, (7,))
    weights = torch.rand(7, dtype=torch.float64) if weighted else None
    options = TrainingOptions(loss=loss, negatives=9)
    popularity = np.arange(20)
    objective = make_objective(options, popularity)
    got = objective(model, hidden, targets, weights, np.random.default_rng(4))

    assert model.output_bias is not None
    scores = torch.einsum("tkd,nd->tkn", hidden, model.output_table) + model.output_bias
    sampler = NegativeSampler(popularity, options.sampling_power)
    generator = np.random.default_rng(4)
    right = scores[torch.arange(7), :, targets]
    if loss == "cross_entropy":
        each = scores.flatten(1).logsumexp(1) - right.logsumexp(1)
    elif loss == "sampled_softmax":
        drawn = sampler.draw(9, generator)
        wrong = scores[:, :, drawn] - (sampler.log_probability[drawn] + np.log(9)).double()
        wrong = wrong.masked_fill((drawn == targets[:, None])[:, None], -torch.inf)
        each = torch.cat([wrong.flatten(1), right], 1).logsumexp(1) - right.logsumexp(1)
    else:
        drawn = sampler.draw(63, generator).view(7, 9)
        best = scores.amax(1)
        log_sigmoid = torch.nn.functional.logsigmoid
        negative = log_sigmoid(-best.gather(1, drawn)) * (drawn != targets[:, None])
        each = -log_sigmoid(best[torch.arange(7), targets]) - negative.sum(1)
    share = torch.ones(7, dtype=torch.float64) if weights is None else weights
    want = (each * share).sum() / share.sum()
    torch.testing.assert_close(got, want)
    parts = (hidden, model.item_embedding.weight, model.output_bias)
    for a, b in zip(torch.autograd.grad(got, parts), torch.autograd.grad(want, parts), strict=True):
        torch.testing.assert_close(a, b)


def test_equal_interests_have_the_loss_of_one() -> None:
    torch.manual_seed(0)
    model = build_model(ModelOptions(dim=4, heads=1), 20)
    one, targets = torch.randn(6, 4), torch.randint(20, (6,))
    objective = make_objective(TrainingOptions(), np.arange(20))
    generator = np.random.default_rng(0)
    same = one.unsqueeze(1).repeat(1, 3, 1)
    torch.testing.assert_close(
        objective(model, same, targets, None, generator),
        objective(model, one, targets, None, generator),
    )


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    options = TrainingOptions(schedule="cosine", warmup_steps=4)
    factors = [learning_rate_factor(step, 24, options) for step in range(25)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0
    assert factors[14] == pytest.approx(0.5)
    assert factors[24] == pytest.approx(0.0)
    assert all(a > b for a, b in pairwise(factors[4:]))
    assert learning_rate_factor(1000, 10, TrainingOptions()) == 1.0


def test_weight_decay_spares_biases_and_norms() -> None:
    model = build_model(ModelOptions(dim=8), 5)
    optimizer = make_optimizer(model, TrainingOptions(weight_decay=0.1))
    matrices, vectors = optimizer.param_groups
    assert matrices["weight_decay"] == 0.1
    assert vectors["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in matrices["params"])
    assert all(p.ndim == 1 for p in vectors["params"])
    count = sum(len(g["params"]) for g in optimizer.param_groups)
    assert count == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss: unknown loss 'hinge'; choose cross_entropy"),
        ({"optimizer": "lion"}, "optimizer: unknown optimiser 'lion'"),
        ({"schedule": "step"}, "schedule: unknown schedule 'step'"),
        ({"learning_rate": float("nan")}, "learning_rate: must be a number above 0"),
        ({"learning_rate": 0.0}, "learning_rate: must be a number above 0"),
        ({"epochs": 0}, "epochs: must be a whole number of at least 1"),
        ({"batch_size": -1}, "batch_size: must be a whole number of at least 0"),
        ({"momentum": 1.0}, "momentum: must be a number at least 0 and below 1"),
        ({"threads": 0}, "threads: must be a whole number of at least 1"),
        ({"whole_history": "yes"}, "whole_history: must be true or false"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingOptions(**options)


def test_masses_of_many_items_in_mixed_precision() -> None:
    """The sum of 70,000 equal exponentials is more than float16 holds."""
    items = 70_000
    with torch.autocast("cpu", torch.float16):
        found = log_masses(torch.ones(3, 2).half(), torch.zeros(items, 2), None)
    torch.testing.assert_close(found, torch.full((3,), np.log(items)).float())
