# SPDX-License-Identifier: Apache-2.0
"""The committed tables of what compiled kernels need, and when a fresh measurement is worse.

A table is a JSON file: compiler version -> kernel -> its fingerprint and, by target, the measured
values. A fingerprint is a hash of everything that the compiler was given, so that a kernel whose
fingerprint is the committed one need not be compiled again to know what comes out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.gpu.sass import ASYNC_COPY, TENSOR_CORE
from tests.gpu.targets import TARGETS

__all__ = ["Entry", "Measured", "Table", "fingerprint", "read", "worse", "write", "wrong"]

#: more registers than committed that pass as long as no fewer blocks fit
SLACK_REGISTERS = 8


class Measured(NamedTuple):
    """One kernel on one target.

    Attributes:
        registers: of a thread.
        spills: bytes written to local memory for want of registers.
        stack: bytes of local memory of a thread.
        shared: bytes of shared memory of a block, dynamic memory among them.
        blocks: that a multiprocessor holds at a time.
        instructions: name of :data:`tests.gpu.sass.FAMILIES` -> how often it stands in the code.
    """

    registers: int
    spills: int
    stack: int
    shared: int
    blocks: int
    instructions: Mapping[str, int]

    @property
    def tensor_cores(self) -> bool:
        """Whether there is any matrix product on tensor cores."""
        return any(name in self.instructions for name in TENSOR_CORE)


class Entry(NamedTuple):
    """One kernel: how it is launched, and what was measured by target.

    Attributes:
        fingerprint: of all that was compiled.
        kernel: name of the kernel function.
        constants: what was fixed at compile time and the name does not say.
        warps: of a block.
        stages: of software pipelines; 0 where that has no meaning.
        matrix: whether tensor cores must be used.
        targets: name of the target -> measured.
    """

    fingerprint: str
    kernel: str
    constants: Mapping[str, Any]
    warps: int
    stages: int
    matrix: bool
    targets: Mapping[str, Measured]


#: compiler version -> name of a variant -> entry
Table = dict[str, dict[str, Entry]]


def fingerprint(*parts: object) -> str:
    """A short hash of plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def wrong(entry: Entry) -> list[str]:
    """What no kernel may do, whatever is committed; empty where all is well."""
    found = []
    for target in TARGETS:
        if (one := entry.targets.get(target)) is None:
            found.append(f"{target}: not measured")
            continue
        if one.spills or one.stack:
            found.append(f"{target}: {one.spills} bytes spilled, {one.stack} bytes of stack")
        if one.blocks < 1:
            found.append(
                f"{target}: no block fits: {one.registers} registers, {one.shared} bytes shared"
            )
        if entry.matrix and not one.tensor_cores:
            found.append(f"{target}: no tensor-core instruction")
    return found


def worse(before: Measured, after: Measured) -> list[str]:
    """In what a measurement is worse than the committed one; empty where it is not."""
    found = []
    more = after.registers - before.registers
    if after.blocks < before.blocks:
        found.append(f"{after.blocks} blocks fit instead of {before.blocks}")
    if more > SLACK_REGISTERS or (more > 0 and after.blocks < before.blocks):
        found.append(f"{after.registers} registers instead of {before.registers}")
    if after.spills > before.spills:
        found.append(f"{after.spills} bytes spilled instead of {before.spills}")
    if after.stack > before.stack:
        found.append(f"{after.stack} bytes of stack instead of {before.stack}")
    if after.shared > before.shared and after.blocks < before.blocks:
        found.append(f"{after.shared} bytes shared instead of {before.shared}")
    for names, what in ((TENSOR_CORE, "tensor-core"), (ASYNC_COPY, "asynchronous copy")):
        # another one of the same kind is no loss: HGMMA in the place of HMMA
        had = [name for name in names if name in before.instructions]
        if had and not any(name in after.instructions for name in names):
            found.append(f"lost its {what} instructions ({', '.join(had)})")
    return found


def read(path: Path) -> Table:
    """The table in a file; an empty one where there is none."""
    if not path.is_file():
        return {}
    raw = json.loads(path.read_text(encoding="utf-8"))
    return {
        version: {
            name: Entry(
                **{key: value for key, value in entry.items() if key != "targets"},
                targets={t: Measured(**one) for t, one in entry["targets"].items()},
            )
            for name, entry in entries.items()
        }
        for version, entries in raw.items()
    }


def write(path: Path, table: Table) -> None:
    """Writes a table, a line a target, in a fixed order, so that a change shows as one."""
    lines = ["{"]
    for version in sorted(table):
        lines.append(f' "{version}": {{')
        for name in sorted(table[version]):
            entry = table[version][name]
            facts = {key: value for key, value in entry._asdict().items() if key != "targets"}
            lines.append(f'  "{name}": {json.dumps(facts)[:-1]}, "targets": {{')
            ordered = [(t, entry.targets[t]) for t in TARGETS if t in entry.targets]
            lines += [f'   "{t}": {json.dumps(one._asdict())},' for t, one in ordered]
            lines[-1] = lines[-1].removesuffix(",")
            lines.append("  }},")
        lines[-1] = lines[-1].removesuffix(",")
        lines.append(" },")
    lines[-1] = lines[-1].removesuffix(",")
    lines.append("}")
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(fresh, path)
