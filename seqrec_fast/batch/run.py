# SPDX-License-Identifier: Apache-2.0
"""A batch: chunks of users are read, answered and written, the three at the same time."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.batch.output import Output, check_target
from seqrec_fast.batch.users import Chunk, Users, open_users
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommender
from seqrec_fast.engine.requests import parse_ids, whole_number
from seqrec_fast.engine.rules import items_where
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

__all__ = ["BatchSummary", "recommend_users"]

CHUNK_USERS = 16384
_MAX_ENTRIES = 1 << 22  # answers held at once: users of a chunk times k


@dataclass(frozen=True)
class BatchSummary:
    """What a batch did.

    Attributes:
        out: the file that was written.
        users: rows of the input, or users of the log.
        k: items asked for.
        seconds: from the call to the complete file.
        users_per_second: ``users / seconds``.
        without_known_items: users whose history is empty or holds no known id; they got the most
            popular items.
        events: ids in all histories.
        unknown_ids: how many of them the model does not know; they were ignored.
        unknown_filters: ids of ``allow`` and ``deny`` that the model does not know.
    """

    out: str
    users: int
    k: int
    seconds: float
    users_per_second: float
    without_known_items: int
    events: int
    unknown_ids: int
    unknown_filters: int

    def to_dict(self) -> dict[str, Any]:
        """By name, ready for JSON."""
        return asdict(self)


def recommend_users(
    rec: Recommender,
    users: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    k: int = 100,
    exclude_seen: bool = True,
    allow: Iterable[Any] | None = None,
    deny: Iterable[Any] | None = None,
    where: Mapping[str, Any] | None = None,
    limit: Mapping[str, int] | None = None,
    diversity: float = 0.0,
    flat: bool = False,
    overwrite: bool = False,
    chunk_users: int = CHUNK_USERS,
    user: str | int | None = None,
    item: str | int | None = None,
    time: str | int | None = None,
    memory: str | int = "2GiB",
    threads: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    **reading: Any,
) -> BatchSummary:
    """Recommends to every user of a file and writes the answers to another, in bounded memory.

    Args:
        rec: the model.
        users: Parquet with a row a user (a column of users and one of lists of item ids, oldest
            first), or a log in any form that ``data.read_log`` takes. Several files may be given as
            a list, a folder or a pattern.
        out: the Parquet file to write. It appears when it is complete; after an error, or Ctrl-C,
            nothing is left. With a row a user: the user, ``items``, ``scores``, ``fallback``.
        k: items a user gets; fewer where fewer are left.
        exclude_seen: leave out every item of the history.
        allow: raw ids: recommend these only, to all users.
        deny: raw ids: never these.
        where: a rule over the item table: recommend what it holds for only, to all users.
        limit: column of the item table → how many items of each of its categories a user may get.
        diversity: for models of several interests, as in :meth:`Recommender.recommend`.
        flat: write a row for each user and item instead: user, ``rank`` from 1, ``item``,
            ``score``, ``fallback``.
        overwrite: replace a file at ``out``.
        chunk_users: users in memory at once, at most.
        user: column of users, by name or by number from 0; recognised by its name by default.
        item: column of histories or items; likewise.
        time: column of times of a log; likewise. A log without one is in order already.
        memory: limit of the engine that sorts a log.
        threads: threads of that engine; ``rec`` has its own.
        progress: is told after each chunk: users done, and users in all if that is known.
        reading: further options of ``data.read_log`` for logs of text.

    Returns:
        What was done.

    Raises:
        InputError: an input or output that can't be used; the message names file, column and row.
    """
    began = clock.monotonic()
    wanted = whole_number("k", k)
    size = whole_number("chunk_users", chunk_users)
    source = open_users(
        users, user=user, item=item, time=time, memory=memory, threads=threads, **reading
    )
    if os.path.exists(out) and any(os.path.samefile(out, path) for path in source.files):
        raise InputError(f"{os.fspath(out)}: is the input itself; choose another name")
    target = check_target(out, overwrite)
    vocabulary = Vocabulary(rec.item_ids)
    blocked, unknown_filters = _blocked(vocabulary, allow, deny)
    if where is not None:
        kept = items_where(rec, where)
        blocked = ~kept if blocked is None else blocked | ~kept
        if blocked.all():
            raise InputError(
                f"where: leaves no item that could be recommended ({kept.sum():,} of "
                f"{len(kept):,} meet it); look at its values"
            )
    if limit is not None or diversity:  # refused before the users are read
        nobody = JaggedBatch.from_lists([], dtype=np.int32)
        rec.recommend_arrays(nobody, 1, exclude_seen, limit=limit, diversity=diversity)
    count = min(wanted, rec.num_items)
    size = max(1, min(size, _MAX_ENTRIES // count))
    totals = _Totals()
    output = Output(target, user=source.user, items=vocabulary.ids, flat=flat, overwrite=overwrite)
    with _named(out), output, closing(_Behind()) as writer, closing(
        _Ahead(source, vocabulary, size)
    ) as chunks:  # fmt: skip
        if source.user_type is not None:
            output.start(source.user_type)
        for chunk in chunks:
            first = totals.events == 0
            histories = totals.add(chunk)
            if first and not histories.tokens:
                _check_kinds(source, vocabulary, totals.events)
            answer = rec.recommend_arrays(
                histories, count, exclude_seen, blocked=blocked, limit=limit, diversity=diversity
            )
            writer.submit(output.write, chunk.users, *answer, histories.lengths == 0)
            if progress is not None:
                progress(totals.users, source.total)
        writer.wait()
    seconds = clock.monotonic() - began
    return BatchSummary(
        out=os.fspath(out),
        users=totals.users,
        k=wanted,
        seconds=seconds,
        users_per_second=totals.users / seconds,
        without_known_items=totals.without,
        events=totals.events,
        unknown_ids=totals.unknown,
        unknown_filters=unknown_filters,
    )


class _Totals:
    """Counts of what went through."""

    def __init__(self) -> None:
        self.users = self.without = self.events = self.unknown = 0

    def add(self, chunk: Chunk) -> JaggedBatch[Any]:
        """Counts a chunk; returns its histories without the ids that are unknown."""
        known = chunk.items >= 0
        ends = np.zeros(len(known) + 1, dtype=np.int64)
        np.cumsum(known, out=ends[1:])
        histories: JaggedBatch[Any] = JaggedBatch(chunk.items[known], ends[chunk.offsets])
        self.users += len(chunk.users)
        self.without += int((histories.lengths == 0).sum())
        self.events += len(known)
        self.unknown += len(known) - histories.tokens
        return histories


def _check_kinds(source: Users, vocabulary: Vocabulary, events: int) -> None:
    """Refuses ids of the wrong type, which would give every user the same fallback."""
    if source.kind in (None, vocabulary.kind) or not events:
        return
    words = {"int": "integers", "str": "text"}
    raise InputError(
        f"{source.source}: the column {source.item!r} (item) holds {words[str(source.kind)]} and "
        f"none of its first {events:,} ids is known; the ids of the bundle are "
        f"{words[vocabulary.kind]} such as {vocabulary.ids[0]!r}; convert the column"
    )


def _blocked(
    vocabulary: Vocabulary, allow: Iterable[Any] | None, deny: Iterable[Any] | None
) -> tuple[NDArray[np.bool_] | None, int]:
    """Bool ``[items]``, true for what nobody may get, and the number of unknown ids."""
    if allow is None and deny is None:
        return None, 0
    blocked = np.zeros(len(vocabulary), dtype=np.bool_)
    unknown = 0
    for name, given in (("allow", allow), ("deny", deny)):
        if given is None:
            continue
        codes, _ = parse_ids(name, given, vocabulary)
        known = codes[codes >= 0]
        unknown += len(codes) - len(known)
        if name == "deny":
            blocked[known] = True
        elif len(known):
            inside = np.zeros(len(vocabulary), dtype=np.bool_)
            inside[known] = True
            blocked |= ~inside
        else:
            raise InputError(
                f"allow: none of the {len(codes):,} ids is in the bundle, so that nothing could "
                f"be recommended; give ids as in the log"
            )
    if blocked.all():
        raise InputError("deny: leaves no item that could be recommended; allow more")
    return blocked, unknown


# -------------------------------------------------------------------- side by side


class _Ahead:
    """Reads the next chunk in a thread of its own while the last one is worked on."""

    def __init__(self, source: Users, vocabulary: Vocabulary, size: int) -> None:
        self._source = source
        self._chunks = source.chunks(vocabulary, size)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="seqrec-batch-read")
        self._next: Future[Chunk | None] = self._pool.submit(next, self._chunks, None)

    def __iter__(self) -> Iterator[Chunk]:
        while (chunk := self._next.result()) is not None:
            self._next = self._pool.submit(next, self._chunks, None)
            yield chunk

    def close(self) -> None:
        """Ends the reading, wherever it is."""
        while not self._next.done():
            # again and again: what comes between two steps of the reading is lost on it
            self._source.stop()
            wait([self._next], timeout=0.1)
        # whatever the last read met no longer matters: it ended, or an error is on its way
        with suppress(Exception):
            self._next.result()
        end: Any = self._chunks
        self._pool.submit(end.close).result()
        self._pool.shutdown()


class _Behind:
    """Writes one chunk in a thread of its own while the next one is worked on."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="seqrec-batch-write")
        self._last: Future[None] | None = None

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        """Writes when the chunk before is written; raises what that one met."""
        self.wait()
        self._last = self._pool.submit(write, *arguments)

    def wait(self) -> None:
        """Waits for the last chunk."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def close(self) -> None:
        """Waits for a write that is under way."""
        self._pool.shutdown()


@contextmanager
def _named(out: str | os.PathLike[str]) -> Iterator[None]:
    """Tells an error of the system while writing in one line that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{os.fspath(out)}: cannot be written ({error.strerror or error}); give a file in a "
            f"folder that may be written and has space"
        ) from error
