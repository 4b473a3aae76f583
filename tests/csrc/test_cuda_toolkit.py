# SPDX-License-Identifier: Apache-2.0
"""Which nvcc is taken; the kernels as it compiles them; grids as its occupancy header counts."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
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
        pytest.skip(cuda.toolkit.search()[1])
    return found


def test_ptx_for_every_architecture(toolkit: Any) -> None:
    """What is newer than all that could have changed it is kept from one run to the next."""
    kinds = {".cu", ".cuh", ".h", ".py"}
    inputs = [p for p in (cuda.CSRC / "cuda").iterdir() if p.suffix in kinds]
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


# --------------------------------------------------------------------- which compiler, and for what


def fake(home: Path, version: str = "13.0", known: str = "75 80 86 90 100 103 120") -> Path:
    """A stand-in for nvcc that answers what a build asks before it compiles; the folder of it."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f"  --version) echo 'Cuda compilation tools, release {version}, V{version}.1' ;;\n"
        f"  --list-gpu-arch) printf 'compute_%s\\n' {known} ;;\n"
        "esac\n",
        encoding="utf-8",
    )
    nvcc.chmod(0o755)
    return home


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The search for a compiler in an environment that has none."""
    for variable in ("CUDA_HOME", "CUDA_PATH", "SEQREC_FAST_CUDA_ARCHS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "path", ["/nowhere"])
    cuda.toolkit.search.cache_clear()
    yield cuda.toolkit.search
    cuda.toolkit.search.cache_clear()


def test_without_a_compiler_the_places_are_named(search: Any) -> None:
    assert search() == (None, "no nvcc was found (CUDA_HOME, PATH, pip's wheels)")


def test_the_compiler_of_wheels_is_found(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fake(tmp_path / "nvidia" / "cu13")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found, reason = search()
    assert (found.nvcc, reason) == (home / "bin" / "nvcc", "")
    assert found.version() == "13.0"


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_a_variable_that_names_no_toolkit_is_named(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    expected = f"{variable}: there is no {tmp_path}/bin/nvcc; correct the variable or unset it"
    assert search() == (None, expected)


@pytest.mark.parametrize(("version", "usable"), [("11.8", False), ("12.6", False), ("12.8", True)])
def test_an_old_compiler_is_refused(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, usable: bool
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake(tmp_path, version)))
    found, reason = search()
    assert (found is not None) == usable
    told = f"nvcc {version} ({tmp_path}/bin/nvcc) is too old: the kernels need 12.8 or newer"
    assert reason == ("" if usable else f"{told}, the first that compiles for sm_120")


@pytest.mark.parametrize("text", ["#!/bin/sh\necho 'no licence'; exit 1\n", "#!/no/shell\n"])
def test_a_compiler_that_does_not_work_is_named(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    nvcc = fake(tmp_path) / "bin" / "nvcc"
    nvcc.write_text(text, encoding="utf-8")
    monkeypatch.setenv("PATH", str(nvcc.parent))
    found, reason = search()
    assert found is None
    assert reason.startswith(f"{nvcc} does not work: asked for its version it says: ")
    assert "no licence" in reason or "No such file" in reason


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", "80 86 90 100 120"),
        ("sm_120; 90,sm_90 100", "90 100 120"),
        ("103", "103"),
    ],
)
def test_architectures_are_chosen(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, expected: str
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake(tmp_path)))
    monkeypatch.setenv("SEQREC_FAST_CUDA_ARCHS", wanted)
    chosen = search()[0].architectures()
    assert chosen == expected.split()
    command = search()[0].object_command("a.cu", "a.o", chosen, threads=2)
    newest = chosen[-1]
    assert f"-gencode=arch=compute_{newest},code=compute_{newest}" in command  # PTX
    assert all(f"-gencode=arch=compute_{a},code=sm_{a}" in command for a in chosen)
    assert "--threads=2" in command


@pytest.mark.parametrize("wanted", ["sm_77", "75", "9.0", "90a"])
def test_an_unknown_architecture_is_refused(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake(tmp_path)))
    monkeypatch.setenv("SEQREC_FAST_CUDA_ARCHS", f"80 {wanted}")
    with pytest.raises(SystemExit) as error:
        search()[0].architectures()
    unknown = wanted.removeprefix("sm_")
    told = f"SEQREC_FAST_CUDA_ARCHS: nvcc 13.0 cannot compile the kernels for {unknown}; "
    assert str(error.value).startswith(told)
    assert str(error.value).endswith("choose among 80, 86, 90, 100, 103, 120")
