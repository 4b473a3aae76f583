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
    """A number that trades time for recall in a search: more of it finds more.

    Attributes:
        option: its name among the arguments of :meth:`seqrec_fast.retrieval.Index.tuned`.
        low: the first step tried, a whole number.
        high: the last one worth trying.
        unit: the option is so many times the step; ``None``: it is the step itself.
        fixed: other arguments of ``tuned`` that stay the same.
    """

    option: str
    low: int
    high: int
    unit: float | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def search(self, step: int) -> dict[str, Any]:
        """Arguments of ``tuned`` at a step."""
        value = step if self.unit is None else round(step * self.unit, 9)
        return {**self.fixed, self.option: value}


@dataclass(frozen=True)
class Candidate:
    """A kind with the options that it is built with, and what is walked in its search.

    Attributes:
        kind: one of :data:`seqrec_fast.retrieval.KINDS`.
        build: options of :func:`seqrec_fast.retrieval.build`.
        walks: what a search has to tune, each walked by itself on the one index.
    """

    kind: str
    build: Mapping[str, Any] = field(default_factory=dict)
    walks: tuple[Walk, ...] = ()


def candidates(items: int, k: int, kinds: Sequence[str] | None = None) -> list[Candidate]:
    """What to try for so many items, in the order of what it costs to build.

    Args:
        items: how many vectors there are.
        k: how many items a search has to find.
        kinds: only these; ``None``: all that search by themselves on the CPU.

    Raises:
        InputError: there is no such kind.
    """
    for kind in kinds or ():
        choice("kinds", kind, KINDS)
    wanted = [kind for kind in KINDS if _runs_here(kind)] if kinds is None else kinds
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


def _nprobe(items: int, **fixed: Any) -> Walk:
    """Lists to look into: there are about ``4 sqrt(items)`` at most."""
    return Walk("nprobe", 1, max(1, 4 * math.isqrt(max(items, 1))), fixed=fixed)


def _ivf(items: int, k: int) -> list[Candidate]:
    return [Candidate("ivf", {}, (_nprobe(items),))]


def _ivfpq(items: int, k: int) -> list[Candidate]:
    return [Candidate("ivfpq", {}, (_nprobe(items),))]


def _ivf_native(items: int, k: int) -> list[Candidate]:
    reach = Walk("reach", 5, 60, unit=0.1, fixed={"nprobe": None})
    return [Candidate("ivf-native", {}, (reach, _nprobe(items, reach=None)))]


def _hnsw(items: int, k: int) -> list[Candidate]:
    # A search that keeps fewer than k candidates cannot return k; beyond some thousands of them a
    # comparison with all items is quicker.
    walk = Walk("ef_search", k, max(k, min(items, 40 * k)))
    return [Candidate("hnsw", {}, (walk,))]


_TRIED: dict[str, Callable[[int, int], list[Candidate]]] = {
    "exact": _exact,
    "flat": _flat,
    "ivf-native": _ivf_native,
    "ivf": _ivf,
    "ivfpq": _ivfpq,
    "hnsw": _hnsw,
}


def _runs_here(kind: str) -> bool:
    """Not what needs a GPU or another service, nor what only divides another kind."""
    return not kind.startswith("gpu-") and kind not in ("sharded", "qdrant")
