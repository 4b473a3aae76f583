# SPDX-License-Identifier: Apache-2.0
"""Tiles of jagged batches, the choice of configurations, and the memory that guards make."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.triton.guards import MARGIN, MISSING, Guards

triton = pytest.importorskip("triton", reason=MISSING)
import triton.language as tl  # noqa: E402

import seqrec_fast.ops.triton as package  # noqa: E402
from seqrec_fast.ops.triton import _launch as launch  # noqa: E402


@triton.jit
def tiles_of_rows(offsets, rows, found, BLOCK: tl.constexpr):
    tile = tl.program_id(0)
    row, begin, end, start = launch.row_of_tile(offsets, rows, tile, BLOCK)
    tl.store(found + tile * 4 + 0, row)
    tl.store(found + tile * 4 + 1, begin)
    tl.store(found + tile * 4 + 2, end)
    tl.store(found + tile * 4 + 3, start)


@triton.jit
def fill(x, n, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        tl.store(x + place, 1.0, mask=place < n)
    else:
        tl.store(x + place, 1.0)


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), block=st.sampled_from([1, 4]))
def test_tiles_cover_every_row_once(lengths: list[int], block: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tiles = launch.row_tiles(sum(lengths), len(lengths), block)
    found = torch.full((tiles, 4), -1)
    if tiles:
        tiles_of_rows[(tiles,)](offsets, len(lengths), found, BLOCK=block)
    seen = []
    for row, begin, end, start in found.tolist():
        assert (begin, end) == (int(offsets[row]), int(offsets[row + 1]))
        assert start >= 0
        if start < end - begin:
            assert start % block == 0
            seen.append((row, start))
    wanted = [(r, s) for r, length in enumerate(lengths) for s in range(0, length, block)]
    assert seen == wanted


def block_name(config: launch.Config, given: Mapping[str, Any]) -> str:
    return launch.named("fill", "fp32", given["n"], config)


def test_the_first_configuration_that_serves() -> None:
    configs = [launch.Config({"BLOCK": 8}), launch.Config({"BLOCK": 16})]
    with pytest.raises(AssertionError, match="fill: several configurations, but no name"):
        launch.tuned(configs, ["n"])(fill)
    kernel = launch.tuned(
        configs, ["n"], serves=lambda c, given: c.blocks["BLOCK"] >= given["n"], name=block_name
    )(fill)
    x = torch.zeros(40)
    kernel[lambda meta: (40 // meta["BLOCK"],)](x, 9, MASKED=False)
    assert int(x.sum()) == 32  # two programs of 16
    with pytest.raises(AssertionError, match="fill: no configuration serves"):
        kernel[(1,)](x, 17, MASKED=False)


class OnGpu:
    """Takes the part of a GPU and of Triton's compiler: what would be started or tried is kept."""

    arg_names = ("x", "n", "BLOCK", "MASKED")
    __name__ = "fill"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        self.started: list[dict[str, Any]] = []
        self.tried: list[list[tuple[dict[str, int], int, int]]] = []
        properties = SimpleNamespace(
            major=capability[0], minor=capability[1], shared_memory_per_block_optin=99 * 1024
        )
        monkeypatch.setattr(launch, "INTERPRETED", tl.constexpr(False))
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(launch.triton, "autotune", self.autotune)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *_, **options: self.started.append(options)

    def autotune(self, configs: list[Any], key: list[str], prune_configs_by: Any) -> Any:
        assert key == ["n"]
        prune = prune_configs_by["early_config_prune"]

        def tuner(*arguments: Any, **keywords: Any) -> None:
            left = prune(configs, dict(zip(self.arg_names, arguments, strict=False)), **keywords)
            self.tried.append([(c.kwargs, c.num_warps, c.num_stages) for c in left])

        return lambda fn: {None: tuner}


