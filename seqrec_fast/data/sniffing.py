# SPDX-License-Identifier: Apache-2.0
"""What kind of file this is: format, encoding, delimiter, header, judged by its beginning."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from seqrec_fast.data.recognition import looks_like_header
from seqrec_fast.errors import InputError

__all__ = [
    "FALLBACKS",
    "FORMATS",
    "Head",
    "TextLayout",
    "find_format",
    "find_layout",
    "open_text",
    "read_head",
]

FORMATS = ("csv", "tsv", "parquet", "inter", "ratings", "sequences")
#: What text is read as that is not UTF-8. Windows-1252 is Latin-1 with quotes and dashes in place
#: of control characters; it leaves five bytes without a meaning, Latin-1 none.
FALLBACKS = ("cp1252", "latin-1")
_HEAD = 1 << 16
# numbers, dates (2014-04-07T10:51:09Z, 11/1/2000): what no column is called
_VALUE = re.compile(r"\s*(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})(\D.*)?")
_DELIMITERS = (",", "\t", ";", "|", "::")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a file.

    Attributes:
        path: the file.
        lines: complete lines of text at its beginning, without line ends; empty for Parquet.
        encoding: of the text, as far as its beginning tells.
        gzipped: whether the bytes are compressed.
        parquet: whether it is a Parquet file.
        whole: whether ``lines`` is all that the file holds.
    """

    path: Path
    lines: tuple[str, ...]
    encoding: str
    gzipped: bool
    parquet: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class TextLayout:
    """How the lines of a text file are cut into columns.

    Attributes:
        delimiter: between columns.
        quote: ``'"'``, or empty where quotes have no meaning.
        header: whether the first line names the columns.
        columns: the names, made up (``column0`` …) where there is no header.
    """

    delimiter: str
    quote: str
    header: bool
    columns: tuple[str, ...]


def read_head(path: Path, encoding: str | None) -> Head:
    """Reads the beginning of a file.

    Raises:
        InputError: the file is missing, a folder, a pipe, not readable, empty, or binary.
    """
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            # a log is read more than once, and what a pipe has given is gone
            raise InputError(f"{path}: is a pipe; write its content to a file and give that")
        with open(path, "rb") as stream:
            raw = stream.read(_HEAD)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; give a file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    if not raw:
        raise InputError(f"{path}: is empty; give a log with at least one event")
    if raw.startswith(b"PAR1"):
        return Head(path, (), "", gzipped=False, parquet=True, whole=False)
    gzipped = raw.startswith(b"\x1f\x8b")
    whole = len(raw) < _HEAD
    if gzipped:
        raw, whole = _gunzip_head(path)
        if not raw:
            raise InputError(f"{path}: is empty inside; give a log with at least one event")
    for bom, name in _BOMS:
        if raw.startswith(bom):
            encoding = encoding or name
    wide = encoding is not None and not _codec(encoding).startswith("utf-8")
    if b"\0" in raw and not wide:
        raise InputError(
            f"{path}: is a binary file, not a table of text; give CSV, TSV, Parquet, .inter, "
            f"'::' or sequence files (if it is UTF-16 text, give encoding='utf-16')"
        )
    text, encoding = _decode_head(raw, encoding, whole, path)
    lines = text.splitlines() if "\n" not in text else text.replace("\r\n", "\n").split("\n")
    if not whole and len(lines) > 1:
        lines.pop()  # may be cut in the middle
    elif lines and not lines[-1]:
        lines.pop()
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: holds nothing but blank lines; give a log with events")
    return Head(path, tuple(lines), encoding, gzipped, parquet=False, whole=whole)


