# SPDX-License-Identifier: Apache-2.0
"""What preparation hands on: every user's events as one row of dense item indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.report import CleaningReport
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.jagged import JaggedBatch

__all__ = ["Prepared"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A cleaned log as sequences.

    Users come in order of first appearance in the log; the events of a user by time, and events of
    the same time by the row of the input.

    Attributes:
        sequences: int32 item indices, one row a user.
        times: int64 unix seconds (rounded down), aligned with ``sequences.values``; ``None`` when
            the log has order only.
        weights: float32, aligned likewise; ``None`` when every event counts the same.
        events: index into ``event_names``, aligned likewise; ``None`` without event types.
        event_names: the event types, in order of first appearance.
        users: raw user ids by row.
        items: raw item ids by index, in order of first appearance.
        item_table: what the log knows about the items, by index.
        report: what was recognised, filled and dropped.
    """

    sequences: JaggedBatch[Any]
    times: NDArray[np.int64] | None
    weights: NDArray[np.float32] | None
    events: NDArray[Any] | None
    event_names: tuple[str, ...]
    users: Vocabulary
    items: Vocabulary
    item_table: ItemTable | None
    report: CleaningReport

    @property
    def popularity(self) -> NDArray[np.int64]:
        """int64 ``[items]``: number of events of each item."""
        counts = np.bincount(self.sequences.values, minlength=len(self.items))
        return counts.astype(np.int64, copy=False)

    def __repr__(self) -> str:
        parts = [name for name in ("times", "weights", "events") if getattr(self, name) is not None]
        extra = f"; with {', '.join(parts)}" if parts else ""
        return (
            f"Prepared({len(self.users):,} users, {len(self.items):,} items, "
            f"{self.sequences.tokens:,} events{extra})"
        )
