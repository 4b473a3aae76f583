# SPDX-License-Identifier: Apache-2.0
"""Builds the C++ test program, with or without sanitizers.

By hand: ``python tests/csrc/build.py address,undefined`` builds and runs it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", *AVX2]


def compiler() -> str:
    """The C++ compiler: ``CXX``, or g++."""
    return os.environ.get("CXX", "g++")


def units() -> list[tuple[Path, str, list[str]]]:
    """Every source of the program, the instruction set it is for, and its own flags."""
    csrc, tests = ROOT / "csrc", ROOT / "tests" / "csrc"
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    plain = [csrc / "isa" / "dispatch.cpp"]
    for folder in (csrc / "base", csrc / "ops", csrc / "engine", tests):
        plain += sorted(folder.glob("*.cpp"))
    found: list[tuple[Path, str, list[str]]] = [(path, "", []) for path in plain]
    # "wide" is the logic of the widest unit at what the machine can run
    isas = {"baseline": (4, []), "wide": (16, AVX2 if x86 else [])}
    if x86:
        isas |= {"avx2": (8, AVX2), "avx512": (16, AVX512)}
    for isa, (lanes, extra) in isas.items():
        flags = ["-ffp-contract=fast", f"-DSEQREC_ISA=isa_{isa}", f"-DSEQREC_LANES={lanes}", *extra]
        found += [(path, isa, flags) for path in sorted((csrc / "isa" / "units").glob("*.cpp"))]
    return found


def build(folder: Path, sanitizers: str = "") -> Path:
    """Compiles and links the program into ``folder``; raises with the compiler's words."""
    flags = ["-std=c++17", "-O1", "-g1", "-pthread", "-fno-omit-frame-pointer", *WARNINGS]
    if sanitizers:
        flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]

    def compile_one(item: tuple[Path, str, list[str]]) -> str:
        source, isa, extra = item
        target = folder / f"{source.parent.name}_{source.stem}_{isa}.o"
        run([*flags, *extra, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as workers:
        objects = list(workers.map(compile_one, units()))
    program = folder / "csrc_tests"
    run([*flags, *objects, "-o", str(program)])
    return program


def run(arguments: list[str]) -> None:
    """Runs the compiler."""
    done = subprocess.run([compiler(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{compiler()} failed: {done.stderr[-4000:]}")


def links(sanitizers: str) -> str:
    """Why the compiler cannot build with these sanitizers; empty where it can."""
    if shutil.which(compiler()) is None:
        raise RuntimeError(f"{compiler()} is not installed: the C++ tests need a compiler")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cpp"
        source.write_text("int main() { return 0; }\n", encoding="utf-8")
        program = Path(folder) / "empty"
        command = [compiler(), f"-fsanitize={sanitizers}", str(source), "-o", str(program)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            return f"the compiler cannot link -fsanitize={sanitizers}: {built.stderr.strip()}"
        ran = subprocess.run([program], capture_output=True, text=True, check=False)
        return "" if ran.returncode == 0 else f"cannot run here: {ran.stderr.strip()}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        built_program = build(Path(place), ",".join(sys.argv[1:]))
        sys.exit(subprocess.run([built_program], check=False).returncode)
