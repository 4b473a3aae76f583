# SPDX-License-Identifier: Apache-2.0
"""Options of the kinds that run on faiss. What is ``None`` follows from the number of items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from seqrec_fast._arguments import integer
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.options import Options

__all__ = [
    "FlatOptions",
    "GpuCagraOptions",
    "GpuFlatOptions",
    "GpuIvfOptions",
    "GpuIvfPqOptions",
    "HnswOptions",
    "IvfOptions",
    "IvfPqOptions",
]

# Vectors that k-means should have for each centroid.
_PER_LIST = 39
# What faiss takes on a GPU as the number of parts of a vector.
_GPU_PARTS = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)


@dataclass(frozen=True)
class FlatOptions(Options):
    """``kind="flat"`` has no options: every vector is compared."""


@dataclass(frozen=True)
class IvfOptions(Options):
    """Options of ``kind="ivf"``: vectors in lists by their nearest centroid.

    Attributes:
        nlist: number of lists; ``None``: 4 √items, at most one for 39 items. An index that has
            grown fourfold is trained again then.
        nprobe: lists that a search looks into; ``None``: a 16th of them, at least 8.
        seed: of k-means.
    """

    nlist: int | None = None
    nprobe: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _whole(self, "nlist", "nprobe")
        _seed(self.seed)

    def lists(self, items: int) -> int:
        """Lists for that many items."""
        if self.nlist is not None:
            return self.nlist
        return max(1, min(int(4 * math.sqrt(items)), items // _PER_LIST))

    def probes(self, lists: int) -> int:
        """Lists to look into."""
        return min(lists, max(8, -(-lists // 16)) if self.nprobe is None else self.nprobe)


@dataclass(frozen=True)
class IvfPqOptions(IvfOptions):
    """Options of ``kind="ivfpq"``: lists of vectors in a few bytes, product quantised.

    Attributes:
        nlist: as for ``ivf``.
        nprobe: as for ``ivf``.
        m: parts of a vector, each stored in ``nbits``; must divide ``dim``. ``None``: half of
            ``dim``, or the next smaller divisor.
        nbits: 4 to 12, 8 on a GPU; training needs ``2 ** nbits`` vectors.
        refine: ``k * refine`` candidates are ranked again by their vectors, so that scores are
            exact; 0: the approximate scores are final, and the vectors are only read where faiss
            cannot fill an answer.
        seed: of k-means.
    """

    m: int | None = None
    nbits: int = 8
    refine: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole(self, "m", "nbits")
        if not 4 <= self.nbits <= 12:
            raise InputError(f"nbits: expected 4 to 12, found {self.nbits}")
        refine: object = self.refine
        if isinstance(refine, bool) or not isinstance(refine, int) or refine < 0:
            raise InputError(f"refine: expected a whole number from 0 on, found {refine!r}")

    def parts(self, dim: int) -> int:
        """Parts of a vector of that length.

        Raises:
            InputError: ``m`` does not divide it.
        """
        if self.m is None:
            return next(m for m in self._part_choices(dim) if dim % m == 0)
        if dim % self.m or self.m not in self._part_choices(dim, whole=True):
            choices = [m for m in self._part_choices(dim, whole=True) if dim % m == 0]
            raise InputError(
                f"m: {self.m} parts do not fit vectors of {dim}; choose one of "
                f"{', '.join(map(str, sorted(choices)))}"
            )
        return self.m

    def _part_choices(self, dim: int, whole: bool = False) -> list[int]:
        return list(range(dim if whole else max(1, dim // 2), 0, -1))


@dataclass(frozen=True)
class HnswOptions(Options):
    """Options of ``kind="hnsw"``: a graph from each vector to vectors near it.

    Attributes:
        m: neighbours of a vector (twice as many on the lowest level), at least 2.
        ef_construction: candidates looked at when a vector is put in.
        ef_search: candidates that a search keeps, at least ``k``.
        build_threads: 1: the same input gives the same graph; more build sooner, but the graph
            depends on the order in which threads come by.
        seed: of the levels of the graph.
    """

    m: int = 32
    ef_construction: int = 200
    ef_search: int = 128
    build_threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _whole(self, "m", "ef_construction", "ef_search", "build_threads")
        _seed(self.seed)
        if not 2 <= self.m <= 512:
            raise InputError(f"m: expected 2 to 512, found {self.m}")


@dataclass(frozen=True)
class GpuFlatOptions(FlatOptions):
    """Options of ``kind="gpu-flat"``.

    Attributes:
        device: number of the GPU.
        float16: half the memory on the GPU; what it finds is ranked by float32 vectors again.
    """

    device: int = 0
    float16: bool = False

    def __post_init__(self) -> None:
        _device(self)


@dataclass(frozen=True)
class GpuIvfOptions(IvfOptions):
    """Options of ``kind="gpu-ivf"``: those of ``ivf``, and

    Attributes:
        device: number of the GPU.
        float16: centroids in half the memory.
    """  # noqa: D415

    device: int = 0
    float16: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _device(self)


@dataclass(frozen=True)
class GpuIvfPqOptions(IvfPqOptions):
    """Options of ``kind="gpu-ivfpq"``: those of ``ivfpq``, with ``nbits`` 8, and

    Attributes:
        device: number of the GPU.
        float16: tables of distances in half the memory.
    """  # noqa: D415

    device: int = 0
    float16: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _device(self)
        if self.nbits != 8:
            raise InputError(f"nbits: a GPU takes 8, found {self.nbits}; kind='ivfpq' takes others")

    def _part_choices(self, dim: int, whole: bool = False) -> list[int]:
        most = dim if whole else max(1, dim // 2)
        # Tables of more parts than 48 exceed the shared memory unless they are float16.
        return [m for m in reversed(_GPU_PARTS) if m <= most and (m <= 48 or self.float16)]


@dataclass(frozen=True)
class GpuCagraOptions(Options):
    """Options of ``kind="gpu-cagra"``, a graph that is built on the GPU.

    Attributes:
        graph_degree: neighbours of a vector.
        intermediate_graph_degree: neighbours before the graph is pruned.
        itopk_size: candidates that a search keeps, at least ``k``.
        device: number of the GPU.
    """

    graph_degree: int = 64
    intermediate_graph_degree: int = 128
    itopk_size: int = 128
    device: int = 0

    def __post_init__(self) -> None:
        _whole(self, "graph_degree", "intermediate_graph_degree", "itopk_size")
        _device(self)
        if self.intermediate_graph_degree < self.graph_degree:
            raise InputError(
                f"intermediate_graph_degree: expected at least graph_degree "
                f"({self.graph_degree}), found {self.intermediate_graph_degree}"
            )


def _whole(options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None:
            integer(name, value)


def _seed(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise InputError(f"seed: expected a whole number from 0 to 2^31 - 1, found {value!r}")


def _device(options: Any) -> None:
    value = options.device
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"device: expected the number of a GPU, from 0 on, found {value!r}")
    if not isinstance(getattr(options, "float16", False), bool):
        raise InputError(f"float16: expected True or False, found {options.float16!r}")
