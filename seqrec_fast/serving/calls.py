# SPDX-License-Identifier: Apache-2.0
"""From a batch of requests to native calls: which share one, and what each of them gets.

This runs in a thread; results and errors are left in the requests, which the event loop then reads.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from seqrec_fast.engine.recommender import Recommendation, Recommender
from seqrec_fast.serving.answers import Answer

__all__ = ["Request", "answer", "groups", "rules_key", "version_of"]


class Request:
    """One entry of the queue: recommendations for some histories, or any other call."""

    __slots__ = ("allow", "arrived", "call", "deny", "error", "expires", "future", "histories",
                 "key", "result", "rules", "timer", "waiting")  # fmt: skip

    def __init__(self, histories: Sequence[Any], future: asyncio.Future[Any]) -> None:
        self.histories = histories
        self.future = future
        self.arrived = perf_counter()
        self.call: Callable[[], Any] | None = None
        self.allow: Any = None
        self.deny: Any = None
        #: where, limit and diversity, where there are any
        self.rules: dict[str, Any] = {}
        #: what requests of one native call share: k, exclude_seen, whether there are filters, and
        #: the rules
        self.key: tuple[int, bool, bool, str] = (0, True, False, "")
        self.expires = math.inf
        self.timer: asyncio.TimerHandle | None = None
        self.waiting = True
        self.result: Any = None
        self.error: Exception | None = None

    @property
    def users(self) -> int:
        """Histories, or 1 for any other call: the room taken in the queue."""
        return max(1, len(self.histories))


def rules_key(rules: dict[str, Any]) -> str:
    """Equal for equal rules; such that they are asked alone where they can't be compared."""
    if not rules:
        return ""
    try:
        return json.dumps(rules, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return str(id(rules))


def groups(batch: list[Request]) -> list[list[Request]]:
    """Requests that can share a native call."""
    if len(batch) == 1:
        return [batch]
    found: dict[Any, list[Request]] = {}
    for request in batch:
        found.setdefault(id(request) if request.call else request.key, []).append(request)
    return list(found.values())


def answer(recommender: Recommender, group: list[Request]) -> int:
    """Fills in the results of a group, or its errors; returns the number of calls."""
    begin = perf_counter()
    first = group[0]
    try:
        if first.call is not None:
            first.result = first.call()
            return 1
        results = _recommend(recommender, group)
    except Exception as error:
        if len(group) == 1:
            first.error = error
            return 1
        # One request's mistake is not the others': each is asked on its own.
        return 1 + sum(answer(recommender, [request]) for request in group)
    seconds = perf_counter() - begin
    version = version_of(results[0] if results else None, recommender)
    at = 0
    for request in group:
        end = at + len(request.histories)
        part = results if len(group) == 1 else results[at:end]
        request.result = Answer(part, version, begin - request.arrived, seconds, len(results))
        at = end
    return 1


def version_of(found: Recommendation | None, recommender: Recommender) -> str | None:
    """Version of the bundle that answered: as the answer tells, else of what is served now."""
    version: str | None = getattr(found, "version", None)
    return getattr(recommender, "version", None) if version is None else version


def _recommend(recommender: Recommender, group: list[Request]) -> list[Recommendation]:
    k, exclude_seen, filtered, _ = group[0].key
    if len(group) == 1:
        first = group[0]
        histories, allow, deny = first.histories, first.allow, first.deny
    else:
        histories = [history for request in group for history in request.histories]
        allow = deny = None
        if filtered:
            allow = [request.allow for request in group for _ in request.histories]
            deny = [request.deny for request in group for _ in request.histories]
            allow = None if all(one is None for one in allow) else allow
            deny = None if all(one is None for one in deny) else deny
    return recommender.recommend(histories, k, exclude_seen, allow, deny, **group[0].rules)