def _codec(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError as error:
        raise InputError(
            f"encoding: {encoding!r} is not known; give for instance 'utf-8' or 'latin-1'"
        ) from error


def _gunzip_head(path: Path) -> tuple[bytes, bool]:
    try:
        with gzip.open(path, "rb") as stream:
            raw = stream.read(_HEAD)
            return raw, len(raw) < _HEAD
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(
            f"{path}: the gzip stream is damaged or truncated ({error}); copy the file again"
        ) from error


def _decode_head(raw: bytes, encoding: str | None, whole: bool, path: Path) -> tuple[str, str]:
    decoder = codecs.getincrementaldecoder(encoding or "utf-8")()
    try:
        return decoder.decode(raw, final=whole), encoding or "utf-8"
    except UnicodeDecodeError as error:
        if encoding is None:
            for fallback in FALLBACKS:
                try:
                    return raw.decode(fallback), fallback
                except UnicodeDecodeError:
                    continue
        raise InputError(
            f"{path}: is not {encoding} ({error.reason} at byte {error.start}); give another "
            f"encoding="
        ) from error


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """Opens a text file, compressed or not, with universal line ends, for a ``with`` block.

    Raises:
        InputError: the file cannot be opened.
    """
    if encoding == "utf-8":
        encoding = "utf-8-sig"  # takes away a byte order mark, if there is one
    try:
        raw = open(path, "rb")  # noqa: SIM115  (closed below; errors of the block are not ours)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    with raw:
        gzipped = raw.peek(2)[:2] == b"\x1f\x8b"
        stream: Any = gzip.GzipFile(fileobj=raw) if gzipped else raw
        with io.TextIOWrapper(stream, encoding=encoding) as text:
            yield text


# -------------------------------------------------------------------- format


def find_format(head: Head, given: str | None, delimiter: str | None) -> str:
    """The format of a log, one of :data:`FORMATS`.

    Raises:
        InputError: the given format is not known, or the file is not of it.
    """
    if given is not None and given not in FORMATS:
        raise InputError(f"format: {given!r} is not known; give one of {', '.join(FORMATS)}")
    if (given == "parquet") != head.parquet and given is not None:
        kind = "Parquet" if head.parquet else "text"
        raise InputError(f"{head.path}: format={given!r} was given, but the file is {kind}")
    if given is not None:
        return given
    if head.parquet:
        return "parquet"
    name = head.path.name.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".pq")):
        raise InputError(
            f"{head.path}: is not Parquet (its first bytes are not PAR1); write the file again, "
            f"or give format= if it is text"
        )
    if is_typed_header(head.lines[0]):
        return "inter"
    if _sample(head)[0].lstrip().startswith(("{", "[{")):
        raise InputError(
            f"{head.path}: holds JSON, which is not read; turn it into CSV or Parquet first "
            f"(DuckDB and pandas do), or give format= if it is none"
        )
    if delimiter == "::":
        return "ratings"
    for suffix in ("csv", "tsv"):
        if name.endswith("." + suffix):
            return suffix
    if delimiter is not None:
        return "tsv" if delimiter == "\t" else "csv"
    return _format_of_lines(_sample(head))


def _format_of_lines(lines: Sequence[str]) -> str:
    if all(line.count("::") >= 1 for line in lines):
        return "ratings"
    for delimiter, name in (("\t", "tsv"), (",", "csv"), (";", "csv"), ("|", "csv")):
        counts = {line.count(delimiter) for line in lines}
        if 0 not in counts and (len(counts) == 1 or looks_like_header(lines[0].split(delimiter))):
            return name
    if looks_like_header(lines[0].split()):
        return "csv"  # separated by spaces
    return "csv" if is_pairs(lines) else "sequences"


def is_pairs(lines: Sequence[str]) -> bool:
    """Whether lines are ``user item`` pairs: always two words, users over several lines."""
    words = [line.split() for line in lines]
    if len(words) < 2 or any(len(line) != 2 for line in words):
        return False
    firsts = [line[0] for line in words]
    runs = 1 + sum(a != b for a, b in pairwise(firsts))
    return runs < len(firsts) * 0.9 and runs <= len(set(firsts)) * 1.5


def is_typed_header(line: str) -> bool:
    """Whether a line is a header such as ``user_id:token<TAB>item_id:token``."""
    cells = line.split("\t")
    kinds = {"token", "token_seq", "float", "float_seq"}
    return len(cells) > 1 and all(cell.rpartition(":")[2].strip() in kinds for cell in cells)


def _sample(head: Head) -> list[str]:
    return [line for line in head.lines if line.strip()][:200]


# -------------------------------------------------------------------- layout


