# SPDX-License-Identifier: Apache-2.0
"""How good a model's recommendations are: full ranking, no sampled negatives, ties against us.

The definitions of all figures, with their sources, are in ``docs/evaluation.md``.
"""

from __future__ import annotations

from seqrec_fast.evaluation.lists import evaluate_lists, ranks_in_lists
from seqrec_fast.evaluation.metrics import Metrics, metrics_from_ranks
from seqrec_fast.evaluation.protocols import (
    describe_protocol,
    evaluate,
    evaluate_popularity,
)
from seqrec_fast.evaluation.ranking import rank_targets

__all__ = [
    "Metrics",
    "describe_protocol",
    "evaluate",
    "evaluate_lists",
    "evaluate_popularity",
    "metrics_from_ranks",
    "rank_targets",
    "ranks_in_lists",
]
