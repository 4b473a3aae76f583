# SPDX-License-Identifier: Apache-2.0
"""What ``info`` tells of an installation and of a bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import seqrec_fast as sf
from tests.cli.support import ITEMS, World, run
from tests.retrieval import fake_faiss_gpu


def test_info_tells_operations_backends_and_reasons() -> None:
    found = json.loads(run("info", "--json").out)
    assert found["version"] == sf.__version__
    assert found["native"]["available"] is True
    assert found["packages"]["numpy"] == np.__version__
    operations = found["operations"]
    assert {"attention", "cross_entropy", "recurrent", "topk"} <= set(operations)
    for backends in operations.values():
        assert set(backends) == {"reference", "native", "cuda", "triton"}
        for one in backends.values():
            assert one["available"] is (one["reason"] is None)
    native = {one.name: one.available for one in sf.native.operations() if one.backend == "native"}
    assert {name: operations[name]["native"]["available"] for name in operations} == native
    assert native["recurrent"] is True
    assert operations["topk"]["native"]["available"] is True
    assert operations["recurrent"]["reference"]["available"] is True
    shown = run("info").out
    for name in ("processor:", "native code:", "topk", "cuBLAS) computes it: linear"):
        assert name in shown


def test_info_tells_why_kernels_for_gpus_cannot_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from seqrec_fast.cli import info
    from seqrec_fast.ops import _backend

    kernels = {"cuda": {"topk"}, "triton": {"attention"}}
    why = info._why_not_gpu
    monkeypatch.setattr(info, "_torch_for_gpus", lambda: False)
    assert str(why("attention", "triton", kernels)).endswith("was built without CUDA")
    assert why("attention", "cuda", kernels) == "the kernels for GPUs are in Triton"
    assert why("topk", "triton", kernels) == "the kernels for GPUs are in CUDA"
    assert why("dropout", "triton", kernels) == "no Triton kernel in this version"
    monkeypatch.setattr(info, "_torch_for_gpus", lambda: True)
    monkeypatch.setattr(_backend, "unavailable", lambda operation, device: f"not on {device}")
    assert why("attention", "triton", kernels) == "not on cuda"
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton,cuda")
    assert why("topk", "cuda", kernels) == "not on cpu"


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("cuda: Optional[str] = '13.0'\n", True),
        ("cuda = None\nhip = '6.4'\n", True),
    ],
)
def test_the_build_of_torch_is_read_without_loading_it(
    text: str, gpus: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from seqrec_fast.cli import info

    (tmp_path / "version.py").write_text(text, encoding="utf-8")
    place = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(info, "find_spec", lambda name: place)
    assert info._torch_for_gpus.__wrapped__() is gpus


def test_info_without_torch_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqrec_fast.cli import info

    real = info.find_spec
    monkeypatch.setattr(info, "find_spec", lambda name: None if name == "torch" else real(name))
    reason = info.operations()["attention"]["reference"]["reason"]
    assert reason is not None
    assert "seqrec-fast[train]" in reason
    lines = info._describe_installation(info.installation()).splitlines()
    (told,) = (line for line in lines if line.startswith(f"{reason}: "))
    names = told.removeprefix(f"{reason}: ").split(", ")
    assert len(names) == len(set(names)), "each operation once"


def test_info_tells_of_faiss_and_why_no_kind_runs_on_a_gpu() -> None:
    faiss = pytest.importorskip("faiss")
    found = json.loads(run("info", "--json").out)["faiss"]
    assert found["version"] == faiss.__version__
    assert found["gpu_build"] is hasattr(faiss, "StandardGpuResources")
    assert set(found["kinds"]) == {"gpu-flat", "gpu-ivf", "gpu-ivfpq", "gpu-cagra"}
    shown = run("info").out
    assert f"faiss: {faiss.__version__}, built for " in shown
    for kind, reason in found["kinds"].items():
        assert kind in shown
        assert (reason or "available") in shown
    if not found["gpu_build"]:
        assert "gpu-flat, gpu-ivf, gpu-ivfpq, gpu-cagra: faiss-cpu" in shown


def test_info_tells_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytest.importorskip("faiss")
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real, gpus=2, cagra=False))
    shown = run("info").out
    assert "built for GPUs, 2 GPU(s)" in shown
    assert "gpu-flat, gpu-ivf, gpu-ivfpq: available" in shown
    assert "without GpuIndexCagra" in shown


def test_info_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install 'seqrec-fast[retrieval]'" in run("info").out
    assert json.loads(run("info", "--json").out)["faiss"]["version"] is None


def test_info_of_a_bundle(world: World) -> None:
    found = json.loads(run("info", world.bundle, "--json").out)
    assert found["model"] == "sasrec"
    assert found["num_items"] == ITEMS
    assert (found["removed"], found["index"]) == (0, None)
    assert found["item_table"] == {"title": "title", "columns": {"title": "text"}}
    shown = run("info", world.bundle).out
    texts = "30 items", "best epoch", "weights.safetensors", "NDCG@10", str(world.log)
    for text in (*texts, "title (text)"):
        assert text in shown
