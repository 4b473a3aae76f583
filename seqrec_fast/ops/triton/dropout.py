# SPDX-License-Identifier: Apache-2.0
"""Dropout on the GPU: the draw of the CPU kernels, bit by bit, by itself and for fused kernels.

The draw of an element is a function of seed, row and column (see ``seqrec_fast.ops.dropout``), so
that any kernel makes it where it is needed, in whatever tiles. The seed is read from memory: the
host need not know it.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_fast.ops.triton._launch import (
    DTYPES,
    Config,
    Variant,
    named,
    rounded,
    signature,
    tuned,
)

__all__ = ["draw_of", "dropout", "keep_factors", "variants"]

_DRAWS = 1 << 24


def draw_of(p: float) -> tuple[int, float]:
    """Threshold of the draws and factor of what stays, as the kernels take them."""
    threshold = min(round(p * _DRAWS), _DRAWS - 1)
    return threshold, _DRAWS / (_DRAWS - threshold)


@triton.jit
def keep_factors(seed, row, column, threshold, scale):
    """What elements are multiplied with: 0 or ``scale``, float32 ``[ROWS, COLUMNS]``.

    Args:
        seed: 64 bits, loaded.
        row: numbers of rows ``[ROWS]``.
        column: numbers of columns ``[COLUMNS]``.
        threshold: of 2^24; an element whose draw is below is dropped.
        scale: of those that stay.
    """
    at = (row.to(tl.uint64) + 1) * tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    z = seed.to(tl.uint64) + at
    z = (z ^ (z >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    z = (z ^ (z >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    z = z ^ (z >> 31)
    first = (z & 0xFFFFFFFF).to(tl.uint32)[:, None]
    second = (z >> 32).to(tl.uint32)[:, None]
    x = first + (column.to(tl.uint32) * tl.full((), 0x9E3779B9, tl.uint32))[None, :]
    x = x ^ (x >> 16)
    x = x * tl.full((), 0x7FEB352D, tl.uint32) + second
    x = x ^ (x >> 15)
    x = x * tl.full((), 0x846CA68B, tl.uint32)
    return tl.where((x >> 8).to(tl.int32) >= threshold, scale, 0.0)


def _name(config: Config, dtype: str) -> str:
    return named("dropout", dtype, config.blocks["COLUMNS"], config)


@tuned([Config({"ROWS": 16, "COLUMNS": 128}, warps=4, stages=1)], key=[])
@triton.jit(do_not_specialize=["threshold", "rows"], do_not_specialize_on_alignment=["seed"])
def _dropout(
    x,
    out,
    seed,
    threshold,
    scale,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # one axis of programs: the others end at 65,535, which a single row may need more than
    across = tl.cdiv(columns, COLUMNS)
    tile = tl.program_id(0)
    row = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    given = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    factors = keep_factors(tl.load(seed), row, column, threshold, scale)
    tl.store(out + at, rounded(given * factors, out.dtype.element_ty), mask=inside)


def dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """The operator ``dropout``."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    columns = x.shape[-1]
    rows = x.numel() // columns

    def grid(blocks: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(rows, blocks["ROWS"]) * triton.cdiv(columns, blocks["COLUMNS"]),)

    _dropout[grid](x, out, seed, *draw_of(p), rows, columns)
    return out


def variants() -> Iterator[Variant]:
    """What ships."""
    (config,) = _dropout.configs
    for dtype in DTYPES.values():
        types = {"x": f"*{dtype}", "out": f"*{dtype}", "seed": "*i64", "scale": "fp32"}
        constants = dict(config.blocks)
        yield Variant(
            _name(config, dtype),
            _dropout.fn,
            signature(_dropout.fn, types, constants),
            constants,
            config.warps,
            config.stages,
            matrix=False,
        )
