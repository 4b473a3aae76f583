# SPDX-License-Identifier: Apache-2.0
"""The feed-forward layer on the GPU: both products, activation and dropout in one launch.

A program owns a tile of rows and streams the inner units: a tile of them is made, activated,
dropped, rounded and multiplied into the result, and never reaches memory unless the gradient needs
what is before the activation. Backward, one kernel owns rows (gradient of the input), another inner
units and a share of the rows (gradients of the weights), whose shares are added up in order. The
inner units' gradients are made again in both, from ``z`` and ``dy``.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops.triton._launch import (
    Config,
    Variant,
    forms,
    input_precision,
    named,
    padded_width,
    product,
    rounded,
    signature,
    widths,
)
from seqrec_fast.ops.triton._numbers import ODD, add_up, processors
from seqrec_fast.ops.triton.dropout import draw_of, keep_factors

__all__ = ["WIDEST", "feed_forward", "feed_forward_backward", "variants"]

#: width of rows that fits the registers of a program
WIDEST = 128

#: narrower rows are padded to it, which spares kernels to compile
NARROWEST = 64

# rows that make a share of its own worthwhile
_LEAST_ROWS = 256

# activations as the operator numbers them
_RELU, _SILU, _GELU, _GELU_TANH = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)


@triton.jit
def _activated(z, ACTIVATION: tl.constexpr):
    """The activation and its slope."""
    if ACTIVATION == _RELU:
        # NaN goes through
        value = tl.where(z < 0, 0.0, z)
        slope = tl.where(z > 0, 1.0, 0.0)
    elif ACTIVATION == _SILU:
        s = tl.sigmoid(z)
        value = z * s
        slope = s + value * (1.0 - s)
    elif ACTIVATION == _GELU:
        s = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
        value = z * s
        slope = s + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    else:
        # (1 + tanh(u)) / 2 is sigmoid(2 u)
        s = tl.sigmoid(z * (1.5957691216057308 + 0.07135481627159826 * z * z))
        value = z * s
        slope = s + value * (1.0 - s) * (1.5957691216057308 + 0.21406444881479478 * z * z)
    return value, slope


@triton.jit(do_not_specialize=["rows", "threshold"], do_not_specialize_on_alignment=["seed"])
def _forward(
    x,
    up_weight,
    up_bias,
    down_weight,
    down_bias,
    y,
    kept,
    seed,
    threshold,
    scale,
    rows,
    inputs,
    inner,
    outputs,
    ACTIVATION: tl.constexpr,
    DROP: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = (row < rows)[:, None]
    i = tl.arange(0, INPUTS)
    o = tl.arange(0, OUTPUTS)
    given = tl.load(
        x + row[:, None] * inputs + i[None, :], mask=live & (i < inputs)[None, :], other=0.0
    )
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    total += tl.load(down_bias + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    for first in range(0, inner, INNER):
        unit = first + tl.arange(0, INNER)
        there = unit < inner
        up = tl.load(
            up_weight + unit[None, :] * inputs + i[:, None],
            mask=there[None, :] & (i < inputs)[:, None],
            other=0.0,
        )
        z = product(given, up, tl.zeros([ROWS, INNER], tl.float32), PRECISION)
        z += tl.load(up_bias + unit, mask=there, other=0.0).to(tl.float32)[None, :]
        if KEEP:
            tl.store(
                kept + row[:, None] * inner + unit[None, :],
                rounded(z, kept.dtype.element_ty),
                mask=live & there[None, :],
            )
        value, _ = _activated(z, ACTIVATION)
        if DROP:
            value *= keep_factors(tl.load(seed), row, unit, threshold, scale)
        down = tl.load(
            down_weight + o[None, :] * inner + unit[:, None],
            mask=there[:, None] & (o < outputs)[None, :],
            other=0.0,
        )
        total = product(rounded(value, dtype), down, total, PRECISION)
    tl.store(
        y + row[:, None] * outputs + o[None, :],
        rounded(total, y.dtype.element_ty),
        mask=live & (o < outputs)[None, :],
    )


@triton.jit(do_not_specialize=["rows", "threshold"], do_not_specialize_on_alignment=["seed"])
def _backward_rows(
    dy,
    kept,
    up_weight,
    down_weight,
    dx,
    seed,
    threshold,
    scale,
    rows,
    inputs,
    inner,
    outputs,
    ACTIVATION: tl.constexpr,
    DROP: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    dtype: tl.constexpr = dy.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = (row < rows)[:, None]
    i = tl.arange(0, INPUTS)
    o = tl.arange(0, OUTPUTS)
    given = tl.load(
        dy + row[:, None] * outputs + o[None, :], mask=live & (o < outputs)[None, :], other=0.0
    )
    total = tl.zeros([ROWS, INPUTS], tl.float32)
    for first in range(0, inner, INNER):
        unit = first + tl.arange(0, INNER)
        there = unit < inner
        down = tl.load(
            down_weight + o[:, None] * inner + unit[None, :],
            mask=there[None, :] & (o < outputs)[:, None],
            other=0.0,
        )
        dz = product(given, down, tl.zeros([ROWS, INNER], tl.float32), PRECISION)
        z = tl.load(
            kept + row[:, None] * inner + unit[None, :], mask=live & there[None, :], other=0.0
        ).to(tl.float32)
        _, slope = _activated(z, ACTIVATION)
        dz *= slope
        if DROP:
            dz *= keep_factors(tl.load(seed), row, unit, threshold, scale)
        up = tl.load(
            up_weight + unit[:, None] * inputs + i[None, :],
            mask=there[:, None] & (i < inputs)[None, :],
            other=0.0,
        )
        total = product(rounded(dz, dtype), up, total, PRECISION)
    tl.store(
        dx + row[:, None] * inputs + i[None, :],
        rounded(total, dx.dtype.element_ty),
        mask=live & (i < inputs)[None, :],
    )


@triton.jit(
    do_not_specialize=["rows", "threshold", "per_share"], do_not_specialize_on_alignment=["seed"]
)
def _backward_weights(
    dy,
    x,
    kept,
    down_weight,
    weights,
    biases,
    seed,
    threshold,
    scale,
    rows,
    inputs,
    inner,
    outputs,
    per_share,
    ACTIVATION: tl.constexpr,
    DROP: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    dtype: tl.constexpr = dy.dtype.element_ty
    unit = tl.program_id(0) * INNER + tl.arange(0, INNER)
    share = tl.program_id(1)
    there = unit < inner
    i = tl.arange(0, INPUTS)
    o = tl.arange(0, OUTPUTS)
    down = tl.load(
        down_weight + o[:, None] * inner + unit[None, :],
        mask=there[None, :] & (o < outputs)[:, None],
        other=0.0,
    )
    d_up = tl.zeros([INNER, INPUTS], tl.float32)
    d_down = tl.zeros([INNER, OUTPUTS], tl.float32)
    d_up_bias = tl.zeros([INNER], tl.float32)
    d_down_bias = tl.zeros([OUTPUTS], tl.float32)
    begin = share * per_share
    end = tl.minimum(begin + per_share, rows)
    for first in range(begin, end, ROWS):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)
        live = (row < end)[:, None]
        given = tl.load(
            dy + row[:, None] * outputs + o[None, :], mask=live & (o < outputs)[None, :], other=0.0
        )
        z = tl.load(
            kept + row[:, None] * inner + unit[None, :], mask=live & there[None, :], other=0.0
        ).to(tl.float32)
        value, slope = _activated(z, ACTIVATION)
        dz = product(given, down, tl.zeros([ROWS, INNER], tl.float32), PRECISION) * slope
        if DROP:
            factors = keep_factors(tl.load(seed), row, unit, threshold, scale)
            value *= factors
            dz *= factors
        d_up_bias += tl.sum(dz, axis=0)
        d_down_bias += tl.sum(given.to(tl.float32), axis=0)
        d_down = product(tl.trans(rounded(value, dtype)), given, d_down, PRECISION)
        put = tl.load(
            x + row[:, None] * inputs + i[None, :], mask=live & (i < inputs)[None, :], other=0.0
        )
        d_up = product(tl.trans(rounded(dz, dtype)), put, d_up, PRECISION)
    own = weights + share.to(tl.int64) * inner * (inputs + outputs)
    tl.store(
        own + unit[:, None] * inputs + i[None, :], d_up, mask=there[:, None] & (i < inputs)[None, :]
    )
    own += inner * inputs
    tl.store(
        own + o[None, :] * inner + unit[:, None],
        d_down,
        mask=there[:, None] & (o < outputs)[None, :],
    )
    own_bias = biases + share.to(tl.int64) * (inner + outputs)
    tl.store(own_bias + unit, d_up_bias, mask=there)
    # every program of the share has the same sums; one stores them
    stored = tl.where(tl.program_id(0) == 0, outputs, 0)
    tl.store(own_bias + inner + o, d_down_bias, mask=o < stored)


def _config(kernel: Any, width: int, element: int, precise: bool, odd: bool) -> Config:
    """Tiles of a kernel that spill nowhere in the table of resources.

    Float32 without tensor cores holds whole rows in registers. Matrices one of whose widths is no
    multiple of 16 (``odd``) are read in smaller pieces, whose addresses take registers too.
    """
    weights, by_rows = kernel is _backward_weights, kernel is _backward_rows
    if element == 4 and precise:
        eight = not (odd and weights) if width > 64 else weights
        return Config({"ROWS": 16, "INNER": 16}, 8 if eight else 4, 1)
    if element == 4:
        if width > 64 and kernel is not _forward:
            return Config({"ROWS": 16, "INNER": 16 if weights else 32}, 4, 1)
        return Config({"ROWS": 32, "INNER": 32}, 8 if weights or width > 64 else 4, 1)
    if weights:
        return Config({"ROWS": 32, "INNER": 32}, 8, 1)
    if odd:
        return Config({"ROWS": 64 if width == 32 else 32, "INNER": 16 if width > 64 else 32}, 4, 2)
    return Config({"ROWS": 64, "INNER": 32}, 8 if by_rows and width > 64 else 4, 2)


def _sizes(x: Tensor, inputs: int, outputs: int) -> tuple[int, int, str]:
    if max(inputs, outputs) > WIDEST:
        raise InputError(
            f"feed_forward: the Triton kernels take widths up to {WIDEST}, found {inputs} and "
            f"{outputs}; set SEQREC_FAST_BACKEND=reference"
        )
    wide_in, wide_out = (max(NARROWEST, padded_width(n)) for n in (inputs, outputs))
    return wide_in, wide_out, input_precision(x.dtype)


def feed_forward(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    activation: int,
    p: float,
    seed: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The operator ``feed_forward``."""
    x, up_weight, down_weight = x.contiguous(), up_weight.contiguous(), down_weight.contiguous()
    rows, inputs = x.shape
    outputs, inner = down_weight.shape
    wide_in, wide_out, precision = _sizes(x, inputs, outputs)
    y = x.new_empty(rows, outputs)
    z = x.new_empty(rows, inner) if keep else x.new_empty(0)
    if not y.numel():
        return y, z
    odd = any(size % 16 for size in (inputs, inner, outputs))
    width, precise = max(wide_in, wide_out), precision == "ieee"
    config = _config(_forward, width, x.element_size(), precise, odd)
    _forward[(triton.cdiv(rows, config.blocks["ROWS"]),)](
        x, up_weight, up_bias.contiguous(), down_weight, down_bias.contiguous(), y,
        z if keep else y, y if seed is None else seed, *draw_of(p), rows, inputs, inner, outputs,
        ACTIVATION=activation, DROP=seed is not None, KEEP=keep, PRECISION=precision,
        **config.blocks, INPUTS=wide_in, OUTPUTS=wide_out, num_warps=config.warps,
        num_stages=config.stages,
    )  # fmt: skip
    return y, z


