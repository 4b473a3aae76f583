# SPDX-License-Identifier: Apache-2.0
"""Rules over the columns of an item table: "in stock, in English, drama or crime, since 1990".

A rule is a mapping of columns to conditions, all of which have to hold:

    {"language": "en", "genre": ["Drama", "Crime"], "year": {"min": 1990}, "brand": {"not": "x"}}

======================================  =====================================================
condition                               holds for an item
======================================  =====================================================
a text, a number, true or false         that has this value (a text column: or this tag)
a list, or ``{"any": [...]}``           that has one of them
``{"all": [...]}``                      that has all of them, as tags
``{"min": a, "max": b}``                whose number is at least a and at most b; one may lack
``{"not": condition}``                  for which the condition does not hold
``None``                                of which nothing is known in this column
======================================  =====================================================

Texts that are numbers may be compared by min and max too. A text may be several tags behind one
another, separated by ``|`` or by what the rules, or ``"separator"`` beside any, all or not, say. An
item of which nothing is known meets no condition but ``None`` and those with ``not``. A value that
no item has is no mistake: it finds nothing.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

if TYPE_CHECKING:
    from seqrec_fast.data.items import ItemTable

__all__ = ["Rules"]

_SEPARATOR = "|"
_CACHED_BYTES = 64 << 20
_MOST_OTHERS = 8  # columns kept that were split in another way: requests may bring any separator
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
_WORDS = ("any", "all", "not", "min", "max", "separator")

Mask = NDArray[np.bool_]


class _Column:
    """A text column as codes of its tags, for each item."""

    def __init__(self, column: list[str | None], separator: str) -> None:
        places: dict[str, int] = {}
        codes: list[int] = []
        lengths = np.zeros(len(column), dtype=np.int64)
        for item, text in enumerate(column):
            if text is None:
                continue
            tags = {part.strip() for part in text.split(separator)} - {""}
            lengths[item] = len(tags)
            codes += [places.setdefault(tag, len(places)) for tag in sorted(tags)]
        self.places = places
        self.codes = JaggedBatch.from_lengths(np.array(codes, dtype=np.int64), lengths)
        self.owner = np.repeat(np.arange(len(column)), lengths)
        self.whole: dict[str, list[int]] = {}
        for item, text in enumerate(column):
            if text is not None and separator in text:
                self.whole.setdefault(text, []).append(item)

    def has(self, value: str) -> Mask:
        """Items with this tag, or whose whole text this is."""
        found = np.zeros(len(self.codes), dtype=np.bool_)
        code = self.places.get(value)
        if code is not None:
            found[self.owner[self.codes.values == code]] = True
        found[self.whole.get(value, [])] = True
        return found


class Rules:
    """Turns rules into masks over the items, and remembers them."""

    def __init__(
        self, table: ItemTable | None, separators: Mapping[str, str] | None = None
    ) -> None:
        """Reads a table; columns are laid out when a rule first asks for them.

        Args:
            table: one row an item; ``None`` where there is none, so that every rule is refused.
            separators: what stands between the tags of a text column, where it is not ``|``.

        Raises:
            InputError: separators of a column that is not there, or empty ones.
        """
        self._table = table
        self._separators = dict(separators or {})
        for column, separator in self._separators.items():
            self._values(column)
            _check_separator(column, separator)
        self._columns: dict[tuple[str, str], _Column] = {}
        self._others: OrderedDict[tuple[str, str], _Column] = OrderedDict()
        self._as_numbers: dict[str, NDArray[np.float64]] = {}
        self._masks: OrderedDict[str, Mask] = OrderedDict()
        self._cached = 0  # bytes of the masks and of the rules that name them
        self._lock = threading.Lock()

    def mask(self, where: Mapping[str, Any]) -> Mask:
        """Truth values ``[items]``, not to be written to: true where all conditions hold.

        Raises:
            InputError: a column that is not there, or a condition of another form; the message
                names the column and what there is.
        """
        if not isinstance(where, Mapping):
            raise InputError(
                f"where: expected a mapping of columns to conditions, such as "
                f'{{"language": "en"}}, found {type(where).__name__}'
            )
        try:
            key = json.dumps(where, sort_keys=True, default=_plain)
        except (TypeError, ValueError):
            raise InputError("where: holds a value that is no text, number or list") from None
        except RecursionError:
            raise InputError("where: conditions lie too deeply within one another") from None
        with self._lock:
            known = self._masks.get(key)
            if known is not None:
                self._masks.move_to_end(key)
                return known
        rule = json.loads(key)
        table = self._table
        found = np.ones(0 if table is None else len(table), dtype=np.bool_)
        try:
            for column, condition in rule.items():
                found &= self._holds(column, condition, self._values(column), None)
        except InputError as error:
            raise InputError(f"where: {error}") from None
        except RecursionError:
            raise InputError("where: conditions lie too deeply within one another") from None
        found.flags.writeable = False
        with self._lock:
            if self._masks.setdefault(key, found) is found:
                self._cached += found.nbytes + len(key)
            while len(self._masks) > 1 and self._cached > _CACHED_BYTES:
                old, mask = self._masks.popitem(last=False)
                self._cached -= mask.nbytes + len(old)
        return found

    def categories(self, column: str, separator: str | None = None) -> JaggedBatch[Any]:
        """int64 codes of the categories of each item, one row an item; none where none is known.

        Tags of a text column, or the distinct numbers of another.

        Args:
            column: which.
            separator: what stands between its tags; ``None``: as these rules have it.

        Raises:
            InputError: the column is not there, or the separator is no text.
        """
        values = self._values(column)
        if separator is not None:
            _check_separator(column, separator)
        if isinstance(values, list):
            return self._tags(column, values, separator).codes
        there = ~np.isnan(values) if values.dtype == np.float64 else np.ones(len(values), bool)
        _, codes = np.unique(values[there], return_inverse=True)
        return JaggedBatch.from_lengths(codes.astype(np.int64), there.astype(np.int64))

    # ---------------------------------------------------------------- private

    def _values(self, column: Any) -> list[str | None] | NDArray[Any]:
        if self._table is None:
            raise InputError(
                f"column {column!r}: there is no item table; prepare the log with one (items=…)"
            )
        values = self._table.columns.get(column)
        if values is None:
            raise InputError(
                f"column {column!r} is not in the item table; there are "
                f"{', '.join(self._table.columns)}"
            )
        return values

    def _tags(self, column: str, values: list[str | None], separator: str | None) -> _Column:
        usual = self._separators.get(column, _SEPARATOR)
        used = separator or usual
        kept = self._columns if used == usual else self._others
        found = kept.get((column, used))
        if found is None:
            found = _Column(values, used)
            with self._lock:
                kept[(column, used)] = found
                while len(self._others) > _MOST_OTHERS:
                    self._others.popitem(last=False)
        return found

    def _numbers(self, column: str, values: Any) -> NDArray[Any]:
        """A column as numbers; of texts, those that are numbers, NaN for the others."""
        if not isinstance(values, list):
            return np.asarray(values)
        found = self._as_numbers.get(column)
        if found is None:
            found = np.full(len(values), np.nan)
            for item, text in enumerate(values):
                try:
                    found[item] = np.nan if text is None else float(text)
                except ValueError:
                    continue
            if np.isnan(found).all():
                raise InputError(f"column {column!r}: 'min' and 'max' need numbers, it holds texts")
            self._as_numbers[column] = found
        return found

    def _holds(self, column: str, condition: Any, values: Any, separator: str | None) -> Mask:
        if condition is None:
            if isinstance(values, list):
                return np.array([value is None for value in values], dtype=np.bool_)
            return np.isnan(values) if values.dtype == np.float64 else np.zeros(len(values), bool)
        if isinstance(condition, dict):
            return self._holds_all(column, condition, values, separator)
        if isinstance(condition, list):
            found = np.zeros(len(values), dtype=np.bool_)
            for one in condition:
                found |= self._holds(column, one, values, separator)
            return found
        if not isinstance(values, list):
            same: Mask = values == _number(column, condition)
            return same
        tags = self._tags(column, values, separator)
        if isinstance(condition, bool):
            accepted = _TRUE if condition else _FALSE
            found = np.zeros(len(values), dtype=np.bool_)
            for text in tags.places:
                if text.lower() in accepted:
                    found |= tags.has(text)
            return found
        return tags.has(condition if isinstance(condition, str) else str(condition))

    def _holds_all(self, column: str, condition: Any, values: Any, separator: str | None) -> Mask:
        odd = sorted(set(condition) - set(_WORDS))
        if odd or not set(condition) - {"separator"}:
            raise InputError(
                f"column {column!r}: found {', '.join(map(repr, odd)) or 'no condition'}; a "
                f"condition holds some of {', '.join(_WORDS)}"
            )
        if "separator" in condition:
            separator = condition["separator"]
            _check_separator(column, separator)
        found = np.ones(len(values), dtype=np.bool_)
        for word in ("any", "all"):
            if word not in condition:
                continue
            if not isinstance(condition[word], list):
                raise InputError(f"column {column!r}: {word!r} needs a list of values")
            if word == "any":
                found &= self._holds(column, condition[word], values, separator)
                continue
            for one in condition[word]:
                found &= self._holds(column, one, values, separator)
        if "not" in condition:
            found &= ~self._holds(column, condition["not"], values, separator)
        if "min" in condition or "max" in condition:
            values = self._numbers(column, values)
        if "min" in condition:
            found &= values >= _number(column, condition["min"])
        if "max" in condition:
            found &= values <= _number(column, condition["max"])
        return found


def _plain(value: Any) -> Any:
    """Values that JSON does not know as it does know them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, np.ndarray)):
        return list(value)
    raise TypeError


def _number(column: str, value: Any) -> float:
    try:
        if isinstance(value, (list, dict)):
            raise ValueError
        if not isinstance(value, int):
            return float(value)
        if abs(value) < 2**63:
            return value
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        raise InputError(f"column {column!r} holds numbers, found {value!r}") from None


def _check_separator(column: str, separator: Any) -> None:
    if not isinstance(separator, str) or not separator:
        raise InputError(f"column {column!r}: a separator is a text that is not empty")
