# SPDX-License-Identifier: Apache-2.0
"""What every index has in common: checked arguments, stable ids, filters, and a file.

An item's id is its place among all vectors that were ever added: ids are given out once, in
ascending order, and never move. A removed item keeps its id, is never found, and can be brought
back by :meth:`Index.update`. So whoever keeps things by item index (a vocabulary, a table of
titles, a model) stays in step with an index that changes.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast import native
from seqrec_fast._arguments import MOST_PLACES, integer
from seqrec_fast._files import checked_path
from seqrec_fast._native_filters import ItemSet
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.filters import (
    Filter,
    Filters,
    Indices,
    common_set,
    item_ids,
    read_filters,
)
from seqrec_fast.retrieval.options import Options
from seqrec_fast.retrieval.storage import as_tensors, write_index

__all__ = ["METRICS", "Found", "Index", "Metric", "Rows", "checked_k", "vector_rows"]

Metric = Literal["ip", "cosine"]
METRICS: tuple[Metric, ...] = ("ip", "cosine")

Float = NDArray[np.float32]


class Found(NamedTuple):
    """What a search found: float32 scores and int64 ids, both ``[queries, k]``."""

    scores: Float
    ids: NDArray[np.int64]


class Rows(NamedTuple):
    """Which ids there are; never changes, so that a search holds on to one.

    Attributes:
        size: ids that were given out: 0 to ``size - 1``.
        removed: bool ``[size]``, or ``None`` where nothing was removed.
        live: items that are left.
    """

    size: int
    removed: NDArray[np.bool_] | None
    live: int


class Index(ABC):
    """Item vectors that can be searched, changed, described and saved.

    Any number of threads may search at once, also while another thread changes the index: a
    search answers from the items as they were before the change or as they are after it.
    """

    kind: ClassVar[str]
    options_class: ClassVar[type[Options]]

    #: Facts that travel with the index, ready for JSON: what :mod:`seqrec_fast.retrieval.tuning`
    #: measured and on what. They tell of the items as they were then.
    measured: dict[str, Any] | None = None

    def __init__(self, dim: int, metric: Metric, rows: Rows) -> None:
        self._dim = dim
        self._metric: Metric = metric
        self._rows = rows
        self._writing = threading.RLock()

    # ---------------------------------------------------------------- facts

    def __len__(self) -> int:
        """Items that can be found."""
        return self._rows.live

    @property
    def size(self) -> int:
        """Ids that were given out, those of removed items too: every id is below this."""
        return self._rows.size

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def metric(self) -> Metric:
        """``"ip"`` or ``"cosine"``."""
        return self._metric

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory (or of a mapped file) that hold the items, as far as they are known."""

    @property
    def exact(self) -> bool:
        """Whether a search is sure to find the best items, by the vectors that were given."""
        return False

    def describe(self) -> dict[str, Any]:
        """Facts, ready for JSON: ``kind, metric, items, removed, dim, bytes, exact, options``."""
        rows = self._rows
        return {
            "kind": self.kind,
            "metric": self.metric,
            "items": rows.live,
            "removed": rows.size - rows.live,
            "dim": self.dim,
            "bytes": self.nbytes,
            "exact": self.exact,
            "options": self.options(),
        }

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What the index was built with: arguments of :func:`seqrec_fast.retrieval.build`."""

    def tuned(self, **search_options: Any) -> Index:
        """The same items searched with other parameters: more work for more recall, or less.

        What comes back shares the data with this index and is made in no time; whichever of the two
        is changed first makes a copy for itself.

        Args:
            search_options: those of the kind that act in a search alone, such as ``nprobe``.

        Raises:
            InputError: the kind has no such option.
        """
        raise InputError(
            f"options of kind {self.kind!r}: it has none that act in a search alone, found "
            f"{', '.join(search_options) or 'nothing'}"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind}, {len(self)} items of {self.dim})"

    # ---------------------------------------------------------------- search

    def search(
        self,
        queries: ArrayLike,
        k: int,
        exclude: JaggedBatch[Any] | None = None,
        allow: Indices | None = None,
        deny: Indices | None = None,
        threads: int | None = None,
    ) -> Found:
        """The ``k`` best items of every query.

        Args:
            queries: float ``[queries, dim]``, finite. With metric ``"cosine"`` they need not be
                normalised; a zero vector, query or item, has the similarity 0 to everything.
            k: how many items a query gets, at least 1; may exceed the number of items.
            exclude: item ids to leave out, one row a query.
            allow: the only items to find: ids, a bool mask ``[size]`` or a :class:`Filter`, for
                all queries; or a :class:`JaggedBatch` of ids, one row a query. An empty list
                allows nothing.
            deny: items that may not be found, in the same forms.
            threads: cores to use at most; ``None`` takes those of the library.

        Returns:
            Scores float32 ``[queries, k]`` descending, equal ones by ascending id, and ids int64
            ``[queries, k]``; ``-inf`` and ``-1`` where fewer items can be found.

        Raises:
            InputError: an argument has the wrong type, shape or range; the message names it.
        """
        vectors = self._prepared("queries", queries)
        wanted = checked_k(k, len(vectors), self.size)
        state = self._state()
        filters = read_filters(len(vectors), state.size, state.removed, exclude, allow, deny)
        return self._search(state, vectors, wanted, filters, threads)

    def filter(
        self, allow: ArrayLike | Filter | None = None, deny: ArrayLike | Filter | None = None
    ) -> Filter:
        """A filter for many searches: its ids are checked and laid out once.

        Args:
            allow: the only items to find, as ids, a bool mask or a filter; ``None``: all.
            deny: items that may not be found, in the same forms.

        Returns:
            What :meth:`search` takes as ``allow``. Removals are seen to at each search; after
            :meth:`add` a filter has to be made again.

        Raises:
            InputError: not integers, an id out of range, or lists of single queries.
        """
        for name, listed in (("allow", allow), ("deny", deny)):
            if isinstance(listed, JaggedBatch):
                raise InputError(f"{name}: lists of single queries belong to the search")
        size = self._state().size
        return Filter(common_set(size, None, allow, deny) or ItemSet(size))

    def vectors(self, ids: ArrayLike) -> Float:
        """float32 ``[n, dim]``: the vectors of some items as they are searched.

        They have unit length where the metric is the cosine. An index that stores vectors in fewer
        bits gives back what it stores; see its options.

        Args:
            ids: int ``[n]``; removed items may be asked for too.

        Raises:
            InputError: an id that was never given out.
        """
        state = self._state()
        return self._gather(state, item_ids("ids", ids, state.size))

    # ---------------------------------------------------------------- changes

    def add(self, vectors: ArrayLike) -> NDArray[np.int64]:
        """Adds items at the end.

        Args:
            vectors: float ``[n, dim]``, finite.

        Returns:
            int64 ``[n]``: their ids, from the former :attr:`size` on.

        Raises:
            InputError: vectors of another width or not finite; nothing is added then.
        """
        rows = self._prepared("vectors", vectors)
        with self._writing:
            first = self._rows.size
            if len(rows):
                removed = self._rows.removed
                if removed is not None:
                    removed = np.concatenate([removed, np.zeros(len(rows), dtype=np.bool_)])
                self._append(rows, Rows(first + len(rows), removed, self._rows.live + len(rows)))
        return np.arange(first, first + len(rows), dtype=np.int64)

    def update(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        """Gives items new vectors; a removed item is found again.

        Args:
            ids: int ``[n]``, each once.
            vectors: float ``[n, dim]``, finite.

        Raises:
            InputError: an id that was never given out or stands there twice, or vectors that do
                not fit; nothing changes then.
        """
        rows = self._prepared("vectors", vectors)
        with self._writing:
            chosen = item_ids("ids", ids, self._rows.size)
            if len(chosen) != len(rows):
                raise InputError(
                    f"vectors: expected one row for each of the {len(chosen)} ids, found "
                    f"{len(rows)} rows"
                )
            if len(np.unique(chosen)) != len(chosen):
                values, counts = np.unique(chosen, return_counts=True)
                raise InputError(f"ids: item {int(values[np.argmax(counts > 1)])} stands twice")
            if len(chosen):
                removed = self._rows.removed
                if removed is not None:
                    removed = removed.copy()
                    removed[chosen] = False
                self._replace(chosen, rows, _counted(self._rows.size, removed))

    def remove(self, ids: ArrayLike) -> int:
        """Takes items out: no search finds them any more. Their ids are not given out again.

        Args:
            ids: int ``[n]``; what is removed already may be among them.

        Returns:
            How many items were there until now.

        Raises:
            InputError: an id that was never given out; nothing is removed then.
        """
        with self._writing:
            chosen = np.unique(item_ids("ids", ids, self._rows.size))
            before = self._rows.removed
            removed = np.zeros(self._rows.size, np.bool_) if before is None else before.copy()
            gone = chosen[~removed[chosen]]
            if len(gone):
                removed[gone] = True
                self._erase(gone, _counted(self._rows.size, removed))
            return len(gone)

    # ---------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index to one file, which appears whole or not at all.

        :func:`seqrec_fast.retrieval.load` reads it back.

        Args:
            path: the file; one that is there is replaced.

        Raises:
            InputError: the system refused (no space, no permission); what was there stays.
        """
        with self._writing:
            write_index(checked_path(path, "index"), self._meta(), self._all_tensors())

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """The contents of the file as tensors, to be kept inside another one.

        They stay what they are when the index changes or is let go.

        :func:`seqrec_fast.retrieval.from_tensors` makes the index again.
        """
        with self._writing:
            return as_tensors(self._meta(), self._lasting_tensors())

    def _meta(self) -> dict[str, Any]:
        """The facts that a file holds."""
        meta = {
            "kind": self.kind,
            "metric": self.metric,
            "dim": self.dim,
            "size": self._rows.size,
            "options": self.options(),
        }
        return meta if self.measured is None else {**meta, "measured": self.measured}

    def _all_tensors(self) -> dict[str, NDArray[Any]]:
        """The tensors that a file holds, with the mask of what is removed."""
        removed = self._rows.removed
        return self._tensors() if removed is None else {**self._tensors(), "removed": removed}

    def _lasting_tensors(self) -> dict[str, NDArray[Any]]:
        """The same as arrays that stay what they are, whatever becomes of the index."""
        return self._all_tensors()

    # ---------------------------------------------------------------- what a kind defines

    @classmethod
    @abstractmethod
    def _build(cls, vectors: Float, metric: Metric, options: Mapping[str, Any]) -> Index:
        """An index over checked rows (of unit length for the cosine)."""

    @classmethod
    @abstractmethod
    def _restore(
        cls, meta: Mapping[str, Any], rows: Rows, tensors: Mapping[str, NDArray[Any]]
    ) -> Index:
        """The index that :meth:`_tensors` described; raises InputError where they do not fit."""

    @abstractmethod
    def _tensors(self) -> dict[str, NDArray[Any]]:
        """What a file holds beside the facts."""

    @abstractmethod
    def _search(
        self, state: Any, queries: Float, k: int, filters: Filters, threads: int | None
    ) -> Found:
        """Searches the items as ``state`` holds them; all arguments are checked."""

    @abstractmethod
    def _gather(self, state: Any, ids: NDArray[np.int64]) -> Float:
        """Vectors by id."""

    @abstractmethod
    def _append(self, vectors: Float, rows: Rows) -> None:
        """Adds vectors and puts ``rows`` in place; the lock for writers is held."""

    @abstractmethod
    def _replace(self, ids: NDArray[np.int64], vectors: Float, rows: Rows) -> None:
        """Replaces vectors (some perhaps of removed items) and puts ``rows`` in place."""

    def _check(self, vectors: Float, numbers: Sequence[int] | NDArray[np.int64]) -> None:
        """Raises InputError where a finite vector can't be held; messages name its number."""
        del vectors, numbers  # most kinds hold all of them

    def _erase(self, ids: NDArray[np.int64], rows: Rows) -> None:
        """Puts ``rows`` in place, in which ``ids`` are removed; vectors may stay where they are."""
        self._rows = rows

    def _state(self) -> Any:
        """What a search holds on to: has ``size`` and ``removed``; by default the :class:`Rows`."""
        return self._rows

    def _prepared(self, name: str, given: ArrayLike) -> Float:
        """Rows of this index' width, of unit length for the cosine."""
        rows = vector_rows(name, given)
        if rows.shape[1] != self._dim:
            raise InputError(
                f"{name}: expected {self._dim} columns like the index, found {rows.shape[1]}"
            )
        return unit_rows(rows) if self._metric == "cosine" else rows


