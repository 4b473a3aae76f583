# SPDX-License-Identifier: Apache-2.0
"""Builds ``seqrec_fast._C`` and, where an nvcc is found, ``seqrec_fast._cuda``.

Everything else about the package is in ``pyproject.toml``.

Each kernel is compiled once an instruction set, with flags of its own that nothing else gets, so
one binary runs on every x86-64 machine and uses the best that it finds there. Other processors get
the generic kernels alone. Needs GCC or Clang (the kernels use their vector extensions).

``SEQREC_FAST_CUDA=1`` demands the CUDA kernels, ``0`` leaves them out. Without the variable they
are built into wheels where an nvcc is found, and left out of builds in place (``--editable``),
which are made again and again by those who work on the rest: nvcc takes minutes. See
``docs/cuda-build.md``.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any, NamedTuple

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


def load_toolkit() -> Any:
    """``csrc/cuda/toolkit.py``, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("cuda_toolkit", "csrc/cuda/toolkit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CUDA = load_toolkit()
BUILT_BY = (__file__, CUDA.__file__)


def is_cuda(ext: Extension) -> bool:
    return ext.name.endswith("._cuda")


class BuildNative(build_ext):
    """``build_ext`` with flags by file, and files compiled side by side."""

    def run(self) -> None:
        """Takes the CUDA module out where it is not to be built (a source archive has it)."""
        if not self.wants_cuda():
            self.extensions = [ext for ext in self.extensions if not is_cuda(ext)]
        super().run()

    def wants_cuda(self) -> bool:
        """By ``SEQREC_FAST_CUDA``, the kind of the build, and whether there is an nvcc."""
        wanted = os.environ.get("SEQREC_FAST_CUDA", "")
        if wanted not in ("", "0", "1"):
            raise SystemExit(f"SEQREC_FAST_CUDA: must be 0 or 1, found {wanted!r}")
        in_place = self.inplace or getattr(self, "editable_mode", False)
        if wanted == "0":
            found, reason = False, "SEQREC_FAST_CUDA=0"
        elif not wanted and in_place:
            found, reason = False, "a build in place; set SEQREC_FAST_CUDA=1 to have them"
        elif CUDA.find() is None:
            if wanted:
                raise SystemExit(
                    "SEQREC_FAST_CUDA=1: no nvcc was found; install a CUDA toolkit and set "
                    "CUDA_HOME, or: pip install 'seqrec-fast[cuda-build]' and build with "
                    "--no-build-isolation"
                )
            found, reason = False, "no nvcc was found (CUDA_HOME, PATH, pip's cuda-build)"
        else:
            found, reason = True, ""
        if not found:
            print(f"seqrec-fast: without CUDA kernels: {reason}", flush=True)
        return found

    def build_extensions(self) -> None:
        """Refuses compilers without vector extensions before the first file; prints versions."""
        if self.compiler.compiler_type == "msvc":
            raise SystemExit("seqrec-fast: needs GCC or Clang to build; MSVC has no vector types")
        if any(is_cuda(ext) for ext in self.extensions):
            print_versions(self.compiler.compiler_cxx[0])
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Compiles each unit whose sources have changed, then links."""
        if is_cuda(ext):
            self.build_cuda(ext)
            return
        macros = [
            ("SEQREC_VERSION", f'"{self.distribution.get_version()}"'),
            ("SEQREC_FLAGS", f'"{" ".join(COMMON_FLAGS)}"'),
        ]
        with ThreadPoolExecutor(max_workers=workers()) as pool:
            jobs = [pool.submit(self.compile_unit, unit, ext, macros) for unit in units()]
            objects = [job.result() for job in jobs]
        self.link(ext, objects, [])

    def compile_unit(self, unit: Unit, ext: Extension, macros: list[tuple[str, str]]) -> str:
        """The object of a C++ file, made again where what it is made of has changed."""
        folder = os.path.join(self.build_temp, unit.folder)
        (built,) = self.compiler.object_filenames([unit.source], output_dir=folder)
        if self.force or not is_current(built):
            self.compiler.compile(
                [unit.source],
                output_dir=folder,
                macros=macros,
                include_dirs=ext.include_dirs,
                extra_postargs=[*COMMON_FLAGS, *unit.flags, "-MMD"],
            )
        return str(built)

    def build_cuda(self, ext: Extension) -> None:
        """Compiles kernels by nvcc and the rest of the module by the C++ compiler; links both."""
        toolkit = CUDA.find()
        architectures = toolkit.architectures()
        macros = CUDA.macros("_cuda", self.distribution.get_version(), architectures)
        ext.include_dirs = ["csrc", pybind11.get_include(), str(toolkit.include())]
        # objects for other architectures, or from another list of operations, are other objects
        names = "-".join([*architectures, *(path.stem for path in CUDA.bindings())])
        folder = os.path.join("cuda", names)

        def compile_kernels(source: str) -> str:
            target = os.path.join(self.build_temp, folder, os.path.basename(source) + ".o")
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if self.force or not is_current(target):
                command = toolkit.object_command(source, target, architectures)
                print(" ".join(command), flush=True)
                CUDA.run(command)
            return target

        kernels = [os.path.relpath(path) for path in CUDA.units()]
        files = [Unit(os.path.relpath(path), folder) for path in CUDA.bindings()]
        with ThreadPoolExecutor(max_workers=workers()) as pool:
            jobs = [pool.submit(compile_kernels, source) for source in kernels]
            jobs += [pool.submit(self.compile_unit, unit, ext, macros) for unit in files]
            objects = [job.result() for job in jobs]
        runtime = str(toolkit.library() / "libcudart_static.a")
        self.link(ext, objects, [runtime, "-ldl", "-lrt"])

    def link(self, ext: Extension, objects: list[str], more: list[str]) -> None:
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        self.compiler.link_shared_object(
            objects, target, extra_postargs=[*more, "-pthread"], target_lang="c++"
        )


def workers() -> int:
    return min(4, os.cpu_count() or 1)


def print_versions(compiler: str) -> None:
    """What the CUDA kernels are built with, before the first file is compiled."""
    toolkit = CUDA.find()
    line = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    # torch is not needed; that of this environment is what the kernels will be called by
    torch = "import torch; print(torch.__version__, 'for CUDA', torch.version.cuda)"
    found = subprocess.run(
        [sys.executable, "-c", torch], capture_output=True, text=True, check=False
    )
    print(
        f"seqrec-fast: CUDA kernels for {', '.join('sm_' + a for a in toolkit.architectures())}\n"
        f"  nvcc {toolkit.version()} ({toolkit.nvcc})\n"
        f"  {(line.stdout or compiler).splitlines()[0]}\n"
        f"  Python {platform.python_version()}, pybind11 {pybind11.__version__}\n"
        f"  torch {found.stdout.strip() or 'is not in this environment'}",
        flush=True,
    )


def is_current(built: str) -> bool:
    """Whether an object is newer than all that it was made of, by the compiler's own list."""
    try:
        with open(os.path.splitext(built)[0] + ".d", encoding="utf-8") as file:
            parts = file.read().replace("\\\n", " ").partition(":")[2].split()
        made = os.path.getmtime(built)
        return all(os.path.getmtime(path) < made for path in [*parts, *BUILT_BY])
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
        ),
        Extension(
            "seqrec_fast._cuda",
            sources=[os.path.relpath(path) for path in CUDA.bindings()],
            depends=[
                path
                for path in sorted(glob("csrc/cuda/**/*.*", recursive=True))
                if "__pycache__" not in path
            ],
            language="c++",
        ),
    ],
    cmdclass={"build_ext": BuildNative},
)
