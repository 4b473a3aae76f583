# SPDX-License-Identifier: Apache-2.0
"""The kinds of index that run on faiss on a GPU.

faiss on a GPU takes no masks and finds at most 2048 items a query: what filters hide is asked for
in addition and left out here, and answers that stay short come from the native kernel, as does
everything while a catalogue is too small to train on. Without a GPU nothing is built at all.

One thread at a time may use the memory that faiss keeps for its work on a GPU, so searches of one
index queue for it; a batch of queries is the way to use a GPU well.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import DeviceError, InputError
from seqrec_fast.retrieval import faiss_library
from seqrec_fast.retrieval.faiss_index import FaissIndex
from seqrec_fast.retrieval.faiss_kinds import seeded
from seqrec_fast.retrieval.faiss_lists import ListsIndex, QuantisedListsIndex
from seqrec_fast.retrieval.faiss_options import (
    GpuCagraOptions,
    GpuFlatOptions,
    GpuIvfOptions,
    GpuIvfPqOptions,
)
from seqrec_fast.retrieval.index import Float, Found, Metric, Rows
from seqrec_fast.retrieval.options import Options

__all__ = ["GpuCagraIndex", "GpuFlatIndex", "GpuIvfIndex", "GpuIvfPqIndex"]

# What faiss can select, and lists that it can look into, for one query on a GPU.
_MOST = 2048


class _GpuIndex(FaissIndex):
    selects: ClassVar[bool] = False
    limit: ClassVar[int | None] = _MOST
    #: the kind that does the same without limits
    on_cpu: ClassVar[str]

    def __init__(self, dim: int, metric: Metric, rows: Rows, options: Options) -> None:
        super().__init__(dim, metric, rows, options)
        self._process = os.getpid()
        self._using = RLock()
        # Kept as long as the index, which uses it without owning it.
        with self._device():
            self._resources = self._faiss.StandardGpuResources()

    def _library(self) -> Any:
        return faiss_library.require_gpu(self.kind, self._options.device)

    @contextmanager
    def _device(self) -> Iterator[None]:
        """The GPU for one thread; what fails there is told as an error of the device."""
        if os.getpid() != self._process:
            raise DeviceError(
                f"kind {self.kind!r}: a GPU cannot be used by a process forked from the one that "
                f"built the index; load it in the new process, or start that with 'spawn'"
            )
        with self._using:
            try:
                yield
            except RuntimeError as error:
                raise DeviceError(
                    f"kind {self.kind!r}: faiss failed on GPU {self._options.device}: "
                    f"{' '.join(str(error).split())}"
                ) from None

    def _check_k(self, k: int) -> None:
        assert self.limit is not None
        if k > self.limit:
            raise InputError(
                f"k: found {k}, but kind {self.kind!r} finds at most {self.limit} items a query; "
                f"use kind={self.on_cpu!r}, which has no limit"
            )

    @abstractmethod
    def _empty(self, lists: int) -> Any:
        """A structure on the GPU that holds nothing yet."""

    def _configured(self, name: str) -> Any:
        config = getattr(self._faiss, name)()
        config.device = self._options.device
        return config

    def _probe(
        self, queries: Float, k: int, blocked: NDArray[np.bool_] | None, threads: int | None
    ) -> Found:
        with self._device():
            return Found(*self._structure.search(np.ascontiguousarray(queries), k))

    def _renews_to_change(self, count: int) -> bool:
        return True  # faiss cannot take vectors out on a GPU

    def _for_file(self) -> Any:
        with self._device():
            return self._faiss.index_gpu_to_cpu(self._structure)

    def _copied(self, found: Any, lists: int) -> Any:
        """What was read from a file, on the GPU."""
        with self._device():
            made = self._empty(lists)
            made.copyFrom(found)
        return made


class GpuFlatIndex(_GpuIndex):
    """``GpuIndexFlatIP``: every vector compared."""

    kind: ClassVar[str] = "gpu-flat"
    on_cpu: ClassVar[str] = "flat"
    options_class = GpuFlatOptions

    @property
    def exact(self) -> bool:
        """Whether the GPU compares float32 vectors."""
        return not self._options.float16

    def _smallest(self, items: int) -> int:
        return 1

    def _refine(self) -> int:
        return 2 if self._options.float16 else 0

    def _empty(self, lists: int) -> Any:
        config = self._configured("GpuIndexFlatConfig")
        config.useFloat16 = self._options.float16
        return self._faiss.GpuIndexFlatIP(self._resources, self.dim, config)

    def _made(self, items: Float) -> Any:
        with self._device():
            made = self._empty(0)
            made.add(items)
        return made

    def _add_to(self, first: int, vectors: Float) -> None:
        with self._device():
            self._structure.add(vectors)

    def _is_simple(self) -> bool:
        return True

    def _structure_bytes(self) -> int:
        return int(self._structure.ntotal) * self.dim * (2 if self._options.float16 else 4)


class GpuIvfIndex(ListsIndex, _GpuIndex):
    """``GpuIndexIVFFlat``: the lists whose centroids are near the query."""

    kind: ClassVar[str] = "gpu-ivf"
    on_cpu: ClassVar[str] = "ivf"
    options_class: ClassVar[Any] = GpuIvfOptions

    def _empty(self, lists: int) -> Any:
        config = self._configured("GpuIndexIVFFlatConfig")
        config.flatConfig.useFloat16 = self._options.float16
        return self._with_probes(
            self._faiss.GpuIndexIVFFlat(
                self._resources, self.dim, lists, self._faiss.METRIC_INNER_PRODUCT, config
            ),
            lists,
        )

    def _with_probes(self, made: Any, lists: int) -> Any:
        made.nprobe = self._probes(lists)
        return made

    def _probes(self, lists: int) -> int:
        return min(_MOST, super()._probes(lists))

    def _probe(
        self, queries: Float, k: int, blocked: NDArray[np.bool_] | None, threads: int | None
    ) -> Found:
        with self._device():
            # An index that shares the structure may look into another number of lists.
            self._with_probes(self._structure, int(self._structure.nlist))
            return super()._probe(queries, k, blocked, threads)

    def _cloned(self) -> Any:
        return self._from_file(self._for_file())

    def _made(self, items: Float) -> Any:
        with self._device():
            made = self._empty(self._options.lists(len(items)))
            seeded(made, self._options.seed)
            made.train(items)
            made.add_with_ids(items, np.arange(len(items)))
        return made

    def _add_to(self, first: int, vectors: Float) -> None:
        with self._device():
            super()._add_to(first, vectors)

    def _from_file(self, found: Any) -> Any:
        self._checked(found, "IndexIVFFlat", self.size)
        return self._with_probes(self._copied(found, found.nlist), found.nlist)


class GpuIvfPqIndex(QuantisedListsIndex, GpuIvfIndex):
    """``GpuIndexIVFPQ``: the same with vectors of a few bytes; the best are ranked again."""

    kind: ClassVar[str] = "gpu-ivfpq"
    on_cpu: ClassVar[str] = "ivfpq"
    options_class: ClassVar[Any] = GpuIvfPqOptions

    def _empty(self, lists: int) -> Any:
        options = self._options
        config = self._configured("GpuIndexIVFPQConfig")
        config.useFloat16LookupTables = options.float16
        return self._with_probes(
            self._faiss.GpuIndexIVFPQ(
                self._resources,
                self.dim,
                lists,
                options.parts(self.dim),
                options.nbits,
                self._faiss.METRIC_INNER_PRODUCT,
                config,
            ),
            lists,
        )

    def _check_k(self, k: int) -> None:
        super()._check_k(k)
        most = _MOST // max(1, self._options.refine)
        if k > most:
            raise InputError(
                f"k: found {k}, but kind {self.kind!r} ranks k * refine = "
                f"{k * self._options.refine} candidates again and faiss finds at most {_MOST} on "
                f"a GPU; take refine={_MOST // k}, or kind={self.on_cpu!r}, which has no limit"
            )

    def _from_file(self, found: Any) -> Any:
        self._checked(found, "IndexIVFPQ", self.size)
        return self._with_probes(self._copied(found, found.nlist), found.nlist)


class GpuCagraIndex(_GpuIndex):
    """``GpuIndexCagra``: a walk through a graph, of builds with cuVS. A change builds it anew."""

    kind: ClassVar[str] = "gpu-cagra"
    on_cpu: ClassVar[str] = "hnsw"
    options_class = GpuCagraOptions
    _searched: ClassVar[tuple[str, ...]] = ("itopk_size",)
    # What the search that is chosen for few queries can keep as candidates.
    limit: ClassVar[int | None] = 512
    _renews_to_add: ClassVar[bool] = True

    def _smallest(self, items: int) -> int:
        return int(self._options.intermediate_graph_degree) + 1

    def _empty(self, lists: int) -> Any:
        config = self._configured("GpuIndexCagraConfig")
        config.graph_degree = self._options.graph_degree
        config.intermediate_graph_degree = self._options.intermediate_graph_degree
        return self._faiss.GpuIndexCagra(
            self._resources, self.dim, self._faiss.METRIC_INNER_PRODUCT, config
        )

    def _made(self, items: Float) -> Any:
        with self._device():
            made = self._empty(0)
            made.train(items)  # builds the graph over what it is trained on
        return made

    def _probe(
        self, queries: Float, k: int, blocked: NDArray[np.bool_] | None, threads: int | None
    ) -> Found:
        assert self.limit is not None
        kept = min(self.limit, -(-max(k, self._options.itopk_size) // 32) * 32)
        params = self._faiss.SearchParametersCagra(itopk_size=kept)
        with self._device():
            return Found(*self._structure.search(np.ascontiguousarray(queries), k, params=params))

    def _from_file(self, found: Any) -> Any:
        return self._copied(self._checked(found, "IndexHNSWCagra", self.size), 0)

    def _structure_bytes(self) -> int:
        return int(self._structure.ntotal) * 4 * (self.dim + int(self._options.graph_degree))
