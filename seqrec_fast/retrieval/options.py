# SPDX-License-Identifier: Apache-2.0
"""The options of each kind of index: one dataclass a kind, checked when it is made.

Search parameters (``nprobe``, ``ef_search``) are options as well: they are kept in the file, and
what `describe` says is what a search uses.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from seqrec_fast.errors import InputError

__all__ = ["ExactOptions", "Options", "choice"]


@dataclass(frozen=True)
class Options:
    """Base of the options of a kind."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which the same options can be made."""
        return asdict(self)


@dataclass(frozen=True)
class ExactOptions(Options):
    """Options of ``kind="exact"``.

    Attributes:
        dtype: what a search reads of every vector: ``"float32"``; or ``"int8"``, a table of bytes
            beside the vectors (``dim`` + 5 bytes an item more) from which the same result, bit for
            bit, is found about three times sooner where the vectors do not fit the caches: from
            about 100,000 items on, for a few queries at a time.
    """

    dtype: str = "float32"

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, ("float32", "int8"))


def choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Checks a value that is one of a few.

    Raises:
        InputError: it is none of them.
    """
    if value not in choices:
        raise InputError(f"{name}: found {value!r}; choose one of {', '.join(choices)}")
