# SPDX-License-Identifier: Apache-2.0
"""A model of what each operation costs on a GPU: bytes, operations, and the least time they take.

Nothing here is measured. The floor of a case is the longer of two times: that of moving every
argument and result of its operators once over the memory's published bandwidth, and that of its
operations at the published peak. What a kernel is expected to reach of it, and why, stands in
:data:`EXPECTED`; ``seqrec-fast bench gpu`` measures the same shapes where there is a GPU. ``python
-m seqrec_fast.benchmarks.gpu_model`` prints the tables of docs/gpu.md.

Costs are computed from the very formulas that the page shows; the tests hold those to the tensors
that the operators take and return.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from seqrec_fast.benchmarks import shapes
from seqrec_fast.benchmarks.shapes import row_lengths

__all__ = ["CHIPS", "EXPECTED", "FORMULAS", "Chip", "Formula", "Work", "floor", "tables", "work"]


class Chip(NamedTuple):
    """Published figures of a GPU (dense, at boost clock).

    Attributes:
        name: of the GPU.
        gigabytes: of memory bandwidth a second.
        tensor: GFLOP/s of float16 and bfloat16 on tensor cores, accumulated in float32; of tf32
            half as many.
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


class Formula(NamedTuple):
    """What an operation costs, in the names that :data:`NAMES` explains.

    Attributes:
        bytes: of the forward pass: what its operator takes and returns.
        more_bytes: that the gradients add: what the forward pass keeps for them, and what the
            operator of the backward pass takes and returns; empty where there are none.
        flops: of the forward pass.
        all_flops: of both passes.
    """

    bytes: str
    more_bytes: str
    flops: str
    all_flops: str


NAMES = {
    "e": "size of an element",
    "T": "tokens",
    "R": "rows, R + 1 their offsets",
    "D": "input or model size",
    "H": "hidden size",
    "G": "gates of a cell (1, 3, 4)",
    "S": "states of a cell (1, 2)",
    "B": "rows of its biases' gradients a unit (1, 6, 4)",
    "K": "bytes that a cell keeps a token and unit",
    "A": "heads",
    "M": "heads times their width",
    "P": "pairs of query and key that causality leaves",
    "L": "longest row",
    "C": "cached tokens",
    "V": "tokens that their pages hold",
    "N": "pages, or negatives",
    "I": "items",
    "g": "size of an element of a gradient before the loss's own is multiplied in",
    "c": "what its rounding moves",
    "F": "inner size",
    "Q": "queries",
    "Z": "items that a query gets",
}

