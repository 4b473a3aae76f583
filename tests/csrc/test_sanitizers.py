# SPDX-License-Identifier: Apache-2.0
"""The C++ core under the sanitizers, and what the compiler made of each instruction-set unit."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("csrc_build", Path(__file__).with_name("build.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)

X86 = platform.machine().lower() in ("x86_64", "amd64")
# A child of a threaded process under the thread sanitizer cannot start threads: no fork tests.
RUNS = [("address,undefined", []), ("thread", ["pool_", "topk_threads"])]


@pytest.mark.parametrize(("sanitizers", "tests"), RUNS, ids=[r[0] for r in RUNS])
def test_core_is_clean(sanitizers: str, tests: list[str], tmp_path: Path) -> None:
    reason = build.links(sanitizers)
    if reason:
        pytest.skip(reason)
    program = build.build(tmp_path, sanitizers)
    settings = {
        "ASAN_OPTIONS": "detect_stack_use_after_return=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    done = subprocess.run(
        [program, *tests],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | settings,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert re.search(r"^\d+ tests$", done.stdout, re.MULTILINE)


@pytest.fixture(scope="module")
def optimised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each unit compiled as the package compiles it."""
    folder = tmp_path_factory.mktemp("units")
    objects = {}
    for source, flags in build.units().items():
        if source.parent.name == "isa" and source.stem != "dispatch":
            target = folder / f"{source.stem}.o"
            common = ["-std=c++17", "-O3", *build.WARNINGS, f"-I{build.ROOT / 'csrc'}"]
            build.run([*common, *flags, "-c", str(source), "-o", str(target)])
            objects[source.stem] = target
    return objects


def tool(*command: str | Path) -> str:
    assert shutil.which(str(command[0])) is not None, f"{command[0]} is not installed (binutils)"
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64")
def test_units_contain_the_instructions_of_their_set(optimised: dict[str, Path]) -> None:
    code = {n: tool("objdump", "-d", "--no-show-raw-insn", p) for n, p in optimised.items()}
    assert re.search(r"vfn?m(add|sub)\d+ps .*%zmm", code["avx512"])
    assert re.search(r"vfn?m(add|sub)\d+ps .*%ymm", code["avx2"])
    assert "%zmm" not in code["avx2"]
    assert "%ymm" not in code["baseline"]
    assert not re.search(r"\tv(add|mul|mov|fmadd|xor|cmp)\w*ps", code["baseline"])
    assert re.search(r"\tmulps", code["baseline"])


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64")
def test_units_share_no_code(optimised: dict[str, Path]) -> None:
    """A function that two units define must not reach the linker, which would keep either one."""
    for name, path in optimised.items():
        for line in tool("nm", "--demangle", "--defined-only", path).splitlines():
            _, kind, symbol = line.split(" ", 2)
            if kind in "WVu":
                assert f"isa_{name}::" in symbol, f"{name}: {symbol} may be taken by another unit"


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64")
def test_inner_loops_keep_their_tile_in_registers(optimised: dict[str, Path]) -> None:
    """The loop with the most multiply-adds in a row stores nothing."""
    for name in ("avx2", "avx512"):
        code = tool("objdump", "-d", "--no-show-raw-insn", optimised[name])
        runs = re.findall(r"(?:.*vfmadd.*\n(?:.*\n){0,4}?){12,}", code)
        assert runs, name
        body = max(runs, key=lambda text: text.count("vfmadd"))
        register = "zmm" if name == "avx512" else "ymm"
        assert not re.search(rf"vmov[au]ps %{register}\d+,.*\(%rsp", body), name
