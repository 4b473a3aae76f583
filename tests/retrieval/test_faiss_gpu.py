# SPDX-License-Identifier: Apache-2.0
"""The kinds on GPUs: every path against a stand-in in numpy, whose names real builds have."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from seqrec_fast import retrieval
from seqrec_fast.errors import DeviceError, InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval import faiss_library
from tests.retrieval import fake_faiss_gpu
from tests.retrieval.test_contract import QUERIES, VECTORS, brute, same

real_faiss = pytest.importorskip("faiss")

NAMES = Path(__file__).parent / "faiss_gpu_names.json"
RNG = np.random.default_rng(3)

#: options with which each kind finds all there is
BUILDS: dict[str, dict[str, Any]] = {
    "gpu-flat": {},
    "gpu-ivf": {"nlist": 6, "nprobe": 6},
    "gpu-ivfpq": {"nlist": 3, "nprobe": 3, "refine": 6},
    "gpu-cagra": {"graph_degree": 8, "intermediate_graph_degree": 16},
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = fake_faiss_gpu.fake(real_faiss)
    monkeypatch.setitem(sys.modules, "faiss", module)
    return module


@pytest.fixture(params=BUILDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(kind: str, vectors: Any = VECTORS, **options: Any) -> Any:
    return retrieval.build(vectors, kind=kind, **(BUILDS[kind] | options))


# ------------------------------------------------------------------ on the stand-in


def test_search_runs_on_the_gpu(gpu: ModuleType, kind: str) -> None:
    index = made(kind)
    gpu.log.clear()
    same(index.search(QUERIES, 20), brute(VECTORS, QUERIES, 20))
    assert index.by_kernel == 0
    assert len(gpu.log) == 1
    assert ".search 7 x" in gpu.log[0]
    same(index.search(np.asfortranarray(QUERIES.astype(np.float64)), 3), brute(VECTORS, QUERIES, 3))


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_filters_are_asked_for_in_addition(gpu: ModuleType, kind: str, metric: str) -> None:
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    vectors, queries = VECTORS, QUERIES
    if metric == "cosine":
        vectors, queries = unit, QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    index = retrieval.build(VECTORS, kind=kind, metric=metric, **BUILDS[kind])
    mask = RNG.random(300) < 0.5
    rows = JaggedBatch.from_lists([RNG.integers(0, 300, 60) for _ in QUERIES])
    listed = np.zeros((7, 300), bool)
    for at, row in enumerate(rows):
        listed[at, row] = True
    for given, hidden in (
        ({"exclude": rows}, listed),
        ({"allow": mask}, np.broadcast_to(~mask, (7, 300))),
        ({"allow": mask, "exclude": rows}, ~mask | listed),
    ):
        before = index.by_kernel
        same(index.search(QUERIES, 20, **given), brute(vectors, queries, 20, hidden))
        assert index.by_kernel == before, "faiss alone could fill it"
    for given, hidden in (
        ({"allow": rows}, ~listed),
        ({"allow": []}, np.ones((7, 300), bool)),
        ({"allow": [1, 2, 5]}, ~np.isin(np.arange(300), [1, 2, 5])[None]),
        ({"deny": np.flatnonzero(mask)}, np.broadcast_to(mask, (7, 300))),
    ):
        same(index.search(QUERIES, 40, **given), brute(vectors, queries, 40, hidden))


def test_lists_that_are_not_looked_into_are_made_up_for(gpu: ModuleType) -> None:
    index = made("gpu-ivf", nlist=30, nprobe=1)
    scores, ids = index.search(QUERIES, 100)
    assert index.by_kernel > 0
    same(retrieval.Found(scores, ids), brute(VECTORS, QUERIES, 100))


def test_a_catalogue_that_changes(gpu: ModuleType, kind: str) -> None:
    index = made(kind, VECTORS[:260])
    index.add(VECTORS[260:])
    same(index.search(QUERIES, 20), brute(VECTORS, QUERIES, 20))
    gone = np.unique(index.search(QUERIES, 3).ids)
    index.remove(gone)
    hidden = np.isin(np.arange(300), gone)[None]
    same(index.search(QUERIES, 20), brute(VECTORS, QUERIES, 20, hidden))
    fresh = RNG.standard_normal((2, 16)).astype(np.float32)
    index.update([gone[0], 7], fresh)
    whole = VECTORS.copy()
    whole[[gone[0], 7]] = fresh
    hidden[0, [gone[0], 7]] = False
    same(index.search(QUERIES, 20), brute(whole, QUERIES, 20, hidden))
    np.testing.assert_array_equal(index.vectors([7]), fresh[1:])


def test_files(gpu: ModuleType, kind: str, tmp_path: Path) -> None:
    index = made(kind)
    index.remove([3])
    index.save(tmp_path / "index")
    again = retrieval.load(tmp_path / "index")
    assert again.describe() == index.describe()
    for one, other in zip(again.search(QUERIES, 20), index.search(QUERIES, 20), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.by_kernel == 0
    again.add(VECTORS[:1])
    assert again.search(VECTORS[:1] * 9, 300 if kind == "gpu-flat" else 20).ids[0, 0] >= 0


@pytest.mark.parametrize("items", [0, 1, 5])
def test_very_small(gpu: ModuleType, kind: str, items: int) -> None:
    index = retrieval.build(VECTORS[:items], kind=kind)
    same(index.search(QUERIES, 8), brute(VECTORS[:items], QUERIES, 8))
    index.add(VECTORS[items:9])
    same(index.search(QUERIES, 9), brute(VECTORS[:9], QUERIES, 9))


def test_k_beyond_the_limit_names_the_kind_for_the_cpu(gpu: ModuleType) -> None:
    vectors = RNG.standard_normal((2100, 4)).astype(np.float32)
    index = retrieval.build(vectors, kind="gpu-flat")
    same(index.search(QUERIES[:, :4], 2048), brute(vectors, QUERIES[:, :4], 2048))
    assert index.by_kernel == 0
    with pytest.raises(InputError, match=r"k: found 2049, .* at most 2048 .* use kind='flat'"):
        index.search(QUERIES[:, :4], 2049)
    index = retrieval.build(vectors, kind="gpu-ivfpq", m=2)
    with pytest.raises(InputError, match=r"k \* refine = 2400 candidates.*refine=3, or kind='iv"):
        index.search(QUERIES[:, :4], 600)


def test_float16_is_ranked_again(gpu: ModuleType) -> None:
    index = made("gpu-flat", float16=True)
    assert index.exact is False
    same(index.search(QUERIES, 20), brute(VECTORS, QUERIES, 20))


def test_searches_queue_for_the_device(gpu: ModuleType) -> None:
    """The stand-in fails where two threads use its memory at once."""
    index = made("gpu-flat")
    wrong: list[Exception] = []

    def search() -> None:
        try:
            for _ in range(50):
                index.search(QUERIES, 5)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(5):
        index.update([number], VECTORS[:1])
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_told(gpu: ModuleType) -> None:
    index = made("gpu-flat")
    index._process -= 1
    with pytest.raises(DeviceError, match=r"cannot be used by a process forked"):
        index.search(QUERIES, 3)


# ------------------------------------------------------------------ refusals


def test_a_build_for_the_cpu_is_refused(kind: str) -> None:
    if hasattr(real_faiss, "StandardGpuResources"):
        pytest.skip("this faiss is built for GPUs")
    with pytest.raises(DeviceError, match=r"is a build for the CPU.*pip uninstall.*retrieval-gpu"):
        retrieval.build(VECTORS, kind=kind)


def test_no_gpu_another_gpu_and_no_cagra(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real_faiss, gpus=0))
    with pytest.raises(DeviceError, match=rf"kind '{kind}': .* sees no GPU"):
        made(kind)
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real_faiss, gpus=2))
    with pytest.raises(DeviceError, match=r"device: found 2, but faiss sees 2 GPU"):
        made(kind, device=2)
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real_faiss, cagra=False))
    with pytest.raises(DeviceError, match=r"built without GpuIndexCagra .*faiss-gpu-cuvs"):
        made("gpu-cagra")


def test_what_fails_on_the_device_is_told(gpu: ModuleType, monkeypatch: Any) -> None:
    index = made("gpu-flat")

    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("Error: out of\nmemory")

    monkeypatch.setattr(gpu.GpuIndexFlatIP, "search", out_of_memory)
    with pytest.raises(DeviceError, match=r"faiss failed on GPU 0: Error: out of memory"):
        index.search(QUERIES, 3)


# ------------------------------------------------------------------ names of real builds


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(NAMES.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("build", recorded()["builds"])
def test_real_builds_have_the_names_and_signatures(build: str) -> None:
    facts = recorded()["builds"][build]
    cagra = "GpuIndexCagra" in facts["attributes"]
    for name, attributes in fake_faiss_gpu.ATTRIBUTES.items():
        if cagra or "Cagra" not in name:
            assert set(attributes) <= set(facts["attributes"][name]), name
            assert facts["constructor"][name] in ("made", "no GPU"), name
    assert facts["functions"] == list(fake_faiss_gpu.FUNCTIONS)
    assert facts["refuses"] == {"too many arguments": "TypeError", "no GPU": "RuntimeError"}


def test_one_recorded_build_has_cagra() -> None:
    assert any("GpuIndexCagra" in one["attributes"] for one in recorded()["builds"].values())


def test_the_code_uses_no_other_names() -> None:
    """What the code takes from faiss for GPUs is what the stand-in offers."""
    package = Path(retrieval.__file__).parent
    used: set[str] = set()
    for path in package.glob("faiss_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(
                node.value, (ast.Attribute, ast.Name)
            ):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else owner.id
                if name in ("_faiss", "faiss", "module"):
                    used.add(node.attr)
            elif isinstance(node, ast.Constant):
                used |= {one for one in [str(node.value)] if re.fullmatch(r"GpuIndex\w+", one)}
    known = {*fake_faiss_gpu.ATTRIBUTES, *fake_faiss_gpu.FUNCTIONS}
    assert {"GpuIndexFlatIP", "GpuIndexCagra", "SearchParametersCagra"} <= used
    for name in used - known:
        assert hasattr(real_faiss, name), f"faiss.{name} is neither recorded nor in this build"


def test_the_record_is_that_of_the_build_at_hand() -> None:
    """Runs where a build for GPUs is installed; ``SEQREC_FAST_FAISS_GPU_PYTHON`` may name one."""
    python = os.environ.get("SEQREC_FAST_FAISS_GPU_PYTHON")
    if python is None:
        if not hasattr(real_faiss, "StandardGpuResources"):
            pytest.skip("no faiss for GPUs here")
        python = sys.executable
    script = Path(__file__).parent / "record_faiss_gpu.py"
    done = subprocess.run([python, script], capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    build = recorded()["builds"].get(found["build"])
    if build is None:
        pytest.skip(f"{found['build']} is not recorded")
    expected = build if found["gpus"] == 0 else {**build, "constructor": found["constructor"]}
    assert {name: found[name] for name in ("attributes", "functions", "constructor")} == {
        name: expected[name] for name in ("attributes", "functions", "constructor")
    }


def test_abilities(gpu: ModuleType) -> None:
    assert faiss_library.abilities()["kinds"] == dict.fromkeys(BUILDS)
    assert faiss_library.abilities()["gpus"] == 1


@pytest.mark.parametrize(("kind", "lists"), [("gpu-ivf", 30), ("gpu-ivfpq", 8)])
def test_tuned_shares_the_device(gpu: ModuleType, kind: str, lists: int) -> None:
    index = made(kind, nlist=lists, nprobe=1, refine=6) if "pq" in kind else made(kind, nlist=lists)
    index = index.tuned(nprobe=1)
    other = index.tuned(nprobe=lists)
    assert other._structure is index._structure
    for _ in range(2):  # each looks into its own number of lists, whoever searched before
        index.search(QUERIES, 3)
        assert index._structure.nprobe == 1
        same(other.search(QUERIES, 20), brute(VECTORS, QUERIES, 20))
        assert other._structure.nprobe == lists
    other.add(QUERIES[:1] * 100)
    assert other._structure is not index._structure
    assert (index.size, other.size) == (300, 301)
    assert index.tuned(nprobe=2).search(QUERIES, 5).ids.max() < 300


def test_tuned_graph(gpu: ModuleType) -> None:
    index = made("gpu-cagra").tuned(itopk_size=32)
    same(index.search(QUERIES, 20), brute(VECTORS, QUERIES, 20))
