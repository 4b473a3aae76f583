# SPDX-License-Identifier: Apache-2.0
"""Sequence files: one user a line (``user item item …``), or one session a line (``item item …``).

A second file may hold the times of the same lines (``user time time …``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec_fast.data.sniffing import open_text
from seqrec_fast.data.workspace import BadEncoding
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["SequenceLayout", "find_first", "read_batches"]

_BATCH = 500_000  # events a batch


@dataclass(frozen=True, slots=True)
class SequenceLayout:
    """How a sequence file is read.

    Attributes:
        first: what the first word of a line is: ``"user"`` or ``"item"``.
        delimiter: between words; ``None`` is any white space.
        times: the file of times, or ``None``.
    """

    first: str
    delimiter: str | None
    times: Path | None


def find_first(path: Path, encoding: str, delimiter: str | None) -> tuple[str, str]:
    """Whether lines begin with the user, and why.

    A user has one line, so if no first word comes twice they are users; the scan stops at the first
    that does.

    Returns:
        ``"user"`` or ``"item"``, and the reason in words.
    """
    seen: set[str] = set()
    for number, words in _lines(path, encoding, delimiter):
        if words[0] in seen:
            return "item", f"the first word of line {number} ({words[0]!r}) occurred before"
        seen.add(words[0])
    return "user", "no first word of a line occurs twice"


def _lines(path: Path, encoding: str, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Number (from 1) and words of each line that is not blank."""
    with open_text(path, encoding) as stream:
        try:
            for number, line in enumerate(stream, start=1):
                words = line.split(delimiter)
                if delimiter is not None:
                    words = [stripped for word in words if (stripped := word.strip())]
                if words:
                    yield number, words
        except UnicodeDecodeError as error:
            raise BadEncoding(
                f"{path}: is not {encoding} ({error.reason}); give encoding=, for instance "
                f"'latin-1'"
            ) from error
        except (EOFError, OSError) as error:
            raise InputError(f"{path}: is damaged or truncated ({error}); copy it again") from error


def read_batches(
    paths: Sequence[Path],
    encodings: Sequence[str],
    layout: SequenceLayout,
    counts: dict[str, int],
) -> Iterator[pyarrow.RecordBatch]:
    """All events, in order, as batches of the columns user, item and, if there are times, time.

    Users are the first words, or the number of the session (from 1) where lines are items only.

    Args:
        paths: the files; sessions are numbered through.
        encodings: of each file.
        layout: how lines are read.
        counts: receives ``lines``, ``bare`` (lines without an item) and, if there are times,
            ``untimed`` (lines whose times are not known).

    Raises:
        InputError: a user on two lines, or times that do not match the events.
    """
    counts.update(lines=0, bare=0, untimed=0)
    users: list[Any] = []
    items: list[str] = []
    times: list[str | None] = []
    known: set[str] = set()
    for path, encoding in zip(paths, encodings, strict=True):
        for number, words, moments in _paired(path, encoding, layout):
            counts["lines"] += 1
            user: Any = counts["lines"]
            if layout.first == "user":
                user = words.pop(0)
                if user in known:
                    raise InputError(
                        f"{path}: line {number} is the second of user {user!r}; a user has one "
                        f"line (give first='item' if lines hold items only)"
                    )
                known.add(user)
            if not words:
                counts["bare"] += 1
                continue
            if layout.times is not None:
                if moments and len(moments) != len(words):
                    raise InputError(
                        f"{layout.times}: line {number} has {len(moments)} times for "
                        f"{len(words)} items; give one time an item, or none on the line"
                    )
                counts["untimed"] += not moments
                times += moments or [None] * len(words)
            users += [user] * len(words)
            items += words
            if len(items) >= _BATCH:
                yield _batch(users, items, times, layout)
                users, items, times = [], [], []
    if items:
        yield _batch(users, items, times, layout)


def _paired(
    path: Path, encoding: str, layout: SequenceLayout
) -> Iterator[tuple[int, list[str], list[str]]]:
    """Number, words and times (empty where not known) of each line."""
    if layout.times is None:
        for number, words in _lines(path, encoding, layout.delimiter):
            yield number, words, []
        return
    lines = _lines(path, encoding, layout.delimiter)
    for mine, theirs in zip_longest(lines, _lines(layout.times, encoding, layout.delimiter)):
        if mine is None or theirs is None:
            raise InputError(
                f"{layout.times}: has {'more' if mine is None else 'fewer'} lines than {path}; "
                f"give the times of the same lines"
            )
        if layout.first == "user" and mine[1][0] != theirs[1][0]:
            raise InputError(
                f"{layout.times}: line {theirs[0]} is of user {theirs[1][0]!r}, in {path} it is "
                f"of {mine[1][0]!r}; give the times of the same lines"
            )
        yield mine[0], mine[1], theirs[1][1:] if layout.first == "user" else theirs[1]


def _batch(
    users: list[Any], items: list[str], times: list[str | None], layout: SequenceLayout
) -> pyarrow.RecordBatch:
    import pyarrow as pa

    columns = {
        "user": pa.array(users, pa.string() if layout.first == "user" else pa.int64()),
        "item": pa.array(items, pa.string()),
    }
    if layout.times is not None:
        columns["time"] = pa.array(times, pa.string())
    return pa.RecordBatch.from_pydict(columns)
