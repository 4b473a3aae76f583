# SPDX-License-Identifier: Apache-2.0
"""From raw columns to dense integers: ids to codes, times to microseconds, in the engine.

The engine works out of core; what leaves it are numpy columns of 4 or 8 bytes a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.data.clean import MISSING, Events
from seqrec_fast.data.readers import Relation
from seqrec_fast.data.times import time_expression
from seqrec_fast.data.vocabulary import Vocabulary, is_canonical_integer
from seqrec_fast.data.workspace import Workspace, quoted
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Encoded", "encode", "id_expression", "to_vocabulary"]

_INTEGERS = frozenset(
    ["TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"]
)
_WIDE = frozenset(["UBIGINT", "HUGEINT", "UHUGEINT"])
_FLOATS = frozenset(["FLOAT", "DOUBLE"])
_AS_TEXT = ("VARCHAR", "ENUM", "UUID", "DATE", "TIME", "DECIMAL", '"NULL"', "NULL")
_MOST_EVENT_TYPES = 1000
# what pandas, R, Python and dumps of databases write for a missing value
_MISSING_WORDS = ("NaN", "nan", "NA", "N/A", "n/a", "<NA>", "#N/A", "NULL", "null", "None", r"\N")
_ROWS_PER_BATCH = 500_000


@dataclass(frozen=True)
class Encoded:
    """A log as integers, with what is needed to say what they mean.

    Attributes:
        events: the columns, in input order; codes are -1 and times ``MISSING`` where missing.
        users, items: the raw ids by code, as Arrow columns, in order of first appearance.
        event_names: event types by code.
        filled: role → number of values that the user's constants filled.
        notes: what was recognised.
    """

    events: Events
    users: pyarrow.Array
    items: pyarrow.Array
    event_names: tuple[str, ...]
    filled: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def encode(
    workspace: Workspace,
    relation: Relation,
    columns: Mapping[str, str],
    fills: Mapping[str, Any],
    source: str,
) -> Encoded:
    """Encodes all rows of a relation.

    Args:
        workspace: the engine.
        relation: the log.
        columns: role → name of the column in the log, for messages.
        fills: role → constant for missing values (times in microseconds).
        source: the log, for messages.

    Raises:
        InputError: ids of a type that cannot be one, a column of which nothing can be read, or
            negative weights.
    """
    notes: list[str] = []
    expressions: dict[str, str] = {}
    for role in ("user", "item"):
        expressions[role] = id_expression(workspace, relation, role, columns[role], source, notes)
    if "event" in relation.types:
        _check_scalar(relation.types["event"], "event", columns["event"], source)
        expressions["event"] = "nullif(\"event\"::VARCHAR, '')"
    for role in ("rating", "weight"):
        if role in relation.types:
            expressions[role] = _number(workspace, relation, role, columns[role], source, notes)
    if "time" in relation.types:
        expressions["time"] = time_expression(workspace, relation, columns["time"], source, notes)
    counted = ", ".join(f"count({expression})" for expression in expressions.values())
    total, *present = workspace.row(f"SELECT count(*), {counted} FROM {relation.sql}")
    filled: dict[str, int] = {}
    for (role, expression), there in zip(list(expressions.items()), present, strict=True):
        if role not in fills:
            continue
        filled[role] = total - there
        expressions[role] = _filled(workspace, relation, role, expression, fills[role])
    dictionaries = {
        role: _dictionary(workspace, relation, role, expressions[role], columns[role], notes)
        for role in ("user", "item", "event")
        if role in expressions
    }
    names = dictionaries.pop("event", None)
    event_names = () if names is None else tuple(str(name) for name in names.to_pylist())
    if len(event_names) > _MOST_EVENT_TYPES:
        raise InputError(
            f"{source}: the column {columns['event']!r} holds {len(event_names):,} event types, "
            f"which looks like something else; give event= another column"
        )
    events = _fetch(workspace, relation, expressions, total, len(event_names))
    if events.weight is not None and bool((events.weight < 0).any()):
        row = int(np.flatnonzero(events.weight < 0)[0])
        raise InputError(
            f"{source}: the column {columns['weight']!r} is negative in row {row + 1} "
            f"({events.weight[row]:g}); weights must be 0 or more"
        )
    return Encoded(
        events, dictionaries["user"], dictionaries["item"], event_names, filled, tuple(notes)
    )


def to_vocabulary(ids: pyarrow.Array) -> Vocabulary:
    """The vocabulary of an Arrow column of ids."""
    import pyarrow as pa

    if pa.types.is_int64(ids.type):
        return Vocabulary(np.ascontiguousarray(ids.to_numpy(zero_copy_only=False)))
    values = np.empty(len(ids), dtype=object)
    values[:] = ids.to_pylist()
    return Vocabulary(values)


# -------------------------------------------------------------------- expressions


def _check_scalar(kind: str, role: str, column: str, source: str) -> None:
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION", "BLOB", "BIT", "VARIANT")):
        raise InputError(
            f"{source}: the column {column!r} ({role}) holds {kind.lower()} values; give a column "
            f"of integers or text"
        )


def id_expression(
    workspace: Workspace,
    relation: Relation,
    role: str,
    column: str,
    source: str,
    notes: list[str],
) -> str:
    """SQL for the ids of a column, as BIGINT or as text; NULL where one is missing.

    Args:
        workspace: the engine.
        relation: the log.
        role: ``"user"`` or ``"item"``, a column of ``relation``.
        column: its name in the log, for messages.
        source: the log, for messages.
        notes: receives what was recognised.

    Raises:
        InputError: the column holds something that is no id, such as fractions or lists.
    """
    kind = relation.types[role]
    _check_scalar(kind, role, column, source)
    if kind in _INTEGERS:
        return f'"{role}"::BIGINT'
    if kind in _WIDE:
        largest = workspace.row(f'SELECT max("{role}")::VARCHAR FROM {relation.sql}')[0]
        fits = largest is None or is_canonical_integer(largest)
        return f'"{role}"::{"BIGINT" if fits else "VARCHAR"}'
    if kind in _FLOATS:
        # integers that became floats because some were missing
        odd = workspace.row(
            f'SELECT min("row"), arg_min("{role}", "row") FROM {relation.sql} WHERE "{role}" IS '
            f'NOT NULL AND NOT isnan("{role}") AND ("{role}" <> trunc("{role}") OR '
            f'abs("{role}") >= 9e15)'
        )
        if odd[0] is not None:
            raise InputError(
                f"{source}: the column {column!r} ({role}) holds {odd[1]} in row {odd[0] + 1}; "
                f"ids are integers or text"
            )
        return f'try_cast("{role}" AS BIGINT)'  # NaN is missing
    if relation.worded:
        return _worded_id(workspace, relation, role, column, notes)
    if kind.startswith(_AS_TEXT):
        return f"nullif(\"{role}\"::VARCHAR, '')"
    raise InputError(
        f"{source}: the column {column!r} ({role}) holds {kind.lower()} values; ids are integers "
        f"or text"
    )


def _worded_id(
    workspace: Workspace, relation: Relation, role: str, column: str, notes: list[str]
) -> str:
    """An id of a text table: words for missing values are missing, ``1.0`` and `` 1`` are 1."""
    words = ", ".join(quoted(word) for word in _MISSING_WORDS)
    value = f'CASE WHEN "{role}" NOT IN (\'\', {words}) THEN "{role}" END'
    plain, missing, example = workspace.row(
        f"SELECT bool_and(coalesce(try_cast(id AS BIGINT)::VARCHAR = id, false)) "
        f"FILTER (id IS NOT NULL), count(word), min(word) FROM (SELECT {value} AS id, "
        f'CASE WHEN "{role}" IN ({words}) THEN "{role}" END AS word FROM {relation.sql})'
    )
    if missing:
        notes.append(
            f"{role}: {missing:,} values of the column {column!r} say {example!r} or the like and "
            f"count as missing"
        )
    if plain:
        return value
    # pandas writes integers as 1.0 where some are missing; spaces around a number mean nothing
    number = f"regexp_replace(trim({value}), '\\.0+$', '')"
    whole = workspace.row(
        f"SELECT bool_and(regexp_full_match(id, '0|-?[1-9][0-9]*') AND "
        f"try_cast(id AS BIGINT) IS NOT NULL) FILTER (id IS NOT NULL) "
        f"FROM (SELECT {number} AS id FROM {relation.sql})"
    )[0]
    if not whole:
        return value
    notes.append(
        f"{role}: the ids of the column {column!r} are whole numbers, some written as 1.0 "
        f"or between spaces; they are read as integers"
    )
    return number


def _number(
    workspace: Workspace,
    relation: Relation,
    role: str,
    column: str,
    source: str,
    notes: list[str],
) -> str:
    kind = relation.types[role]
    _check_scalar(kind, role, column, source)
    value = f'try_cast("{role}" AS DOUBLE)'
    number = f"CASE WHEN isfinite({value}) THEN {value} END"
    raw, read, row, example = workspace.row(
        f'SELECT count("{role}"), count({number}), min("row") FILTER (unread), '
        f'arg_min("{role}"::VARCHAR, "row") FILTER (unread) FROM (SELECT *, "{role}" IS NOT NULL '
        f"AND ({number}) IS NULL AS unread FROM {relation.sql})"
    )
    if raw and not read:
        raise InputError(
            f"{source}: nothing in the column {column!r} ({role}) is a number (row {row + 1} holds "
            f"{example!r}); give {role}= another column"
        )
    if raw > read:
        notes.append(
            f"{role}: {raw - read:,} values are not numbers (the first, {example!r}, in row "
            f"{row + 1}) and count as missing"
        )
    return number


def _filled(workspace: Workspace, relation: Relation, role: str, expression: str, fill: Any) -> str:
    """The expression with a constant in place of missing values."""
    if role in ("rating", "weight"):
        return f"coalesce({expression}, {float(fill)!r}::DOUBLE)"
    if role == "time":
        return f"coalesce({expression}, {int(fill)}::BIGINT)"
    if role in ("user", "item"):
        kind = workspace.run(f"DESCRIBE SELECT {expression} FROM {relation.sql}")[0][1]
        if kind == "BIGINT" and is_canonical_integer(str(fill)):
            return f"coalesce({expression}, {int(fill)}::BIGINT)"
    return f"coalesce(({expression})::VARCHAR, {quoted(str(fill))})"


# -------------------------------------------------------------------- dictionaries


def _dictionary(
    workspace: Workspace,
    relation: Relation,
    role: str,
    expression: str,
    column: str,
    notes: list[str],
) -> pyarrow.Array:
    """Numbers the values of a column by first appearance: the table ``<role>_codes``."""
    workspace.run(
        f"CREATE TABLE {role}_codes AS SELECT id, (row_number() OVER (ORDER BY begin) - 1)::INTEGER"
        f' AS code FROM (SELECT {expression} AS id, min("row") AS begin FROM {relation.sql} '
        f"GROUP BY ALL) WHERE id IS NOT NULL"
    )
    kind = workspace.run(f"DESCRIBE SELECT id FROM {role}_codes")[0][1]
    selected = "id"
    if kind == "VARCHAR" and role != "event":
        canonical, blank = workspace.row(
            f"SELECT coalesce(bool_and(coalesce(try_cast(id AS BIGINT)::VARCHAR = id, false)), "
            f"false), count(*) FILTER (id <> trim(id)) FROM {role}_codes"
        )
        if canonical and not relation.typed:
            selected = "id::BIGINT AS id"
        if blank:
            notes.append(
                f"{role}: {blank:,} ids of the column {column!r} begin or end with a space; they "
                f"are kept as they are"
            )
    table = workspace.arrow(f"SELECT {selected} FROM {role}_codes ORDER BY code")
    return table.column(0).combine_chunks()


# -------------------------------------------------------------------- rows


def _fetch(
    workspace: Workspace,
    relation: Relation,
    expressions: Mapping[str, str],
    rows: int,
    event_names: int,
) -> Events:
    """All rows as numpy columns, put in their place by row number as they come."""
    narrow = event_names <= 255
    targets: dict[str, NDArray[Any]] = {}
    selected: list[str] = []
    joins: list[str] = []
    for role in expressions:
        if role == "time":
            targets[role] = np.empty(rows, dtype=np.int64)
            selected.append(f"coalesce(log.{role}, {MISSING + 1}::BIGINT - 1)")
        elif role in ("rating", "weight"):
            targets[role] = np.empty(rows, dtype=np.float32)
            selected.append(f"coalesce(log.{role}, 'nan'::DOUBLE)::FLOAT")
        else:
            byte = narrow and role == "event"
            targets[role] = np.empty(rows, dtype=np.uint8 if byte else np.int32)
            joins.append(f"LEFT JOIN {role}_codes ON {role}_codes.id = log.{role}")
            selected.append(
                f"coalesce({role}_codes.code, 255)::UTINYINT"
                if byte
                else f"coalesce({role}_codes.code, -1)::INTEGER"
            )
    inner = ", ".join(f'{expression} AS "{role}"' for role, expression in expressions.items())
    sql = (
        f'SELECT log."row", {", ".join(selected)} FROM (SELECT "row", {inner} FROM '
        f"{relation.sql}) log {' '.join(joins)}"
    )
    # The order of the answer means nothing: rows are put in place by number.
    workspace.run("SET preserve_insertion_order = false")
    for batch in workspace.batches(sql, _ROWS_PER_BATCH):
        place = batch.column(0).to_numpy()
        for target, column in zip(targets.values(), batch.columns[1:], strict=True):
            target[place] = column.to_numpy()
    return Events(**targets)
