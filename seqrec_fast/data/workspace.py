# SPDX-License-Identifier: Apache-2.0
"""A private DuckDB with a memory limit and a folder for spilling that is always removed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec_fast.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import duckdb

__all__ = ["BadEncoding", "BadNewlines", "Workspace", "open_workspace", "parse_memory", "quoted"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SMALLEST = 64 * 2**20


class BadEncoding(InputError):
    """A text file is not in the encoding in which it was read."""


class BadNewlines(InputError):
    """A text file mixes line ends in a way that the fast reader does not take."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A connection and the folder that belongs to it.

    Attributes:
        connection: DuckDB on a database file inside ``folder``.
        folder: removed with everything in it when the workspace closes.
        source: the log that is read, for error messages.
    """

    connection: duckdb.DuckDBPyConnection
    folder: Path
    source: str

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Runs one statement and returns all rows of its answer, which should be few.

        Raises:
            InputError: the engine refused; what it said, in one line.
        """
        with translated(self.source):
            return [tuple(row) for row in self.connection.execute(sql).fetchall()]

    def row(self, sql: str) -> tuple[Any, ...]:
        """The one row that a query for aggregates returns (see :meth:`run`)."""
        return self.run(sql)[0]

    def arrow(self, sql: str) -> Any:
        """The answer of a query as a ``pyarrow.Table``."""
        with translated(self.source):
            return self.connection.sql(sql).to_arrow_table()

    def batches(self, sql: str, rows: int) -> Iterator[Any]:
        """The answer of a query as ``pyarrow.RecordBatch`` of about ``rows`` rows, as they come."""
        with translated(self.source):
            relation: Any = self.connection.sql(sql)
            if hasattr(relation, "to_arrow_reader"):
                yield from relation.to_arrow_reader(rows)
            else:  # DuckDB before 2.0
                yield from relation.fetch_arrow_reader(rows)

    def register(self, name: str, table: Any) -> None:
        """Makes an Arrow table selectable under a name, in place of an earlier one."""
        with translated(self.source):
            self.connection.register(name, table)


@contextmanager
def open_workspace(memory: str | int, threads: int | None, source: str) -> Iterator[Workspace]:
    """Opens a workspace that vanishes, whatever happens, when the block ends.

    Args:
        memory: limit for the engine, such as ``"2GiB"``, or bytes. What the engine cannot hold
            within it, it spills to its folder (``TMPDIR`` says where that is).
        threads: threads of the engine; ``None`` leaves the choice to it.
        source: the log that is read, for error messages.

    Raises:
        InputError: no folder can be made, or the limit cannot be read.
        MissingExtraError: DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError(
            "reading logs needs duckdb and pyarrow, which belong to the ordinary installation: "
            "pip install seqrec-fast (without --no-deps)"
        ) from error
    limit = parse_memory(memory)
    try:
        holder = tempfile.TemporaryDirectory(prefix="seqrec_fast-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: no folder for temporary files can be made there "
            f"({error.strerror}); set TMPDIR to a folder with free space"
        ) from error
    with holder as name:
        config: dict[str, Any] = {
            "memory_limit": f"{limit}B",
            "temp_directory": str(Path(name) / "spill"),
            "preserve_insertion_order": True,  # the row order of the input is meaning, not chance
            "autoinstall_known_extensions": False,
            "python_enable_replacements": False,  # a table name is never a Python variable
        }
        if threads is not None:
            config["threads"] = threads
        with translated(source):
            connection = duckdb.connect(str(Path(name) / "log.duckdb"), config=config)
            # after connecting: as part of the configuration it depends on what is loaded when
            connection.execute("SET TimeZone = 'UTC'").fetchall()
        try:
            yield Workspace(connection, Path(name), source)
        finally:
            connection.close()


def parse_memory(memory: str | int) -> int:
    """Bytes of a limit such as ``"2GiB"``, ``"512 MB"`` or ``2147483648``.

    Raises:
        InputError: it is not an amount, or less than 64 MiB.
    """
    if isinstance(memory, int) and not isinstance(memory, bool):
        amount = memory
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(memory))
        unit = _UNITS.get(match.group(2).lower()) if match else None
        if match is None or unit is None:
            raise InputError(f"memory: {memory!r} is not an amount; give for instance '2GiB'")
        amount = int(float(match.group(1)) * unit)
    if amount < _SMALLEST:
        raise InputError(f"memory: {memory!r} is too little; give at least '64MiB'")
    return amount


def quoted(text: str | Path, quote: str = "'") -> str:
    """``text`` as an SQL literal, or with ``quote='"'`` as an identifier."""
    return quote + str(text).replace(quote, quote * 2) + quote


@contextmanager
def translated(source: str) -> Iterator[None]:
    """Turns errors of DuckDB about ``source`` into :class:`InputError` of one line."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        if "disk" in str(error).lower() or "space" in str(error).lower():
            raise InputError(
                f"{source}: no space for temporary files ({_first_line(error)}); set TMPDIR to "
                f"a folder with free space"
            ) from error
        raise InputError(
            f"{source}: does not fit the memory limit ({_first_line(error)}); raise memory="
        ) from error
    except duckdb.Error as error:
        raise _explain(str(error), source) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: a text column is not valid UTF-8 ({error.reason})") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def _explain(message: str, source: str) -> InputError:
    """The one line for the user that an error message of the engine comes down to."""
    named = re.search(r"^\s*file = (.+)$", message, re.MULTILINE)
    file = named.group(1).strip() if named else source
    line = re.search(r"CSV Error on Line: (\d+)", message)
    row = f"line {line.group(1)}" if line else "some line"
    if "not utf-8" in message.lower() or "invalid unicode" in message.lower():
        return BadEncoding(f"{file}: {row} is not UTF-8; give encoding=, for instance 'latin-1'")
    width = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    if width:
        return InputError(
            f"{file}: {row} has {width.group(2)} columns, expected {width.group(1)}; repair the "
            f"line, or give delimiter= if the file has another one"
        )
    if "unterminated quote" in message.lower():
        return InputError(f"{file}: {row} has a quote that is never closed; repair the line")
    if "Maximum line size" in message:
        return InputError(
            f"{file}: {row} is longer than a line of a table can be; is it a table at all?"
        )
    if "invalid state" in message or "new_line" in message.split("\n\n")[0]:
        return BadNewlines(f"{file}: {row} cannot be read as CSV; repair its quotes or line ends")
    if "No space left" in message:
        return InputError(
            f"{source}: the temporary folder {tempfile.gettempdir()} is full; free space there, or "
            f"set TMPDIR to another folder"
        )
    first = re.sub(r"^[A-Za-z ]*Error: ", "", message.strip().split("\n", 1)[0])
    truncated = re.search(r"No magic bytes found at end of file '(.+)'", first)
    if truncated:
        return InputError(
            f"{truncated.group(1)}: is truncated or not Parquet (its last bytes are missing); "
            f"write the file again"
        )
    gzip = re.search(r"GZIP stream: (.+)$", first)
    if gzip:
        return InputError(f"{gzip.group(1)}: the gzip stream is truncated; copy the file again")
    return InputError(f"{source}: cannot be read, it may be damaged ({first}); write it again")
