# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as nvcc compiles them, and grids as NVIDIA's occupancy header counts them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"csrc_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cuda = load("cuda")
PTX = cuda.ROOT / "build" / "cuda-ptx"


@pytest.fixture(scope="module")
def toolkit() -> Any:
    found = cuda.toolkit.find()
    if found is None:
        pytest.skip("no nvcc was found (CUDA_HOME, PATH, pip's cuda-build)")
    return found


def test_ptx_for_every_architecture(toolkit: Any) -> None:
    """What is newer than all that could have changed it is kept from one run to the next."""
    inputs = [p for p in (cuda.CSRC / "cuda").glob("*") if p.is_file()]
    newest = max(path.stat().st_mtime for path in inputs)
    PTX.mkdir(parents=True, exist_ok=True)
    known = [a for a in cuda.toolkit.ARCHITECTURES if a in toolkit.architectures()]
    assert known

    def compiled(unit: Path, architecture: str) -> str:
        target = PTX / f"{unit.stem}.sm_{architecture}.ptx"
        if not target.exists() or target.stat().st_mtime <= newest:
            toolkit.compile(unit, f"sm_{architecture}", target)
        return str(target.read_text(encoding="utf-8"))

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as workers:
        for unit in cuda.toolkit.units():
            texts = workers.map(lambda a, u=unit: compiled(u, a), known)
            for architecture, text in zip(known, texts, strict=True):
                assert re.search(rf"^\.target sm_{architecture}\b", text, re.MULTILINE), unit
                assert ".visible .entry" in text or ".entry" in text, unit


def test_a_driver_is_not_needed_to_import(tmp_path: Path) -> None:
    """Of the compiled module, where it was built."""
    spec = importlib.util.find_spec("seqrec_fast._cuda")
    if spec is None:
        pytest.skip("seqrec_fast._cuda was not built (SEQREC_FAST_CUDA=1 builds it)")
    code = (
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        "from seqrec_fast import _cuda\n"
        "print(_cuda.build_info()['emulated'], _cuda.why_not())\n"
        "from seqrec_fast.errors import DeviceError\n"
        "try:\n"
        "    _cuda.embed(0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0.0, 0, 0)\n"
        "except DeviceError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cuda.ROOT
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.match(r"False .+", first)
    assert second.startswith("the CUDA kernel embedding_gather could not be launched: ")


OCCUPANCY = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_occupancy.h>
#include "cuda/shim/engine.h"
using namespace seqrec::cuda;
int main() {
  // of an A100: the emulation pretends to be one
  cudaOccDeviceProp p;
  std::memset(&p, 0, sizeof p);
  p.computeMajor = 8;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsPerMultiprocessor = shim::device.threads_per_multiprocessor;
  p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32;
  p.sharedMemPerBlock = 48 << 10;
  p.sharedMemPerMultiprocessor = shim::device.shared_per_multiprocessor;
  p.numSms = 108;
  p.sharedMemPerBlockOptin = shim::device.shared_per_block;
  p.reservedSharedMemPerBlock = 1024;
  cudaOccFuncAttributes f;
  std::memset(&f, 0, sizeof f);
  f.maxThreadsPerBlock = 1024;
  f.numRegs = 32;
  f.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  f.maxDynamicSharedSizeBytes = shim::device.shared_per_block;
  f.numBlockBarriers = 1;
  const cudaOccDeviceState state = {};
  int wrong = 0;
  for (int threads = 32; threads <= 1024; threads += 32) {
    for (int shared = 0; shared <= shim::device.shared_per_block; shared += 1024) {
      cudaOccResult r;
      if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &f, &state, threads, shared) != 0) {
        std::printf("refused %d %d\\n", threads, shared);
        return 1;
      }
      const int mine = shim::blocks_per_multiprocessor(threads, shared);
      if (mine != r.activeBlocksPerMultiprocessor && wrong++ < 5) {
        std::printf("%d threads, %d bytes: %d, not %d\\n", threads, shared, mine,
                    r.activeBlocksPerMultiprocessor);
      }
    }
  }
  return wrong != 0;
}
"""


def test_blocks_are_resident_as_the_occupancy_header_counts(toolkit: Any, tmp_path: Path) -> None:
    """So a cooperative grid that the emulation takes would be taken by the device it pretends."""
    source = tmp_path / "occupancy.cpp"
    source.write_text(OCCUPANCY, encoding="utf-8")
    engine = cuda.SHIM / "engine.cpp"
    program = tmp_path / "occupancy"
    include = ["-isystem", str(toolkit.include())]
    cuda.run([*cuda.FLAGS, "-O0", *include, str(source), str(engine), "-o", str(program)])
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
