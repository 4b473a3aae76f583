# SPDX-License-Identifier: Apache-2.0
"""Compiles ``csrc/cuda/*.cu`` with nvcc for every target, and measures what comes out.

nvcc says registers, spills and shared memory; the instructions come from the disassembler. Dynamic
shared memory is chosen at launch and is not in these rows: plans of launches are tested by
themselves.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.gpu import sass, table
from tests.gpu.targets import TARGETS, Target, occupancy

__all__ = [
    *("FLAGS", "TABLE", "compile_all", "compile_unit", "fingerprint"),
    *("include_folder", "nvcc", "renew", "units", "version"),
]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "csrc" / "cuda"
TABLE = FOLDER / "resources.json"
_spec = importlib.util.spec_from_file_location("seqrec_cuda_toolkit", FOLDER / "toolkit.py")
assert _spec is not None
assert _spec.loader is not None
_toolkit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_toolkit)
#: those of setup.py, and what ptxas is to tell
FLAGS = (*_toolkit.FLAGS, "-Xptxas=-v", "-cubin", f"-I{ROOT / 'csrc'}")
#: occupancy is stated for blocks of so many warps; plans of launches state their own
WARPS = 8

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores")
_USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")


class Unit(NamedTuple):
    """A source, and the name under which its kernels stand in the table."""

    source: Path
    name: str


def nvcc() -> str | None:
    """The compiler, None where there is none."""
    return shutil.which("nvcc")


def version() -> str:
    """Of nvcc, such as ``nvcc 13.0``."""
    text = subprocess.run([nvcc() or "nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return f"nvcc {found[1] if found else 'unknown'}"


def units() -> list[Unit]:
    """The sources that ship."""
    return [Unit(path, path.stem) for path in sorted(FOLDER.glob("*.cu"))]


def included(source: Path, seen: set[Path] | None = None) -> set[Path]:
    """The project's own files that a source is made of, itself among them."""
    seen = set() if seen is None else seen
    if source in seen or not source.is_file():
        return seen
    seen.add(source)
    for name in re.findall(r'#include "([^"]+)"', source.read_text(encoding="utf-8")):
        if "shim" not in name:
            for place in (source.parent, ROOT / "csrc"):
                included((place / name).resolve(), seen)
    return seen


def fingerprint(unit: Unit) -> str:
    """Of a source, all that it includes, and the flags; comments do not count."""
    texts = {
        str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name: _bare(path)
        for path in included(unit.source)
    }
    return table.fingerprint(texts, [flag for flag in FLAGS if not flag.startswith("-I")])


def _bare(path: Path) -> list[str]:
    text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.S)
    lines = (re.sub(r"//.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def compile_unit(unit: Unit, target: Target) -> dict[str, table.Measured]:
    """Compiles one source for one target; -> mangled name of a kernel -> measured.

    Raises:
        RuntimeError: nvcc refuses it; its message is passed on.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "unit.cubin"
        command = [nvcc() or "nvcc", *FLAGS, f"-arch={target.name}", str(unit.source)]
        done = subprocess.run(
            [*command, "-o", str(cubin)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{unit.name}, {target.name}: {done.stderr[-3000:]}")
        code = sass.instructions(cubin.read_bytes()) if sass.tool("nvdisasm") else {}
    found: dict[str, table.Measured] = {}
    parts = _ENTRY.split(done.stderr)[1:]
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        stack, used = _STACK.search(text), _USED.search(text)
        if stack is None or used is None:
            raise RuntimeError(f"{unit.name}, {target.name}: ptxas said nothing of {name}")
        registers, shared = int(used[1]), int(used[2] or 0)
        found[name] = table.Measured(
            registers=registers,
            spills=int(stack[2]),
            stack=int(stack[1]),
            shared=shared,
            blocks=occupancy(target, registers, shared, WARPS),
            instructions=sass.families(code.get(name, Counter())),
        )
    return found


def compile_all(jobs: Sequence[tuple[Unit, Target]]) -> list[dict[str, table.Measured] | str]:
    """Compiles side by side; -> what was measured, or the error, in the order of the jobs."""

    def one(job: tuple[Unit, Target]) -> dict[str, table.Measured] | str:
        try:
            return compile_unit(*job)
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(one, jobs))


def renew(everything: bool = False, accept: bool = False) -> list[str]:
    """Renews the table; returns what is wrong."""
    if nvcc() is None:
        print("no nvcc on the path: the CUDA kernels are not compiled")
        return []
    if sass.tool("nvdisasm") is None:
        return ["nvdisasm: not installed, so no instructions can be recorded; pip install triton"]
    whole, made = table.read(TABLE), version()
    before = whole.get(made, {})
    began, bad = time.monotonic(), []
    prints = {unit: fingerprint(unit) for unit in units()}
    fresh = [
        unit
        for unit, fresh_print in prints.items()
        if everything
        or not any(
            e.fingerprint == fresh_print for n, e in before.items() if n.startswith(f"{unit.name}/")
        )
    ]
    after = {
        name: entry
        for name, entry in before.items()
        if name.partition("/")[0] in {unit.name for unit in prints if unit not in fresh}
    }
    for unit in fresh:  # one after another, so that what is done stays done
        rows: dict[str, dict[str, table.Measured]] = {}
        compiled = compile_all([(unit, target) for target in TARGETS.values()])
        for target, measured in zip(TARGETS, compiled, strict=True):
            if isinstance(measured, str):
                bad.append(measured)
                continue
            for kernel, one in measured.items():
                rows.setdefault(f"{unit.name}/{kernel}", {})[target] = one
        for name, targets in rows.items():
            old = before.get(name)
            worse = [
                f"{name}: {t}: {what}"
                for t, one in targets.items()
                if old is not None and t in old.targets
                for what in table.worse(old.targets[t], one)
            ]
            bad += worse
            # what has tensor cores on any target has to have them on all
            matrix = any(one.tensor_cores for one in targets.values())
            kernel = name.partition("/")[2]
            entry = table.Entry(prints[unit], kernel, {}, WARPS, 0, matrix, targets)
            after[name] = old if old is not None and worse and not accept else entry
        table.write(TABLE, {**whole, made: after})
    print(f"{made}: {len(fresh) * len(TARGETS)} compilations in {time.monotonic() - began:.0f} s")
    wrong = [f"{name}: {what}" for name, entry in after.items() for what in table.wrong(entry)]
    return [*bad, *wrong]


def include_folder() -> Path | None:
    """The headers of the toolkit that nvcc belongs to, None where they are not found."""
    if (path := nvcc()) is None:
        return None
    text = subprocess.run(
        [path, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True
    )
    found = re.search(r"^#\$ TOP=(.+)$", text.stderr, re.M)
    folder = Path(found[1].strip()) / "include" if found else Path("/nowhere")
    return folder if (folder / "cuda_occupancy.h").is_file() else None
