# SPDX-License-Identifier: Apache-2.0
"""What the sessions of live users count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

__all__ = ["SessionStats"]


@dataclass(frozen=True)
class SessionStats:
    """Counts of a :class:`Sessions` since it was made or loaded; ``dict(stats)`` is a dictionary.

    Attributes:
        users: live users now.
        hits: events and requests of users who were known.
        misses: events and requests of users who were not.
        evictions: users dropped because there was no room.
        expired: users dropped because their time was over.
        bytes: memory held for all users, with index, keys and what lies free for the next ones.
        pages: pages of keys and values in use (attention models).
        observes: events taken in.
        reencodings: windows that were encoded as a whole.
        unknown_items: events that were ignored because the model does not know their item.
    """

    users: int
    hits: int
    misses: int
    evictions: int
    expired: int
    bytes: int
    pages: int
    observes: int
    reencodings: int
    unknown_items: int

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(asdict(self).items())
