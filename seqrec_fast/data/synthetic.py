# SPDX-License-Identifier: Apache-2.0
"""Made-up logs with planted structure: for the demo, for tests, and for measuring.

What is planted, so that a model has something to find:

* *tastes*: a user prefers one genre, and visits others now and then;
* *drift*: at some moment of its own, the user moves on to a second genre;
* *follow-ups*: inside a session, an item tends to lead to one certain other item of its genre;
* *popularity skew*: a few items of each genre start most of the sessions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.data.synthetic_titles import GENRES, make_titles
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import pyarrow

    from seqrec_fast.data.log import Log

__all__ = ["synthetic_log", "write_synthetic"]

EVENT_TYPES = ("view", "cart", "purchase")
_EVENT_SHARES = (0.80, 0.12, 0.08)
_BEGIN = 1_672_531_200  # 2023-01-01 UTC
_DAYS = 365
_FOLLOW = 0.75  # chance that the next item of a session is the follow-up of the one before
_WANDER = 0.15  # chance that a session is in a genre at random
_SESSION = 6  # mean events a session
_SKEW = 3.0  # popularity: rank = size * uniform ** _SKEW
_CHUNK = 1_000_000


@dataclass(frozen=True)
class _World:
    """The items by genre, and what each user likes when.

    Attributes:
        begin, size: int64 ``[genres]``: the items of a genre are ``begin .. begin + size``, most
            popular first.
        chain, place: int64 ``[items]``: a circular order of the items of each genre, and where in
            it an item is; the follow-up of an item is the next one in that order.
        tastes: int16 ``[users, 2]``: the genre before and after the drift.
        drift: float32 ``[users]``: when that is, as a fraction of the whole time.
    """

    begin: NDArray[np.int64]
    size: NDArray[np.int64]
    chain: NDArray[np.int64]
    place: NDArray[np.int64]
    tastes: NDArray[np.int16]
    drift: NDArray[np.float32]

    @classmethod
    def make(cls, rng: np.random.Generator, users: int, items: int) -> _World:
        genres = min(len(GENRES), max(1, items // 4))
        edges = np.linspace(0, items, genres + 1).astype(np.int64)
        begin, size = edges[:-1], np.diff(edges)
        chain = np.concatenate(
            [start + rng.permutation(count) for start, count in zip(begin, size, strict=True)]
        ).astype(np.int64)
        place = np.empty(items, dtype=np.int64)
        place[chain] = np.arange(items)
        tastes = rng.integers(0, genres, (users, 2)).astype(np.int16)
        drift = rng.uniform(0.3, 0.9, users).astype(np.float32)
        return cls(begin, size, chain, place, tastes, drift)

    def start(self, rng: np.random.Generator, genre: NDArray[Any]) -> NDArray[np.int64]:
        """An item of each genre, popular ones more often."""
        rank = (self.size[genre] * rng.random(len(genre)) ** _SKEW).astype(np.int64)
        return np.asarray(self.begin[genre] + rank)

    def sessions(
        self, rng: np.random.Generator, user: NDArray[np.int64], when: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Events of sessions.

        Args:
            rng: source of chance.
            user: int64 ``[sessions]``.
            when: float64 ``[sessions]``, beginning as a fraction of the whole time.

        Returns:
            For each event: user, item, and seconds since the beginning of its session begins.
        """
        count = len(user)
        later = when > self.drift[user]
        genre = np.where(later, self.tastes[user, 1], self.tastes[user, 0]).astype(np.int64)
        wander = rng.random(count) < _WANDER
        genre[wander] = rng.integers(0, len(self.size), int(wander.sum()))
        length = rng.geometric(1 / _SESSION, count)
        session = np.repeat(np.arange(count), length)
        ends = np.cumsum(length)
        step = np.arange(len(session)) - np.repeat(ends - length, length)
        # An event either follows from the one before or starts a new run of the chain; the item is
        # then the start of its run, moved along the chain by the distance from that start.
        fresh = (step == 0) | (rng.random(len(session)) >= _FOLLOW)
        run = np.cumsum(fresh) - 1
        first = np.flatnonzero(fresh)
        item = self.start(rng, genre[session[first]])
        genre_of = genre[session]
        low = self.begin[genre_of]
        moved = self.place[item][run] - low + (np.arange(len(session)) - first[run])
        items = self.chain[low + moved % self.size[genre_of]]
        gaps = rng.exponential(90.0, len(session))
        gaps[step == 0] = 0
        elapsed = np.cumsum(gaps)
        elapsed -= np.repeat(elapsed[ends - length], length)
        return user[session], items, elapsed


