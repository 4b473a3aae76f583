# SPDX-License-Identifier: Apache-2.0
"""JSON bodies of requests, read and checked by hand, and answers written as JSON.

A schema library would build an object a field and check every id on its own; here an id list costs
one pass in C. The same bodies are described for readers in :mod:`seqrec_fast.serving.schema`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from seqrec_fast.engine.recommender import Recommendation
from seqrec_fast.serving.limits import Limits

__all__ = ["Ask", "Refused", "UserAsk", "answer_object", "dump", "parse_ask", "parse_events",
           "parse_object", "parse_query", "parse_similar"]  # fmt: skip

_ASK = ("history", "histories", "k", "exclude_seen", "allow", "deny", "where", "limit",
        "diversity", "titles", "deadline_ms")  # fmt: skip
_SIMILAR = ("item", "k", "titles", "deadline_ms")
_EVENTS = ("item", "items")
_ID_TYPES = {str, int}


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
        headers: further headers of the answer.
    """

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request for recommendations; ``many`` says in which form to answer."""

    histories: list[list[Any]]
    many: bool
    k: int
    exclude_seen: bool
    allow: list[Any] | None
    deny: list[Any] | None
    titles: bool
    deadline: float | None
    where: dict[str, Any] | None = None
    limit: dict[str, Any] | None = None
    diversity: float = 0.0


@dataclass(frozen=True, slots=True)
class UserAsk:
    """A checked request for recommendations from a user's state."""

    k: int
    exclude_seen: bool
    where: dict[str, Any] | None
    limit: dict[str, Any] | None
    titles: bool
    deadline: float | None


def parse_object(body: bytes, known: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        Refused: no JSON (400), no object, or a field that is not known (422).
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"body: not JSON ({error}); send one JSON object") from None
    if type(found) is not dict:
        raise Refused(422, f"body: found {_kind(found)}; send one JSON object")
    if not found.keys() <= set(known):
        other = next(name for name in found if name not in known)
        raise Refused(422, f"body: unknown field {other[:60]!r}; known are {', '.join(known)}")
    return found


def parse_ask(body: bytes, limits: Limits, default_deadline: float | None) -> Ask:
    """The body of ``POST /recommend``.

    Raises:
        Refused: with the field and the remedy.
    """
    given = parse_object(body, _ASK)
    many = "histories" in given
    if many == ("history" in given):
        raise Refused(422, "body: give either history (one user) or histories (one list a user)")
    if many:
        histories = given["histories"]
        if type(histories) is not list:
            raise Refused(422, f"histories: found {_kind(histories)}; give one list of ids a user")
        if not 1 <= len(histories) <= limits.users:
            raise Refused(
                422, f"histories: {len(histories)} users; give 1 to {limits.users} a request"
            )
        for number, history in enumerate(histories):
            _ids(f"histories[{number}]", history, limits.history, _MOST_RECENT)
    else:
        histories = [_ids("history", given["history"], limits.history, _MOST_RECENT)]
    return Ask(
        histories,
        many,
        _count(given, limits),
        _flag(given, "exclude_seen", True),
        _filter(given, "allow", limits),
        _filter(given, "deny", limits),
        _flag(given, "titles", False),
        parse_deadline(given, default_deadline),
        _columns(given, "where"),
        _columns(given, "limit"),
        _weight(given, "diversity"),
    )


def parse_similar(
    body: bytes, limits: Limits, default_deadline: float | None
) -> tuple[Any, int, bool, float | None]:
    """The body of ``POST /similar``: item, k, titles, deadline."""
    given = parse_object(body, _SIMILAR)
    if "item" not in given:
        raise Refused(422, "item: is missing; give one id")
    item = _id("item", given["item"])
    deadline = parse_deadline(given, default_deadline)
    return item, _count(given, limits), _flag(given, "titles", False), deadline


def parse_events(body: bytes, limits: Limits) -> list[Any]:
    """The body of ``POST /users/{user}/events``: ids of items, oldest first."""
    given = parse_object(body, _EVENTS)
    if ("item" in given) == ("items" in given):
        raise Refused(422, "body: give either item (one id) or items (ids, oldest first)")
    if "item" in given:
        return [_id("item", given["item"])]
    return _ids("items", given["items"], limits.history, "send them in several requests")


