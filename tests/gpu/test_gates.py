# SPDX-License-Identifier: Apache-2.0
"""The gates themselves: that a good kernel passes, and that each way of getting worse is caught."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.gpu import compile_cuda, gates, report, sass, table
from tests.gpu.targets import TARGETS, occupancy

GOOD = table.Measured(96, 0, 0, 40_000, 5, {"HMMA": 16, "LDGSTS": 12})
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: nothing to compile"
)


def entry(**rows: table.Measured) -> table.Entry:
    targets = dict.fromkeys(TARGETS, GOOD) | rows
    return table.Entry("f", "kernel", {"ROWS": 64}, 4, 2, True, targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registers": 105}, "105 registers instead of 96"),
        ({"registers": 97, "blocks": 4}, "4 blocks fit instead of 5"),
        ({"spills": 4}, "4 bytes spilled"),
        ({"stack": 8}, "8 bytes of stack"),
        ({"shared": 90_000, "blocks": 2}, "90000 bytes shared"),
        ({"instructions": {"LDGSTS": 12}}, "lost its tensor-core instructions (HMMA)"),
        ({"instructions": {"HMMA": 1}}, "lost its asynchronous copy instructions (LDGSTS)"),
    ],
)
def test_every_way_of_getting_worse_is_seen(change: dict[str, Any], message: str) -> None:
    assert message in "; ".join(table.worse(GOOD, GOOD._replace(**change)))


def test_what_is_as_good_passes() -> None:
    assert table.worse(GOOD, GOOD) == []
    assert table.worse(GOOD, GOOD._replace(registers=96 + table.SLACK_REGISTERS)) == []
    assert table.worse(GOOD, GOOD._replace(shared=50_000)) == []
    other = {"HGMMA": 2, "UTMALDG": 2}
    assert table.worse(GOOD, GOOD._replace(instructions=other)) == []


def test_no_kernel_may_spill_lack_tensor_cores_or_go_unmeasured() -> None:
    assert table.wrong(entry()) == []
    assert "spilled" in table.wrong(entry(sm_90=GOOD._replace(spills=4)))[0]
    without = GOOD._replace(instructions={"LDGSTS": 1})
    assert table.wrong(entry(sm_80=without)) == ["sm_80: no tensor-core instruction"]
    missing = entry()
    del missing.targets["sm_100"]  # type: ignore[attr-defined]
    assert table.wrong(missing) == ["sm_100: not measured"]


def test_a_configuration_may_be_too_large_where_another_fits() -> None:
    large = entry(sm_86=GOOD._replace(blocks=0, shared=150_000))
    names = ("k bf16 64 ROWS=128 warps=8", "k bf16 64 ROWS=64 warps=4", "k bf16 32 ROWS=64 warps=4")
    assert gates.problems({names[0]: large, names[1]: entry()}) == []
    assert "no block fits" in gates.problems({names[0]: large, names[2]: entry()})[0]
    spills = entry(sm_86=GOOD._replace(spills=8))
    assert "8 bytes spilled" in gates.problems({names[0]: spills, names[1]: entry()})[0]


def test_renewal_keeps_what_got_worse_until_it_is_accepted() -> None:
    before = {"k": entry(), "gone": entry()}
    variant = {
        **{"name": "k", "fingerprint": "new", "kernel": "kernel", "constants": {}},
        **{"warps": 4, "stages": 2, "matrix": True, "sixteen": True},
    }
    bad: dict[tuple[str, str], table.Measured | str] = dict.fromkeys(
        ((("k"), t) for t in TARGETS), GOOD._replace(spills=64)
    )
    after, said = gates.renewed(before, [variant], bad)
    assert (after, len(said)) == ({"k": before["k"]}, len(TARGETS))
    after, _ = gates.renewed(before, [variant], bad, accept=True)
    assert (after["k"].fingerprint, after["k"].targets["sm_80"].spills) == ("new", 64)
    good: dict[tuple[str, str], table.Measured | str] = dict.fromkeys(
        (("k", t) for t in TARGETS), GOOD._replace(registers=80)
    )
    after, said = gates.renewed(before, [variant], good)
    assert (after["k"].targets["sm_90"].registers, said) == (80, [])
    assert gates.renewed({}, [variant], {("k", "sm_80"): "refused"})[1] == ["k: sm_80: refused"]


def test_renewal_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = {"ROWS": 8, "PADDED": 64}
    facts = {"module": "m", "kernel": "k", "constants": sizes, "warps": 4, "stages": 1}
    variants = [
        {**facts, "name": f"k bf16 {n} ROWS=8 warps=4 stages=1", "fingerprint": "a"}
        | {"matrix": True, "sixteen": True}
        for n in (32, 64)
    ]
    compiled: list[list[gates.Job]] = []

    def compile_triton(jobs: list[gates.Job], _: str) -> dict[tuple[str, str], table.Measured]:
        compiled.append(jobs)
        return {(name, target): GOOD for _, name, target in jobs}

    clock = itertools.count()
    monkeypatch.setattr(gates, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(gates, "PART", 1)
    monkeypatch.setattr(gates, "TRITON_TABLE", tmp_path / "resources.json")
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(gates, "list_triton", lambda _: {"version": "3.9.0", "variants": variants})
    monkeypatch.setattr(gates, "compile_triton", compile_triton)

    def run() -> list[str]:  # by its clock there is time for one part
        return gates.renew_triton("python", everything=False, accept=False, seconds=2)

    assert run() == ["Triton 3.9.0: 1 variants are left: run `make gates` again"]
    assert not report.PAGE.exists()
    assert run() == []
    whole = table.read(gates.TRITON_TABLE)
    assert set(whole["3.9.0"]) == {v["name"] for v in variants}
    assert report.PAGE.read_text() == report.page(whole)
    variants[0]["fingerprint"] = "b"
    assert (run(), run()) == ([], [])
    wanted = [variants[0], variants[1], variants[0]]
    assert compiled == [[("m", v["name"], target) for target in TARGETS] for v in wanted]
    del variants[1]
    assert run() == []
    assert set(table.read(gates.TRITON_TABLE)["3.9.0"]) == {variants[0]["name"]}


def test_a_table_can_be_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "resources.json"
    assert table.read(path) == {}
    whole = {"3.9.0": {"a": entry(), "b": entry()}, "3.6.0": {"a": entry()}}
    table.write(path, whole)
    assert table.read(path) == whole
    assert len(path.read_text().splitlines()) == 3 * (len(TARGETS) + 2) + 6


def test_what_a_row_says_its_name_need_not_say_again() -> None:
    variant = {"name": "k bf16 64 ADD ROWS=8 warps=4 stages=1", "fingerprint": "f", "kernel": "k"}
    constants = {"ADD": True, "DROP": False, "ROWS": 8, "PADDED": 64}
    rest = {"warps": 4, "stages": 1, "matrix": True, "sixteen": True, "constants": constants}
    made = gates.entry_of({**variant, **rest}, {"sm_80": GOOD})
    assert made.constants == {"DROP": False, "PADDED": 64}


def test_the_page_states_the_table_in_short() -> None:
    names = (
        "k bf16 64 ROWS=64 KEYS=32 warps=4 stages=2",
        "k bf16 128 ROWS=32 KEYS=32 warps=4 stages=2",
        "k fp32 64 tf32 ROWS=64 KEYS=32 warps=4 stages=2",
    )
    more = entry(sm_90=GOOD._replace(registers=120, blocks=4, instructions={"HGMMA": 2}))
    whole = {"3.10.0": {names[0]: entry(), names[1]: more}, "3.9.0": {names[2]: entry()}}
    text = report.page(whole)
    assert text.index("## Triton 3.10.0") < text.index("## Triton 3.9.0")
    assert "* Triton 3.10.0: 2 forms of kernels for 5 targets, 10 compilations, 0 bytes" in text
    assert "in all 2 of 2 matrix kernels of 16 bits" in text
    assert "sm_90 HMMA/HGMMA" in text
    line = "| k | 16 | 64: 64x32, 4 warps; 128: 32x32, 4 warps | 96, 31 % | 96, 42 % "
    assert f"{line}| 96 to 120, 25 to 31 % | 96, 31 % | 96, 42 % |" in text
    assert "| k | tf32 | 64: 64x32, 4 warps |" in text


def test_occupancy_agrees_with_nvidias_own_header(tmp_path: Path) -> None:
    toolkit = compile_cuda.include_folder()
    if toolkit is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and cuda_occupancy.h of a CUDA toolkit")
    cases = [
        (target, registers, shared, warps)
        for target in TARGETS.values()
        for registers in (16, 33, 64, 100, 128, 168, 255)
        for shared in (0, 1000, 16_384, 40_000, 99 * 1024)
        for warps in (1, 4, 7, 8, 16)
    ]
    lines = "".join(
        f"show({t.capability // 10}, {t.capability % 10}, {t.warps * 32}, {t.shared}, "
        f"{t.shared_block}, {registers}, {shared}, {warps});\n"
        for t, registers, shared, warps in cases
    )
    source = tmp_path / "occupancy.cpp"
    source.write_text(OCCUPANCY.replace("CASES", lines), encoding="utf-8")
    program = tmp_path / "occupancy"
    built = ["g++", "-O0", f"-I{toolkit}", str(source), "-o", str(program)]
    subprocess.run(built, check=True, capture_output=True)
    truth = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    ours = [str(occupancy(*case)) for case in cases]
    assert [c for c, a, b in zip(cases, ours, truth, strict=True) if a != b] == []


OCCUPANCY = """
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
using std::min; using std::max;
#include <cuda_occupancy.h>
void show(int major, int minor, int threads, int shared, int optin, int regs, int dynamic,
          int warps) {
  cudaOccDeviceProp p; memset(&p, 0, sizeof p);
  p.computeMajor = major; p.computeMinor = minor; p.maxThreadsPerBlock = 1024;
  p.maxThreadsPerMultiprocessor = threads; p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32; p.sharedMemPerBlock = 49152; p.sharedMemPerMultiprocessor = shared;
  p.numSms = 100; p.sharedMemPerBlockOptin = optin; p.reservedSharedMemPerBlock = 1024;
  cudaOccFuncAttributes a; memset(&a, 0, sizeof a);
  a.maxThreadsPerBlock = 1024; a.numRegs = regs; a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  a.maxDynamicSharedSizeBytes = optin;
  cudaOccDeviceState s; memset(&s, 0, sizeof s); s.carveoutConfig = 100;
  cudaOccResult r; memset(&r, 0, sizeof r);
  auto e = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, warps * 32, dynamic);
  printf("%d\\n", e ? -1 : r.activeBlocksPerMultiprocessor);
}
int main() { CASES }
"""


# ---------------------------------------------------------------------------- the compilers


@needs_triton
def test_the_compiler_finds_spills_and_tensor_cores() -> None:
    module = "tests.gpu.sample_kernels"
    found = gates.list_triton(modules=[module])
    variants = {v["name"]: v for v in found["variants"]}
    assert set(variants) == {"good bf16", "good fp32", "spills"}
    assert len({v["fingerprint"] for v in variants.values()}) == 3
    jobs = [(module, "good bf16", t) for t in TARGETS] + [(module, "spills", "sm_80")]
    measured = gates.compile_triton(jobs)
    rows = {t: measured["good bf16", t] for t in TARGETS}
    assert all(isinstance(row, table.Measured) for row in rows.values()), rows
    good = gates.entry_of(variants["good bf16"], rows)  # type: ignore[arg-type]
    assert table.wrong(good) == []
    assert "HMMA" in good.targets["sm_80"].instructions
    assert "HGMMA" in good.targets["sm_90"].instructions
    assert "UTCHMMA" in good.targets["sm_100"].instructions
    assert all("LDGSTS" in row.instructions for row in good.targets.values())
    spilled = measured["spills", "sm_80"]
    assert isinstance(spilled, table.Measured)
    assert spilled.spills > 100
    assert "STL" in spilled.instructions


@needs_triton
def test_a_fingerprint_follows_what_a_kernel_calls_and_no_comments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.gpu import compile_triton, sample_kernels

    sources = compile_triton.source_of(sample_kernels.product)
    assert set(sources) == {"product", "scaled", "SCALE"}
    assert "part of the fingerprint" not in sources["scaled"]
    before = compile_triton.fingerprint(next(sample_kernels.variants()))
    monkeypatch.setattr(sample_kernels, "SCALE", type(sample_kernels.SCALE)(3.0))
    assert compile_triton.fingerprint(next(sample_kernels.variants())) != before


CUDA = """
extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }
extern "C" __global__ void copies(float* x, int n) {
  extern __shared__ float held[];
  unsigned to = (unsigned)__cvta_generic_to_shared(held + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + 4 * threadIdx.x));
  asm volatile("cp.async.wait_all;");
  __syncthreads();
  x[threadIdx.x] = held[n];
}
extern "C" __global__ void __launch_bounds__(1024) spills(float* x, int n) {
  float a[96];
  for (int i = 0; i < 96; ++i) a[i] = x[i * n + threadIdx.x];
  for (int k = 0; k < n; ++k)
#pragma unroll
    for (int i = 0; i < 96; ++i) a[i] = a[i] * a[(i + 7) % 96] + x[k];
#pragma unroll
  for (int i = 0; i < 96; ++i) x[i * n + threadIdx.x] = a[i];
}
"""


@pytest.mark.skipif(compile_cuda.nvcc() is None, reason="no nvcc on the path")
def test_nvcc_finds_spills_and_copies(tmp_path: Path) -> None:
    source = tmp_path / "small.cu"
    source.write_text(CUDA, encoding="utf-8")
    unit = compile_cuda.Unit(source, "small")
    rows = compile_cuda.compile_unit(unit, TARGETS["sm_90"])
    assert set(rows) == {"twice", "copies", "spills"}
    assert (rows["twice"].spills, rows["twice"].stack) == (0, 0)
    assert rows["spills"].spills > 0
    if sass.tool("nvdisasm"):
        assert rows["copies"].instructions["LDGSTS"] == 1
    before = compile_cuda.fingerprint(unit)
    source.write_text("// more\n" + CUDA, encoding="utf-8")
    assert compile_cuda.fingerprint(unit) == before
    source.write_text(CUDA.replace("2.0f", "3.0f"), encoding="utf-8")
    assert compile_cuda.fingerprint(unit) != before
