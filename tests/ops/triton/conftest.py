# SPDX-License-Identifier: Apache-2.0
"""Triton kernels run in its interpreter, on the CPU, inside guarded memory.

A module of tests begins with ``pytest.importorskip("triton", reason=MISSING)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from seqrec_fast.ops.triton import _launch
from tests.ops.triton.guards import Guards

# tests/conftest.py sets it, before anything imports Triton
if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("tests/ops/triton needs TRITON_INTERPRET=1")


@pytest.fixture(autouse=True)
def interpreter() -> None:
    """Skips where these versions of Triton and numpy do not work together."""
    if (reason := _launch.unavailable()) is not None:
        pytest.skip(reason)


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """New tensors lie between canaries and start as NaN; the canaries are looked at in the end."""
    found = Guards(monkeypatch)
    yield found
    found.check()
