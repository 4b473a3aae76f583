# SPDX-License-Identifier: Apache-2.0
"""The kinds of index that run on faiss on the CPU."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.faiss_index import FaissIndex
from seqrec_fast.retrieval.faiss_library import openmp_threads
from seqrec_fast.retrieval.faiss_lists import ListsIndex, QuantisedListsIndex
from seqrec_fast.retrieval.faiss_options import FlatOptions, HnswOptions, IvfOptions, IvfPqOptions
from seqrec_fast.retrieval.index import Float, Found, checked_threads

__all__ = ["FlatIndex", "HnswIndex", "IvfIndex", "IvfPqIndex"]


class _CpuIndex(FaissIndex):
    """Searches with a mask as faiss' selector, with as many threads as the call says."""

    def _probe(
        self, queries: Float, k: int, blocked: NDArray[np.bool_] | None, threads: int | None
    ) -> Found:
        with openmp_threads(self._faiss, checked_threads(threads)):
            return Found(*self._structure.search(queries, k, params=self._parameters(blocked, k)))

    @abstractmethod
    def _parameters(self, blocked: NDArray[np.bool_] | None, k: int) -> Any:
        """Search parameters of faiss, with a mask as its selector; ``None``: its own."""


class FlatIndex(_CpuIndex):
    """``IndexFlatIP``: every vector compared."""

    kind: ClassVar[str] = "flat"
    options_class = FlatOptions

    @property
    def exact(self) -> bool:
        """True."""
        return True

    def _smallest(self, items: int) -> int:
        return 1

    def _made(self, items: Float) -> Any:
        made = self._faiss.IndexFlatIP(self.dim)
        made.add(items)
        return made

    def _parameters(self, blocked: NDArray[np.bool_] | None, k: int) -> Any:
        if blocked is None:
            return None
        return self._faiss.SearchParameters(sel=self._selector(blocked))

    def _add_to(self, first: int, vectors: Float) -> None:
        self._structure.add(vectors)

    def _change_in(self, ids: NDArray[np.int64], vectors: Float) -> None:
        self._items[ids] = vectors

    def _views_faiss(self) -> bool:
        return True

    def _view(self, structure: Any) -> Float:
        return _vectors_of(self._faiss, structure)

    def _is_simple(self) -> bool:
        return True

    def _structure_bytes(self) -> int:
        return int(self._structure.ntotal) * self.dim * 4


class IvfIndex(ListsIndex, _CpuIndex):
    """``IndexIVFFlat``: only the lists are looked into whose centroids are near the query."""

    kind: ClassVar[str] = "ivf"
    options_class: ClassVar[Any] = IvfOptions

    def _made(self, items: Float) -> Any:
        made = self._empty(self._options.lists(len(items)))
        seeded(made, self._options.seed)
        with openmp_threads(self._faiss, checked_threads(None)):
            made.train(items)
            made.add_with_ids(items, np.arange(len(items)))
        return made

    def _empty(self, lists: int) -> Any:
        quantizer = self._faiss.IndexFlatIP(self.dim)
        return self._faiss.IndexIVFFlat(
            quantizer, self.dim, lists, self._faiss.METRIC_INNER_PRODUCT
        )

    def _parameters(self, blocked: NDArray[np.bool_] | None, k: int) -> Any:
        return self._faiss.SearchParametersIVF(
            sel=self._selector(blocked), nprobe=self._probes(self._structure.nlist)
        )

    def _from_file(self, found: Any) -> Any:
        return self._checked(found, "IndexIVFFlat", self._rows.size)


class IvfPqIndex(QuantisedListsIndex, IvfIndex):
    """``IndexIVFPQ``: vectors in the lists are a few bytes long; the best are ranked again."""

    kind: ClassVar[str] = "ivfpq"
    options_class: ClassVar[Any] = IvfPqOptions

    def _empty(self, lists: int) -> Any:
        options = self._options
        return self._faiss.IndexIVFPQ(
            self._faiss.IndexFlatIP(self.dim),
            self.dim,
            lists,
            options.parts(self.dim),
            options.nbits,
            self._faiss.METRIC_INNER_PRODUCT,
        )

    def _from_file(self, found: Any) -> Any:
        return self._checked(found, "IndexIVFPQ", self._rows.size)


