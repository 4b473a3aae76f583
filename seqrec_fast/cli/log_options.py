# SPDX-License-Identifier: Apache-2.0
"""Options that say how a log is read, cleaned and split; shared by the commands that take one.

Every option of cleaning and splitting has the default ``None``: ``train`` fills in what the
library's functions take by default and writes all of it into the bundle, and ``evaluate`` takes
from the bundle whatever its own command line leaves open, so that the log is prepared in the same
way without repeating the options.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seqrec_fast.cli.console import number, whole_number
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    from seqrec_fast.data import Log, Prepared, Split

__all__ = [
    "SPLITS",
    "add_log_options",
    "add_table_options",
    "clean",
    "given_options",
    "open_log",
    "split_log",
    "table_options",
    "with_recorded",
]

SPLITS = ("leave-one-out", "by-time", "by-ratio")
_FORMATS = ("csv", "tsv", "parquet", "inter", "ratings", "sequences")

#: options recorded in a bundle: how to find the columns, how to clean, how to split
_COLUMNS = ("user", "item", "time", "event", "rating", "weight")
_READ = (*_COLUMNS, "format", "delimiter", "encoding", "header", "first")
_ITEMS = ("item_id", "title")
_CLEAN = (
    "min_user_events",
    "min_item_events",
    "duplicates",
    "repeats",
    "missing",
    "min_time",
    "max_time",
    "max_user_events",
    "min_rating",
    "event_weights",
)
_SPLIT = ("split", "validation", "test", "min_history")


def add_log_options(parser: ArgumentParser) -> None:
    """Adds the options in three groups: reading, cleaning, splitting."""
    read = add_table_options(parser, _COLUMNS)
    read.add_argument(
        "--first",
        choices=("user", "item"),
        help="what a line of a sequence file begins with (default: recognised)",
    )
    read.add_argument("--times", metavar="FILE", help="times of the lines of a sequence file")
    read.add_argument("--items", metavar="FILE", help="item table (titles, genres) to join by id")
    read.add_argument(
        "--item-id", type=_column, metavar="COLUMN", help="column of the id in the item table"
    )
    read.add_argument(
        "--title", type=_column, metavar="COLUMN", help="column of the title in the item table"
    )

    tidy = parser.add_argument_group("cleaning", "each step is counted in the report")
    for side in ("user", "item"):
        tidy.add_argument(
            f"--min-{side}-events",
            type=whole_number(1),
            metavar="N",
            help=f"drop {side}s with fewer events, again and again until none is left",
        )
    tidy.add_argument(
        "--max-user-events",
        type=whole_number(1),
        metavar="N",
        help="drop users with more events: robots, shared accounts",
    )
    tidy.add_argument("--min-rating", type=number, metavar="R", help="drop events rated lower")
    tidy.add_argument(
        "--event-weights",
        type=_pairs("view=1,purchase=5", number),
        metavar="TYPE=W,...",
        help="weight of each event type; types not listed are dropped",
    )
    tidy.add_argument("--duplicates", choices=("drop", "keep"), help="equal rows (default: drop)")
    tidy.add_argument(
        "--repeats", choices=("drop", "keep"), help="same item twice in a row (default: keep)"
    )
    tidy.add_argument(
        "--missing",
        type=_missing,
        metavar="RULES",
        help="'drop' rows with missing fields (default), or fill them: COLUMN=RULE,...",
    )
    tidy.add_argument("--min-time", type=_time, metavar="T", help="unix seconds or ISO date")
    tidy.add_argument("--max-time", type=_time, metavar="T", help="unix seconds or ISO date")

    cut = parser.add_argument_group("splitting")
    cut.add_argument("--split", choices=SPLITS, help="(default: leave-one-out)")
    for part in ("validation", "test"):
        cut.add_argument(
            f"--{part}",
            type=_time,
            metavar="SHARE",
            help=f"share of the events held out for {part}, by-time and by-ratio (default: 0.1); "
            "or, by-time, the moment at which it begins",
        )
    cut.add_argument(
        "--min-history",
        type=whole_number(1),
        metavar="N",
        help="events a user needs before the held-out one, leave-one-out",
    )


def add_table_options(parser: ArgumentParser, columns: Sequence[str]) -> Any:
    """Adds what says how a file is read and which columns it has; returns the group."""
    read = parser.add_argument_group(
        "reading the log", "columns are recognised by their usual names unless they are given"
    )
    for column in columns:
        read.add_argument(
            f"--{column}",
            type=_column,
            metavar="COLUMN",
            help=f"column of the {column}: its name, or its number from 0",
        )
    read.add_argument("--format", choices=_FORMATS, help="form of the log (default: recognised)")
    read.add_argument("--delimiter", metavar="TEXT", help=r"separator of columns, '\t' for a tab")
    read.add_argument("--encoding", metavar="NAME", help="encoding of a text file (default: utf-8)")
    read.add_argument(
        "--header",
        type=_header,
        metavar="NAMES",
        help="'none' if the first line holds values, or the names: user,item,time",
    )
    read.add_argument("--memory", metavar="SIZE", default="2GiB", help="limit (default: 2GiB)")
    return read


def table_options(args: Namespace, columns: Sequence[str]) -> dict[str, Any]:
    """The values of :func:`add_table_options` for ``data.read_log``, but for ``memory``."""
    names = (*columns, "format", "delimiter", "encoding", "header")
    options = {name: getattr(args, name) for name in names}
    if options["delimiter"] is not None:
        options["delimiter"] = _unescaped(options["delimiter"])
    return options


def given_options(args: Namespace) -> dict[str, Any]:
    """The options that the user gave, ready for JSON: what a bundle records."""
    names = (*_READ, *_ITEMS, *_CLEAN, *_SPLIT)
    values = vars(args)
    return {name: values[name] for name in names if values.get(name) is not None}


def with_recorded(args: Namespace, recorded: object) -> dict[str, Any]:
    """Fills the options left open with those of the bundle.

    A split given anew leaves the recorded shares out: they belong to the recorded split. A bundle
    that was not written by ``train`` records nothing, and nothing is filled in.

    Returns:
        The options that were filled in.

    Raises:
        InputError: the bundle records a split that does not exist.
    """
    if not isinstance(recorded, Mapping):
        return {}
    if recorded.get("split", SPLITS[0]) not in SPLITS:
        raise InputError(
            f"training.json: the bundle records the split {recorded['split']!r}; give --split"
        )
    names = [*_READ, *_ITEMS, *_CLEAN, *_SPLIT]
    if args.split is not None and args.split != recorded.get("split", SPLITS[0]):
        names = [name for name in names if name not in _SPLIT]
    filled = {n: recorded[n] for n in names if getattr(args, n) is None and n in recorded}
    for name, value in filled.items():
        setattr(args, name, value)
    return filled


def open_log(args: Namespace, path: str, *, threads: int | None = None) -> Log:
    """Opens the log that the arguments describe.

    Raises:
        InputError: the file or one of its columns cannot be used.
    """
    from seqrec_fast.data import read_log

    options = {**table_options(args, _COLUMNS), "first": args.first}
    for name in ("item_id", "title"):
        if getattr(args, name) is not None and args.items is None:
            raise InputError(
                f"--{name.replace('_', '-')}: is a column of the item table; give it with --items"
            )
    return read_log(
        path,
        **options,
        times=args.times,
        items=args.items,
        item_id=args.item_id,
        title=args.title,
        memory=args.memory,
        threads=threads,
    )


def clean(args: Namespace, log: Log) -> Prepared:
    """Cleans the log; options that were not given take the library's defaults."""
    from seqrec_fast.data import prepare

    options = {n: getattr(args, n) for n in _CLEAN if getattr(args, n) is not None}
    return prepare(log, **options)


