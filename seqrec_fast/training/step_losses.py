# SPDX-License-Identifier: Apache-2.0
"""The losses of an epoch, looked at every so many steps: a look makes the host wait for a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["StepLosses"]


class StepLosses:
    """Adds up what the passes of each step lose.

    Args:
        every: steps between looks; with 1, each pass is looked at as it is added.

    Attributes:
        total: sum over the steps that were looked at.
        latest: the last of them; NaN before the first look.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._waiting: list[Tensor] = []
        self._done = 0
        self._begun: Tensor | None = None
        self.total = 0.0
        self.latest = math.nan

    def add(self, loss: Tensor, last: bool) -> tuple[int, float] | None:
        """Adds the loss of a pass.

        Args:
            loss: a scalar without gradient.
            last: whether the step ends with it.

        Returns:
            As :meth:`look`.
        """
        self._begun = loss if self._begun is None else self._begun + loss
        if self._every == 1 and not math.isfinite(found := float(self._begun)):
            return self._done, found
        if not last:
            return None
        self._waiting.append(self._begun)
        self._begun = None
        return self.look() if len(self._waiting) >= self._every else None

    def look(self) -> tuple[int, float] | None:
        """Takes in all steps that ended; returns the first that is not finite, with its loss."""
        if not self._waiting:
            return None
        found: list[float] = torch.stack(self._waiting).double().tolist()
        first = self._done
        self._waiting.clear()
        self._done += len(found)
        for step, loss in enumerate(found, first):
            if not math.isfinite(loss):
                return step, loss
            self.total += loss
            self.latest = loss
        return None
