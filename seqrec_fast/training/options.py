# SPDX-License-Identifier: Apache-2.0
"""How a model is trained: one dataclass of hyper-parameters, checked when made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from seqrec_fast.engine.devices import checked_device
from seqrec_fast.errors import InputError
from seqrec_fast.models.options import ModelOptions, option
from seqrec_fast.training.precision import PRECISIONS

__all__ = ["LOSSES", "OPTIMIZERS", "SCHEDULES", "ModelOptions", "TrainingOptions", "split_options"]

LOSSES = ("cross_entropy", "sampled_softmax", "bce")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine")

_LEARNING_RATES = {"adamw": 1e-3, "sgd": 0.3}


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Hyper-parameters of training.

    Raises:
        InputError: a value is out of range; the message names the option.
    """

    epochs: int = option(50, "passes over the training events at most")
    batch_size: int = option(128, "sequences a step; 0 takes all of them (full batch)")
    loss: str = option("cross_entropy", "training objective", LOSSES)
    negatives: int = option(256, "negatives a step (sampled_softmax) or a token (bce)")
    sampling_power: float = option(
        0.5, "negatives are drawn by popularity to this power; 0 is uniform"
    )
    optimizer: str = option("adamw", "optimiser", OPTIMIZERS)
    learning_rate: float | None = option(None, "step size (default: 0.001 adamw, 0.3 sgd)")
    weight_decay: float = option(0.0, "decoupled weight decay")
    momentum: float = option(0.9, "momentum (sgd)")
    schedule: str = option("constant", "course of the learning rate", SCHEDULES)
    warmup_steps: int = option(0, "steps over which the learning rate rises from 0")
    clip_norm: float = option(0.0, "largest gradient norm; 0 does not clip")
    patience: int = option(5, "epochs without a better validation NDCG@10 before stopping")
    whole_history: bool = option(
        True, "train on all of a long sequence, cut into windows, not on its last window only"
    )
    validation_users: int | None = option(
        None, "users that early stopping looks at (default: all); final metrics use all"
    )
    seed: int = option(0, "seed of weights, order, dropout and negatives")
    threads: int | None = option(None, "CPU threads (default: torch's choice)")
    device: str = option("cpu", "where it is trained: cpu, cuda or cuda:N")
    precision: str = option(
        "float32", "numbers of the forward and backward pass; weights stay float32", PRECISIONS
    )

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"optimizer: unknown optimiser {self.optimizer!r}; choose {', '.join(OPTIMIZERS)}"
            )
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", _LEARNING_RATES[self.optimizer])
        for name, choices in (
            ("loss", LOSSES),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name}: unknown {name} {getattr(self, name)!r}; choose {', '.join(choices)}"
                )
        checked_device(self.device)
        for name, least in (
            ("epochs", 1),
            ("batch_size", 0),
            ("negatives", 1),
            ("warmup_steps", 0),
            ("patience", 1),
            ("seed", 0),
        ):
            self._whole(name, least)
        for name in ("threads", "validation_users"):
            if getattr(self, name) is not None:
                self._whole(name, 1)
        self._real("learning_rate", 0.0, positive=True)
        for name in ("weight_decay", "clip_norm", "sampling_power"):
            self._real(name, 0.0)
        self._real("momentum", 0.0, below=1.0)
        if not isinstance(self.whole_history, bool):
            raise InputError(f"whole_history: must be true or false, found {self.whole_history!r}")

    @property
    def rate(self) -> float:
        """``learning_rate``, resolved."""
        assert self.learning_rate is not None
        return self.learning_rate

    def to_config(self) -> dict[str, Any]:
        """Plain values for ``training.json``."""
        return asdict(self)

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}: must be a whole number of at least {least}, found {value!r}")

    def _real(
        self, name: str, least: float, *, below: float = math.inf, positive: bool = False
    ) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (least <= value < below) or (positive and value == 0):
            bound = f"above {least:g}" if positive else f"at least {least:g}"
            upper = f" and below {below:g}" if below < math.inf else ""
            raise InputError(f"{name}: must be a number {bound}{upper}, found {value!r}")


def split_options(values: dict[str, Any]) -> tuple[ModelOptions, TrainingOptions]:
    """Sorts named values into model and training options.

    Raises:
        InputError: a name belongs to neither, or a value is out of range.
    """
    model_names = {f.name for f in fields(ModelOptions)}
    training_names = {f.name for f in fields(TrainingOptions)}
    for name in values:
        if name not in model_names | training_names:
            known = ", ".join(sorted(model_names | training_names))
            raise InputError(f"{name}: unknown option; known are {known}")
    return (
        ModelOptions(**{n: v for n, v in values.items() if n in model_names}),
        TrainingOptions(**{n: v for n, v in values.items() if n in training_names}),
    )
