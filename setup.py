# SPDX-License-Identifier: Apache-2.0
"""Builds ``seqrec_fast._C``; everything else about the package is in ``pyproject.toml``.

Each instruction set is one translation unit with flags of its own and nothing else gets them, so
one binary runs on every x86-64 machine and uses the best that it finds there. Other processors get
the generic unit alone. Needs GCC or Clang (the kernels use their vector extensions).
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Contraction makes a * b + c one instruction wherever the unit has it; nothing else of what
# -ffast-math allows is wanted.
COMMON_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-pthread", "-Wno-psabi"]
KERNEL_FLAGS = ["-ffp-contract=fast"]
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"],
}


def is_x86() -> bool:
    """Whether the build is for x86-64 (also when macOS cross-compiles by ARCHFLAGS)."""
    flags = os.environ.get("ARCHFLAGS", "")
    return "x86_64" in flags or (platform.machine().lower() in ("x86_64", "amd64") and not flags)


def isa_units() -> dict[str, list[str]]:
    """Source file of each instruction-set unit of this platform, with its own flags."""
    names = ISA_FLAGS if is_x86() else ["baseline"]
    return {f"csrc/isa/{name}.cpp": KERNEL_FLAGS + ISA_FLAGS[name] for name in names}


def sources() -> list[str]:
    """All translation units of the extension, relative to the repository."""
    common = [
        *glob("csrc/base/*.cpp"),
        *glob("csrc/ops/*.cpp"),
        *glob("csrc/binding/*.cpp"),
        "csrc/isa/dispatch.cpp",
    ]
    return sorted([*common, *isa_units()])


class BuildNative(build_ext):
    """``build_ext`` with flags by file, and files compiled side by side."""

    def build_extensions(self) -> None:
        """Refuses compilers without vector extensions before the first file."""
        if self.compiler.compiler_type == "msvc":
            raise SystemExit("seqrec-fast: needs GCC or Clang to build; MSVC has no vector types")
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Compiles each source with its own flags, then links."""
        target = self.get_ext_fullpath(ext.name)
        newest = max(os.path.getmtime(path) for path in [*ext.sources, *ext.depends, __file__])
        if not self.force and os.path.exists(target) and os.path.getmtime(target) > newest:
            return
        units = isa_units()
        macros = [
            ("SEQREC_VERSION", f'"{self.distribution.get_version()}"'),
            ("SEQREC_FLAGS", f'"{" ".join(COMMON_FLAGS)}"'),
        ]

        def compile_one(source: str) -> list[str]:
            objects: list[str] = self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=macros,
                include_dirs=ext.include_dirs,
                extra_postargs=[*COMMON_FLAGS, *units.get(source, [])],
            )
            return objects

        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as workers:
            objects = [o for found in workers.map(compile_one, ext.sources) for o in found]
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        self.compiler.link_shared_object(
            objects, target, extra_postargs=["-pthread"], target_lang="c++"
        )


setup(
    ext_modules=[
        Extension(
            "seqrec_fast._C",
            sources=sources(),
            include_dirs=["csrc", pybind11.get_include()],
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