class HnswIndex(_CpuIndex):
    """``IndexHNSWFlat``: a walk through a graph.

    faiss cannot take a vector out of a graph: a new vector of an item is added with a label of
    its own, and the old one is hidden. Before half of all are hidden, the graph is made anew.
    """

    kind: ClassVar[str] = "hnsw"
    options_class = HnswOptions
    _searched: ClassVar[tuple[str, ...]] = ("ef_search",)
    #: by place in the graph: the id, or -1 where the vector was replaced; None: places are ids
    _labels: NDArray[np.int64] | None = None

    def _smallest(self, items: int) -> int:
        return 1

    def _made(self, items: Float) -> Any:
        options, faiss = self._options, self._faiss
        made = faiss.IndexHNSWFlat(self.dim, options.m, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efConstruction = options.ef_construction
        made.hnsw.rng = faiss.RandomGenerator(options.seed)
        with openmp_threads(faiss, options.build_threads):
            made.add(items)
        return made

    def _probe(
        self, queries: Float, k: int, blocked: NDArray[np.bool_] | None, threads: int | None
    ) -> Found:
        labels = self._labels
        if labels is None:
            return super()._probe(queries, k, blocked, threads)
        hidden = labels < 0
        if blocked is not None:
            hidden |= blocked[labels]
        found = super()._probe(queries, k, hidden, threads)
        return Found(found.scores, np.where(found.ids >= 0, labels[found.ids], -1))

    def _parameters(self, blocked: NDArray[np.bool_] | None, k: int) -> Any:
        return self._faiss.SearchParametersHNSW(
            sel=self._selector(blocked), efSearch=max(k, self._options.ef_search)
        )

    def _put(self, structure: Any, items: Float) -> None:
        self._labels = None
        super()._put(structure, items)

    def _add_to(self, first: int, vectors: Float) -> None:
        with openmp_threads(self._faiss, self._options.build_threads):
            self._structure.add(vectors)
        if self._labels is not None:
            fresh = np.arange(first, first + len(vectors))
            self._labels = np.concatenate([self._labels, fresh])

    def _renews_to_change(self, count: int) -> bool:
        return int(self._structure.ntotal) + count > 2 * len(self._items)

    def _change_in(self, ids: NDArray[np.int64], vectors: Float) -> None:
        if self._labels is None:
            # From here on places are not ids, and the table is kept beside.
            self._items = self._buffer = self._items.copy()
            self._items[ids] = vectors
            self._labels = np.arange(len(self._items))
        labels = self._labels.copy()
        labels[np.isin(labels, ids)] = -1
        with openmp_threads(self._faiss, self._options.build_threads):
            self._structure.add(vectors)
        self._labels = np.concatenate([labels, ids])

    def _views_faiss(self) -> bool:
        return self._labels is None

    def _view(self, structure: Any) -> Float | None:
        if self._labels is not None:
            return None
        return _vectors_of(self._faiss, self._faiss.downcast_index(structure.storage))

    def _tensors(self) -> dict[str, NDArray[Any]]:
        tensors = super()._tensors()
        if self._labels is not None:
            tensors["labels"] = self._labels
        return tensors

    def _take(
        self, raw: NDArray[Any] | None, items: Float | None, tensors: Mapping[str, NDArray[Any]]
    ) -> None:
        labels = tensors.get("labels")
        if labels is not None:
            if labels.dtype != np.int64 or labels.ndim != 1 or items is None:
                raise InputError("its labels are not int64 beside vectors; it was altered")
            kept = labels[labels >= 0]
            if len(np.unique(kept)) != self.size or (len(kept) and kept.max() != self.size - 1):
                raise InputError("its labels do not name each item once; it was altered")
            self._labels = np.array(labels)
        super()._take(raw, items, tensors)

    def _from_file(self, found: Any) -> Any:
        total = self.size if self._labels is None else len(self._labels)
        self._checked(found, "IndexHNSWFlat", total)
        storage = self._faiss.downcast_index(found.storage)
        if type(storage).__name__ not in ("IndexFlat", "IndexFlatIP") or storage.ntotal != total:
            raise InputError("its graph does not hold its vectors; it was altered")
        return found

    def _structure_bytes(self) -> int:
        made = self._structure
        links = int(made.hnsw.neighbors.size()) * 4 + int(made.hnsw.offsets.size()) * 8
        return links + int(made.ntotal) * self.dim * 4

    def _facts(self) -> dict[str, Any]:
        stale = 0 if self._labels is None else int(np.count_nonzero(self._labels < 0))
        return {"replaced": stale}


def seeded(made: Any, seed: int) -> None:
    """Gives k-means its seed, and lets it take few vectors without a warning."""
    for one in (made, getattr(made, "pq", None)):
        if one is not None:
            one.cp.seed = seed
            one.cp.min_points_per_centroid = 1


def _vectors_of(faiss: Any, storage: Any) -> Float:
    """A view of the vectors in a flat index; valid until it is added to."""
    total, dim = int(storage.ntotal), int(storage.d)
    if not total:
        return np.empty((0, dim), dtype=np.float32)
    found: Float = faiss.rev_swig_ptr(storage.get_xb(), total * dim).reshape(total, dim)
    return found
