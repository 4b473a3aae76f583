# SPDX-License-Identifier: Apache-2.0
"""Which column of a log is the user, the item, the time …, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqrec_fast.errors import InputError

__all__ = ["ROLES", "choose_columns", "choose_title", "looks_like_header", "recognise", "resolve"]

ROLES = ("user", "item", "time", "event", "rating", "weight")
"""The parts that an event can have; the first two every log must have."""


def _tier(names: str) -> frozenset[str]:
    return frozenset(names.split())


# For each role, tiers of names in falling order of preference. Names are compared in lower case
# without anything but letters and digits, so user_id, userId and "User ID" are one name.
_NAMES: dict[str, tuple[frozenset[str], ...]] = {
    "user": (
        _tier(
            "user userid users uid username visitorid visitor customerid customer memberid member "
            "reviewerid reviewer clientid client accountid buyerid personid profileid"
        ),
        _tier("session sessionid sequenceid cookieid"),
    ),
    "item": (
        _tier(
            "item itemid items iid movieid movie productid product asin parentasin articleid "
            "article newsid songid trackid bookid videoid businessid isbn sku gameid postid "
            "contentid objectid animeid poiid venueid locationid courseid recipeid"
        ),
        _tier("sid aid pid goodsid artistid"),
    ),
    "time": (
        _tier(
            "time timestamp ts timestamps unixtime unixreviewtime unixtimestamp timestampms "
            "timems timestampsec"
        ),
        _tier(
            "datetime date eventtime eventtimestamp eventdate createdat created occurredat "
            "reviewtime reviewdate orderdate purchasedate transactiondate transactiondt tdat "
            "utctime servertime"
        ),
    ),
    "event": (
        _tier(
            "event eventtype events eventname behavior behaviour behaviortype behaviourtype "
            "action actiontype interactiontype activity"
        ),
        frozenset(["type"]),
    ),
    "rating": (
        _tier("rating ratings stars star score overall reviewrating"),
        frozenset(["label", "value"]),
    ),
    "weight": (_tier("weight weights eventweight sampleweight"),),
}
# Names of a column that holds all items of a user.
_HISTORIES = (_tier("history histories itemhistory sequence sequences itemsequence itemids"),)
_TITLES = (
    _tier(
        "title titles movietitle producttitle itemtitle booktitle songtitle trackname headline "
        "productname itemname moviename bookname name"
    ),
    _tier("label description caption"),
)
_ITEM_ID_FALLBACK = frozenset(["id", "key", "code"])


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def resolve(given: str | int, columns: Sequence[str], argument: str, source: str) -> int:
    """Position of the column that the caller named.

    Args:
        given: name, or position counted from 0.
        columns: the names that there are.
        argument: the argument in which it was named, for the error message.
        source: the file, likewise.

    Raises:
        InputError: there is no such column, or there are two of that name.
    """
    listed = ", ".join(columns)
    if isinstance(given, int) and not isinstance(given, bool):
        if not 0 <= given < len(columns):
            raise InputError(
                f"{source}: {argument}={given}, but columns are numbered 0 to {len(columns) - 1} "
                f"({listed})"
            )
        return given
    if not isinstance(given, str):
        raise InputError(
            f"{argument}: must be a column name or number, found {type(given).__name__}"
        )
    found = [index for index, name in enumerate(columns) if name == given]
    if not found:
        found = [i for i, name in enumerate(columns) if name.strip().lower() == given.lower()]
    if not found:
        raise InputError(
            f"{source}: has no column {given!r} ({argument}=); the columns are {listed}"
        )
    if len(found) > 1:
        raise InputError(
            f"{source}: has {len(found)} columns named {given!r}; give {argument}= as a number, "
            f"counted from 0"
        )
    return found[0]


def _by_name(tiers: Sequence[frozenset[str]], columns: Sequence[str], taken: set[int]) -> list[int]:
    """Positions of the columns of the best tier that has any."""
    for tier in tiers:
        found = [i for i, name in enumerate(columns) if _plain(name) in tier and i not in taken]
        if found:
            return found
    return []


def recognise(role: str, columns: Sequence[str]) -> list[int]:
    """Positions of the columns whose names say that they are of this role.

    Args:
        role: one of :data:`ROLES`, or ``"history"`` for a list of items a user.
        columns: the names that there are.

    Returns:
        None, one, or several that are equally likely.
    """
    return _by_name(_HISTORIES if role == "history" else _NAMES[role], columns, set())


def choose_columns(
    columns: Sequence[str], given: Mapping[str, Any], source: str
) -> tuple[dict[str, int], dict[str, bool]]:
    """The position of the column for each role that the log has.

    Args:
        columns: the names that there are.
        given: role → name or number of the caller, or ``None`` to recognise it.
        source: the file, for error messages.

    Returns:
        Role → position, and role → whether it was recognised rather than given.

    Raises:
        InputError: no column for user or item, two candidates for a role, or a column given twice.
    """
    chosen: dict[str, int] = {}
    for role in ROLES:
        if given.get(role) is not None:
            position = resolve(given[role], columns, role, source)
            for other, used in chosen.items():
                if used == position:
                    raise InputError(
                        f"{source}: {other}= and {role}= both name the column "
                        f"{columns[position]!r}; give different columns"
                    )
            chosen[role] = position
    recognised = dict.fromkeys(chosen, False)
    for role in ROLES:
        if role in chosen:
            continue
        found = _by_name(_NAMES[role], columns, set(chosen.values()))
        if len(found) > 1:
            names = " and ".join(repr(columns[index]) for index in found)
            raise InputError(
                f"{source}: the columns {names} could each be the {role}; say which with {role}="
            )
        if found:
            chosen[role] = found[0]
            recognised[role] = True
        elif role in ("user", "item"):
            raise InputError(
                f"{source}: no column is recognised as the {role}; the columns are "
                f"{', '.join(columns)}; say which with {role}="
            )
    return chosen, recognised


def choose_title(
    columns: Sequence[str],
    item_id: str | int | None,
    title: str | int | None,
    source: str,
    log_item: str | None = None,
) -> tuple[int, int | None]:
    """Positions of the item id and of the title (or ``None``) in an item table.

    Args:
        columns: the names that there are.
        item_id: name or number given by the caller, or ``None``.
        title: likewise.
        source: the file, for error messages.
        log_item: name of the item column in the log, which is tried first.

    Raises:
        InputError: a column that is not there, or an id column that cannot be told.
    """
    if item_id is not None:
        key = resolve(item_id, columns, "item_id", source)
    else:
        found = [i for i, name in enumerate(columns) if log_item and name == log_item]
        found = found or _by_name((*_NAMES["item"], _ITEM_ID_FALLBACK), columns, set())
        if len(found) != 1:
            problem = "several columns could be" if found else "no column is recognised as"
            raise InputError(
                f"{source}: {problem} the item id; the columns are {', '.join(columns)}; say "
                f"which with item_id="
            )
        key = found[0]
    if title is not None:
        return key, resolve(title, columns, "title", source)
    found = _by_name(_TITLES, columns, {key})
    return key, found[0] if found else None


def looks_like_header(cells: Sequence[str], least: int = 1) -> bool:
    """Whether at least so many cells of the first row of a text table are names of columns."""
    known = frozenset().union(*(tier for tiers in _NAMES.values() for tier in tiers), *_TITLES)
    found = sum(_plain(cell) in known or _plain(cell) in _ITEM_ID_FALLBACK for cell in cells)
    return found >= least
