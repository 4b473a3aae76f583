# SPDX-License-Identifier: Apache-2.0
"""Rules and limits over the item table of the model that serves."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.engine.requests import Filter, is_list, shown
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.limits import Limits, walk
from seqrec_fast.retrieval.rules import Rules

if TYPE_CHECKING:
    from seqrec_fast.engine.recommender import Recommender
    from seqrec_fast.engine.served import ServedModel

__all__ = ["items_where", "rank_limited", "read_limit", "rules_of", "with_where"]

_rules: weakref.WeakKeyDictionary[ServedModel, Rules] = weakref.WeakKeyDictionary()
_limits: weakref.WeakKeyDictionary[ServedModel, _Limited] = weakref.WeakKeyDictionary()


class _Limited(NamedTuple):
    """The limits that were asked for last: most callers always ask for the same."""

    asked: dict[Any, Any]
    limits: Limits


def rules_of(model: ServedModel) -> Rules:
    """The rules over a model's item table, with all masks that were asked for."""
    found = _rules.get(model)
    if found is None:
        found = _rules.setdefault(model, Rules(model.table))
    return found


def with_where(model: ServedModel, allowed: Filter, where: Any, users: int) -> Filter:
    """The allow lists of a request, narrowed by rules.

    Args:
        model: whose item table is asked.
        allowed: the lists of the request.
        where: a rule for all users, or a list of one rule (or ``None``) a user, or ``None``.
        users: number of users.

    Raises:
        InputError: another form, another number of rules than users, or a rule that does not fit.
    """
    if where is None:
        return allowed
    rules = rules_of(model)
    if isinstance(where, Mapping):
        kept = rules.mask(where)
        if allowed.per_user is None:
            return Filter(_narrowed(allowed.common, kept), None, allowed.unknown)
        lists: list[NDArray[np.int32] | None] = [_narrowed(own, kept) for own in allowed.per_user]
        return Filter(None, lists, allowed.unknown)
    if not is_list(where):
        raise InputError(
            f"where: found {shown(where)}; give a mapping of columns to conditions, or a list with "
            f"one of them a user"
        )
    each = list(where)
    if len(each) != users:
        raise InputError(f"where: {len(each)} rules for {users} users; give one a user, or one")
    own_lists = allowed.per_user or [allowed.common] * users
    found = []
    for rule, own in zip(each, own_lists, strict=True):
        found.append(own if rule is None else _narrowed(own, rules.mask(rule)))
    return Filter(None, found, allowed.unknown)


def items_where(recommender: Recommender, where: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Bool ``[items]``: for which items of the model that serves a rule holds.

    Raises:
        InputError: a rule that does not fit the item table.
    """
    return rules_of(recommender._current).mask(where)


def read_limit(model: ServedModel, limit: Any, diversity: float = 0.0) -> Limits | None:
    """Checked limits, or ``None``.

    Raises:
        InputError: no mapping of columns of the item table to numbers of at least 1, or limits
            beside ``diversity``.
    """
    if limit is None:
        return None
    if diversity:
        raise InputError("limit: does not combine with diversity; give one of them")
    last = _limits.get(model)
    asked = dict(limit) if isinstance(limit, Mapping) else {}
    if last is not None and asked and last.asked == asked:
        return last.limits
    made = Limits(rules_of(model), limit)
    _limits[model] = _Limited(asked, made)
    return made


def rank_limited(
    rank: Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]],
    model: ServedModel,
    known: JaggedBatch[Any],
    k: int,
    exclude_seen: bool,
    allowed: Filter,
    denied: Filter,
    rows: NDArray[np.int64],
    limits: Limits,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What ``rank`` finds, under limits: the greedy walk down each user's ranking.

    Args:
        rank: ranks the items for some users: takes all the following but the limits.
        model: what ranks.
        known: histories of the users.
        k: items a user.
        exclude_seen: whether items of the history are left out.
        allowed: allow lists of the whole request.
        denied: its deny lists.
        rows: the users' places in the request.
        limits: what to obey.
    """
    users = int(rows.max()) + 1 if len(rows) else 0

    def search(part: NDArray[np.int64], wanted: int, hidden: JaggedBatch[Any]) -> Any:
        lists: list[NDArray[np.int32] | None] = [None] * users
        for row, own in zip(rows[part].tolist(), hidden, strict=True):
            before = None if denied.per_user is None else denied.per_user[row]
            lists[row] = np.unique(own if before is None else np.concatenate([own, before]))
        some = Filter(denied.common, lists, denied.unknown)
        return rank(model, known.select(part), wanted, exclude_seen, allowed, some, rows[part])

    return walk(search, len(known), k, len(model.items), limits)


def _narrowed(own: NDArray[np.int32] | None, kept: NDArray[np.bool_]) -> NDArray[np.int32]:
    if own is None:
        return np.flatnonzero(kept).astype(np.int32)
    return own[kept[own]]
