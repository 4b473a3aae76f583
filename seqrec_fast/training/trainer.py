# SPDX-License-Identifier: Apache-2.0
"""The training loop: epochs of steps, validation after each, checkpoint after each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec_fast.errors import TrainingError
from seqrec_fast.evaluation import metrics_from_ranks, rank_targets
from seqrec_fast.models import SequenceModel
from seqrec_fast.training.batches import Windows, epoch_generator
from seqrec_fast.training.checkpoint import Checkpoint
from seqrec_fast.training.feeding import PinnedCarrier, feed
from seqrec_fast.training.losses import Objective
from seqrec_fast.training.optimizers import learning_rate_factor, make_optimizer
from seqrec_fast.training.options import TrainingOptions
from seqrec_fast.training.precision import Precision
from seqrec_fast.training.progress import EpochRecord, Progress
from seqrec_fast.training.step_losses import StepLosses

if TYPE_CHECKING:
    from seqrec_fast.data import Holdout

__all__ = ["Phase", "embed_histories"]

_CRITERION = "NDCG@10"
_CPU = torch.device("cpu")
# how long losses stay on a GPU: whoever looks at one waits for all that is queued before it
_STEPS_BETWEEN_LOOKS = 50


def embed_histories(model: SequenceModel, holdout: Holdout) -> NDArray[np.float32]:
    """User embeddings ``[users, (interests,) dim]``; zeros for a user without history."""
    lengths = np.diff(holdout.histories.offsets)
    known = np.flatnonzero(lengths)
    result = np.zeros((len(lengths), *model.embedding_shape), dtype=np.float32)
    result[known] = model.encode(holdout.histories.select(known))
    return result


@dataclass
class Phase:
    """One course of training: with early stopping on a validation set, or for fixed epochs.

    Attributes:
        name: ``"select"`` or ``"refit"``.
        model: trained in place; holds the best weights at the end.
        windows: what it is trained on.
        objective: the loss.
        options: hyper-parameters.
        epochs: epochs at most.
        validation: held-out events for early stopping; None trains all epochs.
        checkpoint: folder of the checkpoint, or None.
        run: what makes the whole run, see :class:`Checkpoint`.
        device: where the model is.
        carried: facts of earlier phases, kept in each checkpoint.
        earlier: weights of the phase before, kept in each checkpoint in place of best ones.
        history: a record an epoch.
        best_epoch: the epoch whose weights the model has at the end (counted from 1).
        interrupted: whether Ctrl-C ended it.
    """

    name: str
    model: SequenceModel
    windows: Windows
    objective: Objective
    options: TrainingOptions
    epochs: int
    validation: Holdout | None
    checkpoint: Path | None
    run: dict[str, Any]
    device: torch.device = _CPU
    carried: dict[str, object] = field(default_factory=dict)
    earlier: dict[str, Tensor] = field(default_factory=dict)
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False
    _best: dict[str, Tensor] = field(default_factory=dict)
    _best_score: float = -math.inf

    def train(
        self,
        show: bool | Callable[[EpochRecord], None] = True,
        resume: Checkpoint | None = None,
    ) -> None:
        """Runs the phase to its end, to the last useful epoch, or to Ctrl-C.

        Args:
            show: as in :class:`Progress`.
            resume: a checkpoint of this phase to go on from.

        Raises:
            TrainingError: the loss is not finite; the message names epoch and step.
        """
        optimizer = make_optimizer(self.model, self.options)
        precision = Precision(self.options.precision, self.device)
        done = 0
        if resume is not None:
            resume.restore(self.model, optimizer)
            precision.restore(resume.facts.get("precision", {}))
            done = resume.epoch
            if self.validation is not None:
                self._best = resume.best
            self.history = list(resume.facts["history"])
            self.best_epoch = int(resume.facts["best_epoch"])
            score = resume.facts["best_score"]
            self._best_score = -math.inf if score is None else float(score)
        steps = self.windows.steps(self.options.batch_size)
        progress = Progress(show, self.name, self.epochs, done, steps)
        try:
            for epoch in range(done, self.epochs):
                if self._exhausted(epoch):
                    break
                self._epoch(epoch, optimizer, precision, steps, progress)
                if self.checkpoint is not None:
                    self._save(epoch + 1, optimizer, precision)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            progress.close()
        if self._best:
            self.model.load_state_dict(self._best)

    def restore_best(self, checkpoint: Checkpoint) -> None:
        """Gives the model the best weights that a checkpoint holds.

        Raises:
            InputError: the checkpoint is of another model.
        """
        replace(checkpoint, model=checkpoint.best).restore(self.model)

    def _exhausted(self, epoch: int) -> bool:
        """Whether ``patience`` epochs have passed without a better one."""
        waiting = epoch - self.best_epoch
        return self.validation is not None and epoch > 0 and waiting >= self.options.patience

    def _epoch(
        self,
        epoch: int,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        steps: int,
        progress: Progress,
    ) -> None:
        generator = epoch_generator(self.options.seed, epoch)
        began = time.monotonic()
        progress.start_epoch(epoch + 1)
        self.model.train()
        step = 0
        losses = StepLosses(_STEPS_BETWEEN_LOOKS if self.device.type == "cuda" else 1)
        carrier = PinnedCarrier(self.device) if self.device.type == "cuda" else None
        for part in feed(self.windows.epoch(self.options.batch_size, generator), carrier):
            with precision.context():
                hidden = self.model(part.inputs)
                loss = self.objective(self.model, hidden, part.targets, part.weights, generator)
            loss = loss * part.share
            self._refuse(losses.add(loss.detach(), part.last), epoch)
            precision.backward(loss)
            if not part.last:
                continue
            factor = learning_rate_factor(epoch * steps + step, steps * self.epochs, self.options)
            for group in optimizer.param_groups:
                group["lr"] = self.options.rate * factor
            precision.step(optimizer, self.model.parameters(), self.options.clip_norm)
            optimizer.zero_grad(set_to_none=True)
            progress.step(losses.latest)
            step += 1
        self._refuse(losses.look(), epoch)
        seconds = time.monotonic() - began
        record: EpochRecord = {
            "phase": self.name,
            "epoch": epoch + 1,
            "loss": losses.total / step,
            "seconds": seconds,
            "tokens_per_second": self.windows.tokens / seconds,
            "learning_rate": optimizer.param_groups[0]["lr"],
        }
        self._judge(record)
        progress.end_epoch(record)

    def _refuse(self, bad: tuple[int, float] | None, epoch: int) -> None:
        """Ends training at a loss that is not finite, given with its step."""
        if bad is not None:
            raise TrainingError(
                f"loss is {bad[1]} at step {bad[0] + 1} of epoch {epoch + 1}; lower "
                f"learning_rate (now {self.options.rate:g}) or set clip_norm"
            )

    def _judge(self, record: EpochRecord) -> None:
        """Scores the epoch on the validation set and keeps the best weights."""
        if self.validation is None:
            record["best"] = True
            self.best_epoch = record["epoch"]
        else:
            items, bias = self.model.scorer()
            ranks = rank_targets(
                embed_histories(self.model, self.validation),
                items,
                bias,
                targets=self.validation.targets,
                seen=self.validation.histories,
                threads=self.options.threads,
            )
            found = metrics_from_ranks(ranks, self.validation.targets.offsets, (10,))
            record |= {name: found[name] for name in ("HR@10", _CRITERION)}
            record["best"] = found[_CRITERION] > self._best_score
            if record["best"]:
                self._best_score = found[_CRITERION]
                self.best_epoch = record["epoch"]
                state = self.model.state_dict()
                self._best = {n: t.detach().clone() for n, t in state.items()}
        self.history.append(record)

    def _save(self, epoch: int, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
        assert self.checkpoint is not None
        facts = {
            **self.carried,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_score": self._best_score if math.isfinite(self._best_score) else None,
            "precision": precision.state(),
        }
        Checkpoint(
            run=self.run,
            phase=self.name,
            epoch=epoch,
            model=self.model.state_dict(),
            best=self._best or self.earlier,
            optimizer=optimizer.state_dict()["state"],
            facts=facts,
        ).save(self.checkpoint)
