# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels run on the CPU under the sanitizers, and faults on purpose that must be found."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


def load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"csrc_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build, cuda = load("build"), load("cuda")
SOURCES = [*sorted((Path(__file__).parent / "cuda_kernels").glob("*.cu")), *cuda.toolkit.units()]

#: fault -> what fibers under the address sanitizer say, what threads under the thread sanitizer
FAULTS: dict[str, tuple[str, str]] = {
    # fibers start in a drawn order, and what nobody has written is poison
    "fault_barrier_missing": (r"failed: wrong_neighbours", "data race"),
    "fault_barrier_divergent": (r"is at __syncthreads .* while others wait", "while others wait"),
    "fault_barrier_left": (r"ended while others wait|of those that it waits for have ended", "end"),
    "fault_shared_overrun": ("heap-buffer-overflow", "bytes of shared memory|data race"),
    "fault_global_read_overrun": ("heap-buffer-overflow", ""),
    "fault_global_write_overrun": ("heap-buffer-overflow", ""),
    "fault_misaligned": ("8 bytes at an address that is no multiple", "no multiple of it"),
    "fault_grid_barrier_missing": ("", "data race"),
    "fault_grid_not_cooperative": ("not launched cooperatively", "not launched cooperatively"),
    "fault_grid_too_large": ("kernel total could not be launched: too many blocks", "too many"),
    "fault_flag_not_awaited": ("", "data race"),
    "fault_flag_never_set": ("waits for memory that nobody changes", ""),
    "fault_lanes_missing": (r"ended while others wait|have ended", "end"),
    "fault_copy_not_awaited": ("failed: out", "failed: out"),
    "fault_recurrent_grid_barrier": ("", "data race"),
    "fault_recurrent_backward_grid_barrier": ("", "data race"),
    # what was copied is poison; nobody is in anybody's way
    "fault_topk_copy_not_awaited": ("failed: ", "failed: "),
}
for _what in (
    *("recurrent_output", "recurrent_backward_output", "topk_lists", "topk_scores", "topk_seen"),
    *("topk_items_read", "decode_attention_out", "decode_attention_merged"),
    *("decode_attention_parts", "decode_attention_keys_read", "embedding_out", "embedding_table"),
    *("embedding_sums", "embedding_positions"),
):
    FAULTS[f"fault_{_what}_overrun"] = ("heap-buffer-overflow", "")
for _what in ("recurrent", "recurrent_backward", "topk", "decode_attention", "embedding"):
    FAULTS[f"fault_{_what}_shared_overrun"] = (
        "heap-buffer-overflow",
        "bytes of shared memory|data race",
    )
# in the order of the source; of some, fibers come by chance to the right numbers
_LOST = "failed: |heap-buffer-overflow|while others wait|have ended"
for _number in range(10):
    FAULTS[f"fault_topk_barrier_{_number}"] = (
        "" if _number in (1, 6, 8) else _LOST,
        "data race|SEGV|while others wait|have ended",
    )
FAULTS["fault_decode_attention_barrier_0"] = (_LOST, "data race")
for _number in range(2):
    FAULTS[f"fault_embedding_barrier_{_number}"] = (_LOST, "data race")
for _way, _barriers in (("forward", 4), ("backward", 3)):
    FAULTS[f"fault_recurrent_{_way}_team_barrier"] = ("failed: ", "data race")
    for _number in range(_barriers):  # in the order of the source
        # a schedule that nobody has written leads anywhere
        FAULTS[f"fault_recurrent_{_way}_barrier_{_number}"] = (
            "failed: |heap-buffer-overflow",
            "data race|SEGV",
        )
SANITIZERS = {
    "fibers": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-O1", "-fsanitize=thread", "-DSEQREC_SHIM_THREADS"],
}
SETTINGS = {"ASAN_OPTIONS": "detect_stack_use_after_return=1", "TSAN_OPTIONS": "halt_on_error=1"}


@pytest.fixture(scope="module", params=list(SANITIZERS))
def program(request: pytest.FixtureRequest) -> tuple[str, Path]:
    kind: str = request.param
    flags = SANITIZERS[kind]
    reason = build.links(flags[1].partition("=")[2])
    if reason:
        pytest.skip(reason)
    folder = cuda.FOLDER.parent / f"cuda-{kind}"
    return kind, cuda.build_program(SOURCES, folder, [*flags, "-fno-omit-frame-pointer"])


def run(program: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *names],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | SETTINGS,
        check=False,
    )


def test_kernels_are_clean(program: tuple[str, Path]) -> None:
    done = run(program[1])
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert re.search(r"^\d+ tests$", done.stdout, re.MULTILINE)


def test_every_fault_is_found(program: tuple[str, Path]) -> None:
    kind, path = program
    missed = []
    for fault, answers in FAULTS.items():
        wanted = answers[list(SANITIZERS).index(kind)]
        if not wanted:
            continue
        done = run(path, fault)
        if done.returncode == 0 or not re.search(wanted, done.stderr):
            missed.append(f"{fault} ({done.returncode}): {done.stderr[-1500:]}")
    assert not missed, "\n".join(missed)


def test_every_fault_is_expected_by_some_run() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert set(re.findall(r"TEST\((fault_\w+)\)", text)) == set(FAULTS)
    assert all(any(answers) for answers in FAULTS.values())
