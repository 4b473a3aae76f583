# SPDX-License-Identifier: Apache-2.0
"""The sizes that are measured: one registry for all benchmarks, and the lengths of their rows."""

from __future__ import annotations

import math
import random
from statistics import NormalDist
from typing import Literal, NamedTuple

__all__ = [
    "ATTENTION",
    "CROSS_ENTROPY",
    "DECODE_ATTENTION",
    "EMBEDDING",
    "FEED_FORWARD",
    "GPU_RECURRENT",
    "HSTU_ATTENTION",
    "LAYER_NORM",
    "LINEAR",
    "PAGE_TOKENS",
    "RECOMMEND",
    "RECURRENT",
    "SAMPLED_CROSS_ENTROPY",
    "TOPK",
    "TRAIN_STEP",
    "AttentionShape",
    "CrossEntropyShape",
    "DecodeAttentionShape",
    "EmbeddingShape",
    "FeedForwardShape",
    "LayerNormShape",
    "Lengths",
    "LinearShape",
    "ModelShape",
    "RecurrentShape",
    "SampledCrossEntropyShape",
    "TopkShape",
    "row_lengths",
]

Lengths = Literal["equal", "beauty", "ml1m"]

#: median, spread of the logarithm, and least length of the rows; chosen so that the mean is that of
#: Amazon Beauty cut at 50 events (9) and of MovieLens-1M cut at 200 (130)
_SKEWED = {"beauty": (7.3, 0.62, 4), "ml1m": (133.0, 0.9, 20)}


def row_lengths(lengths: Lengths, rows: int, longest: int, seed: int = 0) -> list[int]:
    """Lengths of the rows of a batch.

    ``beauty`` and ``ml1m`` are log-normal, cut at a least length and at ``longest``. The quantiles
    at ``(i + 0.5) / rows`` are taken and shuffled, so that a batch of any size has the same mean.

    Args:
        lengths: ``"equal"``: all ``longest``; ``"beauty"``: mean 9 where ``longest`` is 50;
            ``"ml1m"``: mean 130 where it is 200.
        rows: how many.
        longest: the greatest length.
        seed: of the shuffle.
    """
    if lengths == "equal":
        return [longest] * rows
    median, spread, least = _SKEWED[lengths]
    normal = NormalDist()
    drawn = [
        median * math.exp(spread * normal.inv_cdf((row + 0.5) / rows)) * longest / _LONGEST[lengths]
        for row in range(rows)
    ]
    found = [min(longest, max(least, round(length))) for length in drawn]
    random.Random(seed).shuffle(found)
    return found


_LONGEST = {"beauty": 50, "ml1m": 200}


class LinearShape(NamedTuple):
    """``x [rows, inner] @ w [columns, inner]^T``, the weights prepared beforehand."""

    rows: int
    inner: int
    columns: int

    def __str__(self) -> str:
        """For instance ``512 x 512 x 512``."""
        return f"{self.rows} x {self.inner} x {self.columns}"


class RecurrentShape(NamedTuple):
    """A layer over ``rows`` sequences of at most ``time`` events."""

    cell: Literal["rnn", "lstm", "gru"]
    rows: int
    time: int
    hidden: int
    inputs: int = 64
    lengths: Lengths = "equal"

    def __str__(self) -> str:
        """For instance ``lstm 256 x 50, 64 to 128, equal``."""
        return (
            f"{self.cell} {self.rows} x {self.time}, {self.inputs} to {self.hidden}, {self.lengths}"
        )


class AttentionShape(NamedTuple):
    """Causal self-attention over ``rows`` sequences of at most ``time`` events."""

    rows: int
    time: int
    heads: int
    width: int
    lengths: Lengths = "equal"

    def __str__(self) -> str:
        """For instance ``64 x 200, heads 2 x 32, equal``."""
        return f"{self.rows} x {self.time}, heads {self.heads} x {self.width}, {self.lengths}"


class CrossEntropyShape(NamedTuple):
    """A linear layer to ``items`` logits and their cross-entropy."""

    tokens: int
    items: int
    dim: int

    def __str__(self) -> str:
        """For instance ``4096 x 12000 x 64``."""
        return f"{self.tokens} x {self.items} x {self.dim}"


class SampledCrossEntropyShape(NamedTuple):
    """The same against ``samples`` negatives that all tokens share."""

    tokens: int
    items: int
    dim: int
    samples: int

    def __str__(self) -> str:
        """For instance ``4096 x 1024 of 100000 x 64``."""
        return f"{self.tokens} x {self.samples} of {self.items} x {self.dim}"


class LayerNormShape(NamedTuple):
    """Normalisation of ``tokens`` vectors of ``dim``."""

    tokens: int
    dim: int

    def __str__(self) -> str:
        """For instance ``12800 x 64``."""
        return f"{self.tokens} x {self.dim}"


class FeedForwardShape(NamedTuple):
    """Two linear layers with a GELU between them."""

    tokens: int
    dim: int
    inner: int

    def __str__(self) -> str:
        """For instance ``12800 x 64, inner 256``."""
        return f"{self.tokens} x {self.dim}, inner {self.inner}"


