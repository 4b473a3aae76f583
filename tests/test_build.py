# SPDX-License-Identifier: Apache-2.0
"""What the build takes, leaves out and refuses, asked of ``setup.py`` without compiling."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
MADE = {".so", ".pyc", ".pyo", ".o", ".d", ".swp"}
BUILDING = (ROOT / "docs" / "building.md").read_text(encoding="utf-8")
WHEELS = (ROOT / ".ci" / "cuda-wheels.toml").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

# what setup.py makes of pyproject.toml, and what it would put where
ASK = """
import json, sys
import setuptools
from distutils.core import run_setup
dist = run_setup("setup.py", ["-q", "egg_info", "--egg-base", sys.argv[1]])
archive = open(sys.argv[1] + "/seqrec_fast.egg-info/SOURCES.txt", encoding="utf-8").read()
modules = dist.get_command_obj("build_py")
modules.ensure_finalized()
prefix = modules.build_lib + "/"
print(json.dumps({
    "archive": archive.splitlines(),
    "wheel": [path[len(prefix):] for path in modules.get_outputs(include_bytecode=False)],
    "extras": {name: list(map(str, found)) for name, found in dist.extras_require.items()},
    "python": str(dist.python_requires),
    "classifiers": dist.get_classifiers(),
}))
"""


def ask(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the root of the repository, without variables that steer a build."""
    steering = ("SEQREC_", "CUDA_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(steering)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**inherited, **variables},
        timeout=120,
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = ask(ASK, str(tmp_path_factory.mktemp("egg")))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def files(folder: str) -> set[str]:
    """All that is no product of a build or of running it, relative to the root."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in MADE and "__pycache__" not in path.parts
    }


# ------------------------------------------------------------------------------ lists of files


def test_a_source_archive_holds_what_a_build_and_the_tests_need(build: dict[str, Any]) -> None:
    archive = set(build["archive"])
    for folder in ("csrc", "seqrec_fast", "tests", "docs", "benchmarks"):
        assert len(files(folder)) > 10
        assert files(folder) <= archive, sorted(files(folder) - archive)
    single = {"setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "Makefile"}
    single |= {"constraints.txt", "mkdocs.yml", ".clang-format", *files(".ci")}
    assert single <= archive, sorted(single - archive)


def test_a_source_archive_holds_nothing_that_was_built(build: dict[str, Any]) -> None:
    built = [p for p in build["archive"] if Path(p).suffix in MADE or p.startswith("build/")]
    assert not built
    assert not [path for path in build["archive"] if "__pycache__" in path]


def test_a_wheel_holds_the_package_and_nothing_else(build: dict[str, Any]) -> None:
    """Beside the compiled modules, which are linked into it."""
    assert set(build["wheel"]) == files("seqrec_fast")


# ------------------------------------------------------------------------- versions, everywhere


def required(build: dict[str, Any], extra: str, name: str) -> Requirement:
    (found,) = (r for text in build["extras"][extra] if (r := Requirement(text)).name == name)
    return found


def least(requirement: Requirement) -> str:
    (found,) = (s.version for s in requirement.specifier if s.operator == ">=")
    return found


def test_the_compiler_of_wheels_is_one_and_the_same(build: dict[str, Any]) -> None:
    """In the extra, on the page, in the recipe of wheels; and setup.py takes it."""
    extra = required(build, "cuda-build", "cuda-toolkit")
    assert extra.extras == {"nvcc", "cccl"}
    for text in (BUILDING, WHEELS):
        named = [Requirement(r) for r in re.findall(r"'(cuda-toolkit\[[^']*)'", text)]
        assert named
        assert all(r.extras == extra.extras and r.specifier == extra.specifier for r in named)
    pinned = str(extra.specifier).removeprefix("==").removesuffix(".*")
    toolkit = (ROOT / "csrc" / "cuda" / "toolkit.py").read_text(encoding="utf-8")
    (oldest,) = re.findall(r"^LEAST_VERSION = \((\d+), (\d+)\)", toolkit, re.MULTILINE)
    assert Version(pinned) >= Version(".".join(oldest))
    assert f"nvcc {'.'.join(oldest)} or newer" in BUILDING
    assert f"CUDA {pinned}" in BUILDING
    (architectures,) = re.findall(r"^ARCHITECTURES = \((.*)\)", toolkit, re.MULTILINE)
    listed = re.findall(r"\d+", architectures)
    assert f"sm_{', '.join(listed[:-1])} and {listed[-1]}" in BUILDING


def test_torch_and_triton_are_as_old_as_the_page_says(build: dict[str, Any]) -> None:
    assert f"torch {least(required(build, 'train', 'torch'))} or newer" in BUILDING
    assert f"torch {least(required(build, 'gpu', 'torch'))} or newer" in BUILDING
    launch = (ROOT / "seqrec_fast" / "ops" / "triton" / "_launch.py").read_text(encoding="utf-8")
    (oldest,) = re.findall(r"^LEAST_VERSION = \((\d+), (\d+)\)", launch, re.MULTILINE)
    assert least(required(build, "test", "triton")) == ".".join(oldest)
    assert f"Triton {'.'.join(oldest)}" in BUILDING


def test_pythons_are_the_same_everywhere(build: dict[str, Any]) -> None:
    start = "Programming Language :: Python :: 3."
    stated = [int(c.removeprefix(start)) for c in build["classifiers"] if c.startswith(start)]
    assert stated == list(range(stated[0], stated[-1] + 1))
    assert build["python"] == f">=3.{stated[0]}"
    assert f"Python 3.{stated[0]} to 3.{stated[-1]}" in BUILDING
    wheels = 'build = "' + " ".join(f"cp3{minor}-*" for minor in stated) + '"'
    assert wheels in PROJECT
    assert wheels in WHEELS
    assert f'target-version = "py3{stated[0]}"' in PROJECT


def test_setup_refuses_what_the_build_system_table_does() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    (oldest,) = re.findall(r"^LEAST_PYBIND11 = \((\d+), (\d+)\)", setup, re.MULTILINE)
    table = PROJECT[PROJECT.index("[build-system]") : PROJECT.index("[project]")]
    assert f'"pybind11>={".".join(oldest)}"' in table
    assert f"pybind11 {'.'.join(oldest)}" in BUILDING


# ------------------------------------------------------------------- with CUDA kernels, or why not

WHY_NOT = """
import sys
import setuptools
from distutils.core import run_setup
command = run_setup("setup.py", ["-q"], stop_after="config").get_command_obj("build_ext")
command.inplace = sys.argv[1] == "inplace"
print(command.why_no_cuda())
"""


@pytest.mark.parametrize(
    ("kind", "variables", "told"),
    [
        ("wheel", {"SEQREC_FAST_CUDA": "0"}, "SEQREC_FAST_CUDA=0"),
        ("inplace", {}, "a build in place; set SEQREC_FAST_CUDA=1 to have them"),
        ("wheel", {"CUDA_HOME": "/nowhere"}, "CUDA_HOME: there is no /nowhere/bin/nvcc; "),
    ],
)
def test_without_cuda_kernels_the_build_says_why(
    kind: str, variables: dict[str, str], told: str
) -> None:
    done = ask(WHY_NOT, kind, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(told)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SEQREC_FAST_CUDA": "yes"}, "SEQREC_FAST_CUDA: must be 0 or 1, found 'yes'"),
        (
            {"SEQREC_FAST_CUDA": "1", "CUDA_HOME": "/nowhere"},
            "SEQREC_FAST_CUDA=1: CUDA_HOME: there is no /nowhere/bin/nvcc; correct the variable or "
            "unset it; install a CUDA toolkit and set CUDA_HOME, or its wheels",
        ),
    ],
)
def test_what_was_demanded_and_cannot_be_is_an_error(variables: dict[str, str], told: str) -> None:
    done = ask(WHY_NOT, "inplace", **variables)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(told)


@pytest.mark.parametrize(
    ("hidden", "told"),
    [
        ("pybind11", "seqrec-fast: needs pybind11 2.13 or newer to build, found none: pip install"),
        ("wheel", "makes no wheels by itself: pip install wheel, or setuptools 70.1 or newer"),
    ],
)
def test_what_the_build_needs_is_named(hidden: str, told: str) -> None:
    """Without isolation, where pip does not ask for it."""
    code = (
        "import importlib.util, runpy, sys, setuptools\n"
        "look = importlib.util.find_spec\n"
        "gone = {sys.argv[1], 'setuptools.command.bdist_wheel'}\n"
        "importlib.util.find_spec = lambda name, *a: None if name in gone else look(name, *a)\n"
        "sys.modules['pybind11'] = None if sys.argv[1] == 'pybind11' else __import__('pybind11')\n"
        "sys.argv = ['setup.py', 'dist_info', '--help']\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    done = ask(code, hidden)
    assert done.returncode == 1
    assert told in done.stderr.strip().splitlines()[-1]
