# SPDX-License-Identifier: Apache-2.0
"""The events of a log as integer columns, and what cleaning does to them.

Columns are plain numpy: 4 bytes for a user, an item, a weight; 8 for a time. Work on them goes in
blocks, so that no step needs much more memory than the columns themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "IMPOSSIBLE",
    "MISSING",
    "Events",
    "count_by",
    "duplicates",
    "fill_previous",
    "k_core_rounds",
    "repeats",
    "sort_events",
]

MISSING = int(np.iinfo(np.int64).min)
"""Time of an event of which none is known."""
IMPOSSIBLE = int(np.iinfo(np.int64).max)
"""Time of an event whose time is no moment: infinite, or beyond what 64 bits hold."""

_BLOCK = 1 << 22


@dataclass
class Events:
    """Events by column, all of one length; ``None`` where the log has no such column.

    Attributes:
        user: int32 code, -1 if missing.
        item: int32 code, -1 if missing.
        time: int64 microseconds since 1970, or :data:`MISSING` or :data:`IMPOSSIBLE`.
        event: uint8 or int32 code, the largest value (or -1) if missing.
        rating: float32, NaN if missing.
        weight: float32, NaN if missing.
    """

    ROLES: ClassVar[tuple[str, ...]] = ("user", "item", "time", "event", "rating", "weight")

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64] | None = None
    event: NDArray[Any] | None = None
    rating: NDArray[np.float32] | None = None
    weight: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.user)

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drops the events where ``mask`` is false."""
        if bool(mask.all()):
            return
        for role in self.ROLES:
            column = getattr(self, role)
            if column is not None:
                setattr(self, role, column[mask])

    def missing(self, role: str) -> NDArray[np.bool_]:
        """Where a column has no value."""
        column = getattr(self, role)
        if role == "time":
            return np.asarray(column == MISSING)
        if role in ("rating", "weight"):
            return np.asarray(np.isnan(column))
        if role == "event" and column.dtype == np.uint8:
            return np.asarray(column == 255)
        return np.asarray(column < 0)


def _blocks(length: int) -> Iterator[slice]:
    for begin in range(0, length, _BLOCK):
        yield slice(begin, min(begin + _BLOCK, length))


def count_by(codes: NDArray[Any], size: int) -> NDArray[np.int64]:
    """int64 ``[size]``: how often each code occurs (negative codes are passed over)."""
    counts = np.zeros(size, dtype=np.int64)
    for block in _blocks(len(codes)):
        part = codes[block]
        if part.dtype.kind == "i" and part.min() < 0:
            part = part[part >= 0]
        counts += np.bincount(part, minlength=size)
    return counts


# -------------------------------------------------------------------- order


def sort_events(events: Events, users: int) -> None:
    """Sorts by user, then time, then the order in which the events came (stable).

    Args:
        events: sorted in place.
        users: number of user codes.
    """
    if _is_sorted(events):
        return
    order: NDArray[np.int64] | None = None
    time = events.time
    if time is not None and not _is_ascending(time):
        order = np.argsort(time, kind="stable")
    by_user = _stable_by_code(events.user if order is None else events.user[order], users)
    order = by_user if order is None else order[by_user]
    del by_user
    for role in Events.ROLES:
        column = getattr(events, role)
        if column is not None:
            setattr(events, role, column[order])


def _is_ascending(values: NDArray[Any]) -> bool:
    return all(
        bool((values[block.start + 1 : block.stop + 1] >= values[block]).all())
        for block in _blocks(len(values) - 1)
    )


def _is_sorted(events: Events) -> bool:
    for block in _blocks(len(events) - 1):
        after = slice(block.start + 1, block.stop + 1)
        user, next_user = events.user[block], events.user[after]
        fine = next_user > user
        same = next_user == user
        if events.time is not None:
            same &= events.time[after] >= events.time[block]
        if not bool((fine | same).all()):
            return False
    return True