def split_log(args: Namespace, prepared: Prepared) -> Split:
    """Splits the cleaned log.

    Raises:
        InputError: an option that the chosen split does not have, or nothing to hold out.
    """
    from seqrec_fast.data import by_ratio, by_time, leave_one_out

    kind = args.split or SPLITS[0]
    shares = {n: getattr(args, n) for n in ("validation", "test") if getattr(args, n) is not None}
    if kind == "leave-one-out":
        if shares:
            raise InputError(
                f"--{next(iter(shares))}: a share belongs to --split by-time or by-ratio; "
                "leave-one-out holds out one event of each user"
            )
        if args.min_history is None:
            return leave_one_out(prepared)
        return leave_one_out(prepared, min_history=args.min_history)
    if args.min_history is not None:
        raise InputError(f"--min-history: belongs to --split leave-one-out, not {kind}")
    return (by_time if kind == "by-time" else by_ratio)(prepared, **shares)


# ---------------------------------------------------------------------------- parsing


def _pairs(example: str, value: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    """An argparse type for ``name=value,name=value``."""

    def parse(text: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, given = part.rpartition("=")
            if not equals or not name.strip() or not given.strip():
                raise ArgumentTypeError(f"expected for instance {example}, found {part!r}")
            if name.strip() in found:
                raise ArgumentTypeError(f"{name.strip()!r} is given twice")
            found[name.strip()] = value(given.strip())
        return found

    return parse


def _missing(text: str) -> str | dict[str, Any]:
    if text == "drop":
        return text
    rules: dict[str, Any] = _pairs("drop, or rating=3", _rule)(text)
    return rules


def _rule(text: str) -> str | float:
    try:
        return number(text)
    except ArgumentTypeError:
        return text


def _time(text: str) -> str | float:
    """Unix seconds (or a share), or a date that the library reads."""
    return _rule(text)


def _column(text: str) -> str | int:
    """The name of a column, or its number."""
    return int(text) if text.isdecimal() else text


def _header(text: str) -> bool | list[str]:
    return False if text == "none" else [name.strip() for name in text.split(",")]


def _unescaped(delimiter: str) -> str:
    return {r"\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
