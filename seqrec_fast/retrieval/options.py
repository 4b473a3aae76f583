# SPDX-License-Identifier: Apache-2.0
"""The options of each kind of index: one dataclass a kind, checked when it is made.

Search parameters (``nprobe``, ``ef_search``) are options as well: they are kept in the file, and
what `describe` says is what a search uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from seqrec_fast._arguments import integer
from seqrec_fast.errors import InputError

__all__ = [
    "ExactOptions",
    "IvfNativeOptions",
    "Options",
    "QdrantOptions",
    "ShardedOptions",
    "choice",
]


@dataclass(frozen=True)
class Options:
    """Base of the options of a kind."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which the same options can be made."""
        return asdict(self)


@dataclass(frozen=True)
class ExactOptions(Options):
    """Options of ``kind="exact"``.

    Attributes:
        dtype: what a search reads of every vector. ``"float32"``: the vector itself. ``"int8"``: a
            table of bytes beside the vectors (``dim`` + 5 bytes an item more) from which the same
            result, bit for bit, is found about three times sooner where the vectors do not fit the
            caches: from about 100,000 items on, for a few queries at a time. ``"bfloat16"``: the
            vectors are held in 16 bits a number and in no other form, in half the memory; they are
            rounded once, and what is found is, bit for bit, what float32 finds over the rounded
            ones.
    """

    dtype: str = "float32"

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, ("float32", "bfloat16", "int8"))


@dataclass(frozen=True)
class IvfNativeOptions(Options):
    """Options of ``kind="ivf-native"``.

    Attributes:
        nlist: lists; ``None`` takes about twice the square root of the number of items.
        nprobe: lists that a query visits at most, unless fewer than ``k`` items were found;
            ``None`` sets no bound. May be changed by ``tuned``.
        reach: a query leaves out the lists whose items would have to lie more than this many
            standard deviations from the centre of the list to be among the best; ``None`` visits
            ``nprobe`` lists whatever they promise. May be changed by ``tuned``.
        seed: of the draws of k-means.
        train_size: items that k-means sees; ``None`` takes 64 a list.
    """

    nlist: int | None = None
    nprobe: int | None = None
    reach: float | None = 5.0
    seed: int = 0
    train_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("nlist", "nprobe", "train_size"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name))
        seed: object = self.seed
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed: expected a whole number of at least 0, found {seed!r}")
        reach: object = self.reach
        if reach is None:
            return
        if isinstance(reach, bool) or not isinstance(reach, int | float) or not 0 <= reach < 1e6:
            raise InputError(
                f"reach: expected a number of standard deviations from 0 on, or None for no bound, "
                f"found {reach!r}"
            )


@dataclass(frozen=True)
class ShardedOptions(Options):
    """Options of ``kind="sharded"``.

    Attributes:
        shards: how many parts the items are split into, of almost equal size.
        shard_kind: the kind of each.
        shard_options: the options of each.
        parallel: search the parts at the same time, each in a thread; for remote
            parts.
    """

    shards: int = 2
    shard_kind: str = "exact"
    shard_options: Mapping[str, Any] | None = None
    parallel: bool = False

    def __post_init__(self) -> None:
        if integer("shards", self.shards) > 4096:
            raise InputError(f"shards: found {self.shards:,}; give at most 4,096")
        if self.shard_kind == "sharded":
            raise InputError("shard_kind: shards of shards do not exist; give more shards")


@dataclass(frozen=True)
class QdrantOptions(Options):
    """Options of ``kind="qdrant"``.

    Attributes:
        location: ``":memory:"``, a folder for the local mode, or the URL of a server.
        collection: name of the collection.
        exact: compare all items; ``False`` searches the graph (HNSW) of a server.
        ef_search: width of that search, or ``None`` for the server's own.
    """

    location: str = ":memory:"
    collection: str = "items"
    exact: bool = True
    ef_search: int | None = None

    def __post_init__(self) -> None:
        for name in ("location", "collection"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}: expected a text, found {getattr(self, name)!r}")
        if self.ef_search is not None:
            integer("ef_search", self.ef_search)


def choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Checks a value that is one of a few.

    Raises:
        InputError: it is none of them.
    """
    if value not in choices:
        raise InputError(f"{name}: found {value!r}; choose one of {', '.join(choices)}")
