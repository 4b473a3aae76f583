# SPDX-License-Identifier: Apache-2.0
"""A small look at the behaviour in a cleaned log: how much, how often, how widely, how long."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.data.moments import iso_second
from seqrec_fast.jagged import JaggedBatch

__all__ = ["describe_behaviour"]

_SAMPLE = 2_000_000  # events that the sampled figures look at
_QUANTILES = (("min", 0.0), ("p25", 0.25), ("median", 0.5), ("p75", 0.75), ("p95", 0.95))
_SESSION_GAP = 1800  # seconds without an event that end a session


def describe_behaviour(
    sequences: JaggedBatch[Any], times: NDArray[np.int64] | None, item_counts: NDArray[np.int64]
) -> dict[str, Any]:
    """Figures of a cleaned log, JSON-able.

    ``repeat_share``, ``gap_seconds`` and ``events_per_session`` look at every n-th user where the
    log is longer than two million events.

    Args:
        sequences: int32 items by user.
        times: unix seconds aligned with the items, or ``None``.
        item_counts: events of each item.
    """
    lengths = np.diff(sequences.offsets)
    events, users, items = sequences.tokens, len(sequences), len(item_counts)
    stride = max(1, events // _SAMPLE)
    rows = np.arange(0, users, stride)
    sample = sequences.select(rows)
    owner = np.repeat(np.arange(len(rows)), np.diff(sample.offsets))
    pairs = np.unique(owner * items + sample.values)
    figures: dict[str, Any] = {
        "events": events,
        "users": users,
        "items": items,
        "density": events / (users * items),
        "events_per_user": _quantiles(lengths),
        "events_per_item": _quantiles(item_counts),
        "repeat_share": 1 - len(pairs) / max(1, sample.tokens),
    }
    if times is not None:
        figures["time_span"] = [iso_second(int(times.min())), iso_second(int(times.max()))]
        sampled = JaggedBatch(times, sequences.offsets).select(rows)
        gaps = np.diff(sampled.values)[owner[1:] == owner[:-1]]
        if len(gaps):
            figures["gap_seconds"] = _quantiles(gaps)
            sessions = len(rows) + int((gaps > _SESSION_GAP).sum())
            figures["events_per_session"] = round(sampled.tokens / sessions, 2)
    return figures


def _quantiles(values: NDArray[np.int64]) -> dict[str, float]:
    found = np.quantile(values, [share for _, share in _QUANTILES], method="lower")
    named: dict[str, float] = {
        name: int(value) for (name, _), value in zip(_QUANTILES, found, strict=True)
    }
    return {**named, "max": int(values.max()), "mean": round(float(values.mean()), 2)}
