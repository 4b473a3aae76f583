# SPDX-License-Identifier: Apache-2.0
"""An event log that is opened: its format and columns are known, its rows are not read yet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec_fast.data.item_source import ItemSource, open_item_table, table_from_columns
from seqrec_fast.data.recognition import ROLES, choose_columns
from seqrec_fast.data.sequence_files import SequenceLayout, find_first
from seqrec_fast.data.sniffing import (
    FALLBACKS,
    Head,
    TextLayout,
    find_format,
    find_layout,
    read_head,
)
from seqrec_fast.data.workspace import BadEncoding, open_workspace, parse_memory
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Log", "expand_files", "log_from_columns", "read_log"]

DEFAULT_MEMORY = "2GiB"


@dataclass(frozen=True)
class Log:
    """A log that is opened, not loaded; hand it to :func:`seqrec_fast.data.prepare`.

    Attributes:
        source: the log in words.
        format: ``csv``, ``tsv``, ``parquet``, ``inter``, ``ratings``, ``sequences``, or
            ``columns`` for one made in memory.
        files: the files, in the order in which their rows count.
        columns: role (user, item, time, event, rating, weight) → name of its column.
        notes: what was recognised.
        memory: limit of the engine that reads the log.
        threads: threads of that engine, or ``None``.
    """

    source: str
    format: str
    files: tuple[Path, ...]
    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()
    memory: str | int = DEFAULT_MEMORY
    threads: int | None = None
    positions: Mapping[str, int] = field(default_factory=dict, repr=False)
    given: frozenset[str] = field(default=frozenset(), repr=False)
    encodings: tuple[str, ...] = field(default=(), repr=False)
    encoding_given: bool = field(default=False, repr=False)
    layout: TextLayout | None = field(default=None, repr=False)
    sequences: SequenceLayout | None = field(default=None, repr=False)
    table: pyarrow.Table | None = field(default=None, repr=False)
    item_source: ItemSource | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        named = ", ".join(
            role if role == name else f"{role}={name!r}" for role, name in self.columns.items()
        )
        items = f", items from {self.item_source.source}" if self.item_source else ""
        return f"Log({self.source}: {self.format}, {named}{items})"

    def named(self, source: str) -> Log:
        """The same log under another description."""
        return replace(self, source=source)

    def count(self) -> int:
        """Number of rows, missing fields and all (reads text files through once).

        Raises:
            InputError: the log cannot be read.
        """
        from seqrec_fast.data.readers import open_relation

        with open_workspace(self.memory, self.threads, self.source) as workspace:
            relation = open_relation(workspace, self, ("user", "item"))
            return int(workspace.row(f"SELECT count(*) FROM {relation.sql}")[0])

    def preview(self, rows: Any = 5) -> list[dict[str, Any]]:
        """The first rows as the file has them: one dictionary a row, by role.

        Args:
            rows: how many, at least 1.

        Raises:
            InputError: ``rows`` below 1, or the log cannot be read.
        """
        from seqrec_fast.data.readers import open_relation

        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
            raise InputError(f"rows: must be an integer of at least 1, found {rows!r}")
        roles = tuple(self.columns)
        with open_workspace(self.memory, self.threads, self.source) as workspace:
            relation = open_relation(workspace, self, roles, limit=rows)
            # as text, a time with a zone needs no library of zones on the way to Python
            names = ", ".join(
                f'"{role}"::VARCHAR' if kind.startswith("TIMESTAMP") else f'"{role}"'
                for role, kind in relation.types.items()
            )
            found = workspace.run(f'SELECT {names} FROM {relation.sql} ORDER BY "row" LIMIT {rows}')
        return [dict(zip(relation.types, row, strict=True)) for row in found]


def read_log(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    user: str | int | None = None,
    item: str | int | None = None,
    time: str | int | None = None,
    event: str | int | None = None,
    rating: str | int | None = None,
    weight: str | int | None = None,
    format: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    header: bool | Sequence[str] | None = None,
    first: str | None = None,
    times: str | os.PathLike[str] | None = None,
    items: str | os.PathLike[str] | None = None,
    item_id: str | int | None = None,
    title: str | int | None = None,
    memory: str | int = DEFAULT_MEMORY,
    threads: Any = None,
) -> Log:
    """Opens an event log: recognises its format and columns, and reads nothing else yet.

    Args:
        path: a file, a glob, a folder of Parquet files, or a list of files. Rows count in the order
            of the files (sorted by name for globs and folders), then in the order of their rows.
            Text may be compressed (``.gz``).
        user: column of the user; a name, or a number counted from 0. Columns that are not given
            are recognised by name.
        item: column of the item.
        time: column of the time.
        event: column of the event type.
        rating: column of the rating; it is read only for ``min_rating``.
        weight: column of the weight.
        format: ``"csv"``, ``"tsv"``, ``"parquet"``, ``"inter"`` (header ``name:type``),
            ``"ratings"`` (``user::item::rating::time``) or ``"sequences"`` (a line a user or
            session); recognised by default.
        delimiter: between columns; found by default.
        encoding: of text; by default UTF-8, and Windows-1252 or Latin-1 where that
            fails.
        header: ``False`` if the first line holds values, or the list of column names of such a
            file; recognised by default.
        first: what a line of a sequence file begins with, ``"user"`` or ``"item"``; recognised by
            default (users, if no first word comes twice).
        times: for a sequence file, the file of times of the same lines.
        items: an item table (CSV, TSV, ``.item``, ``::`` or Parquet), joined by item id.
        item_id: its column of the item id; recognised by default.
        title: its column of the title; recognised by default.
        memory: limit of the engine, as ``"2GiB"`` or bytes. The result comes on top: about 40 bytes
            an event at the peak.
        threads: threads of the engine; by default all.

    Raises:
        InputError: anything that cannot be used, in one line with the remedy.
    """
    parse_memory(memory)
    if threads is not None and (
        not isinstance(threads, int) or isinstance(threads, bool) or threads < 1
    ):
        raise InputError(f"threads: must be an integer of at least 1, found {threads!r}")
    files = expand_files(path)
    heads = [read_head(file, encoding) for file in files]
    format_found = find_format(heads[0], format, delimiter)
    for head in heads[1:]:
        if head.parquet != heads[0].parquet:
            raise InputError(
                f"{head.path}: is {'Parquet' if head.parquet else 'text'}, {files[0]} is not; "
                f"give files of one format"
            )
    given = dict(zip(ROLES, (user, item, time, event, rating, weight), strict=True))
    notes = [f"format: {format_found}{'' if format else ' (recognised)'}"]
    source = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    log = Log(
        source=source,
        format=format_found,
        files=files,
        columns={},
        memory=memory,
        threads=threads,
        encodings=tuple(encoding or head.encoding for head in heads),
        encoding_given=encoding is not None,
        given=frozenset(role for role, value in given.items() if value is not None),
        item_source=None,
    )
    if format_found == "sequences":
        log = _open_sequences(log, given, first, times, delimiter, header, notes)
    else:
        for argument, value in (("first", first), ("times", times)):
            if value is not None:
                raise InputError(
                    f"{argument}: is for sequence files, but {source} is {format_found}; give "
                    f"format='sequences', or time= for a column"
                )
        log = _open_table(log, heads, given, delimiter, header, notes)
    if items is not None:
        table = open_item_table(Path(items), item_id, title, log.columns.get("item"))
        notes.append(table.note)
        log = replace(log, item_source=table)
    elif item_id is not None or title is not None:
        raise InputError("item_id= and title= belong to an item table; give items= as well")
    return replace(log, notes=tuple(notes))


def expand_files(path: Any) -> tuple[Path, ...]:
    """The files that a path stands for, in the order in which their rows count.

    Args:
        path: a file, a folder of Parquet files, a pattern, or a list of files.

    Raises:
        InputError: no file is meant, or a folder without Parquet.
    """
    if not isinstance(path, str | os.PathLike):
        if not isinstance(path, Iterable):
            raise InputError(f"path: must be a path or a list of paths, found {path!r}")
        files = tuple(Path(part) for part in path)
        if not files:
            raise InputError("path: the list of files is empty; give at least one")
        return files
    target = Path(path)
    try:
        if target.is_dir():
            found = sorted(f for ending in ("*.parquet", "*.pq") for f in target.glob(ending))
            if not found:
                raise InputError(
                    f"{target}: is a folder without .parquet files; give a file or a glob such as "
                    f"'{target}/*.csv'"
                )
            return tuple(found)
        if target.exists() or not any(mark in str(target) for mark in "*?["):
            return (target,)
        anchor = Path(target.anchor) if target.anchor else Path()
        pattern = str(target.relative_to(anchor) if target.anchor else target)
        matches = tuple(sorted(f for f in anchor.glob(pattern) if f.is_file()))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{target}: cannot be opened ({error})") from error
    if not matches:
        raise InputError(f"{target}: no file matches; check the pattern")
    return matches


def _open_table(
    log: Log,
    heads: Sequence[Head],
    given: Mapping[str, Any],
    delimiter: str | None,
    header: bool | Sequence[str] | None,
    notes: list[str],
) -> Log:
    layout: TextLayout | None = None
    if log.format == "parquet":
        for argument, value in (("delimiter", delimiter), ("header", header)):
            if value is not None:
                raise InputError(f"{argument}: Parquet files have none; leave it out")
        names = [_parquet_names(head.path) for head in heads]
        columns = names[0]
    else:
        layouts = [find_layout(head, log.format, delimiter, header) for head in heads]
        names = [part.columns for part in layouts]
        layout, columns = layouts[0], layouts[0].columns
        for head, part in zip(heads, layouts, strict=True):
            if part != layout:
                raise InputError(
                    f"{head.path}: its columns ({', '.join(part.columns)}; delimiter "
                    f"{part.delimiter!r}) differ from those of {log.files[0]} "
                    f"({', '.join(columns)}); give files of one kind"
                )
    line = "" if layout is None else next(line for line in heads[0].lines if line.strip())
    positions, recognised = _roles(log, layout, columns, given, line)
    for head, others in zip(heads, names, strict=True):
        for role, position in positions.items():
            if columns[position] not in others:
                raise InputError(
                    f"{head.path}: has no column {columns[position]!r} ({role}), which "
                    f"{log.files[0]} has; its columns are {', '.join(others)}"
                )
    if layout is not None:
        label = {"\t": "tab", " ": "space"}.get(layout.delimiter, layout.delimiter)
        notes.append(f"delimiter: {label}{', no header line' if not layout.header else ''}")
    chosen = ", ".join(
        f"{role} = {columns[position]}{' (recognised)' if recognised[role] else ''}"
        for role, position in positions.items()
    )
    notes.append(f"columns: {chosen}")
    if "time" not in positions:
        notes.append("no time column: the order of the rows is the order of the events")
    return replace(
        log,
        layout=layout,
        positions=positions,
        columns={role: columns[position] for role, position in positions.items()},
    )


def _roles(
    log: Log,
    layout: TextLayout | None,
    columns: Sequence[str],
    given: Mapping[str, Any],
    line: str,
) -> tuple[dict[str, int], dict[str, bool]]:
    made_up = layout is not None and not layout.header and columns[0] == "column0"
    if made_up and (given["user"] is None or given["item"] is None):
        if layout is not None and layout.delimiter == " " and len(columns) == 2:
            roles = {"user": 0, "item": 1}  # lines "user item", in order of time
            return roles, dict.fromkeys(roles, True)
        raise InputError(
            f"{log.source}: has {len(columns)} columns and no header line (line 1 is "
            f"{line[:60]!r}); say which is which by number, for instance user=0, item=1, "
            f"time={len(columns) - 1}, or give header= as a list of "
            f"names (one user a line? give format='sequences')"
        )
    return choose_columns(columns, given, log.source)


def _parquet_names(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return tuple(pyarrow.parquet.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(
            f"{path}: is damaged or truncated Parquet ({reason}); write the file again"
        ) from error


def _open_sequences(
    log: Log,
    given: Mapping[str, Any],
    first: str | None,
    times: str | os.PathLike[str] | None,
    delimiter: str | None,
    header: object,
    notes: list[str],
) -> Log:
    named = [role for role, value in given.items() if value is not None]
    if named:
        raise InputError(
            f"{named[0]}: sequence files have no columns; leave it out, or give format= if "
            f"{log.source} is a table"
        )
    if header:
        raise InputError("header: sequence files have none; leave it out")
    if first not in (None, "user", "item"):
        raise InputError(f"first: must be 'user' or 'item', found {first!r}")
    if times is not None:
        if len(log.files) > 1:
            raise InputError("times: belongs to one sequence file; read the files one by one")
        read_head(Path(times), log.encodings[0])
    if first is None:
        if times is not None:
            first, why = "user", "a file of times was given"
        else:
            log, first, why = _recognised_first(log, delimiter)
        notes.append(f"lines begin with the {first} (recognised: {why})")
        if first == "item":
            notes.append("each line is a session of its own; users are the numbers of the lines")
    columns = ("user", "item") if times is None else ("user", "item", "time")
    if times is None:
        notes.append("no times: the order on the line is the order of the events")
    return replace(
        log,
        sequences=SequenceLayout(first, delimiter, None if times is None else Path(times)),
        columns={name: name for name in columns},
        positions={name: number for number, name in enumerate(columns)},
    )


def _recognised_first(log: Log, delimiter: str | None) -> tuple[Log, str, str]:
    """The log in the encoding that its lines have, what they begin with, and why."""
    for fallback in FALLBACKS:
        try:
            return log, *find_first(log.files[0], log.encodings[0], delimiter)
        except BadEncoding:
            if log.encoding_given:
                raise
            log = replace(log, encodings=tuple(fallback for _ in log.files))
    return log, *find_first(log.files[0], log.encodings[0], delimiter)


def log_from_columns(
    users: Any,
    items: Any,
    times: Any = None,
    events: Any = None,
    ratings: Any = None,
    weights: Any = None,
    item_table: Any = None,
) -> Log:
    """A log of columns in memory: lists, numpy arrays, Arrow arrays or pandas series.

    Args:
        users: ``[rows]`` ids, integers or text; ``None`` is missing.
        items: likewise.
        times: unix seconds (or milli-, micro-, nanoseconds), ISO texts, or datetimes.
        events: event types.
        ratings: numbers, for ``min_rating``.
        weights: numbers.
        item_table: columns about the items (mapping, Arrow table or pandas frame), one of which is
            the item id (``item``, ``item_id`` …); a title column is recognised.

    Raises:
        InputError: columns of different lengths, none at all, or types that are not ids.
    """
    import pyarrow as pa

    given = (users, items, times, events, ratings, weights)
    columns: dict[str, Any] = {}
    for role, column in zip(ROLES, given, strict=True):
        if column is None:
            if role in ("user", "item"):
                raise InputError(f"{role}s: must be given")
            continue
        columns[role] = _to_arrow(column, role + "s")
        if len(columns[role]) != len(columns["user"]):
            raise InputError(
                f"{role}s: has {len(columns[role])} rows, users has {len(columns['user'])}; give "
                f"columns of one length"
            )
    table = pa.table(columns)
    if not table.num_rows:
        raise InputError("users: the log has no rows; give at least one event")
    source = None if item_table is None else table_from_columns(item_table)
    notes = ["no times: the order of the rows is the order of the events"] * (times is None)
    return Log(
        source=f"columns in memory ({table.num_rows:,} rows)",
        format="columns",
        files=(),
        columns={role: role for role in columns},
        positions={role: number for number, role in enumerate(columns)},
        given=frozenset(columns),
        notes=tuple(notes) if source is None else (*notes, source.note),
        table=table,
        item_source=source,
    )


def _to_arrow(column: Any, argument: str) -> Any:
    """An Arrow array; a mix of integers and text becomes text, as in a vocabulary."""
    import numpy as np
    import pyarrow as pa

    if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
        raise InputError(f"{argument}: must be a column of values, found {type(column).__name__}")
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return (
            column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        )
    if isinstance(column, np.ndarray):
        if column.ndim != 1:
            raise InputError(f"{argument}: must be one column, found shape {column.shape}")
        if column.dtype.kind == "U":
            column = column.astype(object)
    elif hasattr(column, "to_numpy"):  # pandas, polars
        column = column.to_numpy()
    try:
        return pa.array(column, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        pass
    try:
        values = [None if value is None or value != value else value for value in column]
        if not all(value is None or isinstance(value, int | str | np.integer) for value in values):
            raise TypeError("values of several types")
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"{argument}: cannot be used as a column ({reason})") from error
