# SPDX-License-Identifier: Apache-2.0
"""A sharded index whose shards live in Ray actors, on any number of machines.

Each actor loads its own file; the process that asks merges what they find::

    index = connect(["/data/part-0.index", "/data/part-1.index"])
    scores, ids = index.search(queries, k=100)

The files are those of ``ShardedIndex.save_shards``, or one ``save`` a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from seqrec_fast import retrieval


@ray.remote(num_cpus=1)
class Shard:
    """One part of the items, in a process of its own."""

    def __init__(self, path: str, threads: int = 1) -> None:
        """Loads the file of the part; ``threads`` are the cores that one search may use."""
        self._index = retrieval.load(path)
        self._threads = threads

    def facts(self) -> dict[str, Any]:
        """What the merging process has to know."""
        index = self._index
        return {"size": index.size, "live": len(index), "dim": index.dim, "metric": index.metric}

    def search(self, queries: Any, k: int, exclude: Any, allow: Any, deny: Any) -> retrieval.Found:
        """The best of this part."""
        return self._index.search(queries, k, exclude, allow, deny, threads=self._threads)


class RemoteShard:
    """A ``retrieval.Searcher`` that asks an actor."""

    def __init__(self, actor: Any) -> None:
        """Asks the actor once for what does not change."""
        self._actor = actor
        facts = ray.get(actor.facts.remote())
        self.size: int = facts["size"]
        self.dim: int = facts["dim"]
        self.metric: retrieval.Metric = facts["metric"]
        self._live: int = facts["live"]

    def __len__(self) -> int:
        """Items that can be found."""
        return self._live

    def search(
        self,
        queries: Any,
        k: int,
        exclude: Any = None,
        allow: Any = None,
        deny: Any = None,
        threads: int | None = None,
    ) -> retrieval.Found:
        """The best of the part."""
        found: retrieval.Found = ray.get(
            self._actor.search.remote(queries, k, exclude, allow, deny)
        )
        return found


def connect(paths: Sequence[str], threads: int = 1) -> retrieval.ShardedIndex:
    """One index over the parts in these files, each in an actor of its own."""
    actors = [Shard.remote(path, threads) for path in paths]
    return retrieval.ShardedIndex([RemoteShard(actor) for actor in actors], parallel=True)
