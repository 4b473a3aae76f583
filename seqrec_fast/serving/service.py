# SPDX-License-Identifier: Apache-2.0
"""What an app serves and in which state it is: loading, ready, draining."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

from seqrec_fast.engine.recommender import Recommender
from seqrec_fast.errors import InputError
from seqrec_fast.serving.batching import AsyncRecommender
from seqrec_fast.serving.bodies import Refused
from seqrec_fast.serving.limits import Limits
from seqrec_fast.serving.metrics import Metrics

__all__ = ["Service"]

log = logging.getLogger("seqrec_fast.serving")


class Service:
    """State of one app; used from its event loop alone.

    Attributes:
        engine: answers the requests; None while loading.
        sessions: state of live users, or None where they are not kept.
        draining: whether the server is about to stop, so that no new traffic should come.
        failure: why loading failed, or None.
    """

    def __init__(
        self,
        served: Recommender | str | os.PathLike[str],
        *,
        limits: Limits,
        threads: int | None,
        sessions: int | None,
        ttl: float | None,
        deadline: float | None,
        reload: bool,
        path: str | os.PathLike[str] | None,
        batching: dict[str, Any],
    ) -> None:
        self.limits = limits
        self.deadline = deadline
        self.engine: AsyncRecommender | None = None
        self.sessions: Any = None
        self.draining = False
        self.failure: str | None = None
        self.reloads = 0
        recommender: Recommender | None = None
        if isinstance(served, (str, os.PathLike)):
            path = served
        else:
            recommender = served
        self.path = None if path is None else Path(path)
        self.keeps_sessions = sessions is not None
        self.may_reload = reload
        self._recommender = recommender
        self._threads, self._capacity, self._ttl = threads, sessions, ttl
        self._batching = batching
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.metrics = Metrics(self._facts)
        if self._recommender is not None:
            self._take(self._recommender)

    # ---------------------------------------------------------------- life

    async def start(self) -> None:
        """Loads the bundle in a thread, while the server already tells that it is not ready."""
        if self._recommender is None:
            assert self.path is not None
            self._keep(asyncio.create_task(self._load(self.path)))

    async def stop(self) -> None:
        """Answers what waits and stops."""
        self.draining = True
        for task in list(self._tasks):
            task.cancel()
        if self.engine is not None:
            await self.engine.close()

    async def reload(self) -> str | None:
        """Takes the bundle that is at the path now; running requests finish on the old one.

        Returns:
            The version that is served now, or None where the bundle has none.

        Raises:
            InputError: the bundle cannot be read; the old one goes on being served.
        """
        async with self._reloading:
            recommender, path = self._recommender, self.path
            if recommender is None or path is None:
                raise InputError("reload: there is no bundle on disk that could be read again")
            swap = getattr(recommender, "swap", None)
            if swap is not None:
                await asyncio.to_thread(swap, path)
            else:
                recommender = await asyncio.to_thread(Recommender.load, path, threads=self._threads)
                assert self.engine is not None
                self._recommender = recommender
                self.engine.replace(recommender)
            self.reloads += 1
            # In a thread too: a version is a hash of all weights, made when first asked for.
            return await asyncio.to_thread(_version, recommender)

    def reload_soon(self) -> None:
        """:meth:`reload` from a signal; a failure is logged."""
        self._keep(asyncio.get_running_loop().create_task(self._try_reload()))

    async def _try_reload(self) -> None:
        try:
            version = await self.reload()
            log.info("bundle loaded again, version %s", version)
        except (InputError, OSError) as error:
            log.error("bundle not loaded again, the old one is served: %s", error)

    async def _load(self, path: Path) -> None:
        try:
            self._take(await asyncio.to_thread(Recommender.load, path, threads=self._threads))
        except (InputError, OSError) as error:
            self.failure = str(error)
            log.error("the bundle cannot be served: %s", error)

    def _take(self, recommender: Recommender) -> None:
        _version(recommender)  # made now, not by the first request
        self._recommender = recommender
        if self.keeps_sessions:
            make = getattr(recommender, "sessions", None)
            if make is None:
                raise InputError(
                    "sessions: this recommender keeps no state a user; serve without them"
                )
            self.sessions = make(self._capacity, self._ttl)
        self.engine = AsyncRecommender(recommender, on_batch=self.metrics.batch, **self._batching)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        """Asyncio itself holds tasks by weak references only."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------- facts

    @property
    def ready(self) -> bool:
        """Whether new traffic is welcome."""
        return self.engine is not None and not self.draining

    @property
    def state(self) -> str:
        """``ready``, ``loading``, ``failed`` or ``draining``."""
        if self.draining:
            return "draining"
        if self.engine is not None:
            return "ready"
        return "loading" if self.failure is None else "failed"

    def asked(self) -> AsyncRecommender:
        """The engine.

        Raises:
            Refused: there is none yet (503).
        """
        if self.engine is None:
            raise Refused(
                503, f"the bundle is {self.state}; ask again later", ((b"retry-after", b"1"),)
            )
        return self.engine

    def about(self) -> dict[str, Any]:
        """Model, version, number of items; empty while loading."""
        if self._recommender is None:
            return {}
        return {
            "model": self._recommender.info()["model"],
            "version": _version(self._recommender) or "",
            "items": self._recommender.num_items,
        }

    def _facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "counters": None if self.engine is None else self.engine.counters,
            "ready": int(self.ready),
            "reloads": self.reloads,
            "info": self.about(),
        }
        if self.sessions is not None:
            found["sessions"] = dict(self.sessions.stats())
        return found


def _version(recommender: Recommender) -> str | None:
    return getattr(recommender, "version", None)
