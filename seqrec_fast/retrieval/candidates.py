# SPDX-License-Identifier: Apache-2.0
"""What a choice by measurement tries of each kind of index.

One entry a kind, so that a new kind is tried as soon as it stands here. A kind that is not here is
built with its defaults and measured as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seqrec_fast.retrieval.factory import KINDS
from seqrec_fast.retrieval.options import choice

__all__ = ["Candidate", "Walk", "candidates"]


@dataclass(frozen=True)
class Walk:
    """A whole number that trades time for recall in a search: more of it finds more.

    Attributes:
        option: its name among the arguments of :meth:`seqrec_fast.retrieval.Index.tuned`.
        low: the first value tried.
        high: the last one worth trying.
    """

    option: str
    low: int
    high: int


@dataclass(frozen=True)
class Candidate:
    """A kind with the options that it is built with, and what is walked in its search.

    Attributes:
        kind: one of :data:`seqrec_fast.retrieval.KINDS`.
        build: options of :func:`seqrec_fast.retrieval.build`.
        walk: ``None`` where a search has nothing to tune.
    """

    kind: str
    build: Mapping[str, Any] = field(default_factory=dict)
    walk: Walk | None = None


def candidates(items: int, k: int, kinds: Sequence[str] | None = None) -> list[Candidate]:
    """What to try for so many items, in the order of what it costs to build.

    Args:
        items: how many vectors there are.
        k: how many items a search has to find.
        kinds: only these; ``None``: all that run on the CPU.

    Raises:
        InputError: there is no such kind.
    """
    for kind in kinds or ():
        choice("kinds", kind, KINDS)
    wanted = [kind for kind in KINDS if not kind.startswith("gpu-")] if kinds is None else kinds
    order = {kind: place for place, kind in enumerate(_TRIED)}
    found: list[Candidate] = []
    for kind in sorted(dict.fromkeys(wanted), key=lambda kind: order.get(kind, len(order))):
        tried = _TRIED.get(kind)
        found += [Candidate(kind)] if tried is None else tried(items, k)
    return found


def _exact(items: int, k: int) -> list[Candidate]:
    return [Candidate("exact", {"dtype": dtype}) for dtype in ("float32", "int8")]


def _flat(items: int, k: int) -> list[Candidate]:
    return [Candidate("flat")]


def _lists(kind: str) -> Callable[[int, int], list[Candidate]]:
    """Inverted lists: a search looks into ``nprobe`` of about ``4 sqrt(items)`` lists."""

    def tried(items: int, k: int) -> list[Candidate]:
        return [Candidate(kind, {}, Walk("nprobe", 1, max(1, 4 * math.isqrt(max(items, 1)))))]

    return tried


def _hnsw(items: int, k: int) -> list[Candidate]:
    # A search that keeps fewer than k candidates cannot return k; beyond some thousands of them a
    # comparison with all items is quicker.
    return [Candidate("hnsw", {}, Walk("ef_search", k, max(k, min(items, 40 * k))))]


_TRIED: dict[str, Callable[[int, int], list[Candidate]]] = {
    "exact": _exact,
    "flat": _flat,
    "ivf-native": _lists("ivf-native"),
    "ivf": _lists("ivf"),
    "ivfpq": _lists("ivfpq"),
    "hnsw": _hnsw,
}