def synthetic_log(*, users: int = 2000, items: int = 800, seed: int = 0) -> Log:
    """A small shop of books, made up: views, carts and purchases of a year, with titles.

    Args:
        users: number of users, at least 1.
        items: number of items, at least 1.
        seed: equal seeds make equal logs.

    Returns:
        A log with user and item ids of text, unix times, event types and an item table (title,
        genre), in order of time.

    Raises:
        InputError: a number below 1.
    """
    from seqrec_fast.data.log import log_from_columns

    _check_counts(users=users, items=items)
    rng = np.random.default_rng(seed)
    world = _World.make(rng, users, items)
    visits = 2 + rng.geometric(1 / 5, users)
    who = np.repeat(np.arange(users), visits)
    when = rng.random(len(who))
    user, item, elapsed = world.sessions(rng, who, when)
    length = np.bincount(np.cumsum(elapsed == 0) - 1)
    seconds = _BEGIN + np.repeat(when, length) * _DAYS * 86_400 + elapsed
    order = np.argsort(seconds, kind="stable")
    event = rng.choice(len(EVENT_TYPES), len(user), p=_EVENT_SHARES)
    titles, genres = make_titles(world.size.tolist())
    codes = [f"book-{number + 1:04d}" for number in range(items)]
    log = log_from_columns(
        np.array([f"reader-{number + 1:05d}" for number in range(users)])[user[order]],
        np.array(codes)[item[order]],
        times=seconds[order].astype(np.int64),
        events=np.array(EVENT_TYPES)[event],
        item_table={"item": codes, "title": titles, "genre": genres},
    )
    return log.named(f"synthetic log ({users:,} users, {items:,} items, seed {seed})")


