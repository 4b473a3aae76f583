# SPDX-License-Identifier: Apache-2.0
"""Live users: what a model keeps of each one's past, so that an event costs one step.

The states lie in a native store (``csrc/engine/sessions.h``) under a bound of users and of memory;
who was used longest ago goes first. This module turns raw ids into indices and back, follows the
recommender when another model takes its place, and writes snapshots.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import _C
from seqrec_fast._files import checked_path, open_plain, write_whole
from seqrec_fast.engine.recommender import Recommendation
from seqrec_fast.engine.requests import Filter, is_list, parse_filter, whole_number
from seqrec_fast.engine.rules import rank_limited, read_limit, with_where
from seqrec_fast.engine.selection import select, select_for_all
from seqrec_fast.engine.session_arguments import item_index, nanoseconds, remembered, user_keys
from seqrec_fast.engine.session_stats import SessionStats
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

if TYPE_CHECKING:
    from seqrec_fast.engine.recommender import Recommender
    from seqrec_fast.engine.served import ServedModel

__all__ = ["SessionStats", "Sessions"]

_NO_FILTER = Filter(None, None, [()])


class _Bound:
    """A model and the store that holds states of it."""

    __slots__ = ("lookup", "model", "observe", "store")

    def __init__(self, model: ServedModel, store: _C.Sessions) -> None:
        self.model = model
        self.store = store
        self.lookup: dict[Any, int] = model.lookup or {}
        self.observe = store.observe


class Sessions:
    """States of live users; made by :meth:`Recommender.sessions`.

    Users are integers or texts; ``1`` and ``"1"`` are different users. All methods may be called
    from any number of threads at once; the interpreter is left to others while a model computes.
    """

    def __init__(
        self,
        recommender: Recommender,
        capacity: int,
        ttl: float | None = None,
        *,
        memory: int | None = None,
        hop: int = 1,
        remember: int = 50,
    ) -> None:
        """See :meth:`Recommender.sessions`."""
        self._recommender = recommender
        self._capacity = whole_number("capacity", capacity)
        self._ttl = nanoseconds(ttl)
        self._memory = 0 if memory is None else min(whole_number("memory", memory), 2**62)
        self._hop = min(whole_number("hop", hop), 2**62)
        self._remember = remembered(remember)
        self._threads = recommender._threads or 0
        self._unknown_items = 0
        self._swapping = threading.Lock()
        with recommender._followers.lock:  # no swap between the look at the model and the list
            model = recommender._current
            if self._hop > 1 and model.encoder.native.window == 0:
                raise InputError(
                    "hop: this model reads whole histories and has no window; leave it 1"
                )
            self._bound = _Bound(model, self._store(model, self._hop))
            recommender._followers.add(self)
        _ALIVE.add(self)

    # ---------------------------------------------------------------- events

    def observe(self, user: int | str, item: Any) -> bool:
        """Takes in one event.

        Args:
            user: who; unknown users are taken in.
            item: a raw id.

        Returns:
            Whether the model knows the item; where it does not, the event is counted and ignored.

        Raises:
            InputError: a user that is neither an integer nor a text, or a list for an item.
            MemoryError: no memory; the user is as before.
        """
        bound = self._bound
        if bound.model is not self._recommender._current:
            bound = self._follow()
        index = -1
        if type(item) is str or type(item) is int:
            index = bound.lookup.get(item, -1)
        if index < 0:
            index = item_index(bound.model, item)
        try:
            if index < 0:
                bound.store.contains(user)  # an impossible user is an error all the same
                with self._swapping:
                    self._unknown_items += 1
                return False
            bound.observe(user, index)
        except _C.SessionsReplaced:
            return self.observe(user, item)
        except ValueError as error:
            raise InputError(str(error)) from None
        return True

    def observe_many(self, users: Sequence[Any], items: Sequence[Any]) -> int:
        """Takes in many events, in order; steps of different users are computed together.

        Args:
            users: who, one entry an event; a user may occur many times. An int64 array is quickest.
            items: raw ids, one an event. Unknown ones are counted and ignored.

        Returns:
            How many events were taken in.

        Raises:
            InputError: no lists, lists of different lengths, or an impossible user; then nothing
                was taken in.
            MemoryError: no memory; each user has had some of their events, in order.
        """
        keys = user_keys(users)
        if not is_list(items):
            raise InputError("items: give a list of ids, one an event")
        raw = items if isinstance(items, (list, np.ndarray)) else list(items)
        if len(raw) != len(keys):
            raise InputError(f"items: {len(raw)} for {len(keys)} users; give one item an event")
        taken = 0
        while True:
            bound = self._follow()
            indices = bound.model.items.encode(raw)
            there = np.flatnonzero(indices >= 0)
            known = keys
            if len(there) < len(indices):
                known = keys[there] if isinstance(keys, np.ndarray) else [keys[i] for i in there]
                indices = indices[there]
            try:
                done = bound.store.observe_many(known, indices, 0, self._threads)
            except ValueError as error:
                raise InputError(str(error)) from None
            taken += done
            ended = done == len(indices)
            past = len(raw) if ended else int(there[done])
            with self._swapping:
                self._unknown_items += past - done
            if ended:
                return taken
            keys, raw = keys[past:], raw[past:]  # the rest goes to the model that has come

    def forget(self, user: int | str) -> bool:
        """Drops all that is kept of a user; returns whether they were known."""
        return bool(self._native("forget", user))

    def clear(self) -> None:
        """Drops all users."""
        self._native("clear")

    # ---------------------------------------------------------------- answers

    def recommend(
        self,
        user: int | str,
        k: int = 10,
        exclude_seen: bool = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        where: Any = None,
        limit: Mapping[str, int] | None = None,
    ) -> Recommendation:
        """The best items for a user after the last event that was observed.

        Args:
            user: who. For a user who is not known the most popular items are ranked.
            k: how many; fewer come back where fewer are left.
            exclude_seen: leave out the items that are kept of the user (:meth:`history`).
            allow: rank these items only.
            deny: never these; ``deny`` wins over ``allow``.
            where: a rule over the item table.
            limit: column → how many items of each of its categories the user may get.

        Raises:
            InputError: arguments of another form; the message says which is expected.
        """
        indexed = self._recommender._current.ranker is not None
        plain = allow is None and deny is None and where is None and limit is None
        if indexed or not plain:
            return self.recommend_many([user], k, exclude_seen, allow, deny, where, limit)[0]
        bound = self._bound
        if bound.model is not self._recommender._current:
            bound = self._follow()
        model = bound.model
        count = min(k if type(k) is int and k > 0 else whole_number("k", k), len(model.items))
        try:
            found = bound.store.recommend(user, count, bool(exclude_seen), self._threads)
        except _C.SessionsReplaced:
            return self.recommend(user, k, exclude_seen)
        except ValueError as error:
            raise InputError(str(error)) from None
        if found is not None:
            scores, ids = found
            if ids[-1] < 0:
                left = int((ids >= 0).sum())
                return Recommendation.of(model, ids[:left], scores[:left])
            return Recommendation.of(model, ids, scores)
        every = np.zeros(1, dtype=np.int64)
        nothing = np.zeros((1, 1), dtype=np.float32)
        best, order = select(
            model.popular,
            nothing,
            count,
            None,
            _NO_FILTER,
            _NO_FILTER,
            every,
            self._threads or None,
        )
        return Recommendation.of(model, order[0], best[0], fallback="popularity")

    def recommend_many(
        self,
        users: Sequence[Any],
        k: int = 10,
        exclude_seen: bool = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        where: Any = None,
        limit: Mapping[str, int] | None = None,
    ) -> list[Recommendation]:
        """:meth:`recommend` for many users at once.

        Args:
            users: who; repeats are allowed.
            k: as there.
            exclude_seen: as there.
            allow: ids for all users, or a list of one iterable of ids (or ``None``) a user.
            deny: in the same two forms.
            where: a rule for all users, or a list of one (or ``None``) a user.
            limit: as there.

        Raises:
            InputError: arguments of another form.
        """
        keys = user_keys(users)
        bound, (queries, known, seen, offsets) = self._embed(keys, bool(exclude_seen))
        model = bound.model
        count = min(whole_number("k", k), len(model.items))
        allowed = parse_filter("allow", allow, len(keys), model.items)
        allowed = with_where(model, allowed, where, len(keys))
        limits = read_limit(model, limit)
        denied = parse_filter("deny", deny, len(keys), model.items)
        flags = known.astype(np.bool_)
        nothing = JaggedBatch.from_lengths(np.empty(0, np.int32), np.zeros(len(keys), np.int64))
        kept = nothing if seen is None else JaggedBatch(seen, offsets)
        everyone = np.arange(len(keys))

        def rank(
            model: ServedModel,
            kept: JaggedBatch[Any],
            k: int,
            _: bool,
            allowed: Filter,
            denied: Filter,
            rows: NDArray[np.int64],
        ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            asked = kept, allowed, denied, rows, self._threads or None
            return select_for_all(model, flags[rows], queries[rows], k, *asked)

        asked = model, kept, count, exclude_seen, allowed, denied, everyone
        scores, ids = rank(*asked) if limits is None else rank_limited(rank, *asked, limits)
        return [
            Recommendation.of(
                model,
                ids[at][ids[at] >= 0],
                scores[at][ids[at] >= 0],
                fallback=None if flags[at] else "popularity",
                unknown_filters=allowed.unknown[at] + denied.unknown[at],
            )
            for at in range(len(keys))
        ]

    def embed(self, users: Sequence[Any]) -> NDArray[np.float32]:
        """User embeddings after the last events that were observed.

        Returns:
            float32 ``[users, 1, dim]``; zeros for users who are not known.

        Raises:
            InputError: no list, or an impossible user.
        """
        _, (found, *_) = self._embed(user_keys(users), False)
        vectors: NDArray[np.float32] = found
        return vectors[:, None, :]

    # ---------------------------------------------------------------- what is kept

    def __contains__(self, user: object) -> bool:
        return bool(self._native("contains", user))

    def __len__(self) -> int:
        return self.stats().users

    def history(self, user: int | str) -> NDArray[Any]:
        """Raw ids that are kept of a user, oldest first; what ``exclude_seen`` leaves out."""
        while True:
            bound = self._follow()
            try:
                _, items = bound.store.history(user)
            except _C.SessionsReplaced:
                continue
            except ValueError as error:
                raise InputError(str(error)) from None
            return bound.model.items.decode(items)

    def events(self, user: int | str) -> int:
        """Events observed since the user is known; 0 for a user who is not."""
        return int(self._native("history", user)[0])

    def stats(self) -> SessionStats:
        """Counts and memory."""
        return SessionStats(**self._native("statistics"), unknown_items=self._unknown_items)

    def __repr__(self) -> str:
        return f"Sessions({len(self)} users of at most {self._capacity})"

    # ---------------------------------------------------------------- snapshots

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all users to a file, which appears whole or not at all.

        Others may go on meanwhile: each user is written as they are at some moment of the call.

        Args:
            path: the file; one that is there is replaced.

        Raises:
            InputError: ``path`` is none, or the system refused (no space, no permission); what was
                there stays.
        """
        target = checked_path(path, "snapshot")

        def write(stream: IO[bytes]) -> None:
            bound = self._follow()
            bound.store.save(stream.fileno(), _identity(bound.model), time.time_ns())

        while True:
            try:
                write_whole(target, write, "snapshot")
            except _C.SessionsReplaced:
                continue  # nothing was put in place
            return

    @classmethod
    def load(
        cls,
        recommender: Recommender,
        path: str | os.PathLike[str],
        capacity: int,
        ttl: float | None = None,
        *,
        memory: int | None = None,
        hop: int = 1,
        remember: int = 50,
    ) -> Sessions:
        """Sessions from what :meth:`save` wrote; see :meth:`Recommender.load_sessions`."""
        source = checked_path(path, "snapshot")
        made = cls(recommender, capacity, ttl, memory=memory, hop=hop, remember=remember)
        bound = made._bound
        with open_plain(source, "snapshot") as stream:
            try:
                bound.store.load(stream.fileno(), _identity(bound.model), time.time_ns())
            except ValueError as error:
                raise InputError(f"{path}: {error}") from None
        return made

    # ---------------------------------------------------------------- private

    def store_for(self, model: ServedModel) -> _C.Sessions:
        """An empty store for a model that comes later; for the recommender alone.

        Raises:
            InputError: the memory of these sessions cannot hold one user of it.
        """
        return self._store(model, min(self._hop, max(model.encoder.native.window, 1)))

    def _store(self, model: ServedModel, hop: int) -> _C.Sessions:
        engine = model.encoder.native
        try:
            return _C.Sessions(
                engine,
                min(self._capacity, 2**62),
                self._memory,
                self._ttl,
                hop,
                self._remember,
            )
        except ValueError as error:
            raise InputError(str(error)) from None

    def _follow(self) -> _Bound:
        """The store of the model that serves now; where that is another one, users go over to it.

        The store in place refuses calls from the moment at which its users are handed on, and they
        come here, so that no event is lost and none meets a state of another model.
        """
        bound = self._bound
        if bound.model is self._recommender._current:
            return bound
        with self._swapping:
            bound, model = self._bound, self._recommender._current
            if bound.model is model:
                return bound
            store = self.store_for(model)
            table = model.items.encode(bound.model.items.ids)
            # refused where they were handed on just before this process was forked: nobody has them
            with contextlib.suppress(_C.SessionsReplaced):
                store.take_from(bound.store, table)
            self._bound = _Bound(model, store)
            return self._bound

    def _native(self, name: str, *arguments: Any) -> Any:
        while True:
            try:
                return getattr(self._follow().store, name)(*arguments)
            except _C.SessionsReplaced:
                continue
            except ValueError as error:
                raise InputError(str(error)) from None

    def _embed(self, keys: Any, seen: bool) -> tuple[_Bound, Any]:
        while True:
            bound = self._follow()
            try:
                return bound, bound.store.embed(keys, seen, self._threads)
            except _C.SessionsReplaced:
                continue
            except ValueError as error:
                raise InputError(str(error)) from None


def _identity(model: ServedModel) -> bytes:
    return hashlib.sha256(model.version.encode()).digest()


_ALIVE: weakref.WeakSet[Sessions] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a child process nobody is left who would open the locks that others held."""
    for sessions in list(_ALIVE):
        sessions._swapping = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
