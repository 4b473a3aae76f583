# SPDX-License-Identifier: Apache-2.0
"""Where the users of a batch come from: a table of one row a user, or a log of one row an event."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.batch.ids import Kind, encode_ids, id_kind, is_list_type
from seqrec_fast.data.log import expand_files, read_log
from seqrec_fast.data.recognition import recognise, resolve
from seqrec_fast.data.sniffing import read_head
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from seqrec_fast.data.vocabulary import Vocabulary

__all__ = ["Chunk", "ListUsers", "Users", "open_users"]


@dataclass(frozen=True)
class Chunk:
    """Some users with their histories.

    Attributes:
        users: raw ids ``[n]``, of the type of the input.
        items: int32, item indices of all histories end to end, oldest first; -1 where unknown.
        offsets: int64 ``[n + 1]``: where each history begins and ends.
    """

    users: pa.Array
    items: NDArray[np.int32]
    offsets: NDArray[np.int64]


class Users(Protocol):
    """A source of histories.

    Attributes:
        source: the input in words, for messages.
        files: the files that are read.
        user: name of the column of users.
        item: name of the column of items.
        user_type: type of the users, if it is known before reading.
        kind: what the item ids are; ``None`` where that is not known before reading.
        total: number of users, if it is known before reading.
    """

    source: str
    files: tuple[Path, ...]
    user: str
    item: str
    user_type: pa.DataType | None
    kind: Kind | None
    total: int | None

    def chunks(self, vocabulary: Vocabulary, size: int) -> Iterator[Chunk]:
        """The users in chunks of at most ``size``; to be read by one thread."""

    def stop(self) -> None:
        """Makes a chunk that another thread is reading end soon, with an error there."""


def open_users(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    user: str | int | None = None,
    item: str | int | None = None,
    time: str | int | None = None,
    memory: str | int = "2GiB",
    threads: int | None = None,
    **reading: Any,
) -> Users:
    """Opens the input of a batch and recognises its form.

    Args:
        path: Parquet with one row a user, or a log in any form that ``data.read_log`` takes.
        user: column of the user; by default recognised by name.
        item: column of the history (a list a row) or of the item; likewise.
        time: column of the time of a log; likewise.
        memory: limit of the engine that sorts a log.
        threads: threads of that engine.
        reading: further options of ``data.read_log`` for a log of text.

    Raises:
        InputError: a file that can't be read, or a column that is missing or of another type.
    """
    files = expand_files(path)
    if read_head(files[0], None).parquet:
        found = _find_lists(files, user, item)
        if found is not None:
            given = {"time": time, **reading}
            for name, value in given.items():
                if value is not None:
                    raise InputError(
                        f"{name}=: is for a log; {files[0]} holds one row a user, whose list is "
                        f"in order already"
                    )
            return found
    from seqrec_fast.batch.log_users import LogUsers

    log = read_log(
        list(files), user=user, item=item, time=time, memory=memory, threads=threads, **reading
    )
    return LogUsers(log)


class ListUsers:
    """Parquet files with one row a user and the history as a list, oldest first."""

    def __init__(self, files: tuple[Path, ...], user: str, item: str) -> None:
        self.files, self.user, self.item = files, user, item
        self.source = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        schemas = [_schema(path) for path in files]
        total = 0
        for path, (schema, rows) in zip(files, schemas, strict=True):
            _check_columns(path, schema, user, item)
            for column in (user, item):
                kind, first = (s.field(column).type for s in (schema, schemas[0][0]))
                if kind != first:
                    raise InputError(
                        f"{path}: the column {column!r} holds {kind}, that of {files[0]} {first}; "
                        f"give files of one kind"
                    )
            total += rows
        self.total: int | None = total
        schema = schemas[0][0]
        self.user_type: pa.DataType | None = schema.field(user).type
        self.kind = id_kind(schema.field(item).type.value_type, item, "item", str(files[0]))

    def chunks(self, vocabulary: Vocabulary, size: int) -> Iterator[Chunk]:
        """The users in the order of the files; see :class:`Users`."""
        import pyarrow as pa

        for path in self.files:
            begin = 0
            try:
                for batch in _batches(path, self.user, self.item, size):
                    yield self._chunk(path, batch, begin, vocabulary)
                    begin += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{path}: is damaged or truncated Parquet ({_line(error)}); write the file "
                    f"again"
                ) from error

    def stop(self) -> None:
        """Nothing to do: a chunk is read in a moment."""

    def _chunk(
        self, path: Path, batch: pa.RecordBatch, begin: int, vocabulary: Vocabulary
    ) -> Chunk:
        import pyarrow.compute as pc

        users, lists = batch.column(self.user), batch.column(self.item)
        if users.null_count:
            row = begin + int(np.flatnonzero(users.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(
                f"{path}: the column {self.user!r} (user) is null in row {row + 1}; give every "
                f"row a user"
            )
        # a list that is null is a user without a history
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        offsets = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        values = lists.flatten()
        if values.null_count:
            at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            row = begin + int(np.searchsorted(offsets, at, side="right")) - 1
            raise InputError(
                f"{path}: the history in row {row + 1} (column {self.item!r}) holds a null id; "
                f"leave such entries out of the list"
            )
        return Chunk(users, encode_ids(values, vocabulary), offsets)


# -------------------------------------------------------------------- columns


def _find_lists(
    files: tuple[Path, ...], user: str | int | None, item: str | int | None
) -> ListUsers | None:
    """The table of users, or ``None`` if the files are a log of flat columns."""
    schema, _ = _schema(files[0])
    source, names = str(files[0]), list(schema.names)
    lists = [at for at, field in enumerate(schema) if is_list_type(field.type)]
    if item is not None:
        position = resolve(item, names, "item", source)
        if position not in lists:
            return None
    else:
        named = recognise("history", names) or recognise("item", names)
        candidates = [at for at in named if at in lists] if named else lists
        if not candidates:
            return None
        if len(candidates) > 1:
            shown = " and ".join(repr(names[at]) for at in candidates)
            raise InputError(
                f"{source}: the columns {shown} could each be the history; say which with item="
            )
        position = candidates[0]
    if user is not None:
        owner = resolve(user, names, "user", source)
    else:
        others = [at for at in range(len(names)) if at != position]
        known = [at for at in recognise("user", names) if at != position]
        found = known or (others if len(others) == 1 else [])
        if len(found) != 1:
            problem = "several columns could be" if found else "no column is recognised as"
            raise InputError(
                f"{source}: {problem} the user; the columns are {', '.join(names)}; say which "
                f"with user="
            )
        owner = found[0]
    if owner == position:
        raise InputError(
            f"{source}: user= and item= both name the column {names[owner]!r}; give different "
            f"columns"
        )
    for at in (owner, position):
        if names.count(names[at]) > 1:
            raise InputError(f"{source}: has two columns named {names[at]!r}; rename one of them")
    return ListUsers(files, names[owner], names[position])


def _check_columns(path: Path, schema: pa.Schema, user: str, item: str) -> None:
    for column, role in ((user, "user"), (item, "item")):
        if column not in schema.names:
            raise InputError(
                f"{path}: has no column {column!r} ({role}); its columns are "
                f"{', '.join(schema.names)}"
            )
    id_kind(schema.field(user).type, user, "user", str(path))


# -------------------------------------------------------------------- Parquet


def _schema(path: Path) -> tuple[pa.Schema, int]:
    """Columns and number of rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet

    if not read_head(path, None).parquet:
        raise InputError(f"{path}: is not Parquet, other files are; give files of one format")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.schema_arrow, int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: is damaged or truncated Parquet ({_line(error)}); write the file again"
        ) from error


def _batches(path: Path, user: str, item: str, size: int) -> Iterator[pa.RecordBatch]:
    """Rows of the two columns, at most ``size`` at once."""
    import pyarrow as pa
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        parts: list[list[int] | None] = [None]
        if pa.types.is_dictionary(file.schema_arrow.field(item).type.value_type):
            # Arrow joins no lists whose dictionaries differ, and each row group has its own
            parts = [[number] for number in range(file.num_row_groups)]
        for part in parts:
            yield from file.iter_batches(size, row_groups=part, columns=[user, item])


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
