# SPDX-License-Identifier: Apache-2.0
"""Layer norm on the GPU, alone and after dropout and a residual sum, in one pass over the tokens.

A program holds some rows wholly in registers; mean and variance are taken there, one after the
other. Backward, a fixed number of programs go through the rows; each has its own sums for the
gradients of weight and bias, which a second launch adds up in order: no atomics, the same bits each
time.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops.triton._launch import (
    DTYPES,
    FLOAT16_WIDTH,
    Config,
    Variant,
    forms,
    named,
    padded_width,
    rounded,
    signature,
    widths,
)
from seqrec_fast.ops.triton._numbers import ADD_UP, ODD, add_up, add_up_kernel, processors
from seqrec_fast.ops.triton.dropout import draw_of, keep_factors

__all__ = ["WIDEST", "add_layer_norm", "layer_norm", "layer_norm_backward", "variants"]

#: columns that fit the registers of a program
WIDEST = 4096

#: narrower rows are padded to it
NARROWEST = 32


def _config(dim: int) -> Config:
    width = max(NARROWEST, padded_width(dim))
    if width > WIDEST:
        raise InputError(
            f"layer_norm: the Triton kernels take up to {WIDEST} columns, found {dim}; "
            "set SEQREC_FAST_BACKEND=reference"
        )
    rows = max(1, min(32, 1024 // width))
    return Config({"ROWS": rows, "COLUMNS": width}, 8 if width > 1024 else 4, 1)


@triton.jit(do_not_specialize=["threshold", "rows"], do_not_specialize_on_alignment=["seed"])
def _forward(
    x,
    residual,
    weight,
    bias,
    total,
    out,
    mean,
    rstd,
    seed,
    threshold,
    scale,
    eps,
    rows,
    dim,
    ADD: tl.constexpr,
    DROP: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < dim)[None, :]
    at = row[:, None] * dim + column[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        value *= keep_factors(tl.load(seed), row, column, threshold, scale)
    if ADD:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        # what goes on is what is normalised, and what the backward pass will read
        stored = rounded(value, total.dtype.element_ty)
        tl.store(total + at, stored, mask=inside)
        value = stored.to(tl.float32)
    middle = tl.sum(value, axis=1) / dim
    centred = tl.where(inside, value - middle[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / dim + eps)
    result = centred * inverse[:, None]
    if WEIGHT:
        w = tl.load(weight + column, mask=column < dim, other=0.0).to(tl.float32)
        result *= w[None, :]
    if BIAS:
        b = tl.load(bias + column, mask=column < dim, other=0.0).to(tl.float32)
        result += b[None, :]
    tl.store(out + at, rounded(result, out.dtype.element_ty), mask=inside)
    tl.store(mean + row, middle, mask=row < rows)
    tl.store(rstd + row, inverse, mask=row < rows)


@triton.jit(
    do_not_specialize=["threshold", "rows", "tiles"], do_not_specialize_on_alignment=["seed"]
)
def _backward(
    d_out,
    d_sum,
    total,
    mean,
    rstd,
    weight,
    d_residual,
    dx,
    partial,
    seed,
    threshold,
    scale,
    rows,
    dim,
    tiles,
    SUM: tl.constexpr,
    DROP: tl.constexpr,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)
    d_weight = tl.zeros([COLUMNS], tl.float32)
    d_bias = tl.zeros([COLUMNS], tl.float32)
    if WEIGHT:
        w = tl.load(weight + column, mask=column < dim, other=0.0).to(tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < dim)[None, :]
        at = row[:, None] * dim + column[None, :]
        value = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        middle = tl.load(mean + row, mask=row < rows, other=0.0)
        inverse = tl.load(rstd + row, mask=row < rows, other=0.0)
        normed = tl.where(inside, (value - middle[:, None]) * inverse[:, None], 0.0)
        g = tl.load(d_out + at, mask=inside, other=0.0).to(tl.float32)
        d_weight += tl.sum(g * normed, axis=0)
        d_bias += tl.sum(g, axis=0)
        if WEIGHT:
            g *= w[None, :]
        along = tl.sum(g * normed, axis=1) / dim
        level = tl.sum(g, axis=1) / dim
        result = inverse[:, None] * (g - level[:, None] - normed * along[:, None])
        if SUM:
            result += tl.load(d_sum + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_residual + at, rounded(result, d_residual.dtype.element_ty), mask=inside)
        if DROP:
            result *= keep_factors(tl.load(seed), row, column, threshold, scale)
            tl.store(dx + at, rounded(result, dx.dtype.element_ty), mask=inside)
    own = partial + tl.program_id(0).to(tl.int64) * 2 * dim + column
    tl.store(own, d_weight, mask=column < dim)
    tl.store(own + dim, d_bias, mask=column < dim)


def _run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x.contiguous()
    dim = x.shape[-1]
    rows = x.numel() // dim
    config = _config(dim)
    out = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    mean = x.new_empty(rows, dtype=torch.float32)
    rstd = x.new_empty(rows, dtype=torch.float32)
    if rows:
        _forward[(triton.cdiv(rows, config.blocks["ROWS"]),)](
            x,
            x if residual is None else residual.contiguous(),
            x if weight is None else weight.contiguous(),
            x if bias is None else bias.contiguous(),
            total,
            out,
            mean,
            rstd,
            x if seed is None else seed,
            *draw_of(p),
            eps,
            rows,
            dim,
            ADD=residual is not None,
            DROP=seed is not None,
            WEIGHT=weight is not None,
            BIAS=bias is not None,
            **config.blocks,
            num_warps=config.warps,
        )
    return total, out, mean, rstd


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``layer_norm``."""
    return _run(x, None, weight, bias, eps, 0.0, None)[1:]


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``add_layer_norm``."""
    return _run(x, residual, weight, bias, eps, p, seed)


def layer_norm_backward(
    d_out: Tensor,
    d_sum: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``layer_norm_backward``."""
    d_out, total = d_out.contiguous(), total.contiguous()
    dim, rows = total.shape[-1], mean.shape[0]
    config = _config(dim)
    d_residual = torch.empty_like(total)
    dx = total.new_empty(total.shape if seed is not None else 0)
    d_weight, d_bias = total.new_empty(dim), total.new_empty(dim)
    if not rows:
        return d_residual, dx, d_weight.zero_(), d_bias.zero_()
    tiles = triton.cdiv(rows, config.blocks["ROWS"])
    programs = min(tiles, 2 * processors(total))
    partial = total.new_empty((programs, 2 * dim), dtype=torch.float32)
    _backward[(programs,)](
        d_out,
        total if d_sum is None else d_sum.contiguous(),
        total,
        mean,
        rstd,
        total if weight is None else weight.contiguous(),
        d_residual,
        total if seed is None else dx,
        partial,
        total if seed is None else seed,
        *draw_of(p),
        rows,
        dim,
        tiles,
        SUM=d_sum is not None,
        DROP=seed is not None,
        WEIGHT=weight is not None,
        **config.blocks,
        num_warps=config.warps,
    )
    add_up(partial, d_weight, d_bias)
    return d_residual, dx, d_weight, d_bias


