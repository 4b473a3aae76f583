# SPDX-License-Identifier: Apache-2.0
"""One catalogue in several parts: each finds its own best items, which are merged to the whole's.

A shard holds ids of the whole that follow one another and may be any kind of index, in this process
or, behind :class:`Searcher`, in another. Every shard brings its own best ``k`` (or all it has), so
the merged answer is that of one index over all items: an item that is not among the best ``k`` of
its shard has ``k`` before it. With exact shards it is the same bit for bit, equal scores included.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.exact import check_bfloat16
from seqrec_fast.retrieval.filters import Filters
from seqrec_fast.retrieval.index import Float, Found, Index, Metric, Rows
from seqrec_fast.retrieval.options import ShardedOptions
from seqrec_fast.retrieval.parts import filters_between, merge, shifted

__all__ = ["Searcher", "ShardedIndex"]


class Searcher(Protocol):
    """What a shard has to answer: an :class:`Index` does, and so can one on another machine.

    Ids are those of the shard, from 0. Arrays and batches are of numpy, so that they can be sent.
    """

    @property
    def size(self) -> int:
        """Ids that were given out."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def metric(self) -> Metric:
        """``"ip"`` or ``"cosine"``."""

    def __len__(self) -> int:
        """Items that can be found."""

    def search(
        self,
        queries: Float,
        k: int,
        exclude: JaggedBatch[Any] | None = None,
        allow: Any = None,
        deny: Any = None,
        threads: int | None = None,
    ) -> Found:
        """As :meth:`Index.search`."""


