# SPDX-License-Identifier: Apache-2.0
"""What is known about the items besides their ids: titles first, then any other columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.data.packing import pack_text, unpack_text
from seqrec_fast.errors import InputError

__all__ = ["ItemTable", "read_schema"]


@dataclass(frozen=True, slots=True)
class ItemTable:
    """Columns aligned with the item index of a vocabulary.

    Attributes:
        columns: name → list of ``str | None`` (text; ``None`` where not known) or an int64 or
            float64 array (NaN where not known), each of one entry an item.
        title_column: the column that names an item to a reader, or ``None``.
    """

    columns: Mapping[str, list[str | None] | NDArray[Any]]
    title_column: str | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if not lengths:
            raise InputError("item table: has no columns; give at least one besides the item id")
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"item table: the columns differ in length ({listed})")
        for name, column in self.columns.items():
            if isinstance(column, np.ndarray):
                if column.ndim != 1 or column.dtype not in (np.dtype("i8"), np.dtype("f8")):
                    raise InputError(
                        f"item table: column {name!r} is {column.dtype} of {column.ndim} "
                        f"dimensions; give int64, float64 or a list of texts"
                    )
            elif not all(value is None or isinstance(value, str) for value in column):
                raise InputError(f"item table: column {name!r} must hold texts or None")
        if self.title_column is not None and self.title_column not in self.columns:
            raise InputError(
                f"item table: the title column {self.title_column!r} is not among the columns "
                f"({', '.join(self.columns)})"
            )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ItemTable):
            return NotImplemented
        if self.title_column != other.title_column or list(self.columns) != list(other.columns):
            return False
        for name, mine in self.columns.items():
            theirs = other.columns[name]
            if isinstance(mine, np.ndarray) != isinstance(theirs, np.ndarray):
                return False
            if isinstance(mine, np.ndarray):
                floats = mine.dtype == np.float64
                if mine.dtype != np.asarray(theirs).dtype:
                    return False
                if not np.array_equal(mine, np.asarray(theirs), equal_nan=bool(floats)):
                    return False
            elif mine != theirs:
                return False
        return True

    __hash__ = None  # type: ignore[assignment]  # compares by content

    def __repr__(self) -> str:
        return (
            f"ItemTable({len(self)} items: {', '.join(self.columns)}; title={self.title_column!r})"
        )

    def title(self, index: int) -> str | None:
        """The title of an item, or ``None`` where there is none.

        Args:
            index: item index, in ``[0, len(self))``.

        Raises:
            InputError: the index is out of range.
        """
        if not 0 <= index < len(self):
            raise InputError(f"item index: {index} is outside the item table of {len(self)} items")
        if self.title_column is None:
            return None
        value = self.columns[self.title_column][index]
        if value is None or value != value:  # NaN
            return None
        return value if isinstance(value, str) else str(value)

    def select(self, indices: ArrayLike) -> ItemTable:
        """The table of the given items, in that order; -1 makes a row in which nothing is known."""
        wanted = np.asarray(indices, dtype=np.int64)
        missing = wanted < 0
        columns: dict[str, list[str | None] | NDArray[Any]] = {}
        for name, column in self.columns.items():
            if not isinstance(column, np.ndarray):
                columns[name] = [None if i < 0 else column[i] for i in wanted.tolist()]
                continue
            if not len(column):
                columns[name] = np.full(len(wanted), np.nan)
                continue
            taken = column[np.where(missing, 0, wanted)]
            if missing.any():
                taken = taken.astype(np.float64)
                taken[missing] = np.nan
            columns[name] = taken
        return ItemTable(columns, self.title_column)

    # ---------------------------------------------------------------- storage

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """As plain arrays.

        ``schema`` is JSON in uint8; column ``i`` is ``i.values`` (numbers), or ``i.text`` (uint8
        UTF-8), ``i.offsets`` (int64) and ``i.present`` (uint8, 0 where there is no text).
        """
        schema: dict[str, Any] = {"title": self.title_column, "columns": []}
        tensors: dict[str, NDArray[Any]] = {}
        for number, (name, column) in enumerate(self.columns.items()):
            kind = "number" if isinstance(column, np.ndarray) else "text"
            schema["columns"].append({"name": name, "kind": kind})
            if isinstance(column, np.ndarray):
                tensors[f"{number}.values"] = np.ascontiguousarray(column)
                continue
            text, offsets = pack_text(column, f"item table, column {name!r}")
            tensors[f"{number}.text"] = text
            tensors[f"{number}.offsets"] = offsets
            tensors[f"{number}.present"] = np.array(
                [value is not None for value in column], dtype=np.uint8
            )
        encoded = json.dumps(schema, ensure_ascii=True).encode()
        return {"schema": np.frombuffer(bytearray(encoded), dtype=np.uint8), **tensors}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> ItemTable:
        """The inverse of :meth:`to_tensors`; trusts nothing about the arrays.

        Raises:
            InputError: arrays missing or left over, wrong types or shapes, text that is not UTF-8.
        """
        title, schema = read_schema(tensors)
        columns: dict[str, list[str | None] | NDArray[Any]] = {}
        used = {"schema"}
        for number, (name, kind) in enumerate(schema):
            what = f"item table, column {name!r}"
            if name in columns:
                raise InputError(f"{what}: occurs twice")
            parts = ("values",) if kind == "number" else ("text", "offsets", "present")
            wanted = [f"{number}.{part}" for part in parts]
            absent = [key for key in wanted if key not in tensors]
            if absent:
                raise InputError(f"{what}: the array {absent[0]!r} is missing")
            used.update(wanted)
            if kind == "number":
                columns[name] = tensors[wanted[0]]
                continue
            texts = unpack_text(tensors[wanted[0]], tensors[wanted[1]], what)
            present = tensors[wanted[2]]
            if present.dtype != np.uint8 or present.shape != (len(texts),):
                raise InputError(
                    f"{what}: {wanted[2]!r} must be uint8 of {len(texts)} entries, found "
                    f"{present.dtype} of shape {present.shape}"
                )
            columns[name] = [
                text if there else None for text, there in zip(texts, present.tolist(), strict=True)
            ]
        extra = sorted(set(tensors) - used)
        if extra:
            raise InputError(f"item table: unexpected array {extra[0]!r}")
        return cls(columns, title)


def read_schema(tensors: Mapping[str, NDArray[Any]]) -> tuple[str | None, list[tuple[str, str]]]:
    """The title column, and name and kind (``"number"`` or ``"text"``) of every column.

    Args:
        tensors: those of :meth:`ItemTable.to_tensors`, of which ``schema`` is enough.

    Raises:
        InputError: it is missing or malformed.
    """
    blob = tensors.get("schema")
    if not isinstance(blob, np.ndarray) or blob.dtype != np.uint8 or blob.ndim != 1:
        raise InputError("item table: the array 'schema' (uint8) is missing or of a wrong type")
    try:
        schema = json.loads(blob.tobytes())
    except (ValueError, RecursionError) as error:
        raise InputError("item table: the array 'schema' is not JSON") from error
    if not isinstance(schema, dict) or not isinstance(schema.get("columns"), list):
        raise InputError("item table: the array 'schema' does not list the columns")
    title = schema.get("title")
    if title is not None and not isinstance(title, str):
        raise InputError("item table: the title column in 'schema' must be a text")
    found: list[tuple[str, str]] = []
    for entry in schema["columns"]:
        name = entry.get("name") if isinstance(entry, dict) else None
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if not isinstance(name, str) or kind not in ("number", "text"):
            raise InputError("item table: 'schema' has a column without a name or a known kind")
        found.append((name, kind))
    return title, found
