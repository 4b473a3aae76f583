# SPDX-License-Identifier: Apache-2.0
"""What one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from seqrec_fast.errors import InputError

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a request; what goes beyond is refused with a message that names the bound.

    Attributes:
        k: items asked for.
        history: events of one history.
        users: histories of one request.
        ids: entries of one allow or deny list.
        body: bytes of a request's body.

    Raises:
        InputError: a bound that is not a whole number of at least 1.
    """

    k: int = 1000
    history: int = 2000
    users: int = 256
    ids: int = 100_000
    body: int = 1 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"limits.{field.name}: must be a whole number of at least 1, found {value!r}"
                )
