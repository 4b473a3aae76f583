# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: everything that training needs to go on as if it had never stopped.

A checkpoint is one folder with ``state.safetensors`` (weights, best weights, optimiser state) and
``state.json`` (epoch, history, what the run is). It is replaced as a whole, so that a crash at any
point leaves a complete one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from seqrec_fast.errors import InputError

__all__ = ["Checkpoint", "fingerprint"]

_FORMAT = 1
_TENSORS = "state.safetensors"
_FACTS = "state.json"


def fingerprint(*parts: Any) -> str:
    """A short hash of arrays and plain values, to tell whether two runs are the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if hasattr(part, "tobytes") else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:24]


@dataclass
class Checkpoint:
    """The state of a training run after a whole epoch.

    Attributes:
        run: options and a hash of the data; only the same run goes on from it.
        phase: ``"select"`` (with early stopping) or ``"refit"``.
        epoch: epochs of this phase that are done.
        model: current weights.
        best: weights of the best epoch so far; in the refit phase, of the strict model.
        optimizer: ``torch.optim.Optimizer.state_dict()["state"]``.
        facts: JSON-able record of the run so far (history, best epoch, …).
    """

    run: dict[str, Any]
    phase: str
    epoch: int
    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    facts: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Writes the checkpoint beside ``folder`` and renames it into place.

        Raises:
            InputError: the folder cannot be written (no permission, disk full).
        """
        tensors = {f"model/{n}": t for n, t in self.model.items()}
        tensors |= {f"best/{n}": t for n, t in self.best.items()}
        for index, state in self.optimizer.items():
            tensors |= {f"optimizer/{index}/{n}": t for n, t in state.items()}
        # safetensors refuses tensors that share memory: a copy each, contiguous
        tensors = {n: t.detach().cpu().clone().contiguous() for n, t in tensors.items()}
        facts = {
            "format": _FORMAT,
            "run": self.run,
            "phase": self.phase,
            "epoch": self.epoch,
            "facts": self.facts,
        }
        fresh = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            safetensors.torch.save_file(tensors, fresh / _TENSORS)
            (fresh / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
            for name in (_TENSORS, _FACTS):
                with open(fresh / name, "rb") as file:
                    os.fsync(file.fileno())
            if folder.exists():
                os.rename(folder, old)
            os.rename(fresh, folder)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(
                f"{folder}: the checkpoint cannot be written ({error}); free space or choose "
                "another place"
            ) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            if not folder.exists() and old.exists():
                os.rename(old, folder)
            shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Reads a checkpoint.

        Raises:
            InputError: there is none, or it is damaged; the message says which.
        """
        if not (folder / _FACTS).is_file() or not (folder / _TENSORS).is_file():
            raise InputError(f"{folder}: no checkpoint to resume from; start without resume")
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            tensors = safetensors.torch.load_file(folder / _TENSORS)
            found = facts["format"]
            checkpoint = cls(
                run=dict(facts["run"]),
                phase=facts["phase"],
                epoch=int(facts["epoch"]),
                model={},
                best={},
                optimizer={},
                facts=facts["facts"],
            )
            for name, tensor in tensors.items():
                area, rest = name.split("/", 1)
                if area == "optimizer":
                    index, field = rest.split("/", 1)
                    checkpoint.optimizer.setdefault(int(index), {})[field] = tensor
                else:
                    getattr(checkpoint, area)[rest] = tensor
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            safetensors.SafetensorError,
        ) as error:
            raise InputError(
                f"{folder}: the checkpoint is damaged ({error}); remove it and start without resume"
            ) from error
        if found != _FORMAT:
            raise InputError(
                f"{folder}: checkpoint format {found}, this version reads {_FORMAT}; "
                "start without resume"
            )
        return checkpoint

    def restore(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Puts weights and, where an optimiser is given, its state back.

        Raises:
            InputError: the checkpoint is of another model.
        """
        try:
            model.load_state_dict(self.model)
            if optimizer is not None:
                state = optimizer.state_dict()
                state["state"] = {i: dict(s) for i, s in self.optimizer.items()}
                optimizer.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            line = str(error).splitlines()[0]
            raise InputError(
                f"checkpoint: does not fit the model ({line}); start without resume"
            ) from error
