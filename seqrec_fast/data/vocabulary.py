# SPDX-License-Identifier: Apache-2.0
"""Raw ids on the outside, dense indices on the inside.

A :class:`Vocabulary` holds the raw ids of the items (or users) of a model in index order. It needs
numpy alone, because serving uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.data.packing import pack_text, unpack_text
from seqrec_fast.errors import InputError

__all__ = ["UNKNOWN", "Vocabulary", "is_canonical_integer"]

UNKNOWN = -1
"""Index of an id that is not in the vocabulary."""

_CANONICAL = re.compile(r"(?:0|-?[1-9][0-9]{0,18})\Z")
_INT64 = np.iinfo(np.int64)


def is_canonical_integer(text: str) -> bool:
    """Whether ``text`` is the one decimal form of an int64: ``"7"``, not ``"07"``, ``"+7"``."""
    return bool(_CANONICAL.match(text)) and _INT64.min <= int(text) <= _INT64.max


class Vocabulary:
    """The raw ids of items or users, in index order, each once.

    Attributes:
        ids: int64 ``[n]``, or an object array of ``str``: index → raw id.
    """

    __slots__ = ("_lookup", "_order", "ids")

    ids: NDArray[Any]

    def __init__(self, ids: Any) -> None:
        """Takes ids that already have their final type; see :meth:`from_ids` for any others.

        Args:
            ids: int64 ``[n]``, or object ``[n]`` holding ``str``.

        Raises:
            InputError: another type or shape, or an id that occurs twice.
        """
        if not isinstance(ids, np.ndarray) or ids.ndim != 1:
            raise InputError("vocabulary: the ids must be one row; give a one-dimensional array")
        self.ids = ids
        self._lookup: dict[str, int] | None = None
        self._order: NDArray[np.int64] | None = None
        if ids.dtype == np.int64:
            if len(ids) > 1 and not bool((ids[1:] > ids[:-1]).all()):
                self._order = np.argsort(ids, kind="stable")
                ordered = ids[self._order]
                same = np.flatnonzero(ordered[1:] == ordered[:-1])
                if len(same):
                    raise InputError(
                        f"vocabulary: id {ordered[same[0]]} occurs twice; each id may occur once"
                    )
        elif ids.dtype == np.object_:
            lookup: dict[str, int] = {}
            for index, raw in enumerate(ids.tolist()):
                if not isinstance(raw, str):
                    raise InputError(
                        f"vocabulary: entry {index} is {type(raw).__name__}, the others are text; "
                        f"use Vocabulary.from_ids, which converts"
                    )
                if lookup.setdefault(raw, index) != index:
                    raise InputError(f"vocabulary: id {raw!r} occurs twice; each id may occur once")
            self._lookup = lookup
        else:
            raise InputError(
                f"vocabulary: ids must be int64 or text, found {ids.dtype}; "
                f"use Vocabulary.from_ids, which converts"
            )

    @classmethod
    def from_ids(cls, ids: Iterable[Any]) -> Vocabulary:
        """Makes a vocabulary of any mix of ``int`` and ``str`` ids.

        If all are integers (Python, numpy, or floats with an integral value) the ids become int64;
        otherwise all become ``str``. Text stays text: ``["1", "2"]`` is a vocabulary of strings.

        Raises:
            InputError: an id of another type, or one that occurs twice.
        """
        if isinstance(ids, str | bytes):
            raise InputError("vocabulary: found one text instead of a list of ids; give a list")
        if isinstance(ids, np.ndarray):
            if ids.ndim != 1:
                raise InputError(f"vocabulary: ids must be one row, found shape {ids.shape}")
            if ids.dtype.kind == "i" or (
                ids.dtype.kind == "u" and (not len(ids) or int(ids.max()) <= _INT64.max)
            ):
                return cls(np.ascontiguousarray(ids, dtype=np.int64))
            if ids.dtype.kind == "U":
                return cls(ids.astype(object))
            ids = ids.tolist()
        known = [_plain(raw, index) for index, raw in enumerate(ids)]
        if all(isinstance(raw, int) and _INT64.min <= raw <= _INT64.max for raw in known):
            return cls(np.array(known, dtype=np.int64))
        array = np.empty(len(known), dtype=object)
        array[:] = [str(raw) for raw in known]
        return cls(array)

    # ---------------------------------------------------------------- basics

    @property
    def kind(self) -> Literal["int", "str"]:
        """What the raw ids are."""
        return "int" if self.ids.dtype == np.int64 else "str"

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, raw: object) -> bool:
        return int(self.encode([raw])[0]) != UNKNOWN

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.kind == other.kind and bool(np.array_equal(self.ids, other.ids))

    __hash__ = None  # type: ignore[assignment]  # compares by content

    def __repr__(self) -> str:
        shown = ", ".join(repr(raw) for raw in self.ids[:3].tolist())
        more = ", …" if len(self) > 3 else ""
        return f"Vocabulary({len(self)} {self.kind} ids: {shown}{more})"

    def __getstate__(self) -> NDArray[Any]:
        return self.ids

    def __setstate__(self, ids: NDArray[Any]) -> None:
        self.__init__(ids)  # type: ignore[misc]

    def subset(self, indices: ArrayLike) -> Vocabulary:
        """The vocabulary of the given indices, renumbered from 0 in that order."""
        return Vocabulary(self.decode(indices))

    # ---------------------------------------------------------------- raw id <-> index

    def encode(self, raw: Sequence[Any] | NDArray[Any]) -> NDArray[np.int32]:
        """Raw ids to indices; an id that is not known becomes -1, never an error.

        In a vocabulary of integers ``1``, ``"1"``, ``1.0`` and ``np.int64(1)`` are the same id, and
        ``"01"`` is not. In one of strings ``1`` means ``"1"``. ``None``, NaN and values of other
        types are unknown.

        Args:
            raw: ``[n]`` ids.

        Returns:
            int32 ``[n]``.

        Raises:
            InputError: ``raw`` is a single text or a nested array instead of a row of ids.
        """
        if isinstance(raw, str | bytes):
            raise InputError(f"ids: found one text ({raw!r}) instead of a list of ids; give a list")
        if isinstance(raw, np.ndarray) and raw.ndim != 1:
            raise InputError(f"ids: must be one row, found shape {raw.shape}; give a flat list")
        if self.kind == "int":
            return self._encode_integers(raw)
        lookup = self._lookup
        assert lookup is not None  # set by __init__ for text
        values = raw.tolist() if isinstance(raw, np.ndarray) else raw
        out = np.empty(len(values), dtype=np.int32)
        for position, value in enumerate(values):
            text = value if isinstance(value, str) else _as_text(value)
            out[position] = UNKNOWN if text is None else lookup.get(text, UNKNOWN)
        return out

    def decode(self, indices: ArrayLike) -> NDArray[Any]:
        """Indices to raw ids.

        Args:
            indices: integers ``[...]``, each in ``[0, n)``.

        Returns:
            int64 or object (``str``) of the same shape.

        Raises:
            InputError: an index that is not in range.
        """
        wanted = np.asarray(indices)
        if wanted.size == 0:
            wanted = wanted.astype(np.int64)
        if wanted.dtype.kind not in "iu":
            raise InputError(f"indices: must be integers, found {wanted.dtype}")
        if wanted.size and (int(wanted.min()) < 0 or int(wanted.max()) >= len(self)):
            bad = wanted[(wanted < 0) | (wanted >= len(self))].flat[0]
            raise InputError(f"indices: {bad} is outside the vocabulary of {len(self)} ids")
        found: NDArray[Any] = self.ids[wanted]
        return found

    def _encode_integers(self, raw: Any) -> NDArray[np.int32]:
        valid: NDArray[np.bool_] | None = None
        if isinstance(raw, np.ndarray) and raw.dtype.kind == "i":
            wanted = raw.astype(np.int64, copy=False)
        else:
            values = raw.tolist() if isinstance(raw, np.ndarray) else raw
            numbers = [_as_integer(value) for value in values]
            valid = np.fromiter((n is not None for n in numbers), dtype=np.bool_, count=len(values))
            wanted = np.array([n or 0 for n in numbers], dtype=np.int64)
        if not len(self.ids):
            return np.full(len(wanted), UNKNOWN, dtype=np.int32)
        place = np.searchsorted(self.ids, wanted, sorter=self._order)
        np.minimum(place, len(self.ids) - 1, out=place)
        index = place if self._order is None else self._order[place]
        hit = self.ids[index] == wanted
        if valid is not None:
            hit &= valid
        return np.where(hit, index, UNKNOWN).astype(np.int32)

    def lookup(self) -> dict[Any, int]:
        """Raw id to index as a dictionary; for integers made anew at each call."""
        if self._lookup is not None:
            return self._lookup
        return dict(zip(self.ids.tolist(), range(len(self)), strict=True))

    # ---------------------------------------------------------------- storage

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """As plain arrays: ``ids`` (int64), or ``text`` (uint8 UTF-8) and ``offsets`` (int64).

        Raises:
            InputError: an id that has no UTF-8 form.
        """
        if self.kind == "int":
            return {"ids": self.ids}
        text, offsets = pack_text(self.ids.tolist(), "vocabulary")
        return {"text": text, "offsets": offsets}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> Vocabulary:
        """The inverse of :meth:`to_tensors`.

        Raises:
            InputError: arrays missing, of a wrong type or shape, not UTF-8, or an id that is twice.
        """
        names = set(tensors)
        if names == {"ids"}:
            ids: Any = tensors["ids"]
            if not isinstance(ids, np.ndarray) or ids.dtype != np.int64 or ids.ndim != 1:
                raise InputError("vocabulary: the array 'ids' must be int64 of one dimension")
            return cls(ids)
        if names != {"text", "offsets"}:
            raise InputError(
                f"vocabulary: expected the array 'ids', or 'text' and 'offsets'; "
                f"found {', '.join(sorted(names)) or 'none'}"
            )
        texts = unpack_text(tensors["text"], tensors["offsets"], "vocabulary")
        array = np.empty(len(texts), dtype=object)
        array[:] = texts
        return cls(array)


def _plain(raw: Any, index: int) -> int | str:
    """A raw id as a Python int or str."""
    if isinstance(raw, str):
        return str(raw)
    if isinstance(raw, int | np.integer) and not isinstance(raw, bool | np.bool_):
        return int(raw)
    if isinstance(raw, float | np.floating) and float(raw).is_integer():
        return int(raw)
    raise InputError(
        f"vocabulary: entry {index} is {raw!r} ({type(raw).__name__}); ids are integers or text"
    )


def _as_integer(value: Any) -> int | None:
    """The int64 that ``value`` stands for, or None."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, str):
        return int(value) if is_canonical_integer(value) else None
    if isinstance(value, float | np.floating):
        if not float(value).is_integer():
            return None
    elif not isinstance(value, int | np.integer):
        return None
    number = int(value)
    return number if _INT64.min <= number <= _INT64.max else None


def _as_text(value: Any) -> str | None:
    """The text that a number stands for in a vocabulary of strings, or None."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | np.integer):
        try:
            return str(int(value))
        except ValueError:  # thousands of digits
            return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return None
