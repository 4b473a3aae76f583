# SPDX-License-Identifier: Apache-2.0
"""The nearest items of a query vector: indexes over item vectors, numpy in and out, no torch."""

from __future__ import annotations

from seqrec_fast.retrieval.exact import ExactIndex
from seqrec_fast.retrieval.factory import KINDS, build, from_tensors, load
from seqrec_fast.retrieval.filters import Filter
from seqrec_fast.retrieval.index import METRICS, Found, Index, Metric
from seqrec_fast.retrieval.limits import Limits, search_limited
from seqrec_fast.retrieval.rules import Rules
from seqrec_fast.retrieval.sharded import Searcher, ShardedIndex
from seqrec_fast.retrieval.streaming import write_exact

__all__ = [
    "KINDS",
    "METRICS",
    "ExactIndex",
    "Filter",
    "Found",
    "Index",
    "Limits",
    "Metric",
    "Rules",
    "Searcher",
    "ShardedIndex",
    "build",
    "from_tensors",
    "load",
    "search_limited",
    "write_exact",
]