def feed_forward_backward(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    activation: int,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator ``feed_forward_backward``."""
    dy, x, z = dy.contiguous(), x.contiguous(), z.contiguous()
    up_weight, down_weight = up_weight.contiguous(), down_weight.contiguous()
    rows, inputs = x.shape
    outputs, inner = down_weight.shape
    wide_in, wide_out, precision = _sizes(x, inputs, outputs)
    dx = x.new_empty(rows, inputs)
    d_up, d_up_bias = x.new_empty(inner, inputs), x.new_empty(inner)
    d_down, d_down_bias = x.new_empty(outputs, inner), x.new_empty(outputs)
    found = dx, d_up, d_up_bias, d_down, d_down_bias
    if not rows or not inner:
        for tensor in found:
            tensor.zero_()
        if rows:
            torch.sum(dy, dim=0, out=d_down_bias)
        return found
    key = dy if seed is None else seed
    odd = any(size % 16 for size in (inputs, inner, outputs))
    width, precise = max(wide_in, wide_out), precision == "ieee"
    common = {"ACTIVATION": activation, "DROP": seed is not None, "PRECISION": precision}
    common |= {"INPUTS": wide_in, "OUTPUTS": wide_out}
    config = _config(_backward_rows, width, x.element_size(), precise, odd)
    _backward_rows[(triton.cdiv(rows, config.blocks["ROWS"]),)](
        dy, z, up_weight, down_weight, dx, key, *draw_of(p), rows, inputs, inner, outputs,
        **common, **config.blocks, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    config = _config(_backward_weights, width, x.element_size(), precise, odd)
    tiles = triton.cdiv(inner, config.blocks["INNER"])
    shares = max(1, min(2 * processors(x) // tiles, rows // _LEAST_ROWS))
    per_share = triton.cdiv(rows, shares)
    weights = x.new_empty((shares, inner * (inputs + outputs)), dtype=torch.float32)
    biases = x.new_empty((shares, inner + outputs), dtype=torch.float32)
    _backward_weights[(tiles, shares)](
        dy, x, z, down_weight, weights, biases, key, *draw_of(p), rows, inputs, inner, outputs,
        per_share, **common, **config.blocks, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    add_up(weights, d_up, d_down)
    add_up(biases, d_up_bias, d_down_bias)
    return found


_KERNELS = {
    "feed_forward": _forward,
    "feed_forward_rows": _backward_rows,
    "feed_forward_weights": _backward_weights,
}


def variants() -> Iterator[Variant]:
    """What ships, with the activation of SASRec and dropout; the others need less."""
    for (dtype, width), odd in itertools.product(forms(widths(NARROWEST, WIDEST)), (False, True)):
        if not odd or (width in ODD and dtype != "fp16"):
            for name, kernel in _KERNELS.items():
                for precision in ("ieee", "tf32") if dtype == "fp32" else ("ieee",):
                    yield _variant(name, kernel, dtype, width, precision, odd)


def _variant(name: str, kernel: Any, dtype: str, width: int, precision: str, odd: bool) -> Variant:
    config = _config(kernel, width, 4 if dtype == "fp32" else 2, precision == "ieee", odd)
    constants: dict[str, Any] = {"ACTIVATION": 4, "DROP": True, "PRECISION": precision}
    if kernel is _forward:
        constants["KEEP"] = True
    constants |= {**config.blocks, "INPUTS": width, "OUTPUTS": width}
    data = ("x", "up_weight", "up_bias", "down_weight", "down_bias", "y", "kept", "dy", "dx")
    types = {
        **dict.fromkeys(data, f"*{dtype}"),
        **dict.fromkeys(("weights", "biases"), "*fp32"),
        "seed": "*i64",
        "scale": "fp32",
    }
    return Variant(
        named(name, dtype, width, config, tf32=precision == "tf32", odd=odd),
        kernel,
        signature(kernel, types, constants),
        constants,
        config.warps,
        config.stages,
        matrix=True,
        multiples=() if odd else ("inputs", "inner", "outputs"),
    )
