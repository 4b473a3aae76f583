# SPDX-License-Identifier: Apache-2.0
"""Each format as a relation of canonical columns (``row``, ``user``, ``item``, ``time`` …).

Parquet and columns in memory are scanned where they lie; text is copied once into the workspace,
because its rows have no numbers of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec_fast.data.sequence_files import read_batches
from seqrec_fast.data.sniffing import FALLBACKS, TextLayout, open_text
from seqrec_fast.data.workspace import BadEncoding, BadNewlines, Workspace, quoted
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    from seqrec_fast.data.log import Log

__all__ = ["Relation", "open_relation"]

_BLOCK = 1 << 20  # characters
_MAX_LINE = 1 << 24  # bytes in a line of a text table


@dataclass(frozen=True, slots=True)
class Relation:
    """Something to select from.

    Attributes:
        sql: what stands after ``FROM``; has ``row`` (0, 1, … in input order) and the roles.
        types: role → type of the engine.
        typed: whether ids keep the type they have; text files hold nothing but text, so there ids
            that all look like integers are integers.
        worded: whether a missing id may be written as a word such as ``NaN``: in text tables.
        notes: what was decided while reading.
    """

    sql: str
    types: dict[str, str]
    typed: bool
    worded: bool
    notes: tuple[str, ...] = ()


def open_relation(
    workspace: Workspace, log: Log, roles: Sequence[str], limit: int | None = None
) -> Relation:
    """Makes the columns of a log available to the engine.

    Args:
        workspace: where to.
        log: the opened log.
        roles: the columns that are needed.
        limit: rows that are enough, for a preview.

    Raises:
        InputError: the files cannot be read; the message names file and line.
    """
    notes: tuple[str, ...] = ()
    if log.table is not None:
        sql = _from_memory(workspace, log, roles)
    elif log.format == "parquet":
        sql = _from_parquet(workspace, log, roles)
    elif log.format == "sequences":
        sql, notes = _from_sequences(workspace, log, roles)
    else:
        sql, notes = _from_text(workspace, log, roles, limit)
    described = workspace.run(f"DESCRIBE SELECT * FROM {sql}")
    types = {str(row[0]): str(row[1]).upper() for row in described if row[0] != "row"}
    typed = log.table is not None or log.format == "parquet"
    return Relation(sql, types, typed, not typed and log.format != "sequences", notes)


def _from_memory(workspace: Workspace, log: Log, roles: Sequence[str]) -> str:
    import numpy as np
    import pyarrow as pa

    assert log.table is not None
    numbers = pa.array(np.arange(log.table.num_rows, dtype=np.int64))
    table = log.table.select(list(roles)).append_column("row", numbers)
    workspace.register("columns_in_memory", table)
    return "columns_in_memory"


def _from_parquet(workspace: Workspace, log: Log, roles: Sequence[str]) -> str:
    import pyarrow as pa
    import pyarrow.parquet

    begins, total = [], 0
    for path in log.files:
        begins.append(total)
        try:
            total += pyarrow.parquet.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: is damaged or truncated Parquet; write it again") from error
    files = ", ".join(quoted(path) for path in log.files)
    columns = ", ".join(f'{quoted(log.columns[role], chr(34))} AS "{role}"' for role in roles)
    row = "file_row_number"
    if len(log.files) > 1:
        row = f"file_row_number + ({begins}::BIGINT[])[file_index::BIGINT + 1]"
    return (
        f'(SELECT {row} AS "row", {columns} FROM read_parquet([{files}], '
        f"file_row_number = true, binary_as_string = true, union_by_name = true))"
    )


# -------------------------------------------------------------------- text tables


def _from_text(
    workspace: Workspace, log: Log, roles: Sequence[str], limit: int | None
) -> tuple[str, tuple[str, ...]]:
    assert log.layout is not None
    notes: list[str] = []
    files = list(log.files)
    if any(encoding not in ("utf-8", "utf-8-sig") for encoding in log.encodings):
        files = [
            _rewrite(
                workspace,
                path,
                (encoding,) if log.encoding_given else (encoding, *FALLBACKS),
                notes,
                log.encoding_given,
            )
            for path, encoding in zip(log.files, log.encodings, strict=True)
        ]
    try:
        _copy(workspace, files, log, roles, limit)
    except BadEncoding:
        if log.encoding_given:
            raise
        files = [
            _rewrite(workspace, path, (encoding, *FALLBACKS), notes, given=False)
            for path, encoding in zip(log.files, log.encodings, strict=True)
        ]
        _copy(workspace, files, log, roles, limit)
    except BadNewlines:
        # the rewritten file has one kind of line end; what still fails then is a fault of the file
        files = [
            _rewrite(workspace, path, (encoding,), [], given=True)
            for path, encoding in zip(log.files, log.encodings, strict=True)
        ]
        _copy(workspace, files, log, roles, limit)
        notes.append("line ends: mixed, read as one kind")
    if workspace.row("SELECT count(*) FROM text_rows")[0] == 0:
        raise InputError(f"{log.source}: holds a header and no rows; give a log with events")
    columns = ", ".join(f'"{role}"' for role in roles)
    return f'(SELECT rowid AS "row", {columns} FROM text_rows)', tuple(notes)


def _copy(
    workspace: Workspace, files: list[Path], log: Log, roles: Sequence[str], limit: int | None
) -> None:
    layout: TextLayout | None = log.layout
    assert layout is not None
    names = ", ".join(f"'c{number}': 'VARCHAR'" for number in range(len(layout.columns)))
    columns = ", ".join(f'c{log.positions[role]} AS "{role}"' for role in roles)
    listed = ", ".join(quoted(path) for path in files)
    quote = quoted(layout.quote)
    compression = "gzip" if _is_gzip(files[0]) else "none"
    if any(_is_gzip(path) != (compression == "gzip") for path in files):
        raise InputError(f"{log.source}: some files are compressed and some not; give one kind")
    workspace.run("DROP TABLE IF EXISTS text_rows")
    try:
        workspace.run(
            f"CREATE TABLE text_rows AS SELECT {columns} FROM read_csv([{listed}], "
            f"auto_detect = false, header = {str(layout.header).lower()}, "
            f"delim = {quoted(layout.delimiter)}, quote = {quote}, escape = {quote}, "
            f"columns = {{{names}}}, nullstr = '', compression = '{compression}', "
            f"max_line_size = {_MAX_LINE})" + (f" LIMIT {limit}" if limit else "")
        )
    except InputError as error:
        # rewritten files have names of the workspace; the user knows the originals
        message = str(error)
        for original, used in zip(log.files, files, strict=True):
            message = message.replace(str(used), str(original))
        raise type(error)(message) from error


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _rewrite(
    workspace: Workspace, path: Path, encodings: Sequence[str], notes: list[str], given: bool
) -> Path:
    """A copy in UTF-8 with plain line ends, decoded by the first encoding that fits."""
    target = workspace.folder / f"{len(list(workspace.folder.iterdir()))}-{path.name}.txt"
    for encoding in encodings:
        try:
            with open_text(path, encoding) as source, open(target, "w", encoding="utf-8") as copy:
                while block := source.read(_BLOCK):
                    copy.write(block)
        except UnicodeDecodeError as error:
            if encoding == encodings[-1]:
                raise BadEncoding(
                    f"{path}: is not {encoding} ({error.reason}); give another encoding="
                ) from error
        except (EOFError, OSError) as error:
            raise InputError(f"{path}: cannot be read to its end ({error})") from error
        else:
            if not given and encoding not in ("utf-8", "utf-8-sig"):
                notes.append(f"encoding: {path.name} read as {encoding} (recognised)")
            break
    return target


# -------------------------------------------------------------------- sequence files


def _from_sequences(
    workspace: Workspace, log: Log, roles: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    assert log.sequences is not None
    notes: list[str] = []
    counts: dict[str, int] = {}
    encodings = log.encodings
    for fallback in (*FALLBACKS, None):
        try:
            _insert_sequences(workspace, log, encodings, counts)
            break
        except BadEncoding:
            if log.encoding_given or fallback is None:
                raise
            encodings = tuple(fallback for _ in log.files)
    if not log.encoding_given:
        notes += [
            f"encoding: read as {name} (recognised)" for name in FALLBACKS if name in encodings
        ]
    if counts["bare"]:
        notes.append(f"{counts['bare']:,} lines hold a user and no item; they give no event")
    if counts["untimed"]:
        notes.append(f"{counts['untimed']:,} lines have no times; their events miss the time")
    columns = ", ".join(f'"{role}"' for role in roles)
    return f'(SELECT rowid AS "row", {columns} FROM sequence_rows)', tuple(notes)


def _insert_sequences(
    workspace: Workspace, log: Log, encodings: Sequence[str], counts: dict[str, int]
) -> None:
    assert log.sequences is not None
    workspace.run("DROP TABLE IF EXISTS sequence_rows")
    created = False
    for batch in read_batches(log.files, encodings, log.sequences, counts):
        workspace.register("batch", batch)
        verb = "INSERT INTO sequence_rows" if created else "CREATE TABLE sequence_rows AS"
        workspace.run(f"{verb} SELECT * FROM batch")
        created = True
    if not created:
        raise InputError(f"{log.source}: no line holds an item; give a log with events")