@pytest.mark.parametrize(
    ("capability", "left"),
    [
        ((8, 0), [16, 32]),
        ((8, 9), [8, 16]),  # as sm_86, which is nearest
        ((9, 0), [8]),
        ((11, 0), [8, 16, 32, 64]),  # no target is near
    ],
)
def test_the_table_leaves_out_what_spills_or_is_too_large(
    capability: tuple[int, int],
    left: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    configs = [launch.Config({"BLOCK": n}, 8, 3) for n in (8, 16, 32, 64)]
    good = {"spills": 0, "stack": 0, "shared": 99 * 1024}
    worse = {"spills": {"spills": 4}, "stack": {"stack": 8}, "shared": {"shared": 99 * 1024 + 1}}
    bad = {("sm_80", 8): "spills", ("sm_80", 64): "stack", ("sm_86", 32): "shared"}
    bad |= {("sm_86", 64): "stack"} | {("sm_90", n): "spills" for n in (16, 32, 64)}
    table = {
        block_name(config, {"n": 5}): {
            "targets": {
                target: good | worse.get(bad.get((target, config.blocks["BLOCK"]), ""), {})
                for target in ("sm_80", "sm_86", "sm_90")
            }
        }
        for config in configs
    }
    path = tmp_path / "resources.json"
    path.write_text(json.dumps({"3.0.0": {}, "3.1.0": table}))
    monkeypatch.setattr(launch, "RESOURCES", path)
    launch.resources.cache_clear()
    launch._fits.cache_clear()
    gpu = OnGpu(monkeypatch, capability)
    kernel = launch.tuned(configs, ["n"], name=block_name)(gpu)
    try:
        kernel[None](torch.zeros(1), 5, MASKED=False)
        if len(left) == 1:
            options = {"MASKED": False, "BLOCK": left[0], "num_warps": 8, "num_stages": 3}
            assert (gpu.started, gpu.tried) == ([options], [])
        else:
            assert (gpu.started, gpu.tried) == ([], [[({"BLOCK": n}, 8, 3) for n in left]])
        # other arguments are not in the table
        kernel[None](torch.zeros(1), 6, MASKED=False)
        assert [config[0]["BLOCK"] for config in gpu.tried[-1]] == [8, 16, 32, 64]
    finally:
        launch.resources.cache_clear()
        launch._fits.cache_clear()


def test_a_configuration_is_left_where_all_spill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs = [launch.Config({"BLOCK": n}) for n in (8, 16)]
    gpu = OnGpu(monkeypatch, (9, 0))
    monkeypatch.setattr(launch, "_fits", lambda device, name: False)
    kernel = launch.tuned(configs, ["n"], name=block_name)(gpu)
    kernel[None](torch.zeros(1), 5, MASKED=False)
    assert [options["BLOCK"] for options in gpu.started] == [8]


def tuned_kernels() -> Iterator[tuple[Any, launch.Tuned]]:
    """Every kernel of the package that has configurations to choose from, and its module."""
    for info in pkgutil.iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, launch.Tuned) and len(value.configs) > 1:
                yield module, value


def test_the_names_that_are_looked_up_are_those_of_the_table() -> None:
    found = list(tuned_kernels())
    assert {kernel.fn.__name__ for _, kernel in found} >= {"attention_forward"}
    for module, kernel in found:
        ours = [v for v in module.variants() if v.kernel is kernel.fn]
        looked_up = set()
        for variant in ours:
            spelled = variant.signature["q"][1:]
            dtype = next(t for t, name in launch.DTYPES.items() if name == spelled)
            given = {"q": torch.zeros(1, dtype=dtype), **variant.constants}
            assert kernel._name is not None
            looked_up |= {kernel._name(config, given) for config in kernel.choices(given)}
        # float16 is looked up as bfloat16
        assert looked_up == {v.name for v in ours if " fp16 " not in v.name}


def test_canaries_notice_what_is_written_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    guards = Guards(monkeypatch)
    x = torch.randn(3).new_empty(5)
    assert x.isnan().all()
    fill[(1,)](x, 5, BLOCK=8, MASKED=True)
    assert (x == 1).all()
    guards.check()
    fill[(1,)](x, 5, BLOCK=8, MASKED=False)
    with pytest.raises(AssertionError, match="written after tensor 0"):
        guards.check()
    assert torch.empty((2, 3), dtype=torch.int64).shape == (2, 3)
    inside = guards.among_nan(torch.ones(3))
    assert torch.as_strided(inside, (1,), (1,), MARGIN + 3).isnan()


def test_names_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    config = launch.Config({"BLOCK": 8}, 4, 3)
    name = launch.named("fill", "bf16", 64, config, MASKED=True, OTHER=False)
    assert name == "fill bf16 64 MASKED BLOCK=8 warps=4 stages=3"
    constants = {"BLOCK": 8, "MASKED": True}
    assert launch.signature(fill, {"x": "*fp32"}, constants) == {"x": "*fp32", "n": "i32"}
    assert launch.input_precision(torch.float16) == "ieee"
    assert launch.input_precision(torch.float32) == "ieee"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    assert launch.input_precision(torch.float32) == "tf32"
    torch.set_float32_matmul_precision(before)
    assert [launch.padded_width(w) for w in (1, 16, 17, 64, 100)] == [16, 16, 32, 64, 128]


def test_why_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.unavailable() is None
    monkeypatch.setattr(launch.np, "__version__", "2.4.0")
    monkeypatch.setattr(launch.triton, "__version__", "3.6.0")
    told = "the interpreter of Triton 3.6.0 does not work with numpy 2.4.0; pip install 'numpy<2.4'"
    assert launch.unavailable() == told
    monkeypatch.setattr(launch.triton, "__version__", "3.7.1")
    assert launch.unavailable() is None
    monkeypatch.setattr(launch, "INTERPRETED", tl.constexpr(False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no GPU" in str(launch.unavailable())
    monkeypatch.setattr(launch.triton, "__version__", "3.1.0")
    assert "too old; install 3.4 or newer" in str(launch.unavailable())
    monkeypatch.setattr(launch, "triton", None)
    assert "Triton is not installed" in str(launch.unavailable())
