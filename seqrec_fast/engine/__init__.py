# SPDX-License-Identifier: Apache-2.0
"""Serving: a bundle in, recommendations by raw id out, with numpy and safetensors alone."""

from __future__ import annotations

from seqrec_fast.engine.recommender import Recommendation, Recommender
from seqrec_fast.engine.sessions import Sessions, SessionStats

__all__ = ["Recommendation", "Recommender", "SessionStats", "Sessions"]
