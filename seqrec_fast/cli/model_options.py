# SPDX-License-Identifier: Apache-2.0
"""Options made from the dataclasses of hyper-parameters: a new field is a new option by itself."""

from __future__ import annotations

import types
import typing
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from typing import Any

from seqrec_fast.cli.console import number, whole_number

__all__ = ["add_dataclass_options", "dataclass_values"]


def add_dataclass_options(
    parser: ArgumentParser, kind: type, title: str, *, skip: Iterable[str] = ()
) -> None:
    """Adds one option for each field of a dataclass.

    A field's help and choices are in its metadata (``help``, ``choices``); its default is shown
    and stays with the dataclass: an option that is not given is not passed on.

    Args:
        parser: gets a group of options.
        kind: the dataclass; fields of type int, float, str, bool, each also optional.
        title: of the group.
        skip: fields that the command handles itself.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(kind)
    left_out = set(skip)
    for entry in fields(kind):
        if entry.name in left_out or not entry.init:
            continue
        flag = "--" + entry.name.replace("_", "-")
        text = _help(entry)
        base = _base_type(hints[entry.name])
        if base is bool:
            group.add_argument(flag, action=BooleanOptionalAction, default=None, help=text)
        elif choices := entry.metadata.get("choices"):
            group.add_argument(flag, choices=choices, default=None, help=text)
        else:
            parsers: dict[type, Callable[[str], Any]] = {
                int: whole_number(),
                float: number,
                str: str,
            }
            parse = parsers[base]
            metavar = {int: "N", float: "X", str: "TEXT"}[base]
            group.add_argument(flag, type=parse, default=None, metavar=metavar, help=text)


def dataclass_values(args: Namespace, kind: type, *, skip: Iterable[str] = ()) -> dict[str, Any]:
    """The fields that the user gave."""
    left_out = set(skip)
    values = vars(args)
    names = [entry.name for entry in fields(kind) if entry.name not in left_out]
    return {name: values[name] for name in names if values.get(name) is not None}


def _help(entry: Field[Any]) -> str:
    text = str(entry.metadata.get("help", entry.name.replace("_", " "))).replace("%", "%%")
    if entry.default is MISSING or entry.default is None or "default" in text:
        return text
    if isinstance(entry.default, bool):
        return f"{text} (default: {'yes' if entry.default else 'no'})"
    return f"{text} (default: {entry.default})"


def _base_type(hint: Any) -> type:
    """``int`` for ``int`` and for ``int | None``."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.cast(type, next(a for a in typing.get_args(hint) if a is not type(None)))
    return typing.cast(type, hint)
