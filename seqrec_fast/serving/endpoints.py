# SPDX-License-Identifier: Apache-2.0
"""The endpoints that carry the traffic, as bare ASGI: body in, one native call, JSON out."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from seqrec_fast.engine.recommender import Recommendation
from seqrec_fast.errors import InputError
from seqrec_fast.serving.answers import Closed, DeadlineExceeded, Overloaded
from seqrec_fast.serving.batching import AsyncRecommender
from seqrec_fast.serving.bodies import (
    Refused,
    answer_object,
    dump,
    parse_ask,
    parse_events,
    parse_query,
    parse_similar,
)
from seqrec_fast.serving.calls import version_of
from seqrec_fast.serving.service import Service

__all__ = ["Endpoint", "Events", "Forget", "Recommend", "Reload", "Similar", "UserRecommend"]

log = logging.getLogger("seqrec_fast.serving")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_MAX_USER = 256  # characters of a user's id
_JSON = (b"content-type", b"application/json")
#: a body beyond the limit is read to its end, so that the client hears why, up to so many limits
_READ_ON = 8


class _Done(NamedTuple):
    """An answer, and the seconds that it waited and was in the engine."""

    status: int
    body: bytes
    waited: float
    engine: float


class Endpoint:
    """Reads the body, calls :meth:`answer`, turns errors into JSON, counts."""

    name = ""
    reads = True  # whether there is a body

    def __init__(self, service: Service) -> None:
        self.service = service

    async def answer(self, scope: Scope, body: bytes) -> _Done:
        """The answer to a request."""
        raise TypeError(f"{type(self).__name__} is abstract")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        begin = perf_counter()
        service = self.service
        headers: list[tuple[bytes, bytes]] = [_JSON]
        done: _Done | None = None
        try:
            body = await _read(scope, receive, service.limits.body) if self.reads else b""
            done = await self.answer(scope, body)
            status, payload = done.status, done.body
        except Exception as error:
            status, payload, more = _refusal(error, scope)
            headers += more
        outside = perf_counter() - begin
        if done is not None:
            outside -= done.waited + done.engine
            service.metrics.spent(done.waited, outside)
            timing = (
                f"queue;dur={1e3 * done.waited:.3f}, engine;dur={1e3 * done.engine:.3f}, "
                f"outside;dur={1e3 * outside:.3f}"
            )
            headers.append((b"server-timing", timing.encode()))
        headers.append((b"content-length", str(len(payload)).encode()))
        if service.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})
        service.metrics.answered(self.name, status, perf_counter() - begin)


class Recommend(Endpoint):
    """``POST /recommend``."""

    name = "recommend"

    async def answer(self, scope: Scope, body: bytes) -> _Done:
        """Recommendations for the histories of the body."""
        service = self.service
        ask = parse_ask(body, service.limits, service.deadline)
        found = await service.asked().ask(
            ask.histories,
            ask.k,
            exclude_seen=ask.exclude_seen,
            allow=ask.allow,
            deny=ask.deny,
            where=ask.where,
            limit=ask.limit,
            diversity=ask.diversity,
            deadline=ask.deadline,
        )
        if ask.many:
            results = [answer_object(one, ask.titles) for one in found.results]
            answer = {"results": results, "version": found.version}
        else:
            answer = answer_object(found.results[0], ask.titles)
            answer["version"] = found.version
        return _Done(200, dump(answer), found.waited, found.engine)


class Similar(Endpoint):
    """``POST /similar``."""

    name = "similar"

    async def answer(self, scope: Scope, body: bytes) -> _Done:
        """Items whose vectors point the same way as one item's."""
        service = self.service
        item, k, titles, deadline = parse_similar(body, service.limits, service.deadline)
        engine = service.asked()
        found, waited, spent = await _timed(
            service, lambda: engine.recommender.similar_items(item, k), deadline
        )
        return _one(engine, found, titles, waited, spent)


class Events(Endpoint):
    """``POST /users/{user}/events``."""

    name = "events"

    async def answer(self, scope: Scope, body: bytes) -> _Done:
        """Advances a user's state by the events of the body."""
        user = _user(scope)
        items = parse_events(body, self.service.limits)
        sessions = self.service.sessions
        if len(items) == 1:
            call = lambda: sessions.observe(user, items[0])  # noqa: E731
        else:
            call = lambda: sessions.observe_many([user] * len(items), items)  # noqa: E731
        taken, waited, spent = await _timed(self.service, call, self.service.deadline)
        return _Done(200, dump({"events": len(items), "known": int(taken)}), waited, spent)