def _stable_by_code(codes: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """Stable argsort of codes below ``size``, 16 bits at a time.

    numpy sorts 16-bit integers by counting, in linear time, but wider ones by comparing.
    """
    order = np.argsort((codes & 0xFFFF).astype(np.uint16), kind="stable")
    if size > 0x10000:
        high = (codes >> 16).astype(np.uint16)[order]
        order = order[np.argsort(high, kind="stable")]
    return order


# -------------------------------------------------------------------- steps


def fill_previous(events: Events, users: int) -> int:
    """Gives events without a time that of the event of the same user before them in the log.

    Args:
        events: in input order.
        users: number of user codes.

    Returns:
        How many times were filled; those of users without an earlier time stay missing.
    """
    time = events.time
    if time is None:
        return 0
    missing = events.missing("time") & (events.user >= 0)
    affected = np.zeros(users, dtype=np.bool_)
    affected[events.user[missing]] = True
    rows = np.flatnonzero(affected[events.user] & (events.user >= 0) & (time != IMPOSSIBLE))
    rows = rows[np.argsort(events.user[rows], kind="stable")]
    user, known = events.user[rows], time[rows] != MISSING
    # place of the last known time at or before each place, which must be of the same user
    last = np.maximum.accumulate(np.where(known, np.arange(len(rows)), -1))
    found = ~known & (last >= 0) & (user[last] == user)
    time[rows[found]] = time[rows[last[found]]]
    return int(found.sum())


def duplicates(events: Events) -> NDArray[np.bool_]:
    """Where an event repeats an earlier one: same user, item, time and event type.

    Args:
        events: sorted, with times.
    """
    assert events.time is not None
    repeated = np.zeros(len(events), dtype=np.bool_)
    # only events of one user at one time can be duplicates; usually few
    same = np.zeros(len(events) + 1, dtype=np.bool_)
    for block in _blocks(len(events) - 1):
        after = slice(block.start + 1, block.stop + 1)
        same[after] = (events.user[block] == events.user[after]) & (
            events.time[block] == events.time[after]
        )
    rows = np.flatnonzero(same[:-1] | same[1:])
    if not len(rows):
        return repeated
    group = np.cumsum(~same[rows])
    keys = [events.item[rows], group]
    if events.event is not None:
        keys.insert(0, events.event[rows])
    order = np.lexsort(keys)  # stable: the earliest of equal events stays first
    equal = np.ones(len(rows) - 1, dtype=np.bool_)
    for key in keys:
        ordered = key[order]
        equal &= ordered[1:] == ordered[:-1]
    repeated[rows[order[1:][equal]]] = True
    return repeated


def repeats(events: Events) -> NDArray[np.bool_]:
    """Where an event is of the same item as the event of the user just before.

    Args:
        events: sorted.
    """
    repeated = np.zeros(len(events), dtype=np.bool_)
    for block in _blocks(len(events) - 1):
        after = slice(block.start + 1, block.stop + 1)
        repeated[after] = (events.user[block] == events.user[after]) & (
            events.item[block] == events.item[after]
        )
    return repeated


def k_core_rounds(
    events: Events, users: int, items: int, min_user: int, min_item: int
) -> Iterator[NDArray[np.bool_]]:
    """Rounds of the iterative k-core, each as the mask of what to keep.

    The caller applies each mask before it asks for the next. The rounds end when every user and
    every item has its minimum (or nothing is left); the result is the largest such set of events
    and does not depend on the order of the rounds.

    Args:
        events: the events, which the caller shrinks.
        users: number of user codes.
        items: number of item codes.
        min_user: events that a user must have.
        min_item: events that an item must have.
    """
    while len(events):
        of_user = count_by(events.user, users) >= min_user
        of_item = count_by(events.item, items) >= min_item
        keep = np.empty(len(events), dtype=np.bool_)
        for block in _blocks(len(events)):
            keep[block] = of_user[events.user[block]] & of_item[events.item[block]]
        if bool(keep.all()):
            return
        yield keep
