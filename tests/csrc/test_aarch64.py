# SPDX-License-Identifier: Apache-2.0
"""The native core compiles for aarch64 by its generic path, with Clang, without a warning.

The compiler is the one of the ``ziglang`` package, which brings the headers of every target. The
objects are not run: there is no such processor here.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-ffp-contract=fast"]


@pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs the ziglang package (extra [test])"
)
def test_every_source_compiles_for_aarch64(tmp_path: Path) -> None:
    units = sorted((CSRC / "isa" / "units").glob("*.cpp"))
    others = [CSRC / "isa" / "dispatch.cpp"]
    for folder in ("base", "ops"):
        others += sorted((CSRC / folder).glob("*.cpp"))
    assert units

    def compile_one(source: Path) -> str:
        target = tmp_path / f"{source.parent.name}_{source.stem}.o"
        command = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu", *FLAGS]
        if source in units:
            command += ["-DSEQREC_ISA=isa_baseline", "-DSEQREC_LANES=4"]
        command += [f"-I{CSRC}", "-c", str(source), "-o", str(target)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "cache")},
        )
        if done.returncode != 0:
            return f"{source.name}: {done.stderr[-2000:]}"
        # an ELF file for machine 183, which is aarch64
        assert target.read_bytes()[18:20] == b"\xb7\x00"
        return ""

    with ThreadPoolExecutor(max_workers=2) as workers:
        failures = [text for text in workers.map(compile_one, [*units, *others]) if text]
    assert not failures, "\n".join(failures)
