# SPDX-License-Identifier: Apache-2.0
"""What the commands share: how errors, tables and JSON are printed, how outputs are checked."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrec_fast.errors import InputError

__all__ = [
    "add_index_option",
    "check_output",
    "check_threads",
    "cutoffs",
    "error_line",
    "number",
    "print_json",
    "read_ids",
    "say",
    "table",
    "weight_forms",
    "whole_number",
]


def error_line(error: BaseException, flags: Mapping[str, str] | None = None) -> str:
    """The one line that stands for an error.

    An ``OSError`` is told as ``PATH: reason`` (the number of the error means nothing to a reader),
    and line breaks that a library put into its message become spaces.

    Args:
        error: what was raised.
        flags: argument of the library -> option of the command line, for instance ``min_rating``
            -> ``--min-rating``; messages of the library that name an argument name the option.
    """
    if isinstance(error, OSError) and error.strerror:
        named = error.filename if error.filename is not None else "output"
        message = f"{_path_text(named)}: {error.strerror}"
    elif isinstance(error, MemoryError):
        message = (
            f"not enough memory: {str(error) or 'the system refused more'}; use --memory or less"
        )
    else:
        message = _with_flags(str(error), flags or {})
    return "seqrec-fast: error: " + " ".join(message.split())


def _with_flags(message: str, flags: Mapping[str, str]) -> str:
    """``user=0`` becomes ``--user 0``, ``user=`` ``--user``, and ``user: …`` at the start too."""
    if not flags:
        return message
    names = "|".join(re.escape(name) for name in sorted(flags, key=len, reverse=True))
    message = re.sub(rf"\A({names}):", lambda found: f"{flags[found[1]]}:", message)
    return re.sub(
        rf"(?<![^\s(])({names})=(?=(\w|['\"[])?)",
        lambda found: flags[found[1]] + (" " if found[2] else ""),
        message,
    )


def _path_text(named: Any) -> str:
    return os.fsdecode(named) if isinstance(named, (str, bytes, os.PathLike)) else str(named)


def say(text: str = "", *, quiet: bool = False) -> None:
    """Prints for people; ``quiet`` (with ``--json``) keeps stdout for the JSON alone."""
    if not quiet:
        print(text, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Prints one JSON object; figures that are not finite become ``null``, as JSON has none."""
    json.dump(_plain(value), sys.stdout, indent=2, ensure_ascii=False)
    print()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns aligned with spaces, a rule below the header.

    Args:
        header: names of the columns.
        rows: cells, as text.
        left: numbers of the columns that are aligned to the left; the others hold figures.
    """
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


# -------------------------------------------------------------------- argument types


def whole_number(minimum: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer, of at least ``minimum`` where one is given."""
    expected = "a whole number" + ("" if minimum is None else f" of at least {minimum}")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}") from None
        if minimum is not None and value < minimum:
            raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
        return value

    return parse


def number(text: str) -> float:
    """An argparse type: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}")
    return value


def cutoffs(text: str) -> tuple[int, ...]:
    """An argparse type: one or more cut-offs, ``10`` or ``5,10,20``."""
    parse = whole_number(1)
    return tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))


def weight_forms(text: str) -> tuple[str, ...]:
    """An argparse type: one or more forms of weights, ``int8`` or ``float32,bfloat16``."""
    from seqrec_fast.engine.precision import checked_weights

    try:
        return tuple(dict.fromkeys(checked_weights(part.strip()) for part in text.split(",")))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("weights: ")) from None


def add_index_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--index``: items are found through the index of the bundle (``args.retrieval``)."""
    parser.add_argument(
        "--index",
        dest="retrieval",
        action="store_const",
        const="index",
        default="exact",
        help="find items through the bundle's index instead of comparing all",
    )


def read_ids(option: str, path: str | os.PathLike[str]) -> list[str]:
    """Raw ids from a file of one a line; blank lines mean nothing.

    Args:
        option: the option that named the file, for the message.
        path: the file.

    Raises:
        InputError: no id in it, it is not text, or it can't be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{option}: {path} can't be read ({reason}); check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{option}: {path} is not text in utf-8; write one id a line") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"{option}: no id in {path}; write one id a line")
    return found


# -------------------------------------------------------------------- outputs


def check_threads(threads: int | None) -> int | None:
    """Refuses more threads than could ever help, which would only exhaust the machine."""
    limit = 4 * (os.cpu_count() or 1)
    if threads is not None and threads > limit:
        raise InputError(
            f"--threads: {threads} is more than 4 for each of the {os.cpu_count()} cores; "
            f"give at most {limit}"
        )
    return threads


def check_output(path: str | os.PathLike[str], option: str, *, marker: str) -> Path:
    """Makes sure, before hours of work, that a folder can be written at ``path``.

    Args:
        path: where the folder is to be.
        option: the option that gave it, for the message.
        marker: a file whose presence shows that an existing folder is one of ours and may be
            replaced.

    Returns:
        The path, absolute.

    Raises:
        InputError: something else is there already, the parent is missing or can't be written to.
    """
    if not str(path).strip():
        raise InputError(f"{option}: the path is empty; name a folder to write")
    out = Path(os.path.realpath(Path(path).expanduser()))
    parent = out.parent
    if not parent.exists():
        raise InputError(f"{option}: the folder {parent} does not exist; create it first")
    if not parent.is_dir():
        raise InputError(f"{option}: {parent} is not a folder; choose another place")
    if out.exists() and not out.is_dir():
        raise InputError(f"{option}: {out} is a file; name a folder that can be written")
    if out.is_dir() and any(out.iterdir()) and not (out / marker).is_file():
        raise InputError(
            f"{option}: {out} exists and was not written by this command (it has no {marker}); "
            "choose another name"
        )
    try:
        # Not os.access: it knows nothing of read-only file systems, nor of full ones.
        with tempfile.TemporaryDirectory(prefix=".seqrec-fast-", dir=parent):
            pass
    except OSError as error:
        raise InputError(f"{option}: cannot write in {parent}: {error.strerror}") from None
    return out
