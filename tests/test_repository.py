# SPDX-License-Identifier: Apache-2.0
"""Rules about the repository itself: imports, completeness, links, versions, size of files."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import seqrec_fast

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "seqrec_fast"
SOURCES = ("seqrec_fast", "tests", "benchmarks", "csrc")
SUFFIXES = {".py", ".pyi", ".h", ".hpp", ".cpp", ".cu", ".cuh"}
MAX_LINES = 500

OPERATIONS = sorted(
    path.stem for path in (PACKAGE / "ops").glob("*.py") if not path.stem.startswith("_")
)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def source_files() -> Iterator[Path]:
    yield ROOT / "setup.py"
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                yield path


def python_process(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )


# ------------------------------------------------------------------------- imports


def test_import_contracts_hold() -> None:
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_import_loads_nothing_heavy() -> None:
    done = python_process(
        """
        import sys
        import seqrec_fast
        heavy = {"torch", "duckdb", "pyarrow", "matplotlib", "tqdm", "pandas", "faiss"}
        heavy.add("safetensors")
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_public_name_of_the_package_can_be_had() -> None:
    for name in seqrec_fast.__all__:
        assert getattr(seqrec_fast, name) is not None, name
    assert set(seqrec_fast.__all__) <= set(dir(seqrec_fast))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = seqrec_fast.nonsense


def test_serving_modules_work_without_torch_and_without_readers_of_logs() -> None:
    done = python_process(
        """
        import sys

        class Blocked:
            names = {"torch", "duckdb", "pyarrow", "matplotlib", "tqdm", "pandas", "faiss"}

            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in self.names:
                    raise ImportError(f"{name} is blocked")

        sys.meta_path.insert(0, Blocked())
        import seqrec_fast as sf
        sf.bundle, sf.engine, sf.evaluation, sf.retrieval, sf.serving, sf.data, sf.Recommender
        print(sf.build_info() != {})
        """
    )
    assert done.stdout.strip() == "True", done.stdout + done.stderr


def test_no_module_of_the_serving_chain_names_torch() -> None:
    """The contract of import-linter, told again from the text: inside functions too."""
    chain = ["errors.py", "native.py", "data", "bundle", "bundle.py", "retrieval", "engine"]
    chain += ["evaluation", "batch", "serving"]
    looked_at = 0
    for entry in chain:
        path = PACKAGE / entry
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []
        for file in files:
            looked_at += 1
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not any(n.split(".")[0] == "torch" for n in names), f"{file}:{node}"
    assert looked_at > 10


# -------------------------------------------------------------------- completeness


def test_there_are_operations() -> None:
    assert {"recurrent", "attention", "cross_entropy", "topk"} <= set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_is_complete(operation: str) -> None:
    """Each operation has its definition in torch, its test and its page, all under one word."""
    source = (PACKAGE / "ops" / f"{operation}.py").read_text(encoding="utf-8")
    assert "import torch" in source or "from torch" in source, "the definition in plain torch"
    assert (ROOT / "tests" / "ops" / f"test_{operation}.py").is_file()
    page = ROOT / "docs" / "ops" / f"{operation}.md"
    assert page.is_file()
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    functions = [
        node.name
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and f'"{node.name}"' in source
    ]
    assert functions, f"ops/{operation}.py has no public function"
    assert all(name in text for name in functions), f"{operation}.md does not name {functions}"
    assert f"ops/{operation}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation, page


def test_every_command_is_documented() -> None:
    from seqrec_fast.cli.main import COMMANDS

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"## {command}" in text
        assert importlib.util.find_spec(f"seqrec_fast.cli.{command}") is not None


def test_every_package_has_tests() -> None:
    for folder in sorted(PACKAGE.iterdir()):
        if (folder / "__init__.py").is_file():
            assert list((ROOT / "tests" / folder.name).glob("test_*.py")), folder.name


# --------------------------------------------------------------------------- links

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_resolve(document: Path) -> None:
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        assert (document.parent / target.partition("#")[0]).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"(?:`|^\s*\$ ?|^)make ([a-z]+)", text, re.MULTILINE)
    assert set(named) <= targets, set(named) - targets


def test_readme_shows_the_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    assert "make demo" in first_screen
    assert "make test" in first_screen


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_examples_are_python(document: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.M):
        ast.parse(block)


# ---------------------------------------------------------------- versions and build


def test_versions_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert released[0] == seqrec_fast.__version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'version = { attr = "seqrec_fast.__version__" }' in project


def test_torch_is_no_build_requirement() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    build = project[project.index("[build-system]") : project.index("[project]")]
    requires = re.search(r"^requires = \[(.*?)\]", build, re.DOTALL | re.MULTILINE)
    assert requires is not None
    names = re.findall(r'"([a-zA-Z0-9_-]+)', requires.group(1))
    assert sorted(names) == ["pybind11", "setuptools", "wheel"]
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(setup)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "torch" not in imported
    for source in sorted((ROOT / "csrc").rglob("*")):
        if source.suffix in {".h", ".cpp"}:
            text = source.read_text(encoding="utf-8")
            assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", text), source


def test_build_uses_no_flags_that_change_the_process_or_tie_it_to_one_machine() -> None:
    flags = [
        node.value
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for banned in ("-march=native", "-mtune=native", "-ffast-math", "-Ofast", "-fopenmp"):
        assert banned not in flags, banned


def test_core_dependencies_are_few() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^dependencies = \[(.*?)\]", project, re.DOTALL | re.MULTILINE)
    assert found is not None
    names = re.findall(r'"([a-z0-9-]+)', found.group(1))
    assert sorted(names) == ["duckdb", "numpy", "pyarrow", "safetensors"]


def test_constraints_pin_each_package_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"^[A-Za-z0-9._-]+==[0-9][^ ;+]*(; python_\w+ >= \S+)?$", p) for p in pins)
    names = [pin.partition("==")[0].lower().replace("_", "-") for pin in pins]
    assert len(names) == len(set(names))
    assert "torch==2.13.0" in pins


# --------------------------------------------------------------------------- files


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in source_files()
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MAX_LINES
    }
    assert not long, long


def test_every_source_file_names_its_licence() -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in source_files()
        if path.stat().st_size
        and "SPDX-License-Identifier: Apache-2.0" not in path.read_text(encoding="utf-8")[:200]
    ]
    assert not missing, missing


def test_nothing_is_pickled() -> None:
    banned = re.compile(r"^\s*(import|from)\s+(pickle|dill|joblib|shelve|marshal)\b", re.MULTILINE)
    for path in sorted(PACKAGE.rglob("*.py")):
        assert not banned.search(path.read_text(encoding="utf-8")), path