def write_synthetic(
    path: str | os.PathLike[str],
    *,
    rows: int,
    users: int | None = None,
    items: int | None = None,
    seed: int = 0,
    dirty: float = 0.0,
) -> None:
    """Writes a log of any size in bounded memory, in row groups of a million rows.

    Columns: ``user_id`` (int64), ``item_id`` (text), ``event_type`` (text), ``timestamp`` (int64
    unix seconds). Rows are in order of time.

    Args:
        path: ``.parquet``, ``.csv`` or ``.tsv``; an existing file is replaced.
        rows: number of rows, at least 1.
        users: number of users to draw from; by default one for 50 rows.
        items: number of items to draw from; by default one for 500 rows, at least 100.
        seed: equal seeds make equal files.
        dirty: share of rows in [0, 1) to spoil: a third each exact duplicates of another row,
            missing fields, and impossible times.

    Raises:
        InputError: numbers out of range, an unknown kind of file, or a path that cannot be written.
    """
    target = Path(path)
    if target.suffix not in (".parquet", ".csv", ".tsv"):
        raise InputError(f"{target}: unknown kind of file; end the name in .parquet, .csv or .tsv")
    _check_counts(rows=rows)
    users = max(1, rows // 50) if users is None else users
    items = max(100, rows // 500) if items is None else items
    _check_counts(users=users, items=items)
    if isinstance(dirty, bool) or not 0 <= dirty < 1:
        raise InputError(f"dirty: must be a share in [0, 1), found {dirty!r}")
    temporary = target.with_name(f".{target.name}.partial")
    try:
        try:
            _write(temporary, target.suffix, rows, users, items, seed, dirty)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{target}: cannot write there ({error.strerror or error}); give a file in a folder "
            f"that exists, may be written and has space"
        ) from error


def _write(
    temporary: Path, suffix: str, rows: int, users: int, items: int, seed: int, dirty: float
) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    rng = np.random.default_rng(seed)
    world = _World.make(rng, users, items)
    # ids are not dense and not in order of appearance, as in the world outside
    user_ids = np.sort(rng.choice(users * 20 + 1000, users, replace=False)) + 1
    rng.shuffle(user_ids)
    item_ids = pa.array([f"item-{number:07d}" for number in rng.permutation(items) * 7 + 3])
    names = pa.array(EVENT_TYPES)
    schema = pa.schema(
        [
            ("user_id", pa.int64()),
            ("item_id", pa.string()),
            ("event_type", pa.string()),
            ("timestamp", pa.int64()),
        ]
    )
    with open(temporary, "wb") as stream:
        writer: Any
        if suffix == ".parquet":
            writer = pa.parquet.ParquetWriter(stream, schema, compression="zstd")
        else:
            options = pa.csv.WriteOptions(delimiter="," if suffix == ".csv" else "\t")
            writer = pa.csv.CSVWriter(stream, schema, write_options=options)
        with writer:
            for begin in range(0, rows, _CHUNK):
                count = min(_CHUNK, rows - begin)
                span = (begin / rows, (begin + count) / rows)
                table = _chunk(rng, world, count, span, user_ids, item_ids, names, schema)
                writer.write_table(_spoil(rng, table, dirty) if dirty else table)
        stream.flush()
        os.fsync(stream.fileno())


def _chunk(
    rng: np.random.Generator,
    world: _World,
    count: int,
    span: tuple[float, float],
    user_ids: NDArray[np.int64],
    item_ids: pyarrow.Array,
    names: pyarrow.Array,
    schema: pyarrow.Schema,
) -> pyarrow.Table:
    """``count`` events of sessions that begin within ``span`` of the whole time, in order."""
    import pyarrow as pa

    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    found = 0
    while found < count:
        sessions = (count - found) // _SESSION + 100
        # squaring makes some users much more active than others
        who = (len(user_ids) * rng.random(sessions) ** 2).astype(np.int64)
        when = rng.uniform(*span, sessions)
        user, item, elapsed = world.sessions(rng, who, when)
        length = np.bincount(np.cumsum(elapsed == 0) - 1)
        seconds = _BEGIN + np.repeat(when, length) * _DAYS * 86_400 + elapsed
        parts.append((user, item, seconds.astype(np.int64)))
        found += len(user)
    user, item, seconds = (np.concatenate(column)[:count] for column in zip(*parts, strict=True))
    order = np.argsort(seconds, kind="stable")
    event = rng.choice(len(EVENT_TYPES), count, p=_EVENT_SHARES)
    columns = [
        pa.array(user_ids[user[order]]),
        item_ids.take(pa.array(item[order])),
        names.take(pa.array(event)),
        pa.array(seconds[order]),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _spoil(rng: np.random.Generator, table: pyarrow.Table, dirty: float) -> pyarrow.Table:
    """Plants duplicates, missing fields and impossible times in a share of the rows."""
    import pyarrow as pa

    rows = table.num_rows
    source = np.arange(rows)
    kind = np.where(rng.random(rows) < dirty, rng.integers(0, 3, rows), -1)
    kind[0] = -1
    copies = kind == 0
    source[copies] = np.flatnonzero(copies) - 1  # a copy of the row before
    kind[np.flatnonzero(copies) - 1] = -1  # which is left as it is
    table = table.take(pa.array(source))
    column = rng.integers(0, 3, rows)
    columns = []
    for number, name in enumerate(("user_id", "item_id", "event_type", "timestamp")):
        values = table.column(name).combine_chunks()
        if name == "timestamp":
            wrong = np.where(rng.random(rows) < 0.5, -seconds_of(values), 10**11)
            values = pa.array(np.where(kind == 2, wrong, seconds_of(values)))
            number = 2
        elif name == "event_type":
            columns.append(values)
            continue
        blank = pa.array((kind == 1) & (column == number))
        columns.append(pa.compute.if_else(blank, pa.scalar(None, values.type), values))
    return pa.Table.from_arrays(columns, schema=table.schema)


def seconds_of(values: pyarrow.Array) -> NDArray[np.int64]:
    """An int64 column without missing values as numpy."""
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.int64)


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name}: must be an integer of at least 1, found {value!r}")