def _counted(size: int, removed: NDArray[np.bool_] | None) -> Rows:
    if removed is None or not removed.any():
        return Rows(size, None, size)
    return Rows(size, removed, size - int(np.count_nonzero(removed)))


def checked_k(k: int, queries: int, size: int) -> int:
    """How many items a query gets, of which there may be fewer.

    Raises:
        InputError: not a whole number of at least 1, or results that fit no memory.
    """
    wanted = integer("k", k)
    if wanted * queries >= MOST_PLACES:
        raise InputError(
            f"k: {wanted:,} places for each of {queries:,} queries take more memory than there is; "
            f"the {size:,} items are enough"
        )
    return wanted


def vector_rows(name: str, given: ArrayLike) -> Float:
    """Checked float32 rows, contiguous; not copied where they are that already.

    Raises:
        InputError: not ``[rows, dim]``, not real numbers, or a row that is not finite in float32.
    """
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected an array of numbers, found uneven rows") from None
    if array.ndim != 2:
        raise InputError(f"{name}: expected two dimensions [rows, dim], found shape {array.shape}")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: expected floating-point numbers, found {array.dtype}")
    with np.errstate(over="ignore"):  # what does not fit into float32 is refused below
        rows = np.ascontiguousarray(array, dtype=np.float32)
    bad = first_not_finite(rows)
    if bad is not None:
        raise InputError(f"{name}: row {bad} is not finite in float32; remove or repair it")
    return rows