class ShardedIndex(Index):
    """Items spread over shards; new ones go to the last.

    Shards must not be changed but through this index. A change that concerns several of them may be
    seen in one of them first.
    """

    kind: ClassVar[str] = "sharded"
    options_class = ShardedOptions

    def __init__(self, shards: Sequence[Searcher], *, parallel: bool = False) -> None:
        """Joins shards: the ids of the second follow those of the first, and so on.

        Args:
            shards: at least one, of one width and metric.
            parallel: search them at the same time, each in a thread: for shards elsewhere. Those
                in this process share the cores by themselves.

        Raises:
            InputError: no shards, or shards that do not fit together.
        """
        if not len(shards):
            raise InputError("shards: found none; give at least one index")
        first = shards[0]
        for number, shard in enumerate(shards):
            if (shard.dim, shard.metric) != (first.dim, first.metric):
                raise InputError(
                    f"shards: number {number} has {shard.dim} dimensions and metric "
                    f"{shard.metric!r}, number 0 has {first.dim} and {first.metric!r}"
                )
        starts = np.cumsum([0, *(shard.size for shard in shards)])
        if starts[-1] >= 2**31:
            raise InputError(f"shards: {starts[-1]:,} ids, but ids must be below 2^31")
        # Which ids are removed the shards know; an id is blocked there, not here.
        size, live = int(starts[-1]), sum(len(shard) for shard in shards)
        super().__init__(first.dim, first.metric, Rows(size, None, live))
        self._shards = tuple(shards)
        self._starts = starts[:-1]
        self._parallel = bool(parallel) and len(shards) > 1

    @classmethod
    def load(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        *,
        parallel: bool = False,
        verify: bool = True,
        mmap: bool = True,
    ) -> ShardedIndex:
        """Joins the files of shards, in the order of their ids.

        Args:
            paths: files that :meth:`Index.save` or :meth:`save_shards` wrote.
            parallel: as in the constructor.
            verify: as in :func:`seqrec_fast.retrieval.load`.
            mmap: as there.

        Raises:
            InputError: a file that can't be used, or files that do not fit together.
        """
        from seqrec_fast.retrieval.factory import load

        return cls([load(path, verify=verify, mmap=mmap) for path in paths], parallel=parallel)

    def save_shards(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Writes one file a shard, each of which appears whole or not at all.

        Args:
            paths: one a shard; they may lie on different machines' disks.

        Raises:
            InputError: another number of paths, a shard that is not in this process, or the system
                refused; files that were written before stay.
        """
        if len(paths) != len(self._shards):
            raise InputError(f"paths: found {len(paths)} for {len(self._shards)} shards")
        with self._writing:
            for shard, path in zip(self._local(), paths, strict=True):
                shard.save(path)

    @property
    def shards(self) -> tuple[Searcher, ...]:
        """The shards, in the order of their ids."""
        return self._shards

    @property
    def exact(self) -> bool:
        """Whether all shards are exact, as far as they tell."""
        return all(bool(getattr(shard, "exact", False)) for shard in self._shards)

    @property
    def nbytes(self) -> int:
        """Bytes of the shards, as far as they tell."""
        return sum(int(getattr(shard, "nbytes", 0)) for shard in self._shards)

    def options(self) -> dict[str, Any]:
        """``shards``, and the kind and the options of the first one."""
        first = self._shards[0]
        inner: dict[str, Any] = {}
        if isinstance(first, Index):
            inner = {"shard_kind": first.kind, "shard_options": first.options()}
        return {"shards": len(self._shards), "parallel": self._parallel, **inner}

    # ---------------------------------------------------------------- private

    @classmethod
    def _build(cls, vectors: Float, metric: Metric, options: Mapping[str, Any]) -> ShardedIndex:
        from seqrec_fast.retrieval.factory import index_class

        chosen = ShardedOptions(**options)
        bounds = np.linspace(0, len(vectors), chosen.shards + 1).astype(np.int64)
        inner = dict(chosen.shard_options or {})
        if inner.get("dtype") == "bfloat16":  # here, where the numbers of the rows are known
            check_bfloat16("vectors", vectors, range(len(vectors)))
        return cls(
            [
                index_class(chosen.shard_kind)._build(vectors[begin:end], metric, inner)
                for begin, end in pairwise(bounds.tolist())
            ],
            parallel=chosen.parallel,
        )

    @classmethod
    def _restore(
        cls, meta: Mapping[str, Any], rows: Rows, tensors: Mapping[str, NDArray[Any]]
    ) -> ShardedIndex:
        from seqrec_fast.retrieval.factory import restored
        from seqrec_fast.retrieval.storage import Stored

        facts = meta.get("shards")
        if not isinstance(facts, list) or not facts:
            raise InputError("it names no shards; it was altered")
        parts: list[Index] = []
        for number, one in enumerate(facts):
            if not isinstance(one, dict) or one.get("kind") == cls.kind:
                raise InputError(f"shard {number} is not described; it was altered")
            prefix = f"{number}/"
            own = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            parts.append(restored(Stored(one, own)))
        made = cls(parts, parallel=bool(meta["options"].get("parallel", False)))
        if made.size != rows.size or made.dim != meta["dim"] or made.metric != meta["metric"]:
            raise InputError("its shards do not fit its facts; it was altered")
        return made

    def _meta(self) -> dict[str, Any]:
        return {**super()._meta(), "shards": [shard._meta() for shard in self._local()]}

    def _tensors(self) -> dict[str, NDArray[Any]]:
        return _numbered([shard._all_tensors() for shard in self._local()])

    def _lasting_tensors(self) -> dict[str, NDArray[Any]]:
        return _numbered([shard._lasting_tensors() for shard in self._local()])

    def _local(self) -> list[Index]:
        for number, shard in enumerate(self._shards):
            if not isinstance(shard, Index):
                raise InputError(
                    f"shards: number {number} is not in this process ({type(shard).__name__}), so "
                    f"that it can be searched but neither changed nor saved from here"
                )
        return cast("list[Index]", list(self._shards))

    def _search(
        self, state: Rows, queries: Float, k: int, filters: Filters, threads: int | None
    ) -> Found:
        ends = [*self._starts[1:].tolist(), state.size]

        def one(number: int) -> Found:
            shard, begin, end = self._shards[number], int(self._starts[number]), ends[number]
            own = filters_between(filters, begin, end)
            blocked = own.blocked
            if number == len(ends) - 1 and blocked is not None and shard.size > len(blocked):
                # items that came since this search began
                blocked = np.pad(blocked, (0, shard.size - len(blocked)), constant_values=True)
            wanted = min(k, max(1, end - begin))
            found = shard.search(queries, wanted, own.excluded, own.allowed, blocked, threads)
            return shifted(found, begin)

        numbers = range(len(self._shards))
        if not self._parallel:
            return merge([one(number) for number in numbers], k)
        with ThreadPoolExecutor(len(self._shards)) as pool:
            return merge(list(pool.map(one, numbers)), k)

    def _owner(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, ids, side="right") - 1

    def _gather(self, state: Rows, ids: NDArray[np.int64]) -> Float:
        found = np.empty((len(ids), self.dim), dtype=np.float32)
        owner = self._owner(ids)
        for number, shard in enumerate(self._local()):
            mine = owner == number
            found[mine] = shard.vectors(ids[mine] - self._starts[number])
        return found

    def _append(self, vectors: Float, rows: Rows) -> None:
        self._local()[-1].add(vectors)
        self._rows = rows

    def _replace(self, ids: NDArray[np.int64], vectors: Float, rows: Rows) -> None:
        owner = self._owner(ids)
        places = [np.flatnonzero(owner == number) for number in range(len(self._shards))]
        parts = list(zip(self._local(), self._starts.tolist(), places, strict=True))
        for shard, _, mine in parts:  # before any of them is changed
            shard._check(vectors[mine], mine)
        for shard, begin, mine in parts:
            shard.update(ids[mine] - begin, vectors[mine])
        self._count()

    def remove(self, ids: Any) -> int:
        """As :meth:`Index.remove`."""
        from seqrec_fast.retrieval.filters import item_ids

        with self._writing:
            chosen = np.unique(item_ids("ids", ids, self._rows.size))
            owner = self._owner(chosen)
            gone = sum(
                shard.remove(chosen[owner == number] - self._starts[number])
                for number, shard in enumerate(self._local())
            )
            self._count()
            return gone

    def _count(self) -> None:
        self._rows = Rows(self._rows.size, None, sum(len(shard) for shard in self._shards))


def _numbered(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Tensors of all shards, under the number of each."""
    return {
        f"{number}/{name}": tensor
        for number, part in enumerate(parts)
        for name, tensor in part.items()
    }
