# SPDX-License-Identifier: Apache-2.0
"""A log of events as a source of histories: sorted by user out of core, then cut into users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.batch.ids import Kind, encode_ids, id_kind
from seqrec_fast.batch.users import Chunk
from seqrec_fast.data.clean import IMPOSSIBLE
from seqrec_fast.data.encoding import id_expression
from seqrec_fast.data.log import Log
from seqrec_fast.data.readers import Relation, open_relation
from seqrec_fast.data.times import time_expression
from seqrec_fast.data.workspace import Workspace, open_workspace
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from seqrec_fast.data.vocabulary import Vocabulary

__all__ = ["LogUsers"]

_ROWS_PER_BATCH = 200_000


class LogUsers:
    """The users of a log in ascending order of their ids, each with all of their events by time.

    Events of one moment, and those of a log without times, stand in the order of the rows. Nothing
    is cleaned: each row is an event.
    """

    def __init__(self, log: Log) -> None:
        """Takes an opened log, see ``data.read_log``."""
        self._log = log
        self.source = log.source
        self.files: tuple[Path, ...] = log.files
        self.user, self.item = log.columns["user"], log.columns["item"]
        self.user_type: pa.DataType | None = None
        self.kind: Kind | None = None
        self.total: int | None = None
        self._running: Workspace | None = None

    def chunks(self, vocabulary: Vocabulary, size: int) -> Iterator[Chunk]:
        """The users in chunks; see :class:`seqrec_fast.batch.users.Users`."""
        log = self._log
        with open_workspace(log.memory, log.threads, log.source) as workspace:
            self._running = workspace
            try:
                roles = [role for role in ("user", "item", "time") if role in log.columns]
                relation = open_relation(workspace, log, roles)
                workspace.run("SET preserve_insertion_order = false")
                events = self._events(workspace, relation)
                self._check(workspace, events)
                self._look_up(workspace, events, vocabulary)
                # "code" is -1 for an id that the vocabulary does not hold
                yield from _cut(
                    workspace.batches(
                        f'SELECT "user", coalesce(code, -1)::INTEGER FROM {events} LEFT JOIN '
                        f'item_codes USING (item) ORDER BY "user", moment, "row"',
                        _ROWS_PER_BATCH,
                    ),
                    size,
                )
            finally:
                self._running = None

    def stop(self) -> None:
        """Interrupts the engine, which may be sorting."""
        if self._running is not None:
            self._running.connection.interrupt()

    def _events(self, workspace: Workspace, relation: Relation) -> str:
        """What stands after FROM: ``row``, ``user``, ``item`` and ``moment``, NULL if missing."""
        columns, source = self._log.columns, self._log.source
        user, item = (
            id_expression(workspace, relation, role, columns[role], source, [])
            for role in ("user", "item")
        )
        if relation.typed:
            # the id comes back as it was: the expression only says whether there is one
            user = f'CASE WHEN ({user}) IS NOT NULL THEN "user" END'
        moment = "0"
        if "time" in relation.types:
            moment = time_expression(workspace, relation, columns["time"], source, [])
            moment = f"nullif({moment}, {IMPOSSIBLE}::BIGINT)"
        return (
            f'(SELECT "row", {user} AS "user", {item} AS item, {moment} AS moment '
            f"FROM {relation.sql}) events"
        )

    def _check(self, workspace: Workspace, events: str) -> None:
        missing = workspace.row(
            f'SELECT count(*), min("row") FILTER ("user" IS NULL), min("row") FILTER (item IS '
            f'NULL), min("row") FILTER (moment IS NULL) FROM {events}'
        )
        if not missing[0]:
            raise InputError(f"{self.source}: holds no rows; give a log with events")
        for role, row in zip(("user", "item", "time"), missing[1:], strict=True):
            if row is not None:
                raise InputError(
                    f"{self.source}: the column {self._log.columns[role]!r} ({role}) is missing in "
                    f"row {row + 1}; fill it, or leave such rows out"
                )

    def _look_up(self, workspace: Workspace, events: str, vocabulary: Vocabulary) -> None:
        """Makes the table ``item_codes``: item, code."""
        import pyarrow as pa

        distinct = workspace.arrow(f"SELECT DISTINCT item FROM {events}").column(0)
        values = distinct.combine_chunks()
        if isinstance(values, pa.ChunkedArray):  # what older versions give back
            values = pa.concat_arrays(values.chunks)
        self.kind = id_kind(values.type, self.item, "item", self.source)
        codes = pa.array(encode_ids(values, vocabulary))
        workspace.register("item_codes", pa.table({"item": values, "code": codes}))


def _cut(batches: Iterator[Any], size: int) -> Iterator[Chunk]:
    """Rows (user, code), each user's together, as chunks of ``size`` users; fewer at the end."""
    import pyarrow as pa

    users: pa.Array | None = None
    codes: NDArray[np.int32] = np.empty(0, dtype=np.int32)
    for batch in batches:
        column = batch.column(0)
        users = column if users is None else pa.concat_arrays([users, column])
        codes = np.concatenate([codes, batch.column(1).to_numpy()])
        starts = _starts(users)
        # the last user may go on in the next batch
        complete = len(starts) - 1
        done = 0
        while complete - done >= size:
            yield _chunk(users, codes, starts[done : done + size + 1])
            done += size
        if done:
            users, codes = users.slice(int(starts[done])), codes[starts[done] :]
    if users is None:
        return
    ends = np.append(_starts(users), len(users))
    for begin in range(0, len(ends) - 1, size):
        yield _chunk(users, codes, ends[begin : begin + size + 1])


def _starts(users: pa.Array) -> NDArray[np.int64]:
    """Places at which another user begins."""
    import pyarrow.compute as pc

    if not len(users):
        return np.empty(0, dtype=np.int64)
    changed = pc.not_equal(users.slice(1), users.slice(0, len(users) - 1))
    places = np.flatnonzero(changed.to_numpy(zero_copy_only=False)) + 1
    return np.concatenate([[0], places]).astype(np.int64)


def _chunk(users: pa.Array, codes: NDArray[np.int32], ends: NDArray[np.int64]) -> Chunk:
    import pyarrow as pa

    first = ends[0]
    return Chunk(users.take(pa.array(ends[:-1])), codes[first : ends[-1]], ends - first)
