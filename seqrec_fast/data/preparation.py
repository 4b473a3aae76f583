# SPDX-License-Identifier: Apache-2.0
"""From an opened log to clean sequences: reads, encodes, cleans step by step, and reports."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.data import clean
from seqrec_fast.data.behaviour import describe_behaviour
from seqrec_fast.data.encoding import Encoded, encode, to_vocabulary
from seqrec_fast.data.moments import Moment, iso_second, to_microseconds
from seqrec_fast.data.prepared import Prepared
from seqrec_fast.data.readers import open_relation
from seqrec_fast.data.report import CleaningReport, CleaningStep
from seqrec_fast.data.workspace import open_workspace
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

if TYPE_CHECKING:
    from seqrec_fast.data.log import Log

__all__ = ["prepare"]

_DAY = 86_400 * 1_000_000


@dataclass(frozen=True)
class _Options:
    """The arguments of :func:`prepare`, checked."""

    min_user_events: int
    min_item_events: int
    duplicates: str
    repeats: str
    fills: Mapping[str, Any]  # role -> constant, or "previous" for the time
    min_time: int  # microseconds
    max_time: int
    max_user_events: int | None
    min_rating: float | None
    event_weights: Mapping[str, float] | None
    max_length: int | None


def prepare(
    log: Log,
    *,
    min_user_events: int = 1,
    min_item_events: int = 1,
    duplicates: str = "drop",
    repeats: str = "keep",
    missing: str | Mapping[str, Any] = "drop",
    min_time: Moment | None = None,
    max_time: Moment | None = None,
    max_user_events: int | None = None,
    min_rating: float | None = None,
    event_weights: Mapping[str, float] | None = None,
    max_length: int | None = None,
) -> Prepared:
    """Reads a log and makes clean sequences of it.

    The steps run in this order, each counted in the report: missing fields, impossible times, event
    types, minimum rating, exact duplicates, repeats, implausibly active users, k-core, maximum
    length.

    Args:
        log: an opened log.
        min_user_events: events that a user must have (k-core, repeated until it holds for all).
        min_item_events: events that an item must have (likewise).
        duplicates: ``"drop"`` events with the same user, item, time and event type as an earlier
            one, or ``"keep"`` them. A log without times has none.
        repeats: ``"keep"`` or ``"drop"`` events of the same item as the user's event just before.
        missing: ``"drop"`` events with a missing field, or a mapping of column role to what fills
            it: a constant, ``"drop"``, or for the time ``"previous"`` (the time of the user's event
            before it in the log). Roles that are not in the mapping drop.
        min_time: events before it are impossible; by default 1970. Unix seconds, an ISO date or a
            ``datetime``.
        max_time: events after it are impossible; by default a day from now.
        max_user_events: users with more events are dropped whole, as implausible.
        min_rating: events rated lower are dropped.
        event_weights: event type → weight of its events; types that are not in it are dropped.
        max_length: only the last so many events of each user are kept.

    Returns:
        Sequences with dense indices, vocabularies and the report.

    Raises:
        InputError: an argument, or something in the log, that cannot be used; or nothing is left,
            in which case the message names the step that dropped the last events.
    """
    begin = clock.perf_counter()
    options = _check(
        log,
        min_user_events=min_user_events,
        min_item_events=min_item_events,
        duplicates=duplicates,
        repeats=repeats,
        missing=missing,
        min_time=min_time,
        max_time=max_time,
        max_user_events=max_user_events,
        min_rating=min_rating,
        event_weights=event_weights,
        max_length=max_length,
    )
    roles = [role for role in log.columns if role != "rating" or min_rating is not None]
    with open_workspace(log.memory, log.threads, log.source) as workspace:
        relation = open_relation(workspace, log, roles)
        constants = {
            role: value
            for role, value in options.fills.items()
            if role in roles and not (role == "time" and value == "previous")
        }
        encoded = encode(workspace, relation, log.columns, constants, log.source)
    cleaner = _Cleaner(log, encoded, options, [*log.notes, *relation.notes, *encoded.notes])
    cleaner.run()
    return cleaner.finish(begin)


class _Cleaner:
    """Runs the steps on the encoded events and keeps the books."""

    def __init__(self, log: Log, encoded: Encoded, options: _Options, notes: list[str]) -> None:
        self.log = log
        self.encoded = encoded
        self.events = encoded.events
        self.options = options
        self.notes = notes
        self.steps: list[CleaningStep] = []
        self.users = len(encoded.users)
        self.items = len(encoded.items)
        self.cut = False  # whether max_length dropped anything

    def run(self) -> None:
        """All steps, in order."""
        rows = len(self.events)
        if not rows:
            raise InputError(f"{self.log.source}: holds no rows; give a log with events")
        self._record("rows read", rows, remedy="")
        self._missing()
        self._times()
        self._event_types()
        self._rating()
        clean.sort_events(self.events, self.users)
        self._duplicates()
        if self.options.repeats == "drop":
            rows = self._drop(clean.repeats(self.events))
            self._record("repeated events", rows, remedy="repeats='keep'")
        self._active_users()
        self._k_core()
        self._length()

    def finish(self, begin: float) -> Prepared:
        """Renumbers what is left and puts the result together."""
        events = self.events
        user_counts = clean.count_by(events.user, self.users)
        item_counts = clean.count_by(events.item, self.items)
        users, items = np.flatnonzero(user_counts), np.flatnonzero(item_counts)
        sequences = JaggedBatch.from_lengths(
            _renumber(events.item, items, self.items), user_counts[users]
        )
        times = None
        if events.time is not None:
            times = events.time
            times //= 1_000_000
        codes, names = self._event_codes()
        item_ids = to_vocabulary(self.encoded.items.take(items))
        table, notes = None, list[str]()
        if self.log.item_source is not None:
            table, notes = self.log.item_source.load(item_ids)
        report = CleaningReport(
            source=self.log.source,
            steps=tuple(self.steps),
            notes=(*self.notes, *notes),
            behaviour=describe_behaviour(sequences, times, item_counts[items]),
            seconds=round(clock.perf_counter() - begin, 3),
        )
        return Prepared(
            sequences=sequences,
            times=times,
            weights=self._weights(),
            events=codes,
            event_names=names,
            users=to_vocabulary(self.encoded.users.take(users)),
            items=item_ids,
            item_table=table,
            report=report,
        )

    # ---------------------------------------------------------------- books

    def _drop(self, mask: NDArray[np.bool_]) -> int:
        """Drops the events of the mask and returns how many there were before."""
        rows = len(self.events)
        self.events.keep(~mask)
        return rows

    def _record(self, name: str, rows_in: int, *, remedy: str, note: str = "") -> None:
        users = int(np.count_nonzero(clean.count_by(self.events.user, self.users)))
        items = int(np.count_nonzero(clean.count_by(self.events.item, self.items)))
        rows = len(self.events)
        self.steps.append(CleaningStep(name, rows_in, rows, users, items, note))
        if not rows:
            because = f" ({note})" if note else ""
            raise InputError(
                f"{self.log.source}: nothing is left: the step {name!r} dropped the last "
                f"{rows_in:,} events{because}; relax {remedy}"
            )

    # ---------------------------------------------------------------- steps

    def _missing(self) -> None:
        filled = dict(self.encoded.filled)
        if self.options.fills.get("time") == "previous":
            filled["time"] = clean.fill_previous(self.events, self.users)
        for role, count in filled.items():
            rule = self.options.fills[role]
            shown = "that of the previous event" if rule == "previous" else repr(rule)
            self.notes.append(f"missing {role}: {count:,} filled with {shown}")
        gone = np.zeros(len(self.events), dtype=np.bool_)
        counts: list[str] = []
        for role in clean.Events.ROLES:
            if getattr(self.events, role) is None:
                continue
            absent = self.events.missing(role)
            count = int(np.count_nonzero(absent))
            if count:
                counts.append(f"{role} {count:,}")
                gone |= absent
        rows = self._drop(gone)
        self._record("missing fields", rows, remedy="missing=", note=", ".join(counts))

    def _times(self) -> None:
        time = self.events.time
        if time is None:
            return
        low, high = self.options.min_time, self.options.max_time
        early, late = time < low, time > high
        counts = [
            f"{label} {int(mask.sum()):,}"
            for label, mask in (
                (f"before {iso_second(low // 1_000_000)}", early),
                (f"after {iso_second(high // 1_000_000)}", late),
            )
            if mask.any()
        ]
        rows = self._drop(early | late)
        self._record(
            "impossible times", rows, remedy="min_time= or max_time=", note=", ".join(counts)
        )

    def _event_types(self) -> None:
        weights = self.options.event_weights
        codes, names = self.events.event, self.encoded.event_names
        if weights is None or codes is None:
            return
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise InputError(
                f"event_weights: {unknown[0]!r} is not an event type of {self.log.source}; the "
                f"types are {', '.join(names[:20])}{' …' if len(names) > 20 else ''}"
            )
        counts = clean.count_by(codes, len(names))
        wanted = np.array([name in weights for name in names], dtype=np.bool_)
        dropped = [
            f"{name} {count:,}"
            for name, count, kept in zip(names, counts.tolist(), wanted.tolist(), strict=True)
            if count and not kept
        ]
        rows = self._drop(~wanted[codes])
        self._record("event types", rows, remedy="event_weights=", note=", ".join(dropped[:10]))

    def _rating(self) -> None:
        rating, least = self.events.rating, self.options.min_rating
        if rating is None or least is None:
            return
        rows = self._drop(rating < least)
        self.events.rating = None  # has done its work
        self._record("minimum rating", rows, remedy="min_rating=", note=f"below {least:g}")

    def _duplicates(self) -> None:
        if self.options.duplicates == "keep":
            return
        if self.events.time is None:
            self.notes.append(
                "duplicates: without times a repeated event cannot be told from a duplicate; all "
                "are kept"
            )
            return
        rows = self._drop(clean.duplicates(self.events))
        self._record("exact duplicates", rows, remedy="duplicates='keep'")

    def _active_users(self) -> None:
        most = self.options.max_user_events
        if most is None:
            return
        over = clean.count_by(self.events.user, self.users) > most
        rows = self._drop(over[self.events.user])
        self._record(
            "implausibly active users",
            rows,
            remedy="max_user_events=",
            note=f"{int(over.sum()):,} users with more than {most:,} events",
        )

    def _k_core(self) -> None:
        least_user, least_item = self.options.min_user_events, self.options.min_item_events
        if least_user <= 1 and least_item <= 1:
            return
        rounds = clean.k_core_rounds(self.events, self.users, self.items, least_user, least_item)
        rows = len(self.events)
        for number, mask in enumerate(rounds, start=1):
            self.events.keep(mask)
            self._record(
                f"k-core, round {number}", rows, remedy="min_user_events= or min_item_events="
            )
            rows = len(self.events)
        if not self.steps[-1].name.startswith("k-core"):
            self._record("k-core, round 1", rows, remedy="")

    def _length(self) -> None:
        most = self.options.max_length
        if most is None:
            return
        counts = clean.count_by(self.events.user, self.users)
        counts = counts[counts > 0]
        ends = np.cumsum(counts)
        from_end = np.repeat(ends, counts) - np.arange(len(self.events))
        rows = self._drop(from_end > most)
        self._record("maximum length", rows, remedy="max_length=", note=f"last {most:,} a user")
        if self.options.min_item_events > 1 and rows > len(self.events):
            self.notes.append(
                "max_length dropped events after the k-core, so items may have fewer events than "
                "min_item_events"
            )

    # ---------------------------------------------------------------- result

    def _event_codes(self) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
        codes, names = self.events.event, self.encoded.event_names
        if codes is None:
            return None, ()
        kept = np.flatnonzero(clean.count_by(codes, len(names)))
        kind = np.uint8 if len(kept) <= 256 else np.int32
        return (
            _renumber(codes, kept, len(names)).astype(kind),
            tuple(names[index] for index in kept.tolist()),
        )

    def _weights(self) -> NDArray[np.float32] | None:
        weight, by_type = self.events.weight, self.options.event_weights
        if by_type is None or self.events.event is None:
            return weight
        names = self.encoded.event_names
        table = np.array([by_type.get(name, 0.0) for name in names], dtype=np.float32)
        of_type: NDArray[np.float32] = table[self.events.event]
        return of_type if weight is None else of_type * weight


def _renumber(codes: NDArray[Any], kept: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """Codes as places in ``kept``, which is ascending and holds them all."""
    table = np.full(size, -1, dtype=np.int32)
    table[kept] = np.arange(len(kept), dtype=np.int32)
    renumbered: NDArray[np.int32] = table[codes]
    return renumbered


# -------------------------------------------------------------------- arguments


def _check(log: Log, **given: Any) -> _Options:
    for name in ("min_user_events", "min_item_events"):
        _whole(name, given[name], least=1)
    for name in ("max_user_events", "max_length"):
        if given[name] is not None:
            _whole(name, given[name], least=1)
    for name in ("duplicates", "repeats"):
        if given[name] not in ("drop", "keep"):
            raise InputError(f"{name}: must be 'drop' or 'keep', found {given[name]!r}")
    most = given["max_user_events"]
    if most is not None and most < given["min_user_events"]:
        raise InputError(
            f"max_user_events: {most} is below min_user_events {given['min_user_events']}, so no "
            f"user could stay; raise it"
        )
    low, high = given["min_time"], given["max_time"]
    for name, value in (("min_time", low), ("max_time", high)):
        if value is not None and "time" not in log.columns:
            raise InputError(f"{name}: {log.source} has no times; leave it out, or give time=")
    least = 0 if low is None else to_microseconds(low, "min_time")
    latest = int(clock.time() * 1e6) + _DAY if high is None else to_microseconds(high, "max_time")
    if least > latest:
        raise InputError("min_time: lies after max_time, so no event could stay; exchange them")
    rating = given["min_rating"]
    if rating is not None:
        _number("min_rating", rating)
        if "rating" not in log.columns:
            raise InputError(
                f"min_rating: {log.source} has no rating column; leave it out, or say which "
                f"column it is with rating="
            )
    return _Options(
        given["min_user_events"],
        given["min_item_events"],
        given["duplicates"],
        given["repeats"],
        _check_fills(log, given["missing"]),
        least,
        latest,
        most,
        None if rating is None else float(rating),
        _check_event_weights(log, given["event_weights"]),
        given["max_length"],
    )


def _check_fills(log: Log, missing: Any) -> dict[str, Any]:
    if missing == "drop":
        return {}
    if not isinstance(missing, Mapping):
        raise InputError(
            f"missing: {missing!r} is not a rule; give 'drop', or a mapping such as "
            f"{{'rating': 0.0, 'time': 'previous'}}"
        )
    fills: dict[str, Any] = {}
    for role, rule in missing.items():
        if role not in log.columns:
            raise InputError(
                f"missing: {role!r} is not a column of {log.source}; the columns are "
                f"{', '.join(log.columns)}"
            )
        if rule == "drop":
            continue
        if role == "time":
            if rule != "previous":
                try:
                    rule = to_microseconds(rule, "missing")
                except InputError as error:
                    raise InputError(
                        f"missing: {rule!r} is not a rule for the time; give 'drop', 'previous', "
                        f"unix seconds or an ISO date"
                    ) from error
        elif role in ("rating", "weight"):
            _number(f"missing[{role!r}]", rule)
        elif not isinstance(rule, str | int | np.integer) or isinstance(rule, bool) or rule == "":
            raise InputError(f"missing[{role!r}]: must be a text or an integer, found {rule!r}")
        fills[role] = rule
    return fills


def _check_event_weights(log: Log, weights: Any) -> dict[str, float] | None:
    if weights is None:
        return None
    if not isinstance(weights, Mapping) or not weights:
        raise InputError(
            f"event_weights: must be a mapping such as {{'view': 1, 'purchase': 5}}, found "
            f"{weights!r}"
        )
    if "event" not in log.columns:
        raise InputError(
            f"event_weights: {log.source} has no event types; leave it out, or say which column "
            f"it is with event="
        )
    for name, weight in weights.items():
        _number(f"event_weights[{name!r}]", weight)
        if weight < 0:
            raise InputError(f"event_weights[{name!r}]: must be 0 or more, found {weight!r}")
    return {str(name): float(weight) for name, weight in weights.items()}


def _whole(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}: must be an integer of at least {least}, found {value!r}")


def _number(name: str, value: Any) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not np.isfinite(value):
        raise InputError(f"{name}: must be a number, found {value!r}")
