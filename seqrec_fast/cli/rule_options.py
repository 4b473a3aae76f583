# SPDX-License-Identifier: Apache-2.0
"""``--where``, ``--limit`` and ``--separator``: rules over the item table on the command line."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from typing import Any

from seqrec_fast.cli.console import number
from seqrec_fast.errors import InputError

__all__ = ["add_diversity_argument", "add_rule_arguments", "read_limits", "read_where"]

_FORM = re.compile(r"(.+?)(!=|>=|<=|=)(.*)", re.DOTALL)
_MOST_DIGITS = 18  # more items than there are; int refuses thousands of digits by itself


def add_rule_arguments(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "--where",
        action="append",
        metavar="RULE",
        help="only items of which a column of the item table says so: genre=Drama|Crime (one of "
        "them), genre!=War, year>=1990, year<=1999; all hold where it is given several times",
    )
    parser.add_argument(
        "--limit",
        action="append",
        metavar="COLUMN=N",
        help="at most N items of each category of a column",
    )
    parser.add_argument(
        "--separator",
        action="append",
        metavar="COLUMN=TEXT",
        help="what stands between the tags of a text column in --where and --limit (default: |)",
    )


def add_diversity_argument(parser: ArgumentParser) -> None:
    """Adds ``--diversity``."""
    parser.add_argument(
        "--diversity",
        type=number,
        default=0.0,
        metavar="WEIGHT",
        help="of models of several interests: above 0, all interests have a part in the list "
        "(default: 0)",
    )


def read_where(args: Namespace) -> dict[str, Any] | None:
    """The rule of the options, or ``None``.

    Raises:
        InputError: an option of another form, or two that do not go together.
    """
    separators = _separators(args)
    found: dict[str, Any] = {}
    for text in args.where or []:
        match = _FORM.fullmatch(text)
        if match is None:
            raise InputError(f"--where {text!r}: write COLUMN=VALUE, !=, >= or <=")
        column, sign, value = match[1].strip(), match[2], match[3].strip()
        word = {"=": "any", "!=": "not", ">=": "min", "<=": "max"}[sign]
        rule = found.setdefault(column, {})
        if word in rule:
            raise InputError(f"--where {text!r}: {column}{sign} stands there twice")
        rule[word] = value if word in ("min", "max") else value.split("|")
        if column in separators:
            rule["separator"] = separators[column]
    limited = [_pair("--limit", text, "N")[0] for text in args.limit or []]
    for column in separators:
        if column not in found and column not in limited:
            raise InputError(f"--separator {column!r}: no --where and no --limit asks this column")
    return found or None


def read_limits(args: Namespace) -> dict[str, Any] | None:
    """Column → most items of a category, with the separator of its tags if there is one; or none.

    Raises:
        InputError: an option of another form.
    """
    separators = _separators(args)
    found: dict[str, Any] = {}
    for text in args.limit or []:
        column, count = _pair("--limit", text, "N")
        if not count.isdecimal() or len(count) > _MOST_DIGITS:
            raise InputError(
                f"--limit {text[:60]!r}: {count[:40]!r} is not a whole number below 10^18"
            )
        if column in found:
            raise InputError(f"--limit {text!r}: {column} stands there twice")
        most = int(count)
        separator = separators.get(column)
        found[column] = most if separator is None else {"most": most, "separator": separator}
    return found or None


def _separators(args: Namespace) -> dict[str, str]:
    return dict(_pair("--separator", text, "TEXT") for text in args.separator or [])


def _pair(option: str, text: str, kind: str) -> tuple[str, str]:
    column, sign, value = text.partition("=")
    if not sign or not column.strip():
        raise InputError(f"{option} {text!r}: write COLUMN={kind}")
    return column.strip(), value
