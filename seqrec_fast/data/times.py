# SPDX-License-Identifier: Apache-2.0
"""Times as logs have them: numbers of some unit, ISO texts, typed timestamps."""

from __future__ import annotations

from seqrec_fast.data.clean import IMPOSSIBLE
from seqrec_fast.data.readers import Relation
from seqrec_fast.data.workspace import Workspace
from seqrec_fast.errors import InputError

__all__ = ["time_expression", "unit_of"]

_NUMBERS = frozenset(
    ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "UTINYINT")
) | {"USMALLINT", "UINTEGER", "UBIGINT"}
# largest median of each unit: 1e11 s is the year 5138, 1e11 ms is 1973
_UNITS = (
    ("seconds", 1e11, 1_000_000.0),
    ("milliseconds", 1e14, 1_000.0),
    ("microseconds", 1e17, 1.0),
    ("nanoseconds", float("inf"), 0.001),
)
_LARGEST = 9.2e18  # microseconds that fit an int64


def unit_of(median: float) -> tuple[str, float]:
    """The unit of unix times by the size of a typical one, and microseconds in it."""
    for name, largest, factor in _UNITS:
        if median < largest:
            return name, factor
    return _UNITS[-1][0], _UNITS[-1][2]


def time_expression(
    workspace: Workspace, relation: Relation, column: str, source: str, notes: list[str]
) -> str:
    """SQL for the time in microseconds since 1970: NULL if missing, ``IMPOSSIBLE`` if not finite.

    Args:
        workspace: the engine.
        relation: the log, with a column ``time``.
        column: its name in the log, for messages.
        source: the log, for messages.
        notes: receives the unit that was recognised and what could not be read.

    Raises:
        InputError: nothing in the column is a time.
    """
    kind = relation.types["time"]
    if kind.startswith(("TIMESTAMP", "DATE")):
        zoned = "TIME ZONE" in kind or kind.startswith("TIMESTAMPTZ")
        notes.append(f"time: {kind.lower()}{'' if zoned else ' (without a zone, taken as UTC)'}")
        if kind.endswith("_NS"):
            return 'epoch_ns("time") // 1000'  # nanoseconds have no infinity
        return _finite_moment('"time"' if zoned else '"time"::TIMESTAMP')
    if kind not in _NUMBERS and not kind.startswith(("VARCHAR", "DECIMAL", '"NULL"', "NULL")):
        raise InputError(
            f"{source}: the column {column!r} (time) holds {kind.lower()} values; give a column of "
            f"numbers, ISO dates or timestamps"
        )
    text = kind == "VARCHAR"
    number = 'try_cast("time" AS DOUBLE)'
    moment = f'CASE WHEN {number} IS NULL THEN try_cast("time" AS TIMESTAMPTZ) END'
    if not text:
        moment = "NULL::TIMESTAMPTZ"
    raw, numbers, moments, median, least, most, row, example = workspace.row(
        f'SELECT count("time"), count(number), count(moment), '
        f"approx_quantile(abs(number), 0.5) FILTER (isfinite(number)), "
        f"min(number) FILTER (isfinite(number)), max(number) FILTER (isfinite(number)), "
        f'min("row") FILTER (unread), arg_min("time"::VARCHAR, "row") FILTER (unread) '
        f'FROM (SELECT "row", "time", number, moment, "time" IS NOT NULL AND number IS NULL AND '
        f'moment IS NULL AS unread FROM (SELECT "row", "time", {number} AS number, {moment} AS '
        f"moment FROM {relation.sql}))"
    )
    if raw and not numbers and not moments:
        raise InputError(
            f"{source}: nothing in the column {column!r} (time) is a time (row {row + 1} holds "
            f"{example!r}); times are unix numbers or ISO dates such as 2024-05-31T12:00:00Z; give "
            f"time= another column"
        )
    if raw > numbers + moments:
        notes.append(
            f"time: {raw - numbers - moments:,} values are not times (the first, {example!r}, in "
            f"row {row + 1}) and count as missing"
        )
    parts = []
    if numbers:
        dates = least is not None and least >= 19000101 and most <= 21001231
        if dates and _all_dates(workspace, relation):
            notes.append("time: dates written as YYYYMMDD (recognised)")
            return _compact_dates()
        unit, factor = unit_of(float(median or 0))
        notes.append(f"time: unix {unit} (recognised by size)")
        parts.append(_from_number(kind, number, factor))
    if moments:
        notes.append("time: ISO dates, without a zone taken as UTC")
        parts.append(_finite_moment('try_cast("time" AS TIMESTAMPTZ)'))
    return f"coalesce({', '.join(parts)})" if parts else "NULL::BIGINT"


def _finite_moment(moment: str) -> str:
    return (
        f"CASE WHEN {moment} IS NULL THEN NULL WHEN NOT isfinite({moment}) "
        f"THEN {IMPOSSIBLE}::BIGINT ELSE epoch_us({moment}) END"
    )


def _from_number(kind: str, number: str, factor: float) -> str:
    if kind in ("INTEGER", "BIGINT", "UINTEGER"):
        # exact: a double cannot hold every nanosecond
        bound = int(_LARGEST / factor) if factor >= 1 else 2**63 - 1
        scaled = f'"time"::BIGINT * {int(factor)}' if factor >= 1 else '"time"::BIGINT // 1000'
        return (
            f'CASE WHEN "time" IS NULL THEN NULL WHEN "time" BETWEEN {-bound} AND {bound} '
            f"THEN {scaled} ELSE {IMPOSSIBLE}::BIGINT END"
        )
    scaled = f"{number} * {factor!r}::DOUBLE"
    return (
        f"CASE WHEN {number} IS NULL THEN NULL WHEN isfinite({number}) AND "
        f"abs({scaled}) < {_LARGEST!r}::DOUBLE THEN try_cast(round({scaled}) AS BIGINT) "
        f"ELSE {IMPOSSIBLE}::BIGINT END"
    )


_COMPACT = "try_strptime(try_cast(try_cast(\"time\" AS DOUBLE) AS BIGINT)::VARCHAR, '%Y%m%d')"


def _all_dates(workspace: Workspace, relation: Relation) -> bool:
    """Whether every number is a calendar date; as unix seconds all would lie in August 1970."""
    return bool(
        workspace.row(
            f"SELECT bool_and(({_COMPACT}) IS NOT NULL) FROM {relation.sql} WHERE "
            f'try_cast("time" AS DOUBLE) IS NOT NULL'
        )[0]
    )


def _compact_dates() -> str:
    return f"epoch_us({_COMPACT})"
