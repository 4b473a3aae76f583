# SPDX-License-Identifier: Apache-2.0
"""Sizes of tiles of the two attentions on the GPU, by type and width of a head.

They were chosen by compiling: the largest tiles whose sums stay in registers on every architecture.
A width that is no power of two is padded in registers and read without alignment, which takes an
address an element; its tiles are smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product as product_of
from typing import Any

import torch
from torch import Tensor

from seqrec_fast.ops.triton._launch import Config, Variant, named, signature

__all__ = ["Table", "choice", "dense", "kernel_variants", "make_variant", "strides", "table_of"]

#: by kind of type, padded width, and whether it is the width
Table = dict[tuple[str, int, bool], list[Config]]

Tiles = tuple[int, int, int, int]

# types of arguments for the compile gate: of the tensors' own type, and of others
TABLES = ("bias", "time_bias")
OTHERS = {
    "statistics": "*fp32",
    "delta": "*fp32",
    "d_bias": "*fp32",
    "d_time_bias": "*fp32",
    "offsets": "*i64",
    "times": "*i64",
    "bounds": "*i64",
    "scale": "fp32",
    "slope": "fp32",
}


def table_of(sizes: Mapping[str, Mapping[int, tuple[Tiles, Tiles]]]) -> Table:
    """Configurations from, by kind and padded width, those of that width and of odd ones.

    Args:
        sizes: queries, keys, warps and stages of each.
    """
    return {
        (kind, padded, even): [Config({"QUERIES": t[0], "KEYS": t[1]}, t[2], t[3])]
        for kind, by_width in sizes.items()
        for padded, pair in by_width.items()
        for even, t in zip((True, False), pair, strict=True)
    }


def kind_of(dtype: torch.dtype, precision: str) -> str:
    """What configurations are chosen by: ``"16"`` bits, ``"tf32"``, or ``"fp32"`` without it."""
    if dtype != torch.float32:
        return "16"
    return "tf32" if precision == "tf32" else "fp32"


def choice(table: Table) -> dict[str, Any]:
    """Arguments of ``tuned`` for the configurations of a table."""
    configs = [c for found in table.values() for c in found]

    def serves(config: Config, given: Mapping[str, Any]) -> bool:
        kind = kind_of(given["q"].dtype, given["PRECISION"])
        return any(config is c for c in table[kind, given["PADDED"], given["EVEN"]])

    return {"configs": configs, "key": ["PADDED", "EVEN", "PRECISION"], "serves": serves}


def dense(t: Tensor) -> Tensor:
    """``t``, or a copy of it where the last dimension is not dense."""
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def strides(*tensors: Tensor) -> list[int]:
    """From token to token and from head to head, of each ``[tokens, heads, width]``."""
    return [s for t in tensors for s in (t.stride(0), t.stride(1))]


def make_variant(
    kernel: Any, fixed: dict[str, Any], config: Config, dtype: str, name: str, even: bool
) -> Variant:
    """A kernel over ``[tokens, heads, width]`` with all its constexprs, for the compile gate."""
    held = dict.fromkeys(("q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v", *TABLES), f"*{dtype}")
    known = signature(kernel.fn, held | OTHERS, fixed)
    steps = [n for n in known if n.endswith(("_token", "_head"))]
    multiples = (*steps, "width") if even else ()
    return Variant(name, kernel.fn, known, fixed, config.warps, config.stages, True, multiples)


def kernel_variants(
    kernel: Any, table: Table, constants: list[dict[str, Any]]
) -> Iterator[Variant]:
    """What ships of a kernel, without what takes the registers of another.

    float16 is compiled for one width, beside bfloat16; odd widths for 64 and 128.

    Args:
        kernel: made by ``tuned``.
        table: its configurations.
        constants: further constexprs, each set a variant; those that are true are in its name.
    """
    for (kind, padded, even), configs in table.items():
        if not even and padded < 64:
            continue
        types = {"16": ["bf16", "fp16"] if padded == 64 and even else ["bf16"]}
        for config, dtype, more in product_of(configs, types.get(kind, ["fp32"]), constants):
            tf32 = kind == "tf32"
            fixed = {"PADDED": padded, "EVEN": even, "PRECISION": "tf32" if tf32 else "ieee"}
            flags = {n: x for n, x in more.items() if isinstance(x, bool)}
            name = named(
                kernel.fn.__name__, dtype, padded, config, tf32=tf32, odd=not even, **flags
            )
            yield make_variant(
                kernel, {**fixed, **more, **config.blocks}, config, dtype, name, even
            )
