# SPDX-License-Identifier: Apache-2.0
"""What every kind that runs on faiss has in common: locks, changes, files.

An index holds its vectors as one float32 table by id, and beside it the structure of faiss (lists,
codes, a graph), whose labels are the same ids. The table answers exactly what faiss cannot: rows
that come out short, a catalogue that is too small to train on, re-ranking, ``vectors``. Where
faiss stores the vectors as they are in one block, the table is a view of that block.

Searches share a lock, changes have it alone: faiss must not be searched while it is changed.
"""

from __future__ import annotations

import copy
import os
import weakref
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock, RLock
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast._arguments import thread_count
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval import faiss_library
from seqrec_fast.retrieval.faiss_search import Plan, exact_search, filtered_search
from seqrec_fast.retrieval.filters import Filters, Indices
from seqrec_fast.retrieval.index import Float, Found, Index, Metric, Rows, first_not_finite
from seqrec_fast.retrieval.options import Options
from seqrec_fast.retrieval.readers_writer import ReadersWriter

__all__ = ["FaissIndex"]

# An array that has to grow grows by this share.
_GROWTH = 8
# An index that follows the number of items is trained again when it has grown so many times.
_RETRAIN = 4


class FaissIndex(Index):
    """A structure of faiss over a table of vectors."""

    #: class of the options
    #: whether a search of faiss takes a mask
    selects: ClassVar[bool] = True
    #: the most that a search of faiss can be asked for
    limit: ClassVar[int | None] = None
    #: whether faiss cannot add to a structure
    _renews_to_add: ClassVar[bool] = False
    #: options that act in a search alone
    _searched: ClassVar[tuple[str, ...]] = ()

    def __init__(self, dim: int, metric: Metric, rows: Rows, options: Options) -> None:
        """Makes an index without items; :func:`seqrec_fast.retrieval.build` fills it."""
        super().__init__(dim, metric, rows)
        self._options: Any = options
        self._faiss = self._library()
        self._lock = ReadersWriter()
        self._counting = Lock()
        self._by_kernel = 0
        self._buffer: Float = np.empty((0, dim), dtype=np.float32)
        self._items = self._buffer  # by id, a view of the buffer or of what faiss holds
        self._structure: Any = None  # None: too few items for one
        self._trained_on = 0
        self._bits: tuple[NDArray[np.bool_], NDArray[np.uint8]] | None = None
        self._sharing: weakref.WeakSet[FaissIndex] = weakref.WeakSet([self])
        _alive.add(self)

    def options(self) -> dict[str, Any]:
        """Arguments of the kind."""
        return dict(self._options.to_dict())

    @property
    def by_kernel(self) -> int:
        """Queries so far that the native kernel answered, because faiss could not fill them.

        Queries with a list of allowed items of their own are among them, and all queries of an
        index with too few items to train on.
        """
        return self._by_kernel

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors and, by its sizes, of the structure of faiss."""
        own = 0 if self._views_faiss() else self._items.nbytes
        return own + (0 if self._structure is None else self._structure_bytes())

    def describe(self) -> dict[str, Any]:
        """Facts as for every index, and ``structure``: what the defaults came to."""
        structure = None if self._structure is None else self._facts()
        return {**super().describe(), "structure": structure}

    def search(
        self,
        queries: ArrayLike,
        k: int,
        exclude: JaggedBatch[Any] | None = None,
        allow: Indices | None = None,
        deny: Indices | None = None,
        threads: int | None = None,
    ) -> Found:
        """The ``k`` best items of every query, see :meth:`Index.search`."""
        with self._lock.reading():
            return super().search(queries, k, exclude, allow, deny, threads)

    def vectors(self, ids: ArrayLike) -> Float:
        """float32 ``[n, dim]``: the vectors of some items, see :meth:`Index.vectors`."""
        with self._lock.reading():
            return super().vectors(ids)

    def tuned(self, **search_options: Any) -> FaissIndex:
        """The same items with other search options; shares all memory.

        Later changes of either index are not seen by the other: whichever is changed while both
        are there copies what it holds first.

        Args:
            search_options: ``nprobe`` of lists, ``ef_search`` of a graph, ``itopk_size`` of one
                on a GPU, see :mod:`seqrec_fast.retrieval.faiss_options`.

        Raises:
            InputError: another option, or a value out of range.
        """
        if not self._searched:
            return super().tuned(**search_options)  # type: ignore[return-value]
        for name in search_options:
            if name not in self._searched:
                raise InputError(
                    f"{name}: only {' and '.join(self._searched)} can be tuned; build anew"
                )
        options = replace(self._options, **search_options)
        with self._writing:
            made = copy.copy(self)
            made._options = options
            made._writing, made._lock, made._counting = RLock(), ReadersWriter(), Lock()
            made._by_kernel = 0
            made.measured = None
            self._sharing.add(made)
            _alive.add(made)
        return made

    # ---------------------------------------------------------------- what a kind defines

    @abstractmethod
    def _smallest(self, items: int) -> int:
        """Items that are needed to make a structure for ``items`` of them."""

    @abstractmethod
    def _made(self, items: Float) -> Any:
        """A structure over items, whose ids are their places."""

    @abstractmethod
    def _probe(
        self, queries: Float, k: int, blocked: NDArray[np.bool_] | None, threads: int | None
    ) -> Found:
        """What faiss finds, by id."""

    @abstractmethod
    def _structure_bytes(self) -> int:
        """Bytes of the structure."""

    def _facts(self) -> dict[str, Any]:
        """What the defaults of the options came to."""
        return {}

    def _add_to(self, first: int, vectors: Float) -> None:
        """Adds vectors with the ids from ``first`` on to the structure."""
        self._structure.add_with_ids(vectors, np.arange(first, first + len(vectors)))

    def _change_in(self, ids: NDArray[np.int64], vectors: Float) -> None:
        """Replaces vectors in the structure."""
        self._structure.remove_ids(ids)
        self._structure.add_with_ids(vectors, ids)

    def _library(self) -> Any:
        """The module, as far as the kind can run on it."""
        return faiss_library.faiss()

    def _views_faiss(self) -> bool:
        """Whether the table is a view of what faiss holds, so that it need not be kept beside."""
        return False

    def _view(self, structure: Any) -> Float | None:
        """The table inside of a structure, where it holds one."""
        return None

    def _follows_size(self) -> bool:
        """Whether the structure should be made anew when the index has grown much."""
        return False

    def _renews_to_change(self, count: int) -> bool:
        """Whether so many new vectors of items need a new structure."""
        return False

    def _refine(self) -> int:
        return 0

    # ---------------------------------------------------------------- search

    def _search(
        self, state: Rows, queries: Float, k: int, filters: Filters, threads: int | None
    ) -> Found:
        if threads is not None:
            threads = thread_count(threads)
        self._check_k(min(k, state.size))
        if self._structure is None:
            found, count = exact_search(self._items, queries, k, filters, threads), len(queries)
        else:
            plan = Plan(self._probe, self.exact, self.selects, self.limit, self._refine())
            found, count = filtered_search(plan, self._items, queries, k, filters, threads)
        if count:
            with self._counting:
                self._by_kernel += count
        return found

    def _check_k(self, k: int) -> None:
        """Raises where faiss cannot be asked for so many."""

    def _gather(self, state: Rows, ids: NDArray[np.int64]) -> Float:
        found: Float = self._items[ids]
        return found

    def _selector(self, blocked: NDArray[np.bool_] | None) -> Any:
        """What faiss takes for a mask."""
        if blocked is None:
            return None
        kept = self._bits
        if kept is not None and kept[0] is blocked:
            return self._faiss.IDSelectorBitmap(kept[1])
        bits = np.packbits(~blocked, bitorder="little")
        if blocked is self._rows.removed:  # used by all searches until something changes
            self._bits = (blocked, bits)
        return self._faiss.IDSelectorBitmap(bits)

    # ---------------------------------------------------------------- changes

    def _part(self) -> None:
        """Makes what is shared with others its own, before it is changed in place."""
        if len(self._sharing) > 1:
            structure = None if self._structure is None else self._cloned()
            items = self._items.copy()
            with self._lock.writing():
                self._structure, self._items, self._buffer = structure, items, items
                self._look()
                self._leave()

    def _cloned(self) -> Any:
        """A copy of the structure."""
        return self._faiss.clone_index(self._structure)

    def _leave(self) -> None:
        self._sharing.discard(self)
        self._sharing = weakref.WeakSet([self])

    def _append(self, vectors: Float, rows: Rows) -> None:
        with faiss_library.safe_after_fork(self._faiss):
            self._append_all(vectors, rows)

    def _append_all(self, vectors: Float, rows: Rows) -> None:
        first = self._rows.size
        anew: tuple[Any, Float] | None = None
        if rows.size >= self._smallest(rows.size) and (
            self._structure is None
            or self._renews_to_add
            or (self._follows_size() and rows.size >= _RETRAIN * self._trained_on)
        ):
            # Beside the old structure, in which others search on meanwhile.
            items = np.concatenate([self._items, vectors])
            anew = self._made(items), items
        else:
            self._part()
        with self._lock.writing():
            if anew is not None:
                self._put(*anew)
            elif self._structure is None or not self._views_faiss():
                self._grow(first, vectors)
                if self._structure is not None:
                    self._add_to(first, vectors)
            else:
                self._add_to(first, vectors)
                self._look()
            self._rows = rows

    def _replace(self, ids: NDArray[np.int64], vectors: Float, rows: Rows) -> None:
        with faiss_library.safe_after_fork(self._faiss):
            self._replace_all(ids, vectors, rows)

    def _replace_all(self, ids: NDArray[np.int64], vectors: Float, rows: Rows) -> None:
        anew: tuple[Any, Float] | None = None
        if self._structure is not None and self._renews_to_change(len(ids)):
            items = self._items.copy()
            items[ids] = vectors
            anew = self._made(items), items
        else:
            self._part()
        with self._lock.writing():
            if anew is not None:
                self._put(*anew)
                self._rows = rows
                return
            if not self._items.flags.writeable:
                self._buffer = self._items = self._items.copy()
            if self._structure is None or not self._views_faiss():
                self._items[ids] = vectors
            if self._structure is not None:
                self._change_in(ids, vectors)
            self._rows = rows

    def _erase(self, ids: NDArray[np.int64], rows: Rows) -> None:
        with self._lock.writing():
            self._rows = rows

    def _grow(self, first: int, vectors: Float) -> None:
        size = first + len(vectors)
        if not self._buffer.flags.writeable or len(self._buffer) < size:
            buffer = np.empty((size + size // _GROWTH, self.dim), dtype=np.float32)
            buffer[:first] = self._items
            self._buffer = buffer
        self._buffer[first:size] = vectors
        self._items = self._buffer[:size]

    def _put(self, structure: Any, items: Float) -> None:
        """Puts a structure over items in place."""
        self._leave()
        self._structure = structure
        self._trained_on = len(items)
        self._items = self._buffer = items
        self._look()

    def _look(self) -> None:
        """Lets the table be what faiss holds, where it holds one."""
        view = None if self._structure is None else self._view(self._structure)
        if view is not None:
            self._items = view
            self._buffer = view[:0]

    # ---------------------------------------------------------------- files

    @classmethod
    def _build(cls, vectors: Float, metric: Metric, options: Mapping[str, Any]) -> FaissIndex:
        made = cls(vectors.shape[1], metric, Rows(0, None, 0), cls.options_class(**options))
        made._check_options()
        if len(vectors):
            # What the caller gave may change later.
            items = vectors if metric == "cosine" else vectors.copy()
            if len(items) >= made._smallest(len(items)):
                with faiss_library.safe_after_fork(made._faiss):
                    made._put(made._made(items), items)
            else:
                made._items = made._buffer = items
            made._rows = Rows(len(items), None, len(items))
        return made

    def _check_options(self) -> None:
        """Raises InputError where options do not fit the width of vectors."""

    @classmethod
    def _restore(
        cls, meta: Mapping[str, Any], rows: Rows, tensors: Mapping[str, NDArray[Any]]
    ) -> FaissIndex:
        made = cls(meta["dim"], meta["metric"], rows, cls.options_class(**meta["options"]))
        made._check_options()
        raw = tensors.get("faiss")
        items = tensors.get("items")
        if items is None and raw is None:
            raise InputError("it has no vectors; it was altered")
        if items is not None:
            if items.dtype != np.float32 or items.shape != (rows.size, made.dim):
                raise InputError(f"its vectors are not float32 [{rows.size}, {made.dim}]")
            bad = first_not_finite(items)
            if bad is not None:
                raise InputError(f"vector {bad} is not finite")
            items = items.view()
            items.flags.writeable = False  # what was given is not its own: a change copies it
            made._items = made._buffer = items
        with faiss_library.safe_after_fork(made._faiss):
            made._take(raw, items, tensors)
        trained = tensors.get("trained_on")
        if trained is not None and trained.dtype == np.int64 and trained.shape == (1,):
            made._trained_on = int(trained[0])
        if made._items.shape != (rows.size, made.dim):
            raise InputError("its vectors do not fit its number of items; it was altered")
        return made

    def _lasting_tensors(self) -> dict[str, NDArray[Any]]:
        found = self._all_tensors()
        if "items" in found:
            # Changes write into the table, and what lies in faiss goes when the index does.
            found["items"] = found["items"].copy()
        return found

    def _tensors(self) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {"trained_on": np.array([self._trained_on], np.int64)}
        if self._structure is None or not self._views_faiss() or self._is_simple():
            tensors["items"] = self._items
        if self._structure is not None and not self._is_simple():
            tensors["faiss"] = self._faiss.serialize_index(self._for_file())
        return tensors

    def _is_simple(self) -> bool:
        """Whether the structure is as soon made as read."""
        return False

    def _for_file(self) -> Any:
        return self._structure

    def _take(
        self, raw: NDArray[Any] | None, items: Float | None, tensors: Mapping[str, NDArray[Any]]
    ) -> None:
        """Puts the structure of a file in place."""
        if raw is None:
            if items is not None and self._is_simple() and len(items):
                self._put(self._made(items), items)
            return
        if raw.dtype != np.uint8 or raw.ndim != 1:
            raise InputError("what it holds of faiss is not bytes; it was altered")
        try:
            found = self._faiss.deserialize_index(np.ascontiguousarray(raw))
        except (RuntimeError, MemoryError) as error:
            raise InputError(f"faiss cannot read it: {' '.join(str(error).split())}") from None
        found = self._from_file(found)
        self._structure = found
        self._look()

    def _from_file(self, found: Any) -> Any:
        """Checks what faiss read, and makes it ready for searches."""
        return found

    def _checked(self, found: Any, name: str, total: int) -> Any:
        """Checks class, width, metric and number of vectors of what faiss read."""
        if (
            type(found).__name__ != name
            or found.d != self.dim
            or found.metric_type != self._faiss.METRIC_INNER_PRODUCT
            or found.ntotal != total
            or not found.is_trained
        ):
            raise InputError(f"what it holds is not the {name} that was written; it was altered")
        return found


# ------------------------------------------------------------------------------ fork

_alive: weakref.WeakSet[FaissIndex] = weakref.WeakSet()
_held: list[FaissIndex] = []


def _before_fork() -> None:
    """Waits for changes that run: a child must not get one that is half made."""
    _held[:] = sorted(_alive, key=id)
    for one in _held:
        one._writing.acquire()


def _after_in_parent() -> None:
    while _held:
        _held.pop()._writing.release()


def _after_in_child() -> None:
    # The threads that searched or waited are not here.
    for one in _held:
        one._writing = RLock()
        one._lock = ReadersWriter()
        one._counting = Lock()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_in_parent,
        after_in_child=_after_in_child,
    )
