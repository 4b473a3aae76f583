# SPDX-License-Identifier: Apache-2.0
"""A model of what each operation costs on a GPU: bytes, operations, and the least time they take.

Nothing here is measured. The floor of a case is the longer of two times: that of moving every
argument and result once over the memory's published bandwidth, and that of its operations at the
published peak. What a kernel is expected to reach of it, and why, stands in :data:`EXPECTED`;
``seqrec-fast bench gpu`` measures the same shapes where there is a GPU. ``python -m
seqrec_fast.benchmarks.gpu_model`` prints the tables of docs/gpu.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from seqrec_fast.benchmarks import shapes
from seqrec_fast.benchmarks.shapes import row_lengths

__all__ = ["CHIPS", "EXPECTED", "FORMULAS", "Chip", "Work", "floor", "tables", "work"]


class Chip(NamedTuple):
    """Published figures of a GPU (dense, at boost clock).

    Attributes:
        name: of the GPU.
        gigabytes: of memory bandwidth a second.
        tensor: GFLOP/s of float16 and bfloat16 on tensor cores, accumulated in float32.
        float32: GFLOP/s outside of tensor cores.
        source: where the figures are published.
    """

    name: str
    gigabytes: float
    tensor: float
    float32: float
    source: str


CHIPS = (
    Chip("A100 SXM 80 GB", 2039, 312e3, 19.5e3, "NVIDIA A100 datasheet, 2021"),
    Chip("H100 SXM 80 GB", 3350, 989e3, 67e3, "NVIDIA H100 datasheet, 2023"),
    Chip("B200 SXM", 8000, 2250e3, 75e3, "NVIDIA HGX B200 specifications, 2024, an eighth of them"),
)


class Work(NamedTuple):
    """Bytes that must be read and written at least once, and operations (a multiply-add is two)."""

    bytes: float
    flops: float


_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
_GATES = {"rnn": 1, "gru": 3, "lstm": 4}

#: operation -> bytes and operations of the forward pass, as docs/gpu.md prints them; e is the size
#: of an element, T the tokens, P the pairs of a query and a key that causality leaves
FORMULAS = {
    "recurrent": ("e (T D + T H + G H (D + H))", "2 T G H (D + H)"),
    "attention": ("4 e T H W + 4 T H", "4 P H W"),
    "hstu_attention": ("4 e T H W", "4 P H W"),
    "decode_attention": ("e H W (2 T + 2 rows)", "4 T H W"),
    "cross_entropy": ("e D (T + items) + 12 T", "2 T items D"),
    "layer_norm": ("2 e T D + 8 T", "8 T D"),
    "feed_forward": ("e (2 T D + 2 D F)", "4 T D F"),
    "embedding": ("e 2 T D + 8 T", "0"),
    "topk": ("e D (queries + items) + 12 queries k", "2 queries items D"),
}

#: operation -> share of the floor that its kernel is expected to reach, and why it is not more
EXPECTED = {
    "recurrent": (
        "0.05 to 0.3",
        "time steps follow one another: each ends in a barrier of the grid of a microsecond or "
        "two, and a step of few rows does not fill the tensor cores; weights are read once",
    ),
    "attention": (
        "0.3 to 0.6",
        "widths of 16 to 64 leave the exponentials as long as the products; rows of less than a "
        "tile waste the rest of it",
    ),
    "hstu_attention": (
        "0.3 to 0.6",
        "as attention, with a sigmoid a pair",
    ),
    "decode_attention": ("0.6 to 0.8", "streams the cache once; short rows end before the latency"),
    "cross_entropy": (
        "0.4 to 0.6",
        "the inner size of 64 gives a tile of logits few products for its exponentials; gradients "
        "compute the logits again instead of storing them",
    ),
    "layer_norm": ("0.7 to 0.9", "streams; small batches stay in the cache and are launch-bound"),
    "feed_forward": (
        "0.4 to 0.7",
        "both products of a tile in one kernel, activation between",
    ),
    "embedding": (
        "0.5 to 0.8",
        "rows of 128 to 256 bytes in any order",
    ),
    "topk": (
        "0.5 to 0.8",
        "streams the table once a tile of queries; then selects",
    ),
}


def work(operation: str, shape: Any, dtype: str, backward: bool) -> Work:
    """What a case costs at least.

    Args:
        operation: a key of :data:`FORMULAS`.
        shape: of :mod:`seqrec_fast.benchmarks.shapes`.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        backward: whether gradients are computed too; they read what the forward pass reads and the
            gradient of its result, and write gradients of all that has one.
    """
    size = _SIZES[dtype]
    s = shape
    if operation == "recurrent":
        tokens = sum(row_lengths(s.lengths, s.rows, s.time))
        gates = _GATES[s.cell]
        weights = gates * s.hidden * (s.inputs + s.hidden)
        moved = size * (tokens * (s.inputs + s.hidden) + weights)
        flops = 2.0 * tokens * weights
        # the gates are kept for the gradients, written once and read once
        extra = 2 * size * tokens * gates * s.hidden
        return Work(3 * moved + extra, 3 * flops) if backward else Work(moved, flops)
    if operation in ("attention", "hstu_attention"):
        lengths = row_lengths(s.lengths, s.rows, s.time)
        tokens, pairs = sum(lengths), sum(n * (n + 1) / 2 for n in lengths)
        model = s.heads * s.width
        statistics = 4 * tokens * s.heads if operation == "attention" else 0
        moved, flops = 4 * size * tokens * model + statistics, 4 * pairs * model
        # five products instead of two: the scores are computed again
        return Work(3 * moved, 3.5 * flops) if backward else Work(moved, flops)
    if operation == "decode_attention":
        model, tokens = s.heads * s.width, s.rows * s.cached
        return Work(size * model * (2 * tokens + 2 * s.rows), 4.0 * tokens * model)
    if operation == "cross_entropy":
        moved = size * s.dim * (s.tokens + s.items) + 12 * s.tokens
        flops = 2.0 * s.tokens * s.items * s.dim
        # logits again, the gradient of the tokens, that of the items
        return Work(3 * moved, 4 * flops) if backward else Work(moved, flops)
    if operation == "layer_norm":
        moved = 2 * size * s.tokens * s.dim + 8 * s.tokens
        return (
            Work(2.5 * moved, 24.0 * s.tokens * s.dim)
            if backward
            else Work(moved, 8.0 * s.tokens * s.dim)
        )
    if operation == "feed_forward":
        moved = size * (2 * s.tokens * s.dim + 2 * s.dim * s.inner)
        flops = 4.0 * s.tokens * s.dim * s.inner
        return Work(3 * moved, 3.5 * flops) if backward else Work(moved, flops)
    if operation == "embedding":
        moved = 2 * size * s.tokens * s.dim + 8 * s.tokens
        return (
            Work(2 * moved + size * s.items * s.dim, s.tokens * s.dim)
            if backward
            else Work(moved, 0.0)
        )
    if operation == "topk":
        moved = size * s.dim * (s.queries + s.items) + 12 * s.queries * s.k
        return Work(moved, 2.0 * s.queries * s.items * s.dim)
    raise KeyError(operation)


def floor(cost: Work, chip: Chip, dtype: str) -> tuple[float, str]:
    """The least seconds that a case takes on a chip, and what holds it: memory or arithmetic."""
    memory = cost.bytes / chip.gigabytes / 1e9
    arithmetic = cost.flops / (chip.float32 if dtype == "float32" else chip.tensor) / 1e9
    return (memory, "memory") if memory >= arithmetic else (arithmetic, "arithmetic")


_SHOWN: tuple[tuple[str, tuple[Any, ...], tuple[bool, ...]], ...] = (
    (
        "recurrent",
        tuple(
            s
            for s in shapes.RECURRENT
            if s.rows == 256
            and s.hidden in (128, 256)
            and s.lengths in ("equal", "ml1m")
            and s.time == 200
            and s.cell != "rnn"
        ),
        (False, True),
    ),
    ("attention", shapes.ATTENTION, (False, True)),
    ("hstu_attention", shapes.HSTU_ATTENTION, (False, True)),
    ("decode_attention", shapes.DECODE_ATTENTION, (False,)),
    ("cross_entropy", shapes.CROSS_ENTROPY, (False, True)),
    ("layer_norm", shapes.LAYER_NORM[-1:], (False, True)),
    ("feed_forward", shapes.FEED_FORWARD[-1:], (False, True)),
    ("embedding", shapes.EMBEDDING[-1:], (False, True)),
    ("topk", shapes.TOPK, (False,)),
)


def tables(dtype: str = "bfloat16") -> str:
    """The tables of docs/gpu.md, as Markdown."""
    lines = ["| operation | bytes | operations | expected share of the floor | why not more |"]
    lines.append("|---|---|---|---|---|")
    for operation, (moved, flops) in FORMULAS.items():
        share, reason = EXPECTED[operation]
        lines.append(f"| {operation} | {moved} | {flops} | {share} | {reason} |")
    names = " | ".join(f"{chip.name}, µs" for chip in CHIPS)
    lines += ["", f"| operation | case ({dtype}) | MB | GFLOP | {names} | held by |"]
    lines.append("|---|---|" + "--:|" * (2 + len(CHIPS)) + "---|")
    for operation, cases, directions in _SHOWN:
        for backward in directions:
            for shape in cases:
                cost = work(operation, shape, dtype, backward)
                floors = [floor(cost, chip, dtype) for chip in CHIPS]
                times = " | ".join(_digits(seconds * 1e6) for seconds, _ in floors)
                held = dict.fromkeys(reason for _, reason in floors)
                way = "forward+backward" if backward else "forward"
                lines.append(
                    f"| {operation} | {shape}, {way} | {_digits(cost.bytes / 1e6)} | "
                    f"{_digits(cost.flops / 1e9)} | {times} | {', '.join(held)} |"
                )
    return "\n".join(lines) + "\n"


def _digits(value: float) -> str:
    """Three digits."""
    if value <= 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


if __name__ == "__main__":
    print(tables())  # noqa: T201
