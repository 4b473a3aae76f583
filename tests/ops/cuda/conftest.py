# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels compiled for the CPU, once a run of the tests, behind the public operations."""

from __future__ import annotations

import fcntl
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seqrec_fast.ops.cuda import _module

_BUILDER = Path(__file__).parents[2] / "csrc" / "cuda.py"


@pytest.fixture(scope="session")
def cuda_module() -> Path:
    """The emulated module, built where its sources have changed."""
    spec = importlib.util.spec_from_file_location("csrc_cuda", _BUILDER)
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    builder.FOLDER.mkdir(parents=True, exist_ok=True)
    with (builder.FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several runs at once, one builds
        found: Path = builder.build_module()
    return found


@pytest.fixture(autouse=True)
def emulated(cuda_module: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The operations run their CUDA kernels on tensors of the CPU; torch poisons new memory."""
    monkeypatch.setenv("SEQREC_FAST_CUDA_MODULE", str(cuda_module))
    # what has no CUDA kernels runs as ever
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "cuda,native")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # new_empty gives NaN
    module = _module.kernels()
    module.emulation.take_launches()
    yield module.emulation
    torch.use_deterministic_algorithms(before)
    module.emulation.set_order(1)
    module.emulation.set_device(4)
