# SPDX-License-Identifier: Apache-2.0
"""Recommendations for servers: an asyncio front that groups requests, and an HTTP app over it.

``AsyncRecommender`` needs what the engine needs. ``create_app`` and ``seqrec-fast serve`` need the
extra ``serve`` (``pip install 'seqrec-fast[serve]'``), which is imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqrec_fast.serving.answers import Answer, Closed, DeadlineExceeded, Overloaded
from seqrec_fast.serving.batching import AsyncRecommender
from seqrec_fast.serving.limits import Limits

if TYPE_CHECKING:
    from seqrec_fast.serving.app import create_app

__all__ = [
    "Answer",
    "AsyncRecommender",
    "Closed",
    "DeadlineExceeded",
    "Limits",
    "Overloaded",
    "create_app",
]


def __getattr__(name: str) -> Any:
    if name == "create_app":
        from seqrec_fast.serving.app import create_app

        return create_app
    raise AttributeError(f"module 'seqrec_fast.serving' has no attribute {name!r}")
