# SPDX-License-Identifier: Apache-2.0
"""What callers hand in (histories, allow and deny lists of raw ids), checked and made dense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import native
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

if TYPE_CHECKING:
    from seqrec_fast.data.vocabulary import Vocabulary

__all__ = [
    "Filter",
    "Histories",
    "blocked_items",
    "checked_indices",
    "checked_threads",
    "is_list",
    "parse_filter",
    "parse_histories",
    "parse_ids",
    "read_diversity",
    "shown",
    "whole_number",
]

_NUMBERS = int, float, np.integer, np.floating
_REMEDY = "give a list of lists of ids, one inner list a user: [['a', 'b'], ['c']]"


@dataclass(frozen=True)
class Histories:
    """Histories as item indices.

    Attributes:
        known: int32 item indices, one row a user, in the order given; unknown ids left out.
        unknown: the ids of each user that the vocabulary does not hold, as they were given.
    """

    known: JaggedBatch[Any]
    unknown: list[tuple[Any, ...]]


@dataclass(frozen=True)
class Filter:
    """An allow or a deny list.

    Attributes:
        common: item indices (sorted, each once) for all users, or ``None``.
        per_user: the same for each user, ``None`` for a user without a list of their own; or
            ``None`` where there is one list for all.
        unknown: for each user, the ids of the list that the vocabulary does not hold.
    """

    common: NDArray[np.int32] | None
    per_user: list[NDArray[np.int32] | None] | None
    unknown: list[tuple[Any, ...]]


def parse_histories(given: Any, vocabulary: Vocabulary) -> Histories:
    """Checks the histories of a request and looks their ids up.

    Args:
        given: one sequence of raw ids a user, oldest first; a sequence may be empty.
        vocabulary: the items of the model.

    Raises:
        InputError: one history, or a text, where a list of histories is expected.
    """
    if isinstance(given, (Mapping, Set)) or not is_list(given):
        raise InputError(f"histories: found {shown(given)}; {_REMEDY}")
    rows: list[list[Any]] = []
    for number, row in enumerate(given):
        if not is_list(row):
            raise InputError(
                f"histories: entry {number} is {shown(row)}, which is not a history; {_REMEDY}"
            )
        if isinstance(row, (Mapping, Set)):
            raise InputError(
                f"histories: entry {number} is a {type(row).__name__}, which has no order; give "
                f"the ids as a list, oldest first"
            )
        rows.append(_row(row))
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    flat = [raw for row in rows for raw in row]
    indices = _encode(flat, vocabulary)
    there = indices >= 0
    if there.all():
        return Histories(JaggedBatch.from_lengths(indices, lengths), [()] * len(rows))
    owner = np.repeat(np.arange(len(rows)), lengths)
    known = np.bincount(owner[there], minlength=len(rows))
    ignored: list[list[Any]] = [[] for _ in rows]
    for at in np.flatnonzero(~there).tolist():
        if is_list(flat[at]):
            raise InputError(
                f"histories: entry {owner[at]} holds {shown(flat[at])}, which is not an id; "
                f"{_REMEDY}"
            )
        ignored[owner[at]].append(flat[at])
    unknown = [tuple(ids) for ids in ignored]
    return Histories(JaggedBatch.from_lengths(indices[there], known), unknown)


def parse_ids(name: str, given: Any, vocabulary: Vocabulary) -> tuple[NDArray[np.int32], list[Any]]:
    """One flat list of raw ids.

    Args:
        name: the argument, for the message.
        given: any iterable of raw ids.
        vocabulary: the items of the model.

    Returns:
        int32 ``[n]`` indices with -1 for unknown ids, and the ids as a list.

    Raises:
        InputError: a text, a single id, or a nested list.
    """
    if isinstance(given, Mapping) or not is_list(given):
        raise InputError(f"{name}: found {shown(given)}; give a list of ids: ['a', 'b']")
    ids = _row(given)
    for number, raw in enumerate(ids):
        if is_list(raw):
            raise InputError(
                f"{name}: entry {number} is {shown(raw)}, which is not an id; give a flat list of "
                f"ids: ['a', 'b']"
            )
    return _encode(ids, vocabulary), ids


def parse_filter(name: str, given: Any, users: int, vocabulary: Vocabulary) -> Filter:
    """Checks an allow or deny list: one for all users, or a list with one of them a user.

    Args:
        name: the argument, for the message.
        given: ids, or one iterable of ids (or ``None``) a user, or ``None`` for no list at all.
        users: number of users of the request.
        vocabulary: the items of the model.

    Raises:
        InputError: a text, a mix of both forms, or another number of lists than users.
    """
    if given is None:
        return Filter(None, None, [()] * users)
    if isinstance(given, Mapping) or not is_list(given):
        raise InputError(
            f"{name}: found {shown(given)}; give a list of ids, or one list of ids a user"
        )
    entries = _row(given)
    nested = [entry is None or is_list(entry) for entry in entries]
    if not any(nested):
        common, missing = _indices(name, entries, vocabulary)
        return Filter(common, None, [missing] * users)
    if not all(nested):
        raise InputError(
            f"{name}: entry {nested.index(False)} is an id and another entry is a list; give "
            f"either a list of ids for all users or one list of ids a user"
        )
    if len(entries) != users:
        raise InputError(
            f"{name}: {len(entries)} lists for {users} users; give one a user (None for no list), "
            f"or a flat list of ids for all"
        )
    per_user: list[NDArray[np.int32] | None] = []
    unknown: list[tuple[Any, ...]] = []
    for number, entry in enumerate(entries):
        if entry is None:
            per_user.append(None)
            unknown.append(())
            continue
        found, missing = _indices(f"{name}, user {number}", entry, vocabulary)
        per_user.append(found)
        unknown.append(missing)
    return Filter(None, per_user, unknown)


def whole_number(name: str, given: Any) -> int:
    """Checks a count.

    Raises:
        InputError: not a whole number of at least 1.
    """
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 1:
        raise InputError(f"{name}: must be a whole number of at least 1, found {shown(given)}")
    return int(given)


def _indices(
    name: str, given: Iterable[Any], vocabulary: Vocabulary
) -> tuple[NDArray[np.int32], tuple[Any, ...]]:
    indices, ids = parse_ids(name, given, vocabulary)
    missing = tuple(ids[at] for at in np.flatnonzero(indices < 0).tolist())
    return np.unique(indices[indices >= 0]), missing


def _encode(ids: list[Any], vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Item indices, -1 where unknown; plain integers go as one array, which is much quicker."""
    if vocabulary.kind == "int" and set(map(type, ids)) == {int}:
        try:
            return vocabulary.encode(np.array(ids, dtype=np.int64))
        except OverflowError:
            pass  # beyond int64, so unknown: found out one by one
    return vocabulary.encode(ids)


