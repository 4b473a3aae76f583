# SPDX-License-Identifier: Apache-2.0
"""Modules over :mod:`seqrec_fast.ops`."""

from __future__ import annotations

from seqrec_fast.nn.attention import CausalSelfAttention, SelfAttention
from seqrec_fast.nn.feed_forward import FeedForward
from seqrec_fast.nn.hstu import HSTULayer
from seqrec_fast.nn.layer_norm import LayerNorm
from seqrec_fast.nn.recurrent import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CausalSelfAttention",
    "FeedForward",
    "HSTULayer",
    "LayerNorm",
    "SelfAttention",
]