def find_layout(head: Head, format: str, delimiter: Any, header: Any) -> TextLayout:
    """How a text table (any format but Parquet and sequences) is cut into columns.

    Args:
        head: beginning of the file.
        format: one of :data:`FORMATS`.
        delimiter: given by the caller, or ``None`` to find it.
        header: whether there is one, the names of the columns of a file without, or ``None``.

    Raises:
        InputError: one column only, or names that do not fit the columns.
    """
    lines = _sample(head)
    if format == "inter":
        if not is_typed_header(lines[0]):
            raise InputError(
                f"{head.path}: the first line is not a typed header such as "
                f"'user_id:token<TAB>item_id:token'; give format='tsv' for an untyped one"
            )
        names = tuple(cell.rpartition(":")[0].strip() for cell in lines[0].split("\t"))
        return TextLayout("\t", "", header=True, columns=names)
    if delimiter is not None and not (isinstance(delimiter, str) and 1 <= len(delimiter) <= 4):
        raise InputError(f"delimiter: must be 1 to 4 characters, found {delimiter!r}")
    found = delimiter or _find_delimiter(lines, format)
    quote = "" if found in ("::", " ") or (found == "\t" and not _is_quoted(lines, found)) else '"'
    rows = _cut(lines, found, quote)
    cells = rows[0]
    if len(cells) < 2:
        other = _find_delimiter(lines, "")
        hint = f"; try delimiter={other!r}" if len(_cut(lines, other, quote)[0]) > 1 else ""
        raise InputError(
            f"{head.path}: only one column is found with the delimiter {found!r} (line 1 is "
            f"{lines[0][:60]!r}); give the right delimiter={hint}"
        )
    if isinstance(header, str) or not (header is None or isinstance(header, bool | Sequence)):
        raise InputError(f"header: must be True, False or a list of column names, found {header!r}")
    if header is not None and not isinstance(header, bool):
        names = tuple(str(name) for name in header)
        if len(names) != len(cells):
            raise InputError(
                f"{head.path}: header= names {len(names)} columns, but line 1 has {len(cells)}"
            )
        return TextLayout(found, quote, header=False, columns=names)
    named = header if header is not None else _has_header(rows, format)
    if named:
        names = tuple(cell.strip() for cell in cells)
    elif format == "ratings" and 3 <= len(cells) <= 4 and header is None:
        names = ("user", "item", "rating", "time")[: len(cells)]
    else:
        names = tuple(f"column{number}" for number in range(len(cells)))
    return TextLayout(found, quote, header=named, columns=names)


def _has_header(rows: Sequence[Sequence[str]], format: str) -> bool:
    first = rows[0]
    valued = any(_is_value(cell) for cell in first)
    if format == "ratings":
        return looks_like_header(first) and not valued
    # one word among values may be a value that happens to be called like a column
    if looks_like_header(first, 2 if valued else 1):
        return True
    # neither a number or a date is a name, nor what stands in its column again
    return not valued and not any(
        cell and cell == other for row in rows[1:] for cell, other in zip(first, row, strict=False)
    )


def _is_value(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return _VALUE.fullmatch(cell) is not None
    return True


def _find_delimiter(lines: Sequence[str], format: str) -> str:
    if format == "ratings":
        return "::"
    usual = "\t" if format == "tsv" else ","
    best, score = usual, 0.0
    for delimiter in (*_DELIMITERS, " "):
        widths = [len(row) for row in _cut(lines, delimiter, "" if delimiter == "\t" else '"')]
        common, times = Counter(widths).most_common(1)[0]
        if common < 2 or widths[0] < 2:
            continue
        # most lines should agree; the usual delimiter of the format wins a tie
        rank = times / len(widths) + (0.5 if delimiter == usual else 0.0)
        rank -= 0.25 if delimiter in ("::", " ") else 0.0
        rank -= 0.1 if delimiter == ":" else 0.0
        if rank > score:
            best, score = delimiter, rank
    if best in (",", ":") and all("::" in line for line in lines) and "," not in lines[0]:
        return "::"
    return best


def _cut(lines: Sequence[str], delimiter: str, quote: str) -> list[list[str]]:
    if len(delimiter) > 1 or not quote:
        return [line.split(delimiter) for line in lines]
    return list(csv.reader(lines, delimiter=delimiter, quotechar=quote))


def _is_quoted(lines: Sequence[str], delimiter: str) -> bool:
    """Whether fields of a tab-separated file are quoted the way CSV fields are."""
    fields = [field for line in lines for field in line.split(delimiter) if '"' in field]
    return bool(fields) and all(len(f) > 1 and f[0] == f[-1] == '"' for f in fields)
