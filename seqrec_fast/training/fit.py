# SPDX-License-Identifier: Apache-2.0
"""``fit``: from a split to a trained model with honest figures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seqrec_fast import native
from seqrec_fast.errors import InputError
from seqrec_fast.evaluation import Metrics, describe_protocol, evaluate, evaluate_popularity
from seqrec_fast.models import ModelOptions, SequenceModel, build_model
from seqrec_fast.models.device_engine import open_device
from seqrec_fast.training.batches import Windows
from seqrec_fast.training.checkpoint import Checkpoint, fingerprint
from seqrec_fast.training.losses import make_objective
from seqrec_fast.training.options import TrainingOptions, split_options
from seqrec_fast.training.precision import Precision
from seqrec_fast.training.progress import EpochRecord
from seqrec_fast.training.run import Run
from seqrec_fast.training.trainer import Phase, embed_histories

if TYPE_CHECKING:
    from seqrec_fast.data import Holdout, Split

__all__ = ["fit"]

_CUTOFFS = (5, 10, 20, 50)
# torch has one generator and one number of threads for the whole process
_TURN = threading.RLock()


def fit(
    split: Split,
    model: str = "sasrec",
    *,
    refit: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | Callable[[EpochRecord], None] = True,
    **options: Any,
) -> Run:
    """Trains a model on a split and measures it on the held-out events.

    The model is trained on ``split.train`` with early stopping on ``split.validation`` (the
    *strict* protocol: validation events are never trained on) and measured on ``split.test``. With
    ``refit`` a fresh model of the same seed is then trained on training and validation events for
    as many epochs as validation chose, and measured on the same test events.

    Args:
        split: from :func:`seqrec_fast.data.leave_one_out` and its siblings.
        model: ``"sasrec"``, ``"gru"``, ``"lstm"`` or ``"rnn"``.
        refit: whether the final model is trained again with the validation events.
        checkpoint: folder that is replaced after every epoch; None keeps none.
        resume: go on from the checkpoint; the result is the very same as without the break.
        progress: print progress to standard error; a callable gets each epoch's record instead.
        **options: any field of :class:`ModelOptions` and :class:`TrainingOptions` by name, for
            instance ``epochs=50, seed=0, dim=64, loss="sampled_softmax"``.

    Returns:
        A :class:`Run` with the trained model, its history and its metrics. Ctrl-C ends training
        early; the run then holds the best weights so far (those of the moment, if no epoch was
        finished; the strict model, if it was the refit) and says ``interrupted``.

    Calls from several threads take turns, so that each run is the one that its seed stands for.

    Raises:
        InputError: an option is wrong, there is nothing to learn from, or the checkpoint is
            missing, damaged, or of another run.
        DeviceError: there is no such GPU.
        TrainingError: the loss is not finite.
    """
    model_options, training_options = split_options({"model": model, **options})
    device = training_device(training_options)
    folder = None if checkpoint is None else Path(checkpoint)
    if resume and folder is None:
        raise InputError("resume: needs checkpoint, the folder to go on from")
    if refit and split.refitted:
        raise InputError(
            "refit: this split already trains on its validation events; give the one before "
            "split.refit()"
        )
    with _TURN:
        threads_before = torch.get_num_threads(), native.get_num_threads()
        if training_options.threads is not None:
            torch.set_num_threads(training_options.threads)
            native.set_num_threads(training_options.threads)
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                return _Fit(
                    split, model_options, training_options, device, refit, folder, progress
                ).run(resume)
        finally:
            torch.set_num_threads(threads_before[0])
            native.set_num_threads(threads_before[1])


def training_device(options: TrainingOptions) -> torch.device:
    """The device that the options name, after a look whether it is there.

    Raises:
        DeviceError: it is not.
        InputError: it does not compute in the precision that the options name.
    """
    device = torch.device("cpu") if options.device == "cpu" else open_device(options.device)
    Precision(options.precision, device)
    return device


@dataclass
class _Fit:
    split: Split
    model_options: ModelOptions
    training_options: TrainingOptions
    device: torch.device
    refit: bool
    checkpoint: Path | None
    progress: bool | Callable[[EpochRecord], None]

    def run(self, resume: bool) -> Run:
        identity = self._identity()
        state = None
        if resume:
            assert self.checkpoint is not None
            state = Checkpoint.load(self.checkpoint)
            self._check_same(state.run, identity)
        validation = self._validation() if len(self.split.validation) else None
        select = self._phase("select", self.split, self.training_options.epochs, validation)
        select.run = identity
        if state is None or state.phase == "select":
            select.train(self.progress, state)
            state = None
            metrics = self._measure(select.model, self.split)
        else:
            select.restore_best(state)
            select.history = list(state.facts["select_history"])
            select.best_epoch = int(state.facts["select_best_epoch"])
            metrics = dict(state.facts["select_metrics"])
        final = select
        interrupted = select.interrupted
        if self.refit and not select.interrupted:
            again = self.split.refit()
            final = self._phase("refit", again, max(1, select.best_epoch), None)
            final.run = identity
            final.earlier = select.model.state_dict()
            final.carried = {
                "select_history": select.history,
                "select_best_epoch": select.best_epoch,
                "select_metrics": metrics,
            }
            final.train(self.progress, state)
            if final.interrupted:
                # a course that is half done is no better than the whole one before it
                final, interrupted = select, True
            else:
                metrics["test_refit"] = self._figures(final.model, again.test, again).to_dict()
        return Run(
            model=final.model,
            split=self.split,
            training_options=self.training_options,
            history=select.history + (final.history if final is not select else []),
            metrics=metrics,
            best_epoch=select.best_epoch,
            refitted=final is not select,
            interrupted=interrupted,
        )

    def _validation(self) -> Holdout:
        """The held-out users that early stopping looks at, the same ones every epoch."""
        holdout, wanted = self.split.validation, self.training_options.validation_users
        if wanted is None or wanted >= len(holdout):
            return holdout
        generator = np.random.default_rng(self.training_options.seed)
        rows = np.sort(generator.choice(len(holdout), wanted, replace=False))
        return replace(
            holdout,
            users=holdout.users[rows],
            histories=holdout.histories.select(rows),
            targets=holdout.targets.select(rows),
        )

    def _identity(self) -> dict[str, Any]:
        """What makes a run: every option that its result depends on, and a hash of its data."""
        train = self.split.train
        training = self.training_options.to_config()
        # more epochs may follow where the learning rate does not depend on their number
        if self.training_options.schedule == "constant":
            training.pop("epochs")
        training.pop("threads")
        training["device"] = self.device.type  # one GPU is as good as another
        data = fingerprint(
            train.offsets,
            train.values,
            *(() if self.split.train_weights is None else (self.split.train_weights,)),
            len(self.split.items),
        )
        options = {**self.model_options.to_config(), **training}
        return {"data": data, **options, "refit": self.refit}

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Refuses a checkpoint of another run and names what differs."""
        # older checkpoints do not know these names
        before = {"interests": 1, "device": "cpu", "precision": "float32", **before}
        differ = [name for name in now if name not in before or before[name] != now[name]]
        if not differ:
            return
        if differ == ["data"]:
            found = "other data: its training events are not these"
        else:
            found = "other options: " + ", ".join(
                f"{name} was {before.get(name)!r}, now {now[name]!r}"
                for name in differ
                if name != "data"
            )
        raise InputError(
            f"{self.checkpoint}: the checkpoint is of {found}; give the same, or start without "
            "resume"
        )

    def _phase(self, name: str, split: Split, epochs: int, validation: Holdout | None) -> Phase:
        options = self.training_options
        torch.manual_seed(options.seed)
        # drawn on the CPU, so that every device begins with the same weights
        model = build_model(self.model_options, len(split.items)).to(self.device)
        windows = Windows(
            split.train,
            split.train_weights,
            max_length=self.model_options.max_length,
            whole_history=options.whole_history,
        )
        return Phase(
            name=name,
            model=model,
            windows=windows,
            objective=make_objective(options, split.popularity),
            options=options,
            epochs=epochs,
            validation=validation,
            checkpoint=self.checkpoint,
            run={},
            device=self.device,
        )

    def _measure(self, model: SequenceModel, split: Split) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, holdout in (("validation", split.validation), ("test", split.test)):
            if len(holdout.targets):
                found[name] = self._figures(model, holdout, split).to_dict()
        if len(split.test.targets):
            found["popularity"] = evaluate_popularity(
                split.test,
                split.popularity,
                k=_CUTOFFS,
                protocol=describe_protocol(split),
                threads=self.training_options.threads,
            ).to_dict()
        return found

    def _figures(self, model: SequenceModel, holdout: Holdout, split: Split) -> Metrics:
        items, bias = model.scorer()
        return evaluate(
            embed_histories(model, holdout),
            items,
            bias,
            holdout,
            k=_CUTOFFS,
            popularity=split.popularity,
            protocol=describe_protocol(split),
            threads=self.training_options.threads,
        )
