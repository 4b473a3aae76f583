# SPDX-License-Identifier: Apache-2.0
"""A moment as callers write it: unix seconds, an ISO date, or a datetime."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any, TypeAlias

import numpy as np

from seqrec_fast.errors import InputError

__all__ = ["Moment", "iso_second", "to_microseconds"]

Moment: TypeAlias = int | float | str | dt.date | dt.datetime | np.datetime64

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)


def to_microseconds(moment: Any, argument: str) -> int:
    """Microseconds since 1970-01-01 UTC.

    Args:
        moment: unix seconds, an ISO date or datetime, ``date``, ``datetime`` or ``datetime64``;
            without a zone it is UTC.
        argument: name of the argument, for the error message.

    Raises:
        InputError: anything else.
    """
    if isinstance(moment, int | float | np.number) and not isinstance(moment, bool):
        seconds = float(moment)
        if math.isfinite(seconds) and abs(seconds) < 9e12:
            if isinstance(moment, int | np.integer):
                return int(moment) * 1_000_000
            return round(seconds * 1_000_000)
    elif isinstance(moment, np.datetime64):
        if not np.isnat(moment):
            return int(moment.astype("datetime64[us]").astype(np.int64))
    elif isinstance(moment, str):
        try:
            # Python 3.10 does not read the Z for UTC
            return _from_datetime(dt.datetime.fromisoformat(moment.strip().replace("Z", "+00:00")))
        except ValueError:
            pass
    elif isinstance(moment, dt.datetime):
        return _from_datetime(moment)
    elif isinstance(moment, dt.date):
        return _from_datetime(dt.datetime(moment.year, moment.month, moment.day))
    raise InputError(
        f"{argument}: {moment!r} is not a time; give unix seconds or an ISO date such as "
        f"'2024-05-31' or '2024-05-31T12:00:00Z'"
    )


def _from_datetime(value: dt.datetime) -> int:
    aware = value if value.tzinfo is not None else value.replace(tzinfo=dt.timezone.utc)
    return (aware - _EPOCH) // dt.timedelta(microseconds=1)


def iso_second(seconds: int) -> str:
    """Unix seconds as ISO text, or the bare number where no calendar reaches."""
    try:
        return (_EPOCH + dt.timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return f"{seconds} s"