class UserRecommend(Endpoint):
    """``GET /users/{user}/recommendations``."""

    name = "user_recommendations"
    reads = False

    async def answer(self, scope: Scope, body: bytes) -> _Done:
        """Recommendations from a user's state."""
        service = self.service
        user = _user(scope)
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        ask = parse_query(given, service.limits, service.deadline)
        sessions = service.sessions
        found, waited, spent = await _timed(
            service,
            lambda: sessions.recommend(
                user, ask.k, ask.exclude_seen, where=ask.where, limit=ask.limit
            ),
            ask.deadline,
        )
        return _one(service.asked(), found, ask.titles, waited, spent)


class Forget(Endpoint):
    """``DELETE /users/{user}``."""

    name = "forget"
    reads = False

    async def answer(self, scope: Scope, body: bytes) -> _Done:
        """Drops a user's state."""
        user, sessions = _user(scope), self.service.sessions
        known, waited, spent = await _timed(
            self.service, lambda: sessions.forget(user), self.service.deadline
        )
        return _Done(200, dump({"forgotten": bool(known)}), waited, spent)


class Reload(Endpoint):
    """``POST /admin/reload``."""

    name = "reload"

    async def answer(self, scope: Scope, body: bytes) -> _Done:
        """Serves the bundle that is on the disk now."""
        return _Done(200, dump({"version": await self.service.reload()}), 0.0, 0.0)


async def _timed(
    service: Service, call: Callable[[], Any], deadline: float | None
) -> tuple[Any, float, float]:
    """A call of the engine through the queue: its result, seconds waited, seconds at work."""
    asked = perf_counter()

    def timed() -> tuple[Any, float, float]:
        begin = perf_counter()
        found = call()
        return found, begin - asked, perf_counter() - begin

    done: tuple[Any, float, float] = await service.asked().run(timed, deadline=deadline)
    return done


def _one(
    engine: AsyncRecommender, found: Recommendation, titles: bool, waited: float, spent: float
) -> _Done:
    answer = answer_object(found, titles)
    answer["version"] = version_of(found, engine.recommender)
    return _Done(200, dump(answer), waited, spent)


def _user(scope: Scope) -> str:
    user: str = scope["path_params"]["user"]
    # Servers put this character where bytes are no UTF-8: users would share one name.
    if "\ufffd" in user:
        try:
            unquote_to_bytes(scope.get("raw_path") or b"").decode()
        except UnicodeDecodeError:
            raise Refused(
                422, "user: the id in the path is not UTF-8; send its UTF-8 bytes as %XX"
            ) from None
    if len(user) > _MAX_USER:
        raise Refused(422, f"user: {len(user)} characters; an id has at most {_MAX_USER}")
    return user


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is larger than the limit (413).
    """
    declared = 0
    for name, value in scope["headers"]:
        if name == b"content-length":
            declared = int(value)
            break
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body") and len(body) <= limit:
        return body
    parts, size = [body], len(body)
    while message.get("more_body") and max(size, declared) <= _READ_ON * limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "body: the connection ended before the body did; send it whole")
        size += len(message.get("body", b""))
        if size <= limit:
            parts.append(message.get("body", b""))
    if max(size, declared) > limit:
        raise Refused(
            413,
            f"body: {max(size, declared)} bytes, at most {limit} are taken; send fewer histories "
            f"or shorter ones",
            ((b"connection", b"close"),),
        )
    return b"".join(parts)


def _refusal(error: Exception, scope: Scope) -> tuple[int, bytes, tuple[tuple[bytes, bytes], ...]]:
    """Status, body and headers for an error."""
    more: tuple[tuple[bytes, bytes], ...] = ()
    message = str(error)
    if isinstance(error, Refused):
        status, more = error.status, error.headers
    elif isinstance(error, Overloaded):
        status = 503
        more = ((b"retry-after", str(max(1, round(error.retry_after))).encode()),)
    elif isinstance(error, Closed):
        status, more = 503, ((b"retry-after", b"1"), (b"connection", b"close"))
    elif isinstance(error, DeadlineExceeded):
        status = 504
    elif isinstance(error, InputError):
        status = 422
    else:
        log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
        status, message = 500, "the server failed at this request; its log says why"
    return status, dump({"error": message}), more
