# SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA kernels for the CPU: as a Python module, and as programs under sanitizers.

By hand: ``python tests/csrc/cuda.py FOLDER`` builds the module and prints its path, which
``SEQREC_FAST_CUDA_MODULE`` takes. Objects that are newer than their sources are kept.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
SHIM = CSRC / "cuda" / "shim"
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas"]
FLAGS = ["-std=c++17", "-O2", "-g1", "-pthread", "-DSEQREC_CUDA_SHIM", f"-I{CSRC}"]
KERNEL = ["-x", "c++", "-include", str(SHIM / "shim.h")]
#: where the module is kept from one run of the tests to the next
FOLDER = ROOT / "build" / "cuda-emulated"


def _load_toolkit() -> Any:
    spec = importlib.util.spec_from_file_location("cuda_toolkit", CSRC / "cuda" / "toolkit.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toolkit = _load_toolkit()


def compiler() -> str:
    """The C++ compiler: ``CXX``, or g++."""
    return os.environ.get("CXX", "g++")


def run(arguments: list[str]) -> None:
    """Runs the compiler; raises with its words."""
    done = subprocess.run([compiler(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{compiler()} {' '.join(arguments)}\n{done.stderr[-6000:]}")


def is_current(target: Path) -> bool:
    """Whether an object is newer than all that it was made of."""
    try:
        listed = target.with_suffix(".d").read_text(encoding="utf-8")
        made = target.stat().st_mtime
        parts = listed.replace("\\\n", " ").partition(":")[2].split()
        return all(Path(part).stat().st_mtime < made for part in [*parts, __file__])
    except OSError:
        return False


def compile_all(sources: list[Path], folder: Path, flags: list[str]) -> list[str]:
    """Compiles kernels (``.cu``) and C++ side by side, where they are not current."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp, made_with = folder / "flags", "\n".join([compiler(), *FLAGS, *flags])
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != made_with:
        for old in folder.glob("*.d"):
            old.unlink()
        stamp.write_text(made_with, encoding="utf-8")

    def one(source: Path) -> str:
        target = folder / f"{source.parent.name}_{source.stem}.o"
        if not is_current(target):
            kind = KERNEL if source.suffix == ".cu" else []
            run([*FLAGS, *flags, "-MD", *kind, "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as workers:
        return list(workers.map(one, sources))


def build_module(folder: Path = FOLDER) -> Path:
    """The emulated ``_cuda`` with all kernels of the project."""
    import pybind11

    macros = [f"-D{k}={v}" for k, v in toolkit.macros("_cuda", "emulated", [])]
    # headers of others are not ours to correct
    include = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"]]
    sources = [*toolkit.units(), SHIM / "engine.cpp", *toolkit.bindings()]
    flags = ["-fPIC", "-fvisibility=hidden", *WARNINGS, *macros, *include]
    objects = compile_all(sources, folder, flags)
    target = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    newest = max(Path(name).stat().st_mtime for name in objects)
    if not target.exists() or target.stat().st_mtime < newest:
        scratch = target.with_suffix(f".{os.getpid()}")
        run(["-shared", "-pthread", *objects, "-o", str(scratch)])
        scratch.replace(target)
    return target


def build_program(sources: list[Path], folder: Path, flags: list[str]) -> Path:
    """A program of kernels and a ``main``, with the engine in it."""
    objects = compile_all([*sources, SHIM / "engine.cpp"], folder, [*WARNINGS, *flags])
    program = folder / "program"
    run([*FLAGS, *flags, *objects, "-o", str(program)])
    return program


if __name__ == "__main__":
    sys.stdout.write(f"{build_module(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)}\n")