def first_not_finite(rows: Float | NDArray[np.uint16]) -> int | None:
    """The first row that holds NaN or infinity; looks at a bounded part at a time.

    Args:
        rows: ``[rows, dim]``, float32 or the bits of bfloat16 numbers.
    """
    if len(rows) == 1:  # what a live request is
        return None if _finite(rows).all() else 0
    step = max(1, 2**18 // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        finite = _finite(rows[begin : begin + step]).all(axis=1)
        if not finite.all():
            return begin + int(np.argmin(finite))
    return None


def _finite(rows: NDArray[Any]) -> NDArray[np.bool_]:
    if rows.dtype == np.uint16:  # the exponent of infinity and NaN has all bits
        found: NDArray[np.bool_] = (rows & np.uint16(0x7F80)) != 0x7F80
        return found
    finite: NDArray[np.bool_] = np.isfinite(rows)
    return finite


def unit_rows(rows: Float) -> Float:
    """Rows of length 1; a row of zeros stays. In float64, so that nothing over- or underflows.

    A row whose length is 1 up to the rounding of float32 stays bit for bit, so that doing it twice
    is doing it once.
    """
    found = np.empty(rows.shape, dtype=np.float32)
    step = max(1, 2**18 // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        wide = rows[begin : begin + step].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        keep = (norms == 0) | (np.abs(norms - 1.0) <= 2.0**-23)
        found[begin : begin + step] = wide / np.where(keep, 1.0, norms)[:, None]
    return found


def checked_threads(threads: int | None) -> int:
    """Cores that a call may use: ``threads``, or the default of the library."""
    return native.get_num_threads() if threads is None else integer("threads", threads)
