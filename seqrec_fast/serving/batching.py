# SPDX-License-Identifier: Apache-2.0
"""An asyncio front of a Recommender that groups what arrives into native calls.

The native call releases the interpreter lock, and one call for many users costs much less than as
many calls. So requests wait in one queue, bounded, and a few threads take batches from it. A
request that finds all threads idle is taken at once; one that finds some at work waits until one of
them ends, but no longer than the time budget if another is idle. A lone request thus never waits,
and the busier the engine, the larger the batches.

All state belongs to the event loop. A thread gets a batch through a queue and hands it back by one
``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any

from seqrec_fast.engine.recommender import Recommendation, Recommender
from seqrec_fast.engine.requests import whole_number
from seqrec_fast.errors import InputError
from seqrec_fast.serving.answers import Answer, Closed, Counters, DeadlineExceeded, Overloaded
from seqrec_fast.serving.calls import Request, answer, groups, rules_key

__all__ = ["AsyncRecommender"]

#: called with users, seconds in the engine, after each batch
BatchObserver = Callable[[int, float], None]


class AsyncRecommender:
    """Recommendations by ``await``, grouped into native calls.

    Belongs to one event loop: the one in which it is first used. Threads start with the first
    request.
    """

    def __init__(
        self,
        recommender: Recommender,
        *,
        window: float = 0.001,
        max_batch: int = 64,
        max_queue: int = 1024,
        workers: int = 2,
        on_batch: BatchObserver | None = None,
    ) -> None:
        """Wraps a recommender, which others may go on using.

        Args:
            recommender: answers the requests; replaced by :meth:`replace`.
            window: seconds that a request may wait for company while a thread is idle and another
                one at work.
            max_batch: histories of one batch at most; one request with more forms a batch alone.
            max_queue: histories that may wait; what comes beyond is turned away.
            workers: threads, so batches at work at once. Each call may itself use as many cores as
                the recommender was given.
            on_batch: is told of every batch, in the event loop.

        Raises:
            InputError: an impossible number.
        """
        if not 0 <= window < math.inf:
            raise InputError(f"window: must be seconds of at least 0, found {window!r}")
        sizes = {"max_batch": max_batch, "max_queue": max_queue, "workers": workers}
        for name, value in sizes.items():
            whole_number(name, value)
        self.recommender = recommender
        self.counters = Counters()
        self._window, self._max_batch, self._max_queue = window, max_batch, max_queue
        self._workers = workers
        self._on_batch = on_batch
        self._queue: deque[Request] = deque()
        self._soon = False  # whether a flush stands in the loop's next turn
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handed: SimpleQueue[list[Request] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._closing = False
        self._idle: asyncio.Event | None = None

    # ---------------------------------------------------------------- questions

    async def recommend(
        self,
        history: Sequence[Any],
        k: int = 10,
        exclude_seen: bool = True,
        allow: Sequence[Any] | None = None,
        deny: Sequence[Any] | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        limit: Mapping[str, int] | None = None,
        diversity: float = 0.0,
        deadline: float | None = None,
    ) -> Recommendation:
        """The best items for one user, as :meth:`Recommender.recommend` gives them.

        Args:
            history: raw ids, oldest first.
            k: how many.
            exclude_seen: leave out the items of the history.
            allow: rank these items only.
            deny: never these.
            where: a rule over the item table.
            limit: column → most items of each of its categories.
            diversity: as in :meth:`Recommender.recommend`.
            deadline: seconds from now after which the answer is of no use.

        Raises:
            InputError: as :meth:`Recommender.recommend`.
            Overloaded: the queue is full.
            DeadlineExceeded: the deadline passed while the request waited.
            Closed: the front takes nothing more.
        """
        answer = await self.ask(
            [history],
            k,
            exclude_seen=exclude_seen,
            allow=allow,
            deny=deny,
            where=where,
            limit=limit,
            diversity=diversity,
            deadline=deadline,
        )
        return answer.results[0]

    def ask(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Sequence[Any] | None = None,
        deny: Sequence[Any] | None = None,
        where: Mapping[str, Any] | None = None,
        limit: Mapping[str, int] | None = None,
        diversity: float = 0.0,
        deadline: float | None = None,
    ) -> asyncio.Future[Answer]:
        """:meth:`recommend` for several users with the same options, telling what it cost.

        ``await`` what comes back; errors are raised there, but for :class:`Overloaded` and
        :class:`Closed`, which are raised here.
        """
        request = self._admit(histories)
        request.allow, request.deny = allow, deny
        given = (("where", where), ("limit", limit))
        request.rules = {name: dict(rule) for name, rule in given if rule is not None}
        if diversity:
            request.rules["diversity"] = diversity
        filtered = allow is not None or deny is not None
        request.key = (k, bool(exclude_seen), filtered, rules_key(request.rules))
        return self._enter(request, deadline)

    def run(self, call: Callable[[], Any], *, deadline: float | None = None) -> asyncio.Future[Any]:
        """Any other call of the engine, through the same queue and threads, on its own.

        Args:
            call: is run in a thread.
            deadline: as in :meth:`recommend`.
        """
        request = self._admit(())
        request.call = call
        return self._enter(request, deadline)

    async def similar_items(
        self, item: Any, k: int = 10, *, deadline: float | None = None
    ) -> Recommendation:
        """:meth:`Recommender.similar_items`, in a thread; errors as in :meth:`recommend`."""
        found: Recommendation = await self.run(
            lambda: self.recommender.similar_items(item, k), deadline=deadline
        )
        return found

    # ---------------------------------------------------------------- life

    def replace(self, recommender: Recommender) -> None:
        """Answers by another recommender from the next batch on; what is at work ends as begun."""
        self.recommender = recommender

    def stats(self) -> dict[str, int]:
        """The counters as plain numbers."""
        return asdict(self.counters)

    async def close(self) -> None:
        """Takes nothing more, answers what waits, stops the threads. May be called again."""
        self._closing = True
        if self.counters.running or self._queue:
            self._idle = self._idle or asyncio.Event()
            self._flush()
            if self.counters.running or self._queue:
                await self._idle.wait()
        threads, self._threads = self._threads, []
        for _ in threads:
            self._handed.put(None)
        for thread in threads:
            thread.join()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---------------------------------------------------------------- the queue

    def _admit(self, histories: Sequence[Any]) -> Request:
        """Checks that there is room for a request."""
        if self._closing:
            raise Closed("the server is shutting down; ask another one")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._start(loop)
        counters = self.counters
        users = max(1, len(histories))
        if counters.queued and counters.queued + users > self._max_queue:
            counters.overloaded += 1
            raise Overloaded(
                f"overloaded: {counters.queued} users wait and at most {self._max_queue} may; "
                f"ask again later"
            )
        return Request(histories, loop.create_future())

    def _enter(self, request: Request, deadline: float | None) -> asyncio.Future[Any]:
        counters, loop = self.counters, self._loop
        assert loop is not None
        counters.requests += 1
        counters.users += len(request.histories)
        counters.queued += request.users
        if deadline is not None:
            request.expires = request.arrived + deadline
            request.timer = loop.call_later(deadline, self._expire, request)
        self._queue.append(request)
        if counters.running == 0:
            # In the loop's next turn, so that what arrives together goes together.
            if not self._soon:
                self._soon = True
                loop.call_soon(self._flush)
        elif counters.running < self._workers:
            if counters.queued >= self._max_batch:
                self._flush()
            elif self._timer is None:
                self._timer = loop.call_later(self._window, self._flush)
        return request.future

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            raise InputError(
                "AsyncRecommender: belongs to the event loop that used it first; make one for each"
            )
        self._loop = loop
        for number in range(self._workers):
            thread = Thread(target=self._work, name=f"seqrec-serving-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _flush(self) -> None:
        """Gives what waits to the threads that are idle."""
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and self.counters.running < self._workers:
            batch = self._take()
            if not batch:
                break
            self.counters.running += 1
            self.counters.batches += 1
            self._handed.put(batch)
        if self._idle is not None and not self._queue and not self.counters.running:
            self._idle.set()

    def _take(self) -> list[Request]:
        """The next batch; leaves out whom nobody waits for and whose deadline is past."""
        batch: list[Request] = []
        users, now = 0, perf_counter()
        while self._queue:
            request = self._queue[0]
            alive = request.waiting and self._alive(request, now)
            if alive and batch and users + request.users > self._max_batch:
                break
            self._queue.popleft()
            if not alive:
                continue
            users += request.users
            self._leave(request)
            batch.append(request)
        return batch

    def _alive(self, request: Request, now: float) -> bool:
        if request.future.cancelled():
            self.counters.cancelled += 1
        elif now >= request.expires:
            self._refuse(request)
            return False
        else:
            return True
        self._leave(request)
        return False

    def _leave(self, request: Request) -> None:
        """Counts a request out of the queue."""
        request.waiting = False
        self.counters.queued -= request.users
        if request.timer is not None:
            request.timer.cancel()

    def _expire(self, request: Request) -> None:
        """The timer of a deadline: who still waits is told at once."""
        if request.waiting and not request.future.done():
            self._refuse(request)

    def _refuse(self, request: Request) -> None:
        self._leave(request)
        self.counters.expired += 1
        waited = perf_counter() - request.arrived
        request.future.set_exception(
            DeadlineExceeded(f"the deadline passed after {1e3 * waited:.1f} ms in the queue")
        )

    def _finished(self, batch: list[Request], calls: int, seconds: float) -> None:
        """A thread is done: tells those who wait, and takes what has come meanwhile."""
        counters = self.counters
        counters.running -= 1
        counters.calls += calls
        users = 0
        for request in batch:
            users += request.users
            future = request.future
            if request.error is not None:
                counters.failed += 1
                if not future.done():
                    future.set_exception(request.error)
            else:
                counters.answered += 1
                if not future.done():
                    future.set_result(request.result)
        if self._queue or self._idle is not None:
            self._flush()
        if self._on_batch is not None:
            self._on_batch(users, seconds)

    # ---------------------------------------------------------------- in a thread

    def _work(self) -> None:
        loop = self._loop
        assert loop is not None
        while (batch := self._handed.get()) is not None:
            begin = perf_counter()
            calls = 0
            recommender = self.recommender  # read once: it may be replaced meanwhile
            for group in groups(batch):
                calls += answer(recommender, group)
            try:
                loop.call_soon_threadsafe(self._finished, batch, calls, perf_counter() - begin)
            except RuntimeError:  # the loop was closed; nobody is left to be told
                return