_QUERY = {"k": "a whole number", "exclude_seen": "true or false",
          "where": "a JSON object by columns of the items",
          "limit": "a JSON object by columns of the items", "titles": "true or false",
          "deadline_ms": "milliseconds above 0"}  # fmt: skip


def parse_query(
    given: Mapping[str, str], limits: Limits, default_deadline: float | None
) -> UserAsk:
    """The query of ``GET /users/{user}/recommendations``."""
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in _QUERY:
            raise Refused(
                422, f"query: unknown parameter {name[:60]!r}; known are {', '.join(_QUERY)}"
            )
        try:
            values[name] = orjson.loads(text)  # 10, true, 2.5, {}: the values of a body
        except orjson.JSONDecodeError:
            raise Refused(422, f"{name}: found {text[:60]!r}; give {_QUERY[name]}") from None
    return UserAsk(
        _count(values, limits),
        _flag(values, "exclude_seen", True),
        _columns(values, "where"),
        _columns(values, "limit"),
        _flag(values, "titles", False),
        parse_deadline(values, default_deadline),
    )


def parse_deadline(given: Mapping[str, Any], default: float | None) -> float | None:
    """Seconds from ``deadline_ms``."""
    value = given.get("deadline_ms")
    if value is None:
        return default
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise Refused(422, f"deadline_ms: found {_shown(value)}; give milliseconds above 0")
    return float(value) / 1e3


_MOST_RECENT = "send the most recent ones"


def _ids(name: str, given: Any, limit: int, remedy: str) -> list[Any]:
    if type(given) is not list:
        raise Refused(422, f'{name}: found {_kind(given)}; give a list of ids, ["a", "b"]')
    if len(given) > limit:
        raise Refused(422, f"{name}: {len(given)} ids, at most {limit} are taken; {remedy}")
    if not set(map(type, given)) <= _ID_TYPES:
        at = next(n for n, one in enumerate(given) if type(one) not in _ID_TYPES)
        raise Refused(
            422, f"{name}[{at}]: found {_kind(given[at])}; an id is a text or a whole number"
        )
    return given


def _id(name: str, given: Any) -> Any:
    if type(given) not in _ID_TYPES:
        raise Refused(422, f"{name}: found {_kind(given)}; an id is a text or a whole number")
    return given


def _filter(given: Mapping[str, Any], name: str, limits: Limits) -> list[Any] | None:
    value = given.get(name)
    return None if value is None else _ids(name, value, limits.ids, "filter the answer instead")


def _columns(given: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value: Any = given.get(name)
    if value is not None and type(value) is not dict:
        raise Refused(422, f"{name}: found {_kind(value)}; give an object by columns of the items")
    return value or None


def _count(given: Mapping[str, Any], limits: Limits) -> int:
    k: Any = given.get("k", 10)
    if type(k) is not int or not 1 <= k <= limits.k:
        raise Refused(422, f"k: found {_shown(k)}; give a whole number from 1 to {limits.k}")
    return k


def _weight(given: Mapping[str, Any], name: str) -> float:
    value: Any = given.get(name, 0.0)
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise Refused(422, f"{name}: found {_shown(value)}; give a number of at least 0")
    return float(value)


def _flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value: Any = given.get(name, default)
    if type(value) is not bool:
        raise Refused(422, f"{name}: found {_shown(value)}; give true or false")
    return value


def _kind(given: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false",
             int: "a number", float: "a number with a fraction"}  # fmt: skip
    return names.get(type(given), "null")


def _shown(given: Any) -> str:
    text = orjson.dumps(given).decode()
    return text if len(text) <= 60 else text[:57] + "..."


# ----------------------------------------------------------------------------------- answers


def answer_object(found: Recommendation, titles: bool) -> dict[str, Any]:
    """What one user gets, ready for :func:`dump`."""
    items = found.items
    answer = {
        "items": items if items.dtype == np.int64 else items.tolist(),
        "scores": found.scores,
        "unknown": found.unknown,
        "unknown_filters": found.unknown_filters,
        "fallback": found.fallback,
    }
    if titles:
        answer["titles"] = found.titles
    return answer


def dump(value: Any) -> bytes:
    """JSON; numpy arrays become lists."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
