# SPDX-License-Identifier: Apache-2.0
"""The result of training: a model, its history, its figures, and how it becomes a bundle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqrec_fast import bundle as bundles
from seqrec_fast.models import SequenceModel
from seqrec_fast.training.curve import training_curve
from seqrec_fast.training.options import TrainingOptions
from seqrec_fast.training.progress import EpochRecord

if TYPE_CHECKING:
    from seqrec_fast.data import Split

__all__ = ["Run"]


@dataclass
class Run:
    """A finished (or interrupted) training run.

    Attributes:
        model: the trained model.
        split: what it was trained and measured on.
        training_options: how it was trained.
        history: one record an epoch: phase, loss, validation figures, tokens/s, seconds.
        metrics: ``Metrics.to_dict()`` by name: ``validation``, ``test`` (strict), ``popularity``
            (the baseline on the test events) and, after a refit, ``test_refit``.
        best_epoch: the epoch that validation chose, counted from 1.
        refitted: whether the model was trained again with the validation events.
        interrupted: whether Ctrl-C ended training early.
    """

    model: SequenceModel
    split: Split
    training_options: TrainingOptions
    history: list[EpochRecord]
    metrics: dict[str, Any]
    best_epoch: int
    refitted: bool
    interrupted: bool

    @property
    def seconds(self) -> float:
        """Seconds of training, without validation and measuring."""
        return float(sum(record["seconds"] for record in self.history))

    def curve(self) -> bytes:
        """The training curve as PNG.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return training_curve(self.history, f"{self.model.options.model} training")

    def bundle(self) -> bundles.Bundle:
        """Everything that serving needs, in memory."""
        return bundles.Bundle(
            config=self.model.config(),
            tensors={n: _array(t) for n, t in self.model.state_dict().items()},
            items=self.split.items,
            item_table=self.split.item_table,
            popularity=self.split.popularity,
            metrics=self.metrics,
            cleaning=self.split.report.to_dict(),
            training={
                "options": self.training_options.to_config(),
                "history": self.history,
                "best_epoch": self.best_epoch,
                "refitted": self.refitted,
                "interrupted": self.interrupted,
                "seconds": self.seconds,
            },
            extra_files={"curve.png": self.curve()},
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Writes the bundle (see :func:`seqrec_fast.bundle.save`)."""
        bundles.save(self.bundle(), path, overwrite=overwrite)


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
