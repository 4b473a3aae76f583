# SPDX-License-Identifier: Apache-2.0
"""Triton kernels run in its interpreter, on the CPU, inside guarded memory.

A module of tests begins with ``pytest.importorskip("triton", reason=MISSING)``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.ops.triton.guards import Guards

# read when Triton is imported and when a kernel is made
if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("Triton was imported before tests/ops/triton: set TRITON_INTERPRET=1")
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """New tensors lie between canaries and start as NaN; the canaries are looked at in the end."""
    found = Guards(monkeypatch)
    yield found
    found.check()
