# SPDX-License-Identifier: Apache-2.0
"""Operations on jagged batches: a module an operation, its definition in plain torch."""

from __future__ import annotations

from seqrec_fast.ops.attention import attention, packed_attention
from seqrec_fast.ops.cross_entropy import linear_cross_entropy, sampled_cross_entropy
from seqrec_fast.ops.decode_attention import decode_attention, paged_decode_attention
from seqrec_fast.ops.dropout import dropout
from seqrec_fast.ops.embedding import embedding, sequence_embedding
from seqrec_fast.ops.feed_forward import feed_forward
from seqrec_fast.ops.hstu_attention import hstu_attention
from seqrec_fast.ops.layer_norm import add_layer_norm, layer_norm
from seqrec_fast.ops.linear import linear
from seqrec_fast.ops.recurrent import recurrent, recurrent_step
from seqrec_fast.ops.topk import score_topk

__all__ = [
    "add_layer_norm",
    "attention",
    "decode_attention",
    "dropout",
    "embedding",
    "feed_forward",
    "hstu_attention",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "packed_attention",
    "paged_decode_attention",
    "recurrent",
    "recurrent_step",
    "sampled_cross_entropy",
    "score_topk",
    "sequence_embedding",
]
