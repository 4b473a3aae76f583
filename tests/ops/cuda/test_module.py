# SPDX-License-Identifier: Apache-2.0
"""The module of the CUDA kernels: what it offers, and what it answers where it refuses."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import seqrec_fast
from seqrec_fast.errors import DeviceError
from seqrec_fast.ops import score_topk
from seqrec_fast.ops.cuda import _module

STUB = Path(seqrec_fast.__file__).with_name("_cuda.pyi")


def test_the_stub_names_what_the_module_has() -> None:
    """With as many arguments."""
    body = ast.parse(STUB.read_text(encoding="utf-8")).body
    functions = {f.name: len(f.args.args) for f in body if isinstance(f, ast.FunctionDef)}
    constants = {
        a.target.id for a in body if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)
    }
    module = _module.kernels()
    found = {name for name in dir(module) if not name.startswith("_")} - {"emulation"}
    assert found == set(functions) | constants
    for name, count in functions.items():
        # what pybind11 writes: "embed(arg0: int, arg1: int, ...) -> None"
        assert len(re.findall(r"\barg\d+: ", getattr(module, name).__doc__)) == count, name


def test_a_refused_launch_is_one_error_and_the_next_one_runs(emulated: Any) -> None:
    items = torch.arange(300.0)[:, None]
    query = torch.ones(1, 1)
    emulated.set_device(4, 16 << 10)
    message = (
        r"^the CUDA kernel topk_scan could not be launched: invalid argument \(grid \d+ x 1 x 1, "
        r"block 128 x 1 x 1, \d+ bytes of shared memory\)$"
    )
    with pytest.raises(DeviceError, match=message):
        score_topk(query, items, k=3)
    emulated.set_device(4)
    assert score_topk(query, items, k=3)[1].tolist() == [[299, 298, 297]]


def test_devices_that_are_not_there_or_too_old(emulated: Any) -> None:
    found = []
    for number in (0, 1):
        tensor: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", number))
        try:
            found.append(_module.kernels_for(tensor) is _module.kernels())
        except DeviceError as error:
            found.append(str(error))
    assert found == [True, "a CUDA device: invalid device ordinal"]
    assert _module.unavailable() is None
    emulated.set_device(4, major=7)
    reason = _module.unavailable()
    assert reason == "no device has compute capability 8.0 or above, which the kernels need"


def test_a_module_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another Python's, or one whose libraries are not there: the reason is told, not raised."""
    broken = tmp_path / "_cuda.py"
    broken.write_text("raise ImportError('undefined symbol: x')", encoding="utf-8")
    monkeypatch.setattr(seqrec_fast, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "seqrec_fast._cuda", raising=False)
    monkeypatch.setattr(_module, "kernels", lambda: _module._load.__wrapped__(""))
    reason = _module.unavailable()
    assert reason is not None
    assert "cannot be loaded: undefined symbol: x; build them again" in reason