class EmbeddingShape(NamedTuple):
    """Rows of a table gathered; their gradients scattered."""

    tokens: int
    items: int
    dim: int

    def __str__(self) -> str:
        """For instance ``12800 of 12000 x 64``."""
        return f"{self.tokens} of {self.items} x {self.dim}"


class DecodeAttentionShape(NamedTuple):
    """One query a row against ``cached`` keys and values each."""

    rows: int
    cached: int
    heads: int
    width: int

    def __str__(self) -> str:
        """For instance ``256 x 200, heads 2 x 32``."""
        return f"{self.rows} x {self.cached}, heads {self.heads} x {self.width}"


class TopkShape(NamedTuple):
    """The best ``k`` of ``items`` for each query."""

    queries: int
    items: int
    dim: int
    k: int

    def __str__(self) -> str:
        """For instance ``top 100, 256 x 1000000 x 64``."""
        return f"top {self.k}, {self.queries} x {self.items} x {self.dim}"


class ModelShape(NamedTuple):
    """A model over a catalogue, and ``rows`` histories of at most ``time`` events."""

    model: str
    rows: int
    time: int
    dim: int
    items: int
    lengths: Lengths

    def __str__(self) -> str:
        """For instance ``sasrec 128 x 50, width 64, 12101 items, beauty``."""
        size = f"{self.rows} x {self.time}, width {self.dim}, {self.items} items"
        return f"{self.model} {size}, {self.lengths}"


LINEAR = (LinearShape(512, 512, 512), LinearShape(16, 256, 1024), LinearShape(1, 256, 1024))

_CELLS: tuple[Literal["rnn", "lstm", "gru"], ...] = ("lstm", "gru", "rnn")
_WIDTHS = (64, 128, 256)
_CATALOGUES: tuple[tuple[Lengths, int], ...] = (("beauty", 50), ("ml1m", 200))

RECURRENT = (
    *(
        RecurrentShape(cell, rows, time, hidden)
        for cell in _CELLS
        for rows in (1, 64, 256)
        for time in (50, 200)
        for hidden in _WIDTHS
    ),
    *(
        RecurrentShape(cell, rows, time, hidden, lengths=lengths)
        for cell in _CELLS
        for rows in (64, 256)
        for lengths, time in _CATALOGUES
        for hidden in _WIDTHS
    ),
)

#: what a GPU is measured with: the large batches, one row, and weights that do not fit one
#: multiprocessor
GPU_RECURRENT = (
    *(
        shape
        for shape in RECURRENT
        if shape.hidden in (128, 256)
        and (
            (shape.time == 200 and shape.rows in (64, 256) and shape.cell != "rnn")
            or (shape.rows == 256 and shape.hidden == 128)
            or (shape.rows == 1 and shape.time == 200 and shape.hidden == 128)
        )
    ),
    *(RecurrentShape(cell, 256, 200, 512) for cell in _CELLS[:2]),
)

#: items of Amazon Beauty and of MovieLens-1M
_ITEMS = {"beauty": 12_101, "ml1m": 3_416}
TRAIN_STEP = tuple(
    ModelShape(model, 128, time, dim, _ITEMS[lengths], lengths)
    for model, dim in (("sasrec", 64), ("gru", 128))
    for lengths, time in _CATALOGUES
)
#: one user and a block of them
RECOMMEND = tuple(
    ModelShape(model, rows, 50, 64, items, "equal")
    for model in ("sasrec", "gru")
    for items in (12_101, 1_000_000)
    for rows in (1, 256)
)

ATTENTION = (
    AttentionShape(64, 200, 2, 32),
    AttentionShape(16, 1024, 4, 32),
    AttentionShape(64, 200, 2, 32, "ml1m"),
    AttentionShape(16, 1024, 4, 32, "ml1m"),
    AttentionShape(256, 50, 2, 32, "beauty"),
)
HSTU_ATTENTION = ATTENTION

CROSS_ENTROPY = tuple(CrossEntropyShape(4096, items, 64) for items in (12_000, 100_000, 1_000_000))

SAMPLED_CROSS_ENTROPY = tuple(
    SampledCrossEntropyShape(4096, items, 64, 1024) for items in (100_000, 1_000_000)
)

#: 256 sequences of SASRec on Amazon Beauty: without padding, and padded to 50
_TOKENS = (2304, 12_800)
LAYER_NORM = tuple(LayerNormShape(tokens, dim) for tokens in _TOKENS for dim in (64, 128))
FEED_FORWARD = tuple(
    FeedForwardShape(tokens, dim, 4 * dim) for tokens in _TOKENS for dim in (64, 128)
)
EMBEDDING = tuple(EmbeddingShape(tokens, 12_000, 64) for tokens in _TOKENS)
#: of the paged caches
PAGE_TOKENS = 16
DECODE_ATTENTION = (DecodeAttentionShape(256, 200, 2, 32), DecodeAttentionShape(64, 1024, 4, 32))
TOPK = tuple(
    TopkShape(queries, items, 64, 100)
    for items in (12_000, 100_000, 1_000_000)
    for queries in (1, 256)
)
