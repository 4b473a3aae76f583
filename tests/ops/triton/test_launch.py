# SPDX-License-Identifier: Apache-2.0
"""Tiles of jagged batches, the choice of configurations, and the memory that guards make."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.triton.guards import MARGIN, MISSING, Guards

triton = pytest.importorskip("triton", reason=MISSING)
import triton.language as tl  # noqa: E402

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


def test_the_first_configuration_that_serves() -> None:
    configs = [launch.Config({"BLOCK": 8}), launch.Config({"BLOCK": 16})]
    kernel = launch.tuned(configs, ["n"], serves=lambda c, given: c.blocks["BLOCK"] >= given["n"])(
        fill
    )
    x = torch.zeros(40)
    kernel[lambda meta: (40 // meta["BLOCK"],)](x, 9, MASKED=False)
    assert int(x.sum()) == 32  # two programs of 16
    with pytest.raises(AssertionError, match="fill: no configuration serves"):
        kernel[(1,)](x, 17, MASKED=False)


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
