# SPDX-License-Identifier: Apache-2.0
"""Builds ``seqrec_fast._C`` and, where an nvcc is found, ``seqrec_fast._cuda``.

Everything else about the package is in ``pyproject.toml``; ``docs/building.md`` says how to use it.

Each kernel is compiled once an instruction set, with flags of its own that nothing else gets, so
one binary runs on every x86-64 machine and uses the best that it finds there. Other processors get
the generic kernels alone. Needs GCC or Clang (the kernels use their vector extensions).

``SEQREC_FAST_CUDA=1`` demands the CUDA kernels, ``0`` leaves them out. Without the variable they
are built into wheels where an nvcc is found, and left out of builds in place (``--editable``),
which are made again and again by those who work on the rest: nvcc takes minutes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import runpy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from glob import glob
from typing import Any, NamedTuple

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    import pybind11
except ImportError:
    pybind11 = None

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
LEAST_PYBIND11 = (2, 13)


def check_environment() -> None:
    """Refuses what is too old: without isolation pip does not ask for [build-system] requires."""
    least = ".".join(map(str, LEAST_PYBIND11))
    if pybind11 is None or tuple(pybind11.version_info[:2]) < LEAST_PYBIND11:
        found = "none" if pybind11 is None else pybind11.__version__
        raise SystemExit(
            f"seqrec-fast: needs pybind11 {least} or newer to build, found {found}: "
            f"pip install 'pybind11>={least}'"
        )
    makers = ("setuptools.command.bdist_wheel", "wheel")
    if {"bdist_wheel", "dist_info"} & set(sys.argv) and not any(
        importlib.util.find_spec(name) for name in makers
    ):
        raise SystemExit(
            f"seqrec-fast: setuptools {setuptools.__version__} makes no wheels by itself: "
            "pip install wheel, or setuptools 70.1 or newer"
        )


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


def is_cuda(ext: Extension) -> bool:
    return ext.name.endswith("._cuda")


class BuildNative(build_ext):
    """``build_ext`` with flags by file, and files compiled side by side."""

    def run(self) -> None:
        """Takes the CUDA module out where it is not to be built (a source archive has it)."""
        self.without_cuda = self.why_no_cuda()
        if self.without_cuda:
            self.extensions = [ext for ext in self.extensions if not is_cuda(ext)]
            # what an earlier build left would go into the wheel as it is
            left = os.path.join(self.build_lib, self.get_ext_filename("seqrec_fast._cuda"))
            if os.path.exists(left):
                os.remove(left)
        super().run()

    def why_no_cuda(self) -> str:
        """By ``SEQREC_FAST_CUDA``, the kind of the build, and the nvcc; empty to build it."""
        wanted = os.environ.get("SEQREC_FAST_CUDA", "")
        if wanted not in ("", "0", "1"):
            raise SystemExit(f"SEQREC_FAST_CUDA: must be 0 or 1, found {wanted!r}")
        if wanted == "0":
            return "SEQREC_FAST_CUDA=0"
        if not wanted and (self.inplace or getattr(self, "editable_mode", False)):
            return "a build in place; set SEQREC_FAST_CUDA=1 to have them"
        reason: str = CUDA.search()[1]
        if reason and wanted:
            raise SystemExit(
                f"SEQREC_FAST_CUDA=1: {reason}; install a CUDA toolkit and set CUDA_HOME, or its "
                "wheels, and build without isolation (docs/building.md)"
            )
        return reason

    def build_extensions(self) -> None:
        """Refuses compilers without vector extensions before the first file; prints versions."""
        if self.compiler.compiler_type == "msvc":
            raise SystemExit("seqrec-fast: needs GCC or Clang to build; MSVC has no vector types")
        print_versions(self.compiler.compiler_cxx, self.without_cuda)
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

        def job(unit: Unit) -> Callable[[], str]:
            return lambda: self.compile_unit(unit, ext, macros)

        self.link(ext, side_by_side([job(unit) for unit in units()]), [])

    def compile_unit(self, unit: Unit, ext: Extension, macros: list[tuple[str, str]]) -> str:
        """The object of a C++ file, made again where what it is made of has changed."""
        folder = os.path.join(self.build_temp, unit.folder)
        (built,) = self.compiler.object_filenames([unit.source], output_dir=folder)
        if self.force or not is_current(built, __file__):
            self.compiler.compile(
                [unit.source],
                output_dir=folder,
                macros=macros,
                include_dirs=ext.include_dirs,
                extra_postargs=[*COMMON_FLAGS, *unit.flags, "-MMD"],
            )
        return str(built)

    def build_cuda(self, ext: Extension) -> None:
        """Compiles the kernels by nvcc and the Python side by the C++ compiler; links both."""
        toolkit = CUDA.find()
        architectures = toolkit.architectures()
        macros = CUDA.macros("_cuda", self.distribution.get_version(), architectures)
        ext.include_dirs = ["csrc", pybind11.get_include(), str(toolkit.include())]
        # one folder for all Pythons, whose modules have the same kernels
        made = os.path.join(self.get_finalized_command("build").build_base, "cuda-kernels")
        made = os.path.join(made, "-".join([toolkit.version(), *architectures]))
        kernels = [os.path.relpath(path) for path in CUDA.units()]
        threads = min(len(architectures) + 1, max(1, processors() // len(kernels)))

        def kernel(source: str) -> Callable[[], str]:
            target = os.path.join(made, os.path.basename(source) + ".o")

            def compiled() -> str:
                os.makedirs(made, exist_ok=True)
                if self.force or not is_current(target, __file__, CUDA.__file__):
                    command = toolkit.object_command(source, target, architectures, threads)
                    print(" ".join(command), flush=True)
                    CUDA.run(command)
                return target

            return compiled

        # objects for other architectures, or from another list of operations, are other objects
        operations = [path.stem for path in CUDA.bindings()]
        folder = os.path.join("cuda", "-".join([*architectures, *operations]))

        def binding(path: str) -> Callable[[], str]:
            return lambda: self.compile_unit(Unit(path, folder), ext, macros)

        jobs = [kernel(source) for source in kernels]
        jobs += [binding(os.path.relpath(path)) for path in CUDA.bindings()]
        runtime = str(toolkit.library() / "libcudart_static.a")
        self.link(ext, side_by_side(jobs), [runtime, "-ldl", "-lrt"])

    def link(self, ext: Extension, objects: list[str], more: list[str]) -> None:
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        self.compiler.link_shared_object(
            objects, target, extra_postargs=[*more, "-pthread"], target_lang="c++"
        )


def processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(jobs: list[Callable[[], str]]) -> list[str]:
    """What the jobs return, in their order; after an error none that has not begun does."""
    with ThreadPoolExecutor(max_workers=min(4, processors())) as pool:
        running = [pool.submit(job) for job in jobs]
        wait(running, return_when=FIRST_EXCEPTION)
        for job in running:
            job.cancel()
    failed = [job for job in running if not job.cancelled() and job.exception()]
    return [job.result() for job in failed or running]


def print_versions(compiler: list[str], without_cuda: str) -> None:
    """What the package is built with, before the first file is compiled."""
    told = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    lines = [
        (told.stdout or " ".join(compiler)).splitlines()[0],
        f"Python {platform.python_version()}, setuptools {setuptools.__version__}, "
        f"pybind11 {pybind11.__version__}",
        f"in this environment: {', '.join(around())}",
    ]
    if without_cuda:
        lines.append(f"without CUDA kernels: {without_cuda}")
    else:
        toolkit = CUDA.find()
        names = ", ".join(f"sm_{name}" for name in toolkit.architectures())
        lines.append(f"CUDA kernels for {names}: nvcc {toolkit.version()} ({toolkit.nvcc})")
    print("seqrec-fast is built with\n  " + "\n  ".join(lines), flush=True)


def around() -> list[str]:
    """What the kernels will be called by; torch is not imported for it."""
    found = []
    for name in ("numpy", "torch", "triton"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        facts = os.path.join(os.path.dirname(spec.origin), "version.py")
        cuda = runpy.run_path(facts).get("cuda") if os.path.exists(facts) else None
        found[1] += f" for CUDA {cuda}" if cuda else " for the CPU"
    return found


def is_current(built: str, *made_by: str) -> bool:
    """Whether an object is newer than all that it was made of, by the compiler's own list."""
    try:
        with open(os.path.splitext(built)[0] + ".d", encoding="utf-8") as file:
            parts = file.read().replace("\\\n", " ").partition(":")[2].split()
        made = os.path.getmtime(built)
        return all(os.path.getmtime(path) < made for path in [*parts, *made_by])
    except OSError:
        return False


check_environment()
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
