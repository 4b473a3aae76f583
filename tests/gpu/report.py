# SPDX-License-Identifier: Apache-2.0
"""``docs/gpu-resources.md``: the table of the Triton kernels in short, for people.

``make gates`` writes it together with the table; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.gpu import table
from tests.gpu.sass import TENSOR_CORE
from tests.gpu.targets import TARGETS

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu-resources.md"

TOP = """\
# Resources of the Triton kernels

Written by `make gates` from `seqrec_fast/ops/triton/resources.json`; see
[Kernels for GPUs](gpu.md) for what the table is and how it is kept. It is what compilers say: no
GPU has run this code.

{sums}

In the tables below, a line is a kernel and a kind of type: "16" is bfloat16, and float16 for one
width (its kernels are those of bfloat16 but for conversions), "tf32" float32 on tensor cores, "32"
float32 without. Tiles are stated by the width that they are padded to, with the warps of a block;
"odd" are those of widths that are no multiple of 16. In the columns of the targets stand registers
of a thread, and the share of the warps of a multiprocessor that are resident at a time, each from
the least to the most of the line.
"""


class Name(NamedTuple):
    """What the name of a variant says."""

    kernel: str
    kind: str
    width: int
    tiles: str


def parsed(name: str) -> Name:
    """The parts of a name that ``seqrec_fast.ops.triton._launch.named`` made."""
    kernel, dtype, width, *rest = name.split()
    sizes = dict(part.split("=") for part in rest if "=" in part)
    warps = sizes.pop("warps")
    sizes.pop("stages")
    kind = "16" if dtype in ("bf16", "fp16") else "tf32" if "tf32" in rest else "32"
    if "SAMPLED" in rest:
        kernel += ", sampled"
    if "odd" in rest:
        kernel += ", odd"
    return Name(kernel, kind, int(width), f"{'x'.join(sizes.values())}, {warps} warps")


def span(values: Iterable[int], unit: str = "") -> str:
    """The least and the most of them."""
    found = sorted(values)
    ends = f"{found[0]}" if found[0] == found[-1] else f"{found[0]} to {found[-1]}"
    return ends + unit


def page(whole: table.Table) -> str:
    """The text of the page."""
    newest_first = sorted(whole, key=lambda v: [int(part) for part in v.split(".")], reverse=True)
    sums = "\n".join(f"* Triton {version}: {_sum(whole[version])}" for version in newest_first)
    parts = [f"## Triton {version}\n\n{_lines(whole[version])}\n" for version in newest_first]
    return "\n".join([TOP.format(sums=sums), *parts])


def _sum(entries: Mapping[str, table.Entry]) -> str:
    rows = [one for entry in entries.values() for one in entry.targets.values()]
    spilled = sum(one.spills + one.stack for one in rows)
    products = [entry for entry in entries.values() if entry.matrix]
    used = {
        target: "/".join(
            name
            for name in TENSOR_CORE
            if any(name in entry.targets[target].instructions for entry in products)
        )
        for target in TARGETS
    }
    return (
        f"{len(entries)} forms of kernels for {len(TARGETS)} targets, {len(rows)} compilations, "
        f"{spilled} bytes of spills and stack together; instructions of tensor cores in all "
        f"{sum(all(one.tensor_cores for one in e.targets.values()) for e in products)} of "
        f"{len(products)} matrix kernels of 16 bits "
        f"({', '.join(f'{target} {names}' for target, names in used.items())})"
    )


def _lines(entries: Mapping[str, table.Entry]) -> str:
    groups: dict[tuple[str, str], list[tuple[Name, table.Entry]]] = {}
    for name, entry in entries.items():
        said = parsed(name)
        groups.setdefault((said.kernel, said.kind), []).append((said, entry))
    lines = [
        f"| kernel | type | tiles by width | {' | '.join(TARGETS)} |",
        "|---|---|---|" + "---|" * len(TARGETS),
    ]
    for kernel, kind in sorted(groups):
        members = groups[kernel, kind]
        tiles: dict[int, list[str]] = {}
        for said, _ in sorted(members, key=lambda m: (m[0].width, m[1].warps)):
            if said.tiles not in tiles.setdefault(said.width, []):
                tiles[said.width].append(said.tiles)
        listed = "; ".join(f"{width}: {' or '.join(found)}" for width, found in tiles.items())
        cells = [
            span(entry.targets[name].registers for _, entry in members)
            + ", "
            + span((_resident(entry, name) for _, entry in members), " %")
            for name in TARGETS
        ]
        lines.append(f"| {kernel} | {kind} | {listed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _resident(entry: table.Entry, target: str) -> int:
    """Per cent of the warps of a multiprocessor that are resident."""
    return round(100 * entry.targets[target].blocks * entry.warps / TARGETS[target].warps)
