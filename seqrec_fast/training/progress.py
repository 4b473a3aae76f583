# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a model trains: a bar on a terminal, one line an epoch anywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["EpochRecord", "Progress", "clock"]

#: one epoch of a run: phase, epoch, loss, metrics, tokens/s and seconds, as plain values
EpochRecord = dict[str, Any]


def clock(seconds: float) -> str:
    """Seconds as ``1h02m``, ``3m07s`` or ``12s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


class Progress:
    """Reports a training phase.

    Args:
        show: whether to print to standard error; a callable gets each epoch's record instead.
        phase: name of the phase, shown on each line.
        epochs: epochs at most.
        done: epochs that were done before (resumed).
        steps: steps of an epoch.
    """

    def __init__(
        self,
        show: bool | Callable[[EpochRecord], None],
        phase: str,
        epochs: int,
        done: int,
        steps: int,
    ) -> None:
        self._show = show
        self._phase = phase
        self._epochs = epochs
        self._first = done
        self._began = time.monotonic()
        self._bar: Any = None
        self._steps = steps

    def start_epoch(self, epoch: int) -> None:
        """Opens a bar for the steps of an epoch (on a terminal only)."""
        if self._show is True and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._steps,
                desc=f"{self._phase} {epoch}/{self._epochs}",
                unit="step",
                leave=False,
                file=sys.stderr,
            )

    def step(self, loss: float) -> None:
        """Moves the bar by one step."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Removes an open bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def end_epoch(self, record: EpochRecord) -> None:
        """Reports an epoch that is over."""
        self.close()
        if callable(self._show):
            self._show(record)
        elif self._show:
            sys.stderr.write(f"{self._line(record)}\n")
            sys.stderr.flush()

    def _line(self, record: EpochRecord) -> str:
        done = record["epoch"] - self._first
        left = (time.monotonic() - self._began) / done * (self._epochs - record["epoch"])
        parts = [
            f"{self._phase} {record['epoch']:>3}/{self._epochs}",
            f"loss {record['loss']:.4f}",
        ]
        if "NDCG@10" in record:
            parts.append(f"validation NDCG@10 {record['NDCG@10']:.4f} HR@10 {record['HR@10']:.4f}")
            parts.append("best" if record["best"] else "    ")
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        parts.append(f"{clock(record['seconds'])} an epoch, at most {clock(left)} left")
        return "  ".join(parts)
