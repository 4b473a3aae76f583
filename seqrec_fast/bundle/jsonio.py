# SPDX-License-Identifier: Apache-2.0
"""JSON that may come from anyone: bounded in size and depth, no NaN, no repeated keys."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from seqrec_fast.errors import InputError

__all__ = ["parse_object", "render"]

MAX_BYTES = 32 * 2**20
MAX_DEPTH = 32


def render(name: str, content: dict[str, Any]) -> bytes:
    """JSON text with sorted keys; numpy scalars and arrays become plain numbers and lists.

    Args:
        name: file name for the message.
        content: what to write.

    Raises:
        InputError: a value that JSON can't hold (NaN included), too deep, or too large.
    """
    try:
        text = json.dumps(
            content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False, default=_plain
        )
        data = (text + "\n").encode("utf-8")
        parse_object(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: the content can't be written as JSON: {error}") from None
    return data


def parse_object(data: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: the reason, without a file name.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"it is larger than {MAX_BYTES >> 20} MiB")
    try:
        found = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except InputError:
        raise
    except RecursionError:
        raise InputError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise InputError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"it is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from None
    except ValueError:  # an integer with thousands of digits
        raise InputError("it holds a number that is too long") from None
    if not isinstance(found, dict):
        raise InputError(f"it must be a JSON object, found {type(found).__name__}")
    _check_depth(found)
    return found


def _check_depth(found: dict[str, Any]) -> None:
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise InputError(f"it is nested more than {MAX_DEPTH} levels deep")


def _refuse_constant(text: str) -> Any:
    raise InputError(f"it holds {text}, which is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InputError(f"it holds {text[:20]}, which is too large for a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the key {twice[:50]!r} appears twice")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON type")
