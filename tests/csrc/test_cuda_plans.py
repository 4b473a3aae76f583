# SPDX-License-Identifier: Apache-2.0
"""Plans of launches against NVIDIA's occupancy header; needs a CUDA toolkit, no GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"


def headers() -> Path | None:
    """The folder of ``cuda_occupancy.h`` of the nvcc on the path."""
    nvcc = shutil.which("nvcc")
    folders = [Path("/usr/local/cuda/include")]
    if nvcc is not None:
        words = subprocess.run(
            [nvcc, "-dryrun", "-c", "-x", "cu", "-"], capture_output=True, text=True, check=False
        ).stderr
        tops = [line.partition("TOP=")[2] for line in words.splitlines() if "TOP=" in line]
        folders = [Path(top).resolve() / "include" for top in tops] + folders
    return next((f for f in folders if (f / "cuda_occupancy.h").exists()), None)


@pytest.mark.parametrize("plan", ["recurrent", "topk", "decode_attention"])
def test_every_block_fits_and_those_that_wait_run_at_once(plan: str, tmp_path: Path) -> None:
    """Of every size that is supported, with the shared memory that is planned, on five cards."""
    include = headers()
    if include is None:
        pytest.skip("cuda_occupancy.h was not found: no CUDA toolkit is installed")
    program = tmp_path / "plan"
    source = HERE / "cuda_plans" / f"{plan}.cpp"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    subprocess.run(
        ["g++", *flags, "-isystem", str(include), str(source), "-o", str(program)], check=True
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[:2000]


def test_every_plan_is_checked() -> None:
    """Of the embedding the blocks have 1.5 KiB of shared memory at most, and wait for nobody."""
    plans = {p.name.removesuffix("_plan.h") for p in (CSRC / "cuda").glob("*_plan.h")}
    assert plans - {"embedding"} == {p.stem for p in (HERE / "cuda_plans").glob("*.cpp")}
