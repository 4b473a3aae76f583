# SPDX-License-Identifier: Apache-2.0
"""Models and training on the native kernels against the same on plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seqrec_fast import JaggedBatch, data
from seqrec_fast.models import ModelOptions, build_model
from seqrec_fast.training import Run, fit
from tests.ops.judge import allowed, root_mean_squares, worst

ROWS = [[1, 2, 3, 4, 5, 6, 7], [3, 3, 3], [9, 8, 7], [4], [5]]


def embeddings_and_gradients(
    backend: str,
    dtype: torch.dtype,
    training: bool,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    model: str = "sasrec",
) -> dict[str, torch.Tensor]:
    monkeypatch.setenv("SEQREC_FAST_BACKEND", backend)
    torch.manual_seed(2 + seed)
    made = build_model(ModelOptions(model=model, dim=24, max_length=9, dropout=0.3), 10)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.to(dtype).train(training)
    torch.manual_seed(4)
    hidden = made(JaggedBatch.from_lists(ROWS, np.int64).to_torch())
    hidden.square().sum().backward()
    gradients = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    return {"hidden": hidden.detach(), **gradients}


def judge_steps(
    backend: str, model: str, training: bool, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings and gradients of a backend are as exact as those of plain torch."""
    errors: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        exact, theirs, mine = (
            embeddings_and_gradients(one, dtype, training, seed, monkeypatch, model)
            for one, dtype in (
                ("reference", torch.float64),
                ("reference", torch.float32),
                (backend, torch.float32),
            )
        )
        assert set(mine) == set(exact)
        for name, value in mine.items():
            errors.setdefault(name, []).append(
                (
                    worst(value, exact[name]),
                    worst(theirs[name], exact[name]),
                    allowed(0.0, exact[name], 0.0),
                )
            )
    for name, each in errors.items():
        error, their, rounding = root_mean_squares(each)
        assert error <= (2.0 if name == "hidden" else 5.0) * their + rounding, name


@pytest.mark.parametrize("training", [False, True])
def test_sasrec_is_as_exact_as_plain_torch(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both draw the same dropout, so training mode can be compared too."""
    judge_steps("native", "sasrec", training, 6, monkeypatch)


@pytest.mark.parametrize("model", ["sasrec", "gru"])
def test_training_reaches_the_same_quality(
    model: str, split: data.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: dict[str, Run] = {}
    options: dict[str, Any] = {
        "dim": 16,
        "dropout": 0.1,
        "learning_rate": 1e-2,
        "batch_size": 32,
        "max_length": 8,
        "threads": 1,
        "epochs": 12,
        "patience": 12,
        "progress": False,
    }
    for backend in ("reference", "native"):
        monkeypatch.setenv("SEQREC_FAST_BACKEND", backend)
        runs[backend] = fit(split, model, **options)
    first = [run.history[0]["loss"] for run in runs.values()]
    assert first[1] == pytest.approx(first[0], rel=1e-3)
    best = [max(record["NDCG@10"] for record in run.history) for run in runs.values()]
    assert best[0] > 0.5
    assert best[1] == pytest.approx(best[0], abs=0.03)
