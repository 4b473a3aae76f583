# SPDX-License-Identifier: Apache-2.0
"""What callers hand to sessions (users, items, seconds), checked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.engine.requests import is_list, shown
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    from seqrec_fast.engine.served import ServedModel

__all__ = ["item_index", "nanoseconds", "remembered", "user_keys"]

_MOST_SECONDS = 10**9  # of a ttl: thirty years
_MOST_REMEMBERED = 10**6


def user_keys(users: Any) -> NDArray[np.int64] | list[Any]:
    """Users of a request: int64 array where they are one, else a list."""
    if isinstance(users, (dict, set, frozenset)) or not is_list(users):
        raise InputError("users: give a list of users, in the order of their events")
    if isinstance(users, np.ndarray):
        if users.ndim != 1:
            raise InputError(f"users: must be one row, found shape {users.shape}")
        if users.dtype.kind == "i":
            return np.ascontiguousarray(users, dtype=np.int64)
    found: list[Any] = users.tolist() if hasattr(users, "tolist") else list(users)
    return found


def item_index(model: ServedModel, item: Any) -> int:
    """Index of an item whose id is not plain, such as a numpy integer; -1: unknown."""
    if is_list(item):
        raise InputError("item: found a list; give one id, and observe_many for many events")
    return int(model.items.encode([item])[0])


def nanoseconds(ttl: float | None) -> int:
    """Nanoseconds of a time to live; 0: for ever."""
    if ttl is None:
        return 0
    if isinstance(ttl, (bool, np.bool_)) or not isinstance(ttl, (int, float, np.number)):
        raise InputError(f"ttl: must be a number of seconds above 0, found {ttl!r}")
    try:
        seconds = float(ttl)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and 0 < seconds <= _MOST_SECONDS):
        raise InputError(
            f"ttl: must be above 0 and at most {_MOST_SECONDS} seconds, found {shown(ttl)}"
        )
    return max(1, round(seconds * 1e9))


def remembered(count: int) -> int:
    """How many items of a user are kept."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise InputError(f"remember: must be a whole number of at least 0, found {count!r}")
    if not 0 <= count <= _MOST_REMEMBERED:
        raise InputError(f"remember: must be 0 to {_MOST_REMEMBERED}, found {shown(count)}")
    return int(count)
