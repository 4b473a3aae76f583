# SPDX-License-Identifier: Apache-2.0
"""Item tables: read beside the log and joined by raw item id."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.recognition import choose_title
from seqrec_fast.data.sniffing import (
    FALLBACKS,
    TextLayout,
    find_layout,
    is_typed_header,
    open_text,
    read_head,
)
from seqrec_fast.data.vocabulary import Vocabulary, is_canonical_integer
from seqrec_fast.errors import InputError

__all__ = ["ItemSource", "open_item_table", "table_from_columns"]

_ROWS = 20_000


@dataclass(frozen=True)
class ItemSource:
    """An item table that is opened: its columns are known.

    Attributes:
        source: the table in words.
        columns: names of the columns besides the item id.
        key: position of the item id among all columns.
        title: position of the title among all columns, or ``None``.
        note: what was recognised, for the report.
    """

    source: str
    columns: tuple[str, ...]
    key: int
    title: int | None
    note: str
    path: Path | None = field(default=None, repr=False)
    layout: TextLayout | None = field(default=None, repr=False)
    encoding: str = field(default="utf-8", repr=False)
    values: tuple[list[Any], ...] = field(default=(), repr=False)

    def ids(self) -> list[Any]:
        """Item ids in the order of the rows, each once.

        Raises:
            InputError: a row without an id, or a file that cannot be read.
        """
        found: dict[Any, None] = {}
        number = 0
        for rows in self._rows():
            for row in rows:
                number += 1
                raw = row[self.key]
                if raw is None or raw == "" or raw != raw:
                    raise InputError(
                        f"{self.source}: row {number} has no item id in column "
                        f"{self.columns[self.key]!r}; give one or leave the row out"
                    )
                found[raw] = None
        return list(found)

    def load(self, items: Vocabulary) -> tuple[ItemTable | None, list[str]]:
        """The rows of the items of a vocabulary, and what to note about them.

        An item without a row has nothing known; of several rows the first counts.

        Raises:
            InputError: a row that is not as wide as the others, or a file that cannot be read.
        """
        others = [place for place in range(len(self.columns)) if place != self.key]
        if not others:
            return None, [f"{self.source}: holds item ids alone, so nothing is taken from it"]
        cells: dict[int, list[Any]] = {place: [None] * len(items) for place in others}
        known = np.zeros(len(items), dtype=np.bool_)
        twice = 0
        for rows in self._rows():
            indices = items.encode([row[self.key] for row in rows])
            for row, index in zip(rows, indices.tolist(), strict=True):
                if index < 0:
                    continue
                if known[index]:
                    twice += 1
                    continue
                known[index] = True
                for place in others:
                    cells[place][index] = row[place]
        found = int(known.sum())
        notes = [f"{self.source}: describes {found:,} of {len(items):,} items"]
        if twice:
            notes.append(f"{self.source}: {twice:,} rows repeat an item id; the first row counts")
        if not found:
            notes.append(f"{self.source}: no item id matches; check item_id=")
        columns = {
            self.columns[place]: _column(cells[place], text=place == self.title) for place in others
        }
        title = None if self.title is None else self.columns[self.title]
        return ItemTable(columns, title), notes

    def _rows(self) -> Iterator[Sequence[Sequence[Any]]]:
        if self.path is None:
            rows = list(zip(*self.values, strict=True))
            yield from (rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS))
        elif self.layout is None:
            yield from _parquet_rows(self.path, len(self.columns))
        else:
            yield from _text_rows(self.path, self.layout, self.encoding)


def open_item_table(
    path: Path, item_id: str | int | None, title: str | int | None, log_item: str | None
) -> ItemSource:
    """Recognises the format and the columns of an item table.

    Args:
        path: CSV, TSV, ``.item`` (typed header), ``::``-separated or Parquet.
        item_id: column of the item id, or ``None``.
        title: column of the title, or ``None``.
        log_item: name of the item column in the log.

    Raises:
        InputError: a file or a column that cannot be used.
    """
    head = read_head(path, None)
    layout: TextLayout | None = None
    if head.parquet:
        columns = _parquet_columns(path)
    else:
        tabbed = path.name.lower().removesuffix(".gz").endswith((".tsv", ".item", ".txt"))
        format = "tsv" if tabbed else "csv"
        if is_typed_header(head.lines[0]):
            format = "inter"
        elif all("::" in line for line in head.lines if line.strip()):
            format = "ratings"
        layout = find_layout(head, format, None, False if format == "ratings" else None)
        columns = layout.columns
    named = layout is None or layout.header
    if named:
        key, found = choose_title(columns, item_id, title, str(path), log_item)
    else:
        key, found = choose_title(columns, item_id or 0, title, str(path))
        if layout is not None and title is None:
            found = _guess_title(path, layout, head.encoding, key)
        if found is not None:
            columns = (*columns[:found], "title", *columns[found + 1 :])
    label = "no title column" if found is None else f"title = {_label(columns, found, named)}"
    return ItemSource(
        source=str(path),
        columns=tuple(columns),
        key=key,
        title=found,
        note=f"item table {path.name}: item id = {_label(columns, key, named)}, {label}",
        path=path,
        layout=layout,
        encoding=head.encoding,
    )


def table_from_columns(table: Any) -> ItemSource:
    """An item table from a mapping of columns, an Arrow table or a pandas frame.

    Raises:
        InputError: not such a table, columns of different lengths, or no item id among them.
    """
    if hasattr(table, "to_pydict"):
        columns: Mapping[str, Any] = table.to_pydict()
    elif isinstance(table, Mapping) or hasattr(table, "columns"):
        keys = list(table) if isinstance(table, Mapping) else list(table.columns)
        columns = {str(name): _to_list(table[name]) for name in keys}
    else:
        raise InputError(
            f"item_table: must be a mapping of columns, an Arrow table or a pandas frame, found "
            f"{type(table).__name__}"
        )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no columns"
        raise InputError(f"item_table: columns must have one length, found {listed}")
    names: tuple[str, ...] = tuple(str(name) for name in columns)
    key, title = choose_title(names, None, None, "item_table", "item")
    label = "no title column" if title is None else f"title = {names[title]}"
    values = tuple(columns.values())
    note = f"item table: item id = {names[key]}, {label}"
    return ItemSource("item_table", names, key, title, note, values=values)


def _to_list(column: Any) -> list[Any]:
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _label(columns: Sequence[str], position: int, named: bool) -> str:
    return columns[position] if named else f"column {position}"


def _text_rows(path: Path, layout: TextLayout, encoding: str) -> Iterator[list[Sequence[str]]]:
    try:
        yield from _chunks_of(path, layout, _encoding_of(path, encoding))
    except (EOFError, OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read to its end ({error})") from error


def _encoding_of(path: Path, encoding: str) -> str:
    """The encoding of the whole file, of which the beginning is known."""
    for name in (encoding, *FALLBACKS):
        try:
            with open_text(path, name) as stream:
                while stream.read(1 << 20):
                    pass
        except UnicodeDecodeError:
            continue
        break
    return name


def _chunks_of(path: Path, layout: TextLayout, encoding: str) -> Iterator[list[Sequence[str]]]:
    with open_text(path, encoding) as stream:
        yield from _chunks(stream, layout, path)


def _chunks(stream: Any, layout: TextLayout, path: Path) -> Iterator[list[Sequence[str]]]:
    rows: Iterator[list[str]]
    if layout.quote and len(layout.delimiter) == 1:
        rows = csv.reader(stream, delimiter=layout.delimiter, quotechar=layout.quote)
    else:
        rows = (line.rstrip("\n").split(layout.delimiter) for line in stream)
    width = len(layout.columns)
    chunk: list[Sequence[str]] = []
    for number, row in enumerate(rows, start=1):
        if (number == 1 and layout.header) or not row or row == [""]:
            continue
        if len(row) != width:
            raise InputError(
                f"{path}: row {number} has {len(row)} columns, expected {width}; repair the row"
            )
        chunk.append(row)
        if len(chunk) == _ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return tuple(pyarrow.parquet.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"{path}: is damaged or truncated Parquet ({reason})") from error


def _parquet_rows(path: Path, width: int) -> Iterator[Sequence[Sequence[Any]]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                columns = [batch.column(place).to_pylist() for place in range(width)]
                yield list(zip(*columns, strict=True))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"{path}: is damaged or truncated Parquet ({reason})") from error


def _guess_title(path: Path, layout: TextLayout, encoding: str, key: int) -> int | None:
    """The column that reads most like a title: different in each row, and of several words."""
    rows = next(_text_rows(path, layout, encoding))
    scores: dict[int, float] = {}
    for place in range(len(layout.columns)):
        values = [row[place] for row in rows if row[place]]
        if place == key or not values:
            continue
        different = len(set(values)) / len(rows)
        worded = sum(" " in value.strip() for value in values) / len(rows)
        # far longer than a title is a plot or a description
        short = sum(len(value) <= 250 for value in values) / len(values)
        scores[place] = different * worded * short
    # titles tend to stand first; later columns of names (authors, actors) can score as high
    enough = max(0.25, 0.6 * max(scores.values(), default=0.0))
    return next((place for place, score in scores.items() if score >= enough), None)


def _column(values: list[Any], *, text: bool) -> list[str | None] | NDArray[Any]:
    """A column of texts, or numbers if every value that is known is one and it is no title."""
    known = [value for value in values if value is not None and value != ""]
    if not text and known and all(_is_integer(value) for value in known):
        if len(known) == len(values):
            return np.array([int(value) for value in values], dtype=np.int64)
        return np.array([np.nan if v is None or v == "" else float(v) for v in values])
    if not text and known and all(_is_float(value) for value in known):
        return np.array([np.nan if v is None or v == "" else float(v) for v in values])
    return [None if v is None or v == "" or v != v else _text(v) for v in values]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(str(part) for part in value)
    return str(value)


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return is_canonical_integer(value)
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)
    return whole and -(2**63) <= int(value) < 2**63


def _is_float(value: Any) -> bool:
    if isinstance(value, str):
        # "1_000", " 1" and "nan" are texts that Python would take for numbers
        if not value or value[0] in "+_ " or value[-1] in "_ " or "n" in value.lower():
            return False
        digits = value.lstrip("-")
        if len(digits) > 1 and digits[0] == "0" and digits[1] != ".":
            return False
        try:
            float(value)
        except ValueError:
            return False
        return "_" not in value
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
