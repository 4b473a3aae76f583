# SPDX-License-Identifier: Apache-2.0
"""What a request gets from the asyncio front: an answer with its cost, or one of three errors."""

from __future__ import annotations

from dataclasses import dataclass

from seqrec_fast.engine.recommender import Recommendation
from seqrec_fast.errors import SeqrecError

__all__ = ["Answer", "Closed", "Counters", "DeadlineExceeded", "Overloaded"]


class Overloaded(SeqrecError, RuntimeError):
    """The queue is full; ask again after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(SeqrecError, TimeoutError):
    """The deadline of a request passed before its turn came; no work was done for it."""


class Closed(SeqrecError, RuntimeError):
    """The front was closed, or is being closed, and takes nothing more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request got, and what it cost.

    Attributes:
        results: one recommendation a history.
        version: version of the bundle that answered, or None where it has none.
        waited: seconds in the queue.
        engine: seconds of the native call that the request was part of.
        users: histories that this call answered.
    """

    results: list[Recommendation]
    version: str | None
    waited: float
    engine: float
    users: int


@dataclass(slots=True)
class Counters:
    """What has happened so far; ``queued`` and ``running`` are of this moment.

    Attributes:
        requests: taken into the queue.
        users: histories of those requests.
        answered: requests that got recommendations.
        failed: requests that the engine refused.
        overloaded: requests turned away, the queue being full.
        expired: requests dropped, their deadline being past.
        cancelled: requests that nobody waited for any more, dropped before work.
        batches: turns of a thread.
        calls: calls of the engine; more than batches where options differ.
        queued: histories that wait.
        running: batches at work.
    """

    requests: int = 0
    users: int = 0
    answered: int = 0
    failed: int = 0
    overloaded: int = 0
    expired: int = 0
    cancelled: int = 0
    batches: int = 0
    calls: int = 0
    queued: int = 0
    running: int = 0
