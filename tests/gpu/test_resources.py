# SPDX-License-Identifier: Apache-2.0
"""The kernels that ship against the committed tables of what they need.

Every run compares the fingerprints of all of them with the tables, and compiles a fixed sample; the
rest is compiled by ``make gates``, which also renews the tables.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from tests.gpu import compile_cuda, gates, report, sass, table
from tests.gpu.targets import TARGETS

RENEW = "the kernels have changed: run `make gates`, look at the difference, commit it"

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: its kernels cannot be listed", allow_module_level=True)


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    found = gates.list_triton()
    if not found["variants"]:
        pytest.skip("no Triton kernel ships yet")
    return found


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="the hashes are of sources as ast.unparse writes them since Python 3.11",
)
def test_every_variant_stands_in_the_table_of_every_version(shipped: dict[str, Any]) -> None:
    whole = table.read(gates.TRITON_TABLE)
    if not whole:
        pytest.fail("no table of the Triton kernels is committed: run `make gates`")
    wanted = {v["name"]: v["fingerprint"] for v in shipped["variants"]}
    assert len(wanted) == len(shipped["variants"]), "two variants have the same name"
    for version, entries in whole.items():
        found = {name: entry.fingerprint for name, entry in entries.items()}
        different = sorted(n for n in wanted.keys() | found if wanted.get(n) != found.get(n))
        assert different == [], f"Triton {version}: {RENEW}"


def test_the_page_for_people_is_that_of_the_table() -> None:
    whole = table.read(gates.TRITON_TABLE)
    assert report.PAGE.read_text(encoding="utf-8") == report.page(whole), RENEW


def test_no_triton_kernel_spills_or_lacks_tensor_cores() -> None:
    for version, entries in table.read(gates.TRITON_TABLE).items():
        assert gates.problems(entries) == [], f"Triton {version}"


def test_a_sample_compiles_to_what_is_committed(shipped: dict[str, Any]) -> None:
    entries = table.read(gates.TRITON_TABLE).get(shipped["version"], {})
    if not entries:
        pytest.skip(f"no table for Triton {shipped['version']}: run `make gates`")
    bad = []
    for (name, target), row in gates.compile_triton(gates.sample(shipped["variants"])).items():
        if isinstance(row, str):
            bad.append(f"{name}: {target}: {row}")
        elif (entry := entries.get(name)) is not None:
            bad += [f"{name}: {target}: {w}" for w in table.worse(entry.targets[target], row)]
        elif row.spills:  # a variant that the table does not know is held to what none may do
            bad.append(f"{name}: {target}: {row.spills} bytes spilled")
    assert bad == []


# ------------------------------------------------------------------------------- CUDA C++


def test_every_cuda_source_stands_in_the_table() -> None:
    if not compile_cuda.units():
        pytest.skip("no CUDA kernel ships yet")
    whole = table.read(compile_cuda.TABLE)
    if not whole:
        pytest.skip("no table of the CUDA kernels is committed yet: run `make gates`")
    for version, entries in whole.items():
        prints = {name.partition("/")[0]: entry.fingerprint for name, entry in entries.items()}
        assert prints == {u.name: compile_cuda.fingerprint(u) for u in compile_cuda.units()}, (
            f"{version}: {RENEW}"
        )
        wrong = [f"{n}: {what}" for n, entry in entries.items() for what in table.wrong(entry)]
        assert wrong == [], version


@pytest.mark.skipif(compile_cuda.nvcc() is None, reason="no nvcc on the path")
def test_a_sample_of_cuda_sources_compiles_to_what_is_committed() -> None:
    entries = table.read(compile_cuda.TABLE).get(compile_cuda.version(), {})
    targets = list(TARGETS.values())
    jobs = [(u, targets[i % len(targets)]) for i, u in enumerate(compile_cuda.units())]
    if not jobs:
        pytest.skip("no CUDA kernel ships yet")
    bad = []
    for (unit, target), rows in zip(jobs, compile_cuda.compile_all(jobs), strict=True):
        if isinstance(rows, str):
            bad.append(rows)
            continue
        for kernel, row in rows.items():
            if row.spills or row.stack:
                bad.append(f"{kernel}: {target.name}: {row.spills} bytes spilled")
            entry = entries.get(f"{unit.name}/{kernel}")
            if entry is not None and sass.tool("nvdisasm"):
                bad += [f"{kernel}: {w}" for w in table.worse(entry.targets[target.name], row)]
    assert bad == []