def _row(given: Any) -> list[Any]:
    """A list of plain values: arrays, series and tensors know how to become one."""
    found = given.tolist() if hasattr(given, "tolist") else given
    return list(found)


def is_list(given: Any) -> bool:
    """Whether this holds ids; a text, and an array of no dimension, are one id."""
    if isinstance(given, (str, bytes)) or getattr(given, "ndim", 1) == 0:
        return False
    return isinstance(given, Iterable)


def shown(given: Any) -> str:
    """A value and its type for a message, in few characters."""
    try:
        text = repr(given)
    except ValueError:  # an integer of thousands of digits
        text = "a huge number"
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({type(given).__name__})".replace("\n", " ")


def checked_indices(histories: JaggedBatch[Any], items: int) -> JaggedBatch[Any]:
    """Checks histories that are item indices already.

    Raises:
        InputError: another type or shape, or an index that is no item.
    """
    given: object = histories
    if not isinstance(given, JaggedBatch) or given.is_torch:
        raise InputError(
            "histories: expected a JaggedBatch of numpy item indices; raw ids go to recommend"
        )
    values = histories.values
    if values.dtype != np.int32 or values.ndim != 1:
        raise InputError(
            f"histories: expected int32 item indices, found {values.dtype} of shape {values.shape}"
        )
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < items:
        at = int(np.flatnonzero((values < 0) | (values >= items))[0])
        row = int(np.searchsorted(histories.offsets, at, side="right")) - 1
        raise InputError(
            f"histories: row {row} holds item {int(values[at])}, but the items are 0 to {items - 1}"
        )
    return histories


def blocked_items(blocked: NDArray[Any], items: int) -> Filter:
    """A deny list for all users.

    Args:
        blocked: bool ``[items]``, true for the items that nobody may get.
        items: number of items.

    Raises:
        InputError: another type or shape.
    """
    mask = np.asarray(blocked)
    if mask.shape != (items,) or mask.dtype != np.bool_:
        raise InputError(
            f"blocked: expected bool of shape ({items},), found {mask.dtype} of shape {mask.shape}"
        )
    return Filter(np.flatnonzero(mask).astype(np.int32), None, [])


def checked_threads(threads: Any) -> int | None:
    """Checks the cores that one call may use; ``None`` stands for the default.

    Raises:
        InputError: not a whole number from 1 to the most that the native pool can have.
    """
    if threads is None:
        return None
    count = whole_number("threads", threads)
    if count > native.MAX_THREADS:
        raise InputError(f"threads: at most {native.MAX_THREADS}, found {count}")
    return count


def read_diversity(given: object, interests: int) -> float:
    """A weight of at least 0, and above it only for models of several interests.

    Raises:
        InputError: another value, or a model of one interest.
    """
    if isinstance(given, bool) or not isinstance(given, _NUMBERS) or not 0 <= given < math.inf:
        raise InputError(f"diversity: expected a number of at least 0, found {shown(given)}")
    if given and interests == 1:
        raise InputError(
            "diversity: the model has one interest a user, and so no two to choose from; train "
            "with interests=2 or more, or leave it at 0"
        )
    return float(given)
