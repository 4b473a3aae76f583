# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the public research data, instruction sets, and how hypothesis runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from seqrec_fast import _C, native

ROOT = Path(__file__).resolve().parent.parent

# Read by torch's OpenMP when it is loaded: workers that spin while they wait slow a suite down many
# times where the cores are shared with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Read by Triton when it is imported, which torch does here and there: kernels run interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Deadlines measure the machine, not the code, on cores that are shared with other work.
settings.register_profile(
    "project", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("project")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public research data beside the repository; skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the public research data is not at ../shared/data ({folder})")
    return folder


@pytest.fixture(params=native.build_info()["isa_supported"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with the kernels of each instruction set of this machine; its name."""
    before = native.build_info()["isa"]
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(before)
