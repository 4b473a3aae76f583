# SPDX-License-Identifier: Apache-2.0
"""Builds ``seqrec_fast._C``; everything else about the package is in ``pyproject.toml``.

Each kernel is compiled once an instruction set, with flags of its own that nothing else gets, so
one binary runs on every x86-64 machine and uses the best that it finds there. Other processors get
the generic kernels alone. Needs GCC or Clang (the kernels use their vector extensions).
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import NamedTuple

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Contraction makes a * b + c one instruction wherever the unit has it; nothing else of what
# -ffast-math allows is wanted.
COMMON_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-pthread", "-Wno-psabi"]
KERNEL_FLAGS = ["-ffp-contract=fast"]
ISAS = {
    "baseline": ["-DSEQREC_LANES=4"],
    "avx2": ["-DSEQREC_LANES=8", "-mavx2", "-mfma"],
    "avx512": [
        "-DSEQREC_LANES=16",
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
    ],
}


def is_x86() -> bool:
    """Whether the build is for x86-64 (also when macOS cross-compiles by ARCHFLAGS)."""
    flags = os.environ.get("ARCHFLAGS", "")
    return "x86_64" in flags or (platform.machine().lower() in ("x86_64", "amd64") and not flags)


class Unit(NamedTuple):
    """A source, the folder of its object under the build folder, and flags of its own."""

    source: str
    folder: str = ""
    flags: tuple[str, ...] = ()


def units() -> list[Unit]:
    """Everything that is compiled: each file of ``isa/units`` once an instruction set."""
    folders = ("base", "ops", "engine", "binding")
    common = [source for folder in folders for source in glob(f"csrc/{folder}/*.cpp")]
    found = [Unit(source) for source in sorted([*common, "csrc/isa/dispatch.cpp"])]
    for isa in ISAS if is_x86() else ["baseline"]:
        flags = (*KERNEL_FLAGS, f"-DSEQREC_ISA=isa_{isa}", *ISAS[isa])
        found += [Unit(source, isa, flags) for source in sorted(glob("csrc/isa/units/*.cpp"))]
    return found


class BuildNative(build_ext):
    """``build_ext`` with flags by file, and files compiled side by side."""

    def build_extensions(self) -> None:
        """Refuses compilers without vector extensions before the first file."""
        if self.compiler.compiler_type == "msvc":
            raise SystemExit("seqrec-fast: needs GCC or Clang to build; MSVC has no vector types")
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Compiles each unit whose sources have changed, then links."""
        target = self.get_ext_fullpath(ext.name)
        macros = [
            ("SEQREC_VERSION", f'"{self.distribution.get_version()}"'),
            ("SEQREC_FLAGS", f'"{" ".join(COMMON_FLAGS)}"'),
        ]

        def compile_one(unit: Unit) -> str:
            folder = os.path.join(self.build_temp, unit.folder)
            (built,) = self.compiler.object_filenames([unit.source], output_dir=folder)
            if not self.force and is_current(built):
                return built
            self.compiler.compile(
                [unit.source],
                output_dir=folder,
                macros=macros,
                include_dirs=ext.include_dirs,
                extra_postargs=[*COMMON_FLAGS, *unit.flags, "-MMD"],
            )
            return built

        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as workers:
            objects = list(workers.map(compile_one, units()))
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        self.compiler.link_shared_object(
            objects, target, extra_postargs=["-pthread"], target_lang="c++"
        )


def is_current(built: str) -> bool:
    """Whether an object is newer than all that it was made of, by the compiler's own list."""
    try:
        with open(os.path.splitext(built)[0] + ".d", encoding="utf-8") as file:
            parts = file.read().replace("\\\n", " ").partition(":")[2].split()
        made = os.path.getmtime(built)
        return all(os.path.getmtime(path) < made for path in [*parts, __file__])
    except OSError:
        return False


setup(
    license="Apache-2.0",
    ext_modules=[
        Extension(
            "seqrec_fast._C",
            sources=sorted({unit.source for unit in units()}),
            include_dirs=["csrc", pybind11.get_include()],
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
