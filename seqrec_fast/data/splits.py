# SPDX-License-Identifier: Apache-2.0
"""Splits into what may be trained on, a validation holdout and a test holdout.

Three protocols, none of which lets a target or anything after it into its own history, nor any
target into the training events:

* :func:`leave_one_out`: the last event of each user is the test target, the one before it the
  validation target;
* :func:`by_time`: two moments cut the whole log; nobody trains on an event at or after the first;
* :func:`by_ratio`: the last fractions of each user's own events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.moments import Moment, iso_second, to_microseconds
from seqrec_fast.data.prepared import Prepared
from seqrec_fast.data.report import CleaningReport
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch, row_positions

__all__ = ["Holdout", "Split", "by_ratio", "by_time", "leave_one_out"]

Items = JaggedBatch[Any]  # numpy, int32


@dataclass(frozen=True, slots=True)
class Holdout:
    """Users whose next events are known but held back.

    Attributes:
        users: int64 ``[rows]``, user index of each row.
        histories: int32 items before the targets, oldest first; never empty.
        targets: int32 items that the user went on to, oldest first; never empty.
    """

    users: NDArray[np.int64]
    histories: Items
    targets: Items

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        return f"Holdout({len(self):,} users, {self.targets.tokens:,} targets)"


@dataclass(frozen=True, slots=True)
class Split:
    """Training sequences and two holdouts over one vocabulary.

    Attributes:
        train: int32 items that may be trained on, one row a user (only users that have any).
        train_users: int64 ``[rows]``, user index of each row of ``train``.
        train_weights: float32 aligned with ``train.values``, or ``None``.
        validation: holdout for choosing; empty after :meth:`refit`.
        test: holdout for reporting.
        items: raw item ids by index.
        users: raw user ids by index.
        item_table: columns of the items, by index.
        report: the cleaning report of the log.
        protocol: ``"leave-one-out"``, ``"by-time"`` or ``"by-ratio"``.
        notes: what a reader of the metrics should know (users left out, cold targets).
        refitted: whether ``train`` contains the validation targets.
    """

    train: Items
    train_users: NDArray[np.int64]
    train_weights: NDArray[np.float32] | None
    validation: Holdout
    test: Holdout
    items: Vocabulary
    users: Vocabulary
    item_table: ItemTable | None
    report: CleaningReport
    protocol: str
    notes: tuple[str, ...] = ()
    refitted: bool = False
    _full: tuple[Items, NDArray[np.int64], NDArray[np.float32] | None] | None = None

    @property
    def popularity(self) -> NDArray[np.int64]:
        """int64 ``[items]``: events of each item in ``train`` alone."""
        counts = np.bincount(self.train.values, minlength=len(self.items))
        return counts.astype(np.int64, copy=False)

    def refit(self) -> Split:
        """The split for training once more, on training and validation events together.

        The test holdout stays the same; the validation holdout becomes empty, because nothing may
        be chosen by events that are trained on.

        Raises:
            InputError: the split is refitted already.
        """
        if self._full is None:
            raise InputError("refit: this split already trains on its validation events")
        train, users, weights = self._full
        empty = Holdout(
            np.empty(0, dtype=np.int64), JaggedBatch.from_lists([]), JaggedBatch.from_lists([])
        )
        notes = (*self.notes[:1], *_cold_notes(train, self.test, len(self.items), "test"))
        return replace(
            self,
            train=train,
            train_users=users,
            train_weights=weights,
            validation=empty,
            notes=notes,
            refitted=True,
            _full=None,
        )

    def __repr__(self) -> str:
        refitted = ", refitted" if self.refitted else ""
        return (
            f"Split({self.protocol}{refitted}: {self.train.tokens:,} training events of "
            f"{len(self.train):,} users, validation {len(self.validation):,} users, "
            f"test {len(self.test):,} users, {len(self.items):,} items)"
        )


def leave_one_out(prepared: Prepared, *, min_history: int = 1) -> Split:
    """The last event of each user is the test target, the one before the validation target.

    A user with fewer than ``min_history + 2`` events only trains, with all events. The test history
    ends with the validation target, which happened before the test target.

    Args:
        prepared: the cleaned log.
        min_history: events that a user must have before the validation target, at least 1.

    Raises:
        InputError: ``min_history`` below 1, or no user with enough events.
    """
    if not _is_count(min_history) or min_history < 1:
        raise InputError(f"min_history: must be an integer of at least 1, found {min_history!r}")
    lengths = np.diff(prepared.sequences.offsets)
    held = lengths >= min_history + 2
    return _split(
        prepared,
        first=np.where(held, lengths - 2, lengths),
        second=np.where(held, lengths - 1, lengths),
        protocol="leave-one-out",
        need=f"no user has the {min_history + 2} events that leave-one-out needs",
        single=True,
    )


def by_time(
    prepared: Prepared, *, validation: float | Moment = 0.1, test: float | Moment = 0.1
) -> Split:
    """Two moments cut the log of all users at once.

    Training ends before the validation moment, the validation targets lie from there up to the test
    moment, the test targets from the test moment on. A history is everything of its user before the
    moment of its holdout, so test histories include validation events.

    Args:
        prepared: the cleaned log; must have times.
        validation: fraction of all events, in (0, 1), or the moment itself: unix seconds, an ISO
            date, or a ``datetime`` (without a zone: UTC). A number below 1 is a fraction.
        test: likewise.

    Raises:
        InputError: no times in the log, fractions or moments that do not fit, or a part that
            would be empty.
    """
    times = prepared.times
    if times is None:
        raise InputError(
            "by_time: the log has no times, only an order; name the time column, or use "
            "leave_one_out or by_ratio"
        )
    fractions = [_fraction(value) for value in (validation, test)]
    if (fractions[0] is None) != (fractions[1] is None):
        raise InputError(
            f"by_time: validation={validation!r} and test={test!r}; give two fractions or two "
            f"moments"
        )
    if fractions[0] is not None and fractions[1] is not None:
        _check_fractions("by_time", fractions[0], fractions[1])
        count = len(times)
        places = (
            math.floor(count * (1 - fractions[0] - fractions[1]) + 1e-9),
            math.floor(count * (1 - fractions[1]) + 1e-9),
        )
        ordered = np.partition(times, [min(place, count - 1) for place in places])
        points = tuple(int(ordered[min(place, count - 1)]) for place in places)
    else:
        # an event is at or after a moment if its second is: times are rounded down
        points = tuple(
            -(-to_microseconds(value, name) // 1_000_000)
            for name, value in (("validation", validation), ("test", test))
        )
    start, end = points
    if start >= end:
        raise InputError(
            f"by_time: validation would begin at {iso_second(start)}, not before test at "
            f"{iso_second(end)}; give larger fractions or other moments"
        )
    offsets = prepared.sequences.offsets
    first = _count_before(times, offsets, start)
    second = _count_before(times, offsets, end)
    split = _split(
        prepared,
        first=first,
        second=second,
        protocol="by-time",
        need=f"no user has events both before and after {iso_second(start)} and {iso_second(end)}",
    )
    return replace(
        split,
        notes=(
            f"validation begins {iso_second(start)}, test begins {iso_second(end)}; "
            f"{split.notes[0]}",
            *split.notes[1:],
        ),
    )


def by_ratio(prepared: Prepared, *, validation: float = 0.1, test: float = 0.1) -> Split:
    """The last fractions of each user's own events, each rounded up to at least one event.

    A user with fewer than 3 events only trains. Where rounding up would leave no training event,
    the validation part gives way.

    Args:
        prepared: the cleaned log.
        validation: fraction of each user's events, in (0, 1).
        test: likewise.

    Raises:
        InputError: fractions that do not fit, or no user with at least 3 events.
    """
    _check_fractions("by_ratio", validation, test)
    lengths = np.diff(prepared.sequences.offsets)
    held = lengths >= 3
    # 1e-9 keeps 0.1 * 30 = 3.0000000000000004 at 3
    tests = np.minimum(np.maximum(np.ceil(lengths * test - 1e-9), 1).astype(np.int64), lengths - 2)
    second = lengths - tests
    validations = np.maximum(np.ceil(lengths * validation - 1e-9), 1).astype(np.int64)
    first = np.maximum(second - validations, 1)
    return _split(
        prepared,
        first=np.where(held, first, lengths),
        second=np.where(held, second, lengths),
        protocol="by-ratio",
        need="no user has the 3 events that by_ratio needs",
    )


# -------------------------------------------------------------------- the common part


def _split(
    prepared: Prepared,
    *,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    protocol: str,
    need: str,
    single: bool = False,
) -> Split:
    """Cuts row ``u`` into train ``[0, first)``, validation ``[first, second)``, test ``[second:]``.

    A holdout row needs a history and a target; ``single`` says that a target is one event.
    """
    sequences = prepared.sequences
    lengths = np.diff(sequences.offsets)
    validation = _holdout(sequences, first, second)
    test = _holdout(sequences, second, lengths)
    for name, part in (("validation", validation), ("test", test)):
        if not len(part):
            raise InputError(
                f"{protocol.replace('-', '_')}: the {name} part would be empty: {need}; use a "
                f"longer log, weaker cleaning thresholds or another split"
            )
    train, users, weights = _prefix(prepared, first)
    if not train.tokens:
        raise InputError(
            f"{protocol.replace('-', '_')}: no event would be left to train on; move the split"
        )
    # What refit trains on: everything before the test part. Under leave-one-out and by-ratio that
    # is the training and the validation events of each user; by time, all before the test moment.
    full = _prefix(prepared, second)
    left_out = len(sequences) - len(test)
    targets = "1 target each" if single else f"{test.targets.tokens:,} targets"
    notes = [
        f"test: {len(test):,} users, {targets}; {left_out:,} users are not in it "
        f"(too few events, or none on one side of the cut)"
    ]
    for name, part, begin, end in (
        ("validation", validation, first, second),
        ("test", test, second, lengths),
    ):
        new = (begin == 0) & (end > begin)
        if new.any():
            notes.append(
                f"{name}: {int(end[new].sum()):,} more events are of {int(new.sum()):,} users "
                "without an earlier event; nothing can be predicted for them, they are not ranked"
            )
        notes += _cold_notes(train, part, len(prepared.items), name)
    return Split(
        train=train,
        train_users=users,
        train_weights=weights,
        validation=validation,
        test=test,
        items=prepared.items,
        users=prepared.users,
        item_table=prepared.item_table,
        report=prepared.report,
        protocol=protocol,
        notes=tuple(notes),
        _full=full,
    )


def _holdout(sequences: Items, begin: NDArray[np.int64], end: NDArray[np.int64]) -> Holdout:
    """The users that have a history before ``begin`` and a target in ``[begin, end)``."""
    users = np.flatnonzero((begin > 0) & (end > begin))
    starts = sequences.offsets[users]
    histories = _slices(sequences.values, starts, begin[users])
    targets = _slices(sequences.values, starts + begin[users], (end - begin)[users])
    return Holdout(users, histories, targets)


def _prefix(
    prepared: Prepared, count: NDArray[np.int64]
) -> tuple[Items, NDArray[np.int64], NDArray[np.float32] | None]:
    """The first ``count`` events of each user that has any, with their weights."""
    users = np.flatnonzero(count > 0)
    starts = prepared.sequences.offsets[users]
    items = _slices(prepared.sequences.values, starts, count[users])
    if prepared.weights is None:
        return items, users, None
    return items, users, _slices(prepared.weights, starts, count[users]).values


def _slices(
    values: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> JaggedBatch[Any]:
    """Rows ``values[starts[i] : starts[i] + lengths[i]]``."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    index = row_positions(offsets)
    index += np.repeat(starts, lengths)
    return JaggedBatch(values[index], offsets)