def variants() -> Iterator[Variant]:
    """What ships: with weight and bias, and the sum of partial results that others use too.

    Tiles of 512 and 2048 columns have as many elements a thread as those beside them.
    """
    for dtype in DTYPES.values():
        types = {"partial": "*fp32", "first": f"*{dtype}", "second": f"*{dtype}"}
        config = Config(ADD_UP, 4, 1)
        yield Variant(
            named("add_up", dtype, ADD_UP["BLOCK"], config),
            add_up_kernel,
            signature(add_up_kernel, types, ADD_UP),
            dict(ADD_UP),
            config.warps,
            config.stages,
            matrix=False,
        )
    for dtype, width in forms((*widths(NARROWEST, 256), 1024, WIDEST)):
        config = _config(width)
        for drop in (False, True) if width == FLOAT16_WIDTH else (True,):
            forward = {"ADD": True, "DROP": drop, "WEIGHT": True, "BIAS": True}
            backward = {"SUM": True, "DROP": drop, "WEIGHT": True}
            for odd in (False, True) if drop and width in ODD and dtype != "fp16" else (False,):
                given = (dtype, width, config)
                yield _variant("layer_norm", _forward, *given, forward, odd)
                yield _variant("layer_norm_backward", _backward, *given, backward, odd)


def _variant(
    name: str,
    kernel: Any,
    dtype: str,
    width: int,
    config: Config,
    flags: dict[str, bool],
    odd: bool,
) -> Variant:
    constants: dict[str, Any] = {**flags, **config.blocks}
    data = ("x", "residual", "weight", "bias", "total", "out", "d_out", "d_sum", "d_residual", "dx")
    types = {
        **dict.fromkeys(data, f"*{dtype}"),
        **dict.fromkeys(("mean", "rstd", "partial"), "*fp32"),
        **dict.fromkeys(("scale", "eps"), "fp32"),
        "seed": "*i64" if flags["DROP"] else f"*{dtype}",
    }
    return Variant(
        named(name, dtype, width, config, **flags, odd=odd),
        kernel,
        signature(kernel, types, constants),
        constants,
        config.warps,
        config.stages,
        matrix=False,
        multiples=() if odd else ("dim",),
    )
