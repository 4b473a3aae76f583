# SPDX-License-Identifier: Apache-2.0
"""Which sessions follow a recommender: a model that one of them cannot hold is not put in place."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    from seqrec_fast.engine.served import ServedModel
    from seqrec_fast.engine.sessions import Sessions

__all__ = ["Followers"]


class Followers:
    """The live sessions of one recommender.

    Attributes:
        lock: held while a model is put in place, and while sessions are made for the one in place.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._sessions: weakref.WeakSet[Sessions] = weakref.WeakSet()
        _ALIVE.add(self)

    def add(self, sessions: Sessions) -> None:
        """One more; the caller holds the lock."""
        self._sessions.add(sessions)

    def check(self, model: ServedModel) -> None:
        """Whether all of them can go over to a model; the caller holds the lock.

        Raises:
            InputError: one cannot.
        """
        for sessions in list(self._sessions):
            try:
                sessions.store_for(model)
            except InputError as error:
                raise InputError(
                    f"swap: live sessions can't go over to the new model, and the one in place "
                    f"stays ({error}); end those sessions and make them with more memory, then swap"
                ) from None


_ALIVE: weakref.WeakSet[Followers] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a child process nobody is left who would open the locks that others held."""
    for followers in list(_ALIVE):
        followers.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
