# SPDX-License-Identifier: Apache-2.0
"""Every operation of ``bench gpu`` at a size for tests."""

from __future__ import annotations

from typing import Any

from seqrec_fast.benchmarks import gpu_cases, gpu_models, shapes
from seqrec_fast.benchmarks.gpu_operations import OPERATIONS

#: lengths 4, 6, 8 and 16: rows are cut at none and at several steps
ROWS = {"rows": 4, "time": 50, "lengths": "beauty"}

SMALL: dict[str, Any] = {
    "recurrent": shapes.RecurrentShape(cell="lstm", hidden=16, inputs=8, **ROWS),
    "attention": shapes.AttentionShape(heads=2, width=16, **ROWS),
    "hstu_attention": shapes.AttentionShape(heads=2, width=16, **ROWS),
    "decode_attention": shapes.DecodeAttentionShape(3, 9, 2, 16),
    "paged_decode_attention": shapes.DecodeAttentionShape(3, 21, 2, 16),
    "cross_entropy": shapes.CrossEntropyShape(12, 40, 16),
    "sampled_cross_entropy": shapes.SampledCrossEntropyShape(12, 40, 16, 20),
    "layer_norm": shapes.LayerNormShape(12, 16),
    "add_layer_norm": shapes.LayerNormShape(12, 16),
    "feed_forward": shapes.FeedForwardShape(12, 16, 32),
    "embedding": shapes.EmbeddingShape(12, 9, 16),
    "dropout": shapes.LayerNormShape(12, 16),
    "topk": shapes.TopkShape(3, 40, 16, 5),
}
CELLS = {cell: SMALL["recurrent"]._replace(cell=cell) for cell in ("rnn", "lstm", "gru")}


def small(operation: str, dtype: str = "float32", backward: bool = False) -> gpu_cases.GpuCase:
    return gpu_cases.GpuCase(operation, SMALL[operation], dtype, backward)


def directions(operation: str) -> tuple[bool, ...]:
    return (False, True) if OPERATIONS[operation].trains else (False,)


def step(model: str, dtype: str = "float32") -> gpu_models.StepCase:
    return gpu_models.StepCase(shapes.ModelShape(model, 3, 50, 16, 30, "beauty"), dtype)


def recommend(model: str) -> gpu_models.RecommendCase:
    return gpu_models.RecommendCase(shapes.ModelShape(model, 3, 12, 16, 130, "equal"), "float32")