def _count_before(
    times: NDArray[np.int64], offsets: NDArray[np.int64], moment: int
) -> NDArray[np.int64]:
    """Events of each row before ``moment``; rows are in order of time."""
    running = np.zeros(len(times) + 1, dtype=np.int64)
    np.cumsum(times < moment, out=running[1:])
    return running[offsets[1:]] - running[offsets[:-1]]


def _cold_notes(train: Items, part: Holdout, items: int, name: str) -> tuple[str, ...]:
    """Says how many targets are items without any training event; they stay in the holdout."""
    seen = np.zeros(items, dtype=np.bool_)
    seen[train.values] = True
    cold = ~seen[part.targets.values]
    count = int(cold.sum())
    if not count:
        return ()
    kinds = len(np.unique(part.targets.values[cold]))
    return (
        f"{name}: {count:,} of {part.targets.tokens:,} targets are cold ({kinds:,} items without a "
        f"training event); they are kept and count as any other target",
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _fraction(value: Any) -> float | None:
    """The fraction that an argument of :func:`by_time` stands for, or None if it is a moment."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return float(value) if number and value < 1 else None


def _check_fractions(name: str, validation: Any, test: Any) -> None:
    for argument, value in (("validation", validation), ("test", test)):
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not 0 < value < 1:
            raise InputError(f"{name}: {argument} must be a fraction in (0, 1), found {value!r}")
    if validation + test >= 1:
        raise InputError(
            f"{name}: validation {validation} and test {test} leave nothing to train on; give "
            f"fractions that add up to less than 1"
        )
