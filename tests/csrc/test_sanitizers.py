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
# Tables are in the list as they are pages of their own here and not under the address sanitizer.
# A child of a threaded process under the thread sanitizer cannot start threads: no fork tests.
THREADED = [
    "pool_",
    "team_",
    "hstu_attention_threads",
    "topk_threads",
    "topk_lists_threads",
    "cross_entropy_threads",
    "linear_threads",
    "layer_norm_threads",
    "feed_forward_threads",
    "embedding_threads",
    "recurrent_threads",
    "recurrent_backward_threads",
    "attention_threads",
    "decode_threads",
    "sessions_threads",
    "engine_threads",
    "tables_",
]
RUNS = [("address,undefined", []), ("thread", THREADED)]


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
def optimised(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Each unit compiled as the package compiles it, by operation and instruction set."""
    folder = tmp_path_factory.mktemp("units")
    objects = {}
    for source, isa, flags in build.units():
        if isa and isa != "wide":
            target = folder / f"{source.stem}_{isa}.o"
            common = ["-std=c++17", "-O3", *build.WARNINGS, f"-I{build.ROOT / 'csrc'}"]
            build.run([*common, *flags, "-c", str(source), "-o", str(target)])
            objects[source.stem, isa] = target
    return objects


def tool(*command: str | Path) -> str:
    assert shutil.which(str(command[0])) is not None, f"{command[0]} is not installed (binutils)"
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64")
def test_units_contain_the_instructions_of_their_set(
    optimised: dict[tuple[str, str], Path],
) -> None:
    for (operation, isa), path in optimised.items():
        code = tool("objdump", "-d", "--no-show-raw-insn", path)
        if isa == "baseline":
            assert "%ymm" not in code, operation
            assert not re.search(r"\tv(add|mul|mov|fmadd|xor|cmp)\w*ps", code), operation
            assert re.search(r"\tmulps", code), operation
            continue
        register = {"avx2": "ymm", "avx512": "zmm"}[isa]
        # dropout hashes and selects: it has no sums of products
        wanted = r"vp?mul\w+" if operation == "dropout" else r"vfn?m(add|sub)\d+ps"
        assert re.search(rf"{wanted} .*%{register}", code), (operation, isa)
        assert isa == "avx512" or "%zmm" not in code, operation


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64")
def test_units_share_no_code(optimised: dict[tuple[str, str], Path]) -> None:
    """A function that two units define must not reach the linker, which would keep either one."""
    for (operation, isa), path in optimised.items():
        for line in tool("nm", "--demangle", "--defined-only", path).splitlines():
            _, kind, symbol = line.split(" ", 2)
            if kind in "WVu":
                where = f"{operation}, {isa}: {symbol} may be taken by another unit"
                assert f"isa_{isa}::" in symbol, where


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64")
@pytest.mark.parametrize(
    "operation",
    ["attention", "cross_entropy", "hstu_attention", "linear", "recurrent", "topk"],
)
def test_inner_loops_keep_their_tile_in_registers(
    optimised: dict[tuple[str, str], Path], operation: str
) -> None:
    """The loop with the most multiply-adds in a row stores nothing."""
    for isa, register in (("avx2", "ymm"), ("avx512", "zmm")):
        code = tool("objdump", "-d", "--no-show-raw-insn", optimised[operation, isa])
        runs = re.findall(r"(?:.*vfmadd.*\n(?:.*\n){0,4}?){12,}", code)
        assert runs, isa
        body = max(runs, key=lambda text: text.count("vfmadd"))
        assert not re.search(rf"vmov[au]ps %{register}\d+,.*\(%rsp", body), isa
