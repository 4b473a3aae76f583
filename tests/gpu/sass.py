# SPDX-License-Identifier: Apache-2.0
"""What a compiled kernel is made of: the instructions, by the disassembler of Triton's wheel."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

__all__ = ["ASYNC_COPY", "FAMILIES", "TENSOR_CORE", "families", "instructions", "tool"]

#: matrix products on tensor cores: of a warp, of a group of warps (sm_90), of tcgen05 (sm_100)
TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA")
#: copies from global to shared memory that pass the registers by
ASYNC_COPY = ("LDGSTS", "UTMALDG", "UBLKCP")
#: what a table records: those, loads of matrix fragments, spills, atomic additions
FAMILIES = (
    *TENSOR_CORE,
    *ASYNC_COPY,
    *("LDSM", "LDTM", "LDL", "STL", "ATOM", "ATOMG", "RED", "REDG"),
)
#: a line of a listing: address, perhaps a predicate, name
_LINE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(?:[. ;]|$)", re.M)
_FUNCTION = re.compile(r"^\.text\.(\S+):", re.M)


def tool(name: str) -> str | None:
    """The path of a tool of the CUDA toolkit: on the path, or in Triton's wheel; None if absent."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.submodule_search_locations:
        for place in spec.submodule_search_locations:
            path = Path(place) / "backends" / "nvidia" / "bin" / name
            if path.is_file():
                return str(path)
    return shutil.which(name)


def instructions(cubin: bytes) -> dict[str, Counter[str]]:
    """Names of instructions and how often each stands in the code, by function of a cubin."""
    disassembler = tool("nvdisasm")
    if disassembler is None:
        raise FileNotFoundError("nvdisasm: not installed; it comes with Triton")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [disassembler, "--print-code", file.name], capture_output=True, text=True, check=True
        ).stdout
    starts = [*_FUNCTION.finditer(listing)]
    ends = [*(match.start() for match in starts[1:]), len(listing)]
    return {
        match[1]: Counter(_LINE.findall(listing[match.end() : end]))
        for match, end in zip(starts, ends, strict=True)
    }


def families(counts: Counter[str]) -> dict[str, int]:
    """The instructions of :data:`FAMILIES` that are there, in that order."""
    found = {name: counts[name] for name in FAMILIES}
    return {name: count for name, count in found.items() if count}
