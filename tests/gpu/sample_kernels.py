# SPDX-License-Identifier: Apache-2.0
"""Small kernels that the gates themselves are tested with: a good one, and ones that must fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
import triton.language as tl

SCALE = tl.constexpr(2.0)


class Variant(NamedTuple):
    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int
    matrix: bool


@triton.jit
def scaled(x):
    """Calls another function and uses a constant, both of which are part of the fingerprint."""
    return x * SCALE


@triton.jit
def product(a, b, c, rows, inner, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr):
    """``c = 2 a b``; the inner size is a multiple of ``INNER``."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column, part = tl.arange(0, COLUMNS), tl.arange(0, INNER)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, inner, INNER):
        k = start + part
        left = tl.load(a + row[:, None] * inner + k[None, :], mask=(row < rows)[:, None])
        right = tl.load(b + k[:, None] * COLUMNS + column[None, :])
        total = tl.dot(left, right, total)
    tl.store(
        c + row[:, None] * COLUMNS + column[None, :], scaled(total), mask=(row < rows)[:, None]
    )


@triton.jit
def crowded(a, c, SIZE: tl.constexpr):
    """Keeps more values than the registers of a warp hold, which spills."""
    place = tl.arange(0, SIZE)
    x = tl.load(a + place)
    tl.store(c + place, x - tl.sum(x, axis=0))


def variants() -> Iterator[Variant]:
    """``good`` in two types and ``spills``."""
    sizes = {"ROWS": 64, "COLUMNS": 32, "INNER": 32}
    for kind in ("bf16", "fp32"):
        types = {"a": f"*{kind}", "b": f"*{kind}", "c": "*fp32", "rows": "i32", "inner": "i32:16"}
        yield Variant(f"good {kind}", product, types, sizes, 4, 3, kind == "bf16")
    yield Variant("spills", crowded, {"a": "*fp32", "c": "*fp32"}, {"SIZE": 8192}, 1, 1, False)
