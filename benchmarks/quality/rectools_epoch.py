# SPDX-License-Identifier: Apache-2.0
"""Times a training epoch of RecTools' SASRec; run by an interpreter that has ``rectools[torch]``.

    RIVAL_PYTHON benchmarks/quality/rectools_epoch.py DATA.npz --threads 2 --steps 20

Imports nothing of this project, so that the rival can live in an environment of its own. ``DATA``
holds ``users`` and ``items``, one number an event, in order of time. Prints one JSON object as its
last line: seconds of the epoch, measured whole, or scaled from some steps.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from typing import Any

import numpy as np

#: steps before the clock starts: the first ones allocate
WARM_UP = 3


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="timed steps; 0: the whole epoch")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.5)
    given = parser.parse_args()
    print(json.dumps(measure(given)))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an epoch, and what was run."""
    import pandas as pd
    import torch
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    torch.set_num_threads(given.threads)
    with np.load(given.data) as arrays:
        users, items = arrays["users"], arrays["items"]
    frame = pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Weight: 1.0})
    frame[Columns.Datetime] = pd.to_datetime(np.arange(len(frame)), unit="s")

    ends: list[float] = []
    steps: list[int] = []

    class Clock(Callback):  # type: ignore[misc]
        """Notes the time after every step, outside itself: the model works on a copy."""

        def on_train_start(self, trainer: Any, module: Any) -> None:
            steps.append(len(trainer.train_dataloader))
            ends.append(time.perf_counter())

        def on_train_batch_end(self, *args: Any) -> None:
            ends.append(time.perf_counter())

    def trainer(**unused: Any) -> Any:
        return Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=given.steps + WARM_UP if given.steps else 1.0,
            callbacks=[Clock()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )

    model = SASRecModel(
        n_blocks=given.layers,
        n_heads=given.heads,
        n_factors=given.dim,
        dropout_rate=given.dropout,
        session_max_len=given.length,
        loss="softmax",
        batch_size=given.batch,
        epochs=1,
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(frame))
    if given.steps:
        timed = len(ends) - 1 - WARM_UP
        seconds = (ends[-1] - ends[WARM_UP]) / timed * steps[0]
    else:
        timed = len(ends) - 1
        seconds = ends[-1] - ends[0]
    return {
        "rival": "RecTools SASRec, softmax over all items",
        "seconds": seconds,
        "timed_steps": timed,
        "steps_an_epoch": steps[0],
        "scaled": bool(given.steps),
        "versions": {name: version(name) for name in ("rectools", "torch", "pytorch-lightning")},
    }


if __name__ == "__main__":
    main()
