# SPDX-License-Identifier: Apache-2.0
"""What ``info`` tells of an installation and of a bundle."""

from __future__ import annotations

import json
import sys

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
    for name in ("processor:", "native code:", "topk", "no Triton kernel in this version"):
        assert name in shown


def test_info_without_torch_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqrec_fast.cli import info

    real = info.find_spec
    monkeypatch.setattr(info, "find_spec", lambda name: None if name == "torch" else real(name))
    reason = info.operations()["attention"]["reference"]["reason"]
    assert reason is not None
    assert "seqrec-fast[train]" in reason


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
    shown = run("info", world.bundle).out
    for text in ("30 items", "best epoch", "weights.safetensors", "NDCG@10", str(world.log)):
        assert text in shown
