# SPDX-License-Identifier: Apache-2.0
"""The recipes whose figures the documentation states: data set, model, hyper-parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """One training run on public data, leave-one-out, full ranking.

    Attributes:
        log: file of the data set, below the data folder.
        model: kind of user encoder.
        refit: whether to train again on training and validation events.
        options: hyper-parameters; all others are the library's defaults.
    """

    log: str
    model: str
    refit: bool = False
    options: dict[str, Any] = field(default_factory=dict)


_BEAUTY = "amazon-beauty/Beauty.txt"
_ML_1M_A = "ml-1m/ml-1m.a.seq.txt"

RECIPES: dict[str, Recipe] = {
    "beauty-sasrec": Recipe(
        _BEAUTY,
        "sasrec",
        refit=True,
        options={
            "dim": 64,
            "layers": 1,
            "heads": 1,
            "feed_forward": 1,
            "dropout": 0.3,
            "embedding_dropout": 0.5,
            "max_length": 50,
            "temperature": 0.07,
            "batch_size": 256,
            "learning_rate": 2e-3,
            "epochs": 30,
            "patience": 4,
        },
    ),
    "beauty-sasrec-inner-product": Recipe(
        _BEAUTY,
        "sasrec",
        options={
            "dim": 64,
            "layers": 2,
            "heads": 2,
            "dropout": 0.5,
            "max_length": 50,
            "batch_size": 128,
            "epochs": 30,
        },
    ),
    "beauty-gru": Recipe(
        _BEAUTY,
        "gru",
        options={
            "dim": 64,
            "hidden": 128,
            "dropout": 0.3,
            "embedding_dropout": 0.5,
            "max_length": 50,
            "temperature": 0.07,
            "batch_size": 256,
            "learning_rate": 2e-3,
            "epochs": 25,
            "patience": 3,
        },
    ),
    "ml1m-sasrec": Recipe(
        _ML_1M_A,
        "sasrec",
        options={
            "dim": 64,
            "layers": 2,
            "heads": 2,
            "dropout": 0.2,
            "max_length": 200,
            "temperature": 0.1,
            "batch_size": 128,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup_steps": 200,
            "epochs": 22,
        },
    ),
    "ml1m-gru": Recipe(
        _ML_1M_A,
        "gru",
        options={
            "dim": 64,
            "hidden": 192,
            "dropout": 0.2,
            "max_length": 200,
            "temperature": 0.1,
            "batch_size": 128,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "epochs": 16,
        },
    ),
}
