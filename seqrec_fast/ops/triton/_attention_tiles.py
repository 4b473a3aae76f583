# SPDX-License-Identifier: Apache-2.0
"""Sizes of tiles of the two attentions on the GPU, by type and width of a head.

They were chosen by compiling for every target with every version of Triton in the table of
resources: the largest tiles that spill nowhere. 64 queries, or 32 in float32, suit rows of tens to
hundreds of items, so that one configuration a type and width is enough and no time goes into trying
others; where a second one is listed, it is for long rows, and autotuning chooses.

Tiles are padded to a power of two in registers, 32 at least. What lies in memory is as wide as the
next multiple of 16, with strides that are multiples of 16, so that it is read 16 bytes at a time;
other widths and strides are copied (:func:`readable`), and no kernel is compiled for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from seqrec_fast.ops.triton._launch import (
    FLOAT16_WIDTH,
    Config,
    Variant,
    named,
    padded_width,
    signature,
)

__all__ = [
    "NUMBERS",
    "Table",
    "choice",
    "kernel_variants",
    "readable",
    "strides",
    "table_of",
    "tile_width",
    "width_in_memory",
]

#: by kind of type and padded width, the best guess first
Table = dict[tuple[str, int], tuple[Config, ...]]

Tiles = tuple[int, int, int, int]

LEAST_WIDTH = 32  # of tiles

#: of kinds of types, as it stands in the table of resources; float16 takes what bfloat16 takes
DTYPE = {"16": "bf16", "tf32": "fp32", "fp32": "fp32"}

#: whole numbers whose value must not make another kernel (1, or a multiple of 16)
NUMBERS = ("tokens", "rows", "causal", "distances", "buckets", "wants_bias", "wants_time_bias")

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
    "inverse": "fp32",
}


def table_of(*sizes: Mapping[str, Mapping[int, Tiles]]) -> Table:
    """Configurations by kind and padded width, from queries, keys, warps and stages of each.

    Args:
        sizes: the first for every kind and width, others for some of them.
    """
    table: Table = {}
    for choices in sizes:
        for kind, by_width in choices.items():
            for padded, (queries, keys, warps, stages) in by_width.items():
                config = Config({"QUERIES": queries, "KEYS": keys}, warps, stages)
                table[kind, padded] = (*table.get((kind, padded), ()), config)
    return table


def kind_of(dtype: torch.dtype, precision: str) -> str:
    """What configurations are chosen by: ``"16"`` bits, ``"tf32"``, or ``"fp32"`` without it."""
    if dtype != torch.float32:
        return "16"
    return "tf32" if precision == "tf32" else "fp32"


def choice(kernel: str, table: Table, more: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``tuned`` for the configurations of a table.

    Args:
        kernel: name of its function.
        table: the configurations.
        more: further constexprs as the table of resources has them (:func:`kernel_variants`).
    """

    def serves(config: Config, given: Mapping[str, Any]) -> bool:
        choices = table[kind_of(given["q"].dtype, given["PRECISION"]), given["PADDED"]]
        return any(config is one for one in choices)

    def name(config: Config, given: Mapping[str, Any]) -> str:
        kind = kind_of(given["q"].dtype, given["PRECISION"])
        return variant_name(kernel, DTYPE[kind], given["PADDED"], config, kind, more)

    configs = [config for choices in table.values() for config in choices]
    return {"configs": configs, "key": ["PADDED", "PRECISION"], "serves": serves, "name": name}


def tile_width(width: int) -> int:
    """What tiles of this width of a head are padded to."""
    return max(LEAST_WIDTH, padded_width(width))


def width_in_memory(width: int) -> int:
    """The next multiple of 16."""
    return -(-width // 16) * 16


def readable(t: Tensor, width: int) -> Tensor:
    """``t`` where kernels can read it 16 bytes at a time, otherwise a copy.

    Args:
        t: ``[tokens, heads, any]``.
        width: what a copy is filled up to with zeros, at least that of ``t``.
    """
    if t.shape[-1] != width:
        return torch.nn.functional.pad(t, (0, width - t.shape[-1]))
    whole = t.stride(-1) == 1 and not (t.stride(0) % 16 or t.stride(1) % 16 or t.data_ptr() % 16)
    return t if whole else t.clone(memory_format=torch.contiguous_format)


def strides(*tensors: Tensor) -> list[int]:
    """From token to token and from head to head, of each ``[tokens, heads, width]``."""
    return [s for t in tensors for s in (t.stride(0), t.stride(1))]


def kernel_variants(kernel: Any, table: Table, more: Mapping[str, Any]) -> Iterator[Variant]:
    """What ships of a kernel; float16 for one width, since it takes the registers of bfloat16.

    Args:
        kernel: made by ``tuned``.
        table: its configurations.
        more: further constexprs; those that are true are in the name.
    """
    for (kind, padded), choices in table.items():
        types = {"16": ["bf16", "fp16"] if padded == FLOAT16_WIDTH else ["bf16"]}
        for dtype in types.get(kind, [DTYPE[kind]]):
            for config in choices:
                yield make_variant(kernel, config, kind, padded, dtype, more)


def variant_name(
    kernel: str, dtype: str, padded: int, config: Config, kind: str, more: Mapping[str, Any]
) -> str:
    """As it stands in the table of resources."""
    flags = {n: x for n, x in more.items() if isinstance(x, bool)}
    return named(kernel, dtype, padded, config, tf32=kind == "tf32", **flags)


def make_variant(
    kernel: Any, config: Config, kind: str, padded: int, dtype: str, more: Mapping[str, Any]
) -> Variant:
    """A kernel over ``[tokens, heads, width]`` with all its constexprs, for the compile gate."""
    tf32 = kind == "tf32"
    fixed = {"PADDED": padded, "PRECISION": "tf32" if tf32 else "ieee", **more, **config.blocks}
    name = variant_name(kernel.fn.__name__, dtype, padded, config, kind, more)
    held = dict.fromkeys(("q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v", *TABLES), f"*{dtype}")
    known = signature(kernel.fn, held | OTHERS, fixed)
    steps = tuple(n for n in known if n.endswith(("_token", "_head")))
    return Variant(
        name, kernel.fn, known, fixed, config.warps, config.stages, True, (*steps, "width")
    )