FORMULAS = {
    "recurrent": Formula(
        "e (T D + T H + G H (D + H + 2) + S R H) + 8 (R + 1)",
        "2 K T H + e (2 T D + 2 T H + 2 G H (D + H) + B H) + 8 (R + 1)",
        "2 T G H (D + H)",
        "6 T G H (D + H)",
    ),
    "attention": Formula(
        "4 e T M + 8 T A + 8 (R + 1)", "8 e T M + 8 T A + 8 (R + 1)", "4 P M", "14 P M"
    ),
    "hstu_attention": Formula(
        "e (4 T M + A L) + 8 (R + 1)", "e (7 T M + 2 A L) + 8 (R + 1)", "4 P M", "14 P M"
    ),
    "decode_attention": Formula("2 e M (R + C) + 8 (R + 1)", "", "4 C M", ""),
    "paged_decode_attention": Formula("2 e M (R + V) + 8 (N + R)", "", "4 C M", ""),
    "cross_entropy": Formula("e D (T + I) + 12 T", "(3 g + c) D (T + I)", "2 T I D", "8 T I D"),
    "sampled_cross_entropy": Formula(
        "e D (2 T + N) + 12 T + 8 N", "(3 g + c) D (T + I)", "2 T N D", "8 T N D"
    ),
    "layer_norm": Formula("2 e (T D + D) + 8 T", "3 e (T D + D) + 8 T", "8 T D", "24 T D"),
    "add_layer_norm": Formula("e (4 T D + 2 D) + 8 T", "e (4 T D + 3 D) + 8 T", "9 T D", "26 T D"),
    "feed_forward": Formula(
        "e (2 T D + 2 D F + F + D)",
        "e (3 T D + 2 T F + 4 D F + F + D)",
        "4 T D F",
        "14 T D F",
    ),
    "embedding": Formula("2 e T D + 8 T", "e D (T + I) + 8 T", "0", "T D"),
    "dropout": Formula("2 e T D", "2 e T D", "T D", "2 T D"),
    "topk": Formula("e D (Q + I) + (e + 8) Q Z", "", "2 Q I D", ""),
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
    "paged_decode_attention": ("0.5 to 0.8", "the same, a page at a time"),
    "cross_entropy": (
        "0.4 to 0.6",
        "the inner size of 64 gives a tile of logits few products for its exponentials; gradients "
        "compute the logits again instead of storing them",
    ),
    "sampled_cross_entropy": (
        "0.2 to 0.5",
        "the same over few columns; with gradients, most of the time goes into the table's, which "
        "is as large as the table",
    ),
    "layer_norm": ("0.7 to 0.9", "streams; small batches stay in the cache and are launch-bound"),
    "add_layer_norm": ("0.7 to 0.9", "as layer_norm"),
    "feed_forward": (
        "0.4 to 0.7",
        "both products of a tile in one kernel, activation between",
    ),
    "embedding": (
        "0.5 to 0.8",
        "rows of 128 to 256 bytes in any order",
    ),
    "dropout": ("0.7 to 0.9", "streams; draws from counters, without a mask in memory"),
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
        dtype: ``"float32"``, ``"tf32"``, ``"float16"`` or ``"bfloat16"``.
        backward: whether gradients are computed too.
    """
    formula, names = FORMULAS[operation], _names(operation, shape, dtype)
    moved = _value(formula.bytes, names)
    if not backward:
        return Work(moved, _value(formula.flops, names))
    return Work(moved + _value(formula.more_bytes, names), _value(formula.all_flops, names))


def _names(operation: str, s: Any, dtype: str) -> dict[str, float]:
    """The value of each name that the formulas of the operation use."""
    e = 4 if dtype in ("float32", "tf32") else 2
    given = s._asdict()
    names: dict[str, float] = {"e": e}
    for name, field in (
        *(("T", "tokens"), ("R", "rows"), ("D", "dim"), ("I", "items"), ("F", "inner")),
        *(("Q", "queries"), ("Z", "k"), ("A", "heads"), ("L", "time"), ("N", "samples")),
    ):
        if field in given:
            names[name] = given[field]
    if "heads" in given:
        names["M"] = s.heads * s.width
    if "lengths" in given:
        lengths = row_lengths(s.lengths, s.rows, s.time)
        names |= {"T": sum(lengths), "P": sum(n * (n + 1) // 2 for n in lengths)}
    if operation == "recurrent":
        gates = {"rnn": 1, "gru": 3, "lstm": 4}[s.cell]
        names |= {"D": s.inputs, "H": s.hidden, "G": gates}
        names |= {
            "S": 2 if s.cell == "lstm" else 1,
            "B": 6 if s.cell == "gru" else gates,
            "K": {"rnn": 0, "gru": 4 * e, "lstm": 4 * e + 4}[s.cell],
        }
    if "cached" in given:
        pages = s.rows * -(-s.cached // shapes.PAGE_TOKENS)
        names |= {"C": s.rows * s.cached, "N": pages, "V": pages * shapes.PAGE_TOKENS}
    # gradients that a loss scaler multiplies stay in float32 until then, and are rounded after
    names |= {"g": 4, "c": 6} if dtype == "float16" else {"g": e, "c": 0}
    return names


def _value(formula: str, names: Mapping[str, float]) -> float:
    """A formula's value: sums of products, a space or nothing for the sign of multiplication."""
    parts = iter([*re.findall(r"[A-Za-z]|\d+|[()+]", formula), ")"])
    return _sum(parts, names)


def _sum(parts: Iterator[str], names: Mapping[str, float]) -> float:
    """Up to the bracket that closes it."""
    total, product = 0.0, 1.0
    for part in parts:
        if part in ")+":
            total, product = total + product, 1.0
            if part == ")":
                break
        elif part == "(":
            product *= _sum(parts, names)
        else:
            product *= float(part) if part.isdigit() else names[part]
    return total


def floor(cost: Work, chip: Chip, dtype: str) -> tuple[float, str]:
    """The least seconds that a case takes on a chip, and what holds it: memory or arithmetic."""
    memory = cost.bytes / chip.gigabytes / 1e9
    peak = {"float32": chip.float32, "tf32": chip.tensor / 2}.get(dtype, chip.tensor)
    arithmetic = cost.flops / peak / 1e9
    return (memory, "memory") if memory >= arithmetic else (arithmetic, "arithmetic")


_SHOWN: tuple[tuple[str, tuple[Any, ...], tuple[bool, ...]], ...] = (
    (
        "recurrent",
        tuple(
            s for s in shapes.GPU_RECURRENT if s.rows == 256 and s.time == 200 and s.cell != "rnn"
        ),
        (False, True),
    ),
    ("attention", shapes.ATTENTION, (False, True)),
    ("hstu_attention", shapes.HSTU_ATTENTION, (False, True)),
    ("decode_attention", shapes.DECODE_ATTENTION, (False,)),
    ("paged_decode_attention", shapes.DECODE_ATTENTION, (False,)),
    ("cross_entropy", shapes.CROSS_ENTROPY, (False, True)),
    ("sampled_cross_entropy", shapes.SAMPLED_CROSS_ENTROPY, (False, True)),
    ("layer_norm", shapes.LAYER_NORM[-1:], (False, True)),
    ("add_layer_norm", shapes.LAYER_NORM[-1:], (False, True)),
    ("feed_forward", shapes.FEED_FORWARD[-1:], (False, True)),
    ("embedding", shapes.EMBEDDING[-1:], (False, True)),
    ("dropout", shapes.LAYER_NORM[-1:], (False, True)),
    ("topk", shapes.TOPK, (False,)),
)


def tables(dtype: str = "bfloat16") -> str:
    """The formulas and tables of docs/gpu.md, as Markdown."""
    lines = textwrap.wrap(
        "In the formulas "
        + "; ".join(f"{name}: {meaning}" for name, meaning in NAMES.items())
        + ".",
        100,
    )
    head = ("operation", "bytes", "more with gradients", "operations", "with gradients")
    lines += ["", f"| {' | '.join(head)} | expected share of the floor | why not more |"]
    lines.append("|---|---|---|---|---|---|---|")
    for operation, formula in FORMULAS.items():
        cells = [part or "-" for part in formula]
        lines.append(f"| {' | '.join((operation, *cells, *EXPECTED[operation]))} |")
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
