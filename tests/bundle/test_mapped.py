# SPDX-License-Identifier: Apache-2.0
"""Weights that are mapped into memory: the same numbers, shared, checked, and safe from a save."""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import bundle as bundles
from seqrec_fast.bundle import Bundle, tensorfile
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommender
from seqrec_fast.engine.encoders import tensor_shapes
from seqrec_fast.errors import BundleError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files are read there")

ITEMS, DIM = 33_000, 8  # a table just above 1 MiB
TABLE = "item_embedding.weight"


def make(seed: int) -> Bundle:
    config: dict[str, Any] = {
        "model": "gru",
        "num_items": ITEMS,
        "dim": DIM,
        "layers": 1,
        "hidden": 6,
        "max_length": 5,
        "item_bias": True,
    }
    rng = np.random.default_rng(seed)
    return Bundle(
        config=config,
        tensors={
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in tensor_shapes(config).items()
        },
        items=Vocabulary.from_ids(np.arange(ITEMS)),
        popularity=np.zeros(ITEMS, np.int64),
    )


@pytest.fixture(scope="module")
def first() -> Bundle:
    return make(0)


@pytest.fixture
def place(tmp_path: Path, first: Bundle) -> Path:
    bundles.save(first, tmp_path / "bundle")
    return tmp_path / "bundle"


def is_mapped(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(getattr(array, "obj", array), mmap.mmap)


@pytest.mark.parametrize("verify", [True, False])
def test_large_weights_are_views_of_the_file(place: Path, first: Bundle, verify: bool) -> None:
    found = bundles.load(place, verify=verify, mmap=True).tensors
    for name, wanted in first.tensors.items():
        assert found[name].tobytes() == wanted.tobytes()
        assert is_mapped(found[name]) == (wanted.nbytes >= 2**20)
    assert not found[TABLE].flags.writeable
    assert found[TABLE].ctypes.data % 64 == 0
    assert not any(map(is_mapped, bundles.load(place, verify=verify).tensors.values()))


def test_answers_are_those_of_weights_that_were_read(place: Path) -> None:
    mapped, read = Recommender.load(place), Recommender.load(place, mmap=False)
    assert is_mapped(mapped._current.scorer.items)
    assert not is_mapped(read._current.scorer.items)
    assert mapped.version == read.version
    for one, other in zip(
        mapped.recommend([[1, 2], [9]], 30), read.recommend([[1, 2], [9]], 30), strict=True
    ):
        assert one.items.tolist() == other.items.tolist()
        assert one.scores.tobytes() == other.scores.tobytes()


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_other_forms_of_weights_are_made_from_mapped_ones(place: Path, weights: str) -> None:
    mapped = Recommender.load(place, weights=weights)
    read = Recommender.load(place, weights=weights, mmap=False)
    assert mapped.embed([[5, 6]]).tobytes() == read.embed([[5, 6]]).tobytes()


def test_a_bundle_that_is_replaced_goes_on_until_the_swap(place: Path, first: Bundle) -> None:
    serving = Recommender.load(place)
    histories = [[1, 2, 3], [77]]
    before = [answer.scores.tobytes() for answer in serving.recommend(histories, 50)]
    bundles.save(make(1), place)
    assert [a.scores.tobytes() for a in serving.recommend(histories, 50)] == before
    assert serving._current.scorer.items.tobytes() == first.tensors[TABLE].tobytes()
    serving.swap(place)
    assert is_mapped(serving._current.scorer.items)
    wanted = Recommender(make(1)).recommend(histories, 50)
    after = serving.recommend(histories, 50)
    assert [a.scores.tobytes() for a in after] == [a.scores.tobytes() for a in wanted]
    assert [a.scores.tobytes() for a in after] != before


def damage(place: Path, change: Any) -> None:
    path = place / "weights.safetensors"
    data = bytearray(path.read_bytes())
    change(data, 8 + int.from_bytes(data[:8], "little"))
    path.write_bytes(data)


@pytest.mark.parametrize("at", [4, 2**19, -5])
def test_an_altered_file_is_refused(place: Path, at: int) -> None:
    def flip(data: bytearray, begin: int) -> None:
        data[begin + at if at > 0 else at] ^= 1

    damage(place, flip)
    with pytest.raises(BundleError, match=r"weights\.safetensors: its SHA-256"):
        bundles.load(place, mmap=True)
    bundles.load(place, mmap=True, verify=False)


def test_numbers_that_are_not_finite_are_refused_unverified_too(place: Path) -> None:
    def spoil(data: bytearray, begin: int) -> None:
        header = json.loads(data[8:begin])
        at = begin + header[TABLE]["data_offsets"][0] + 4 * 1000
        data[at : at + 4] = np.float32(np.nan).tobytes()

    damage(place, spoil)
    with pytest.raises(BundleError, match="holds nan at entry 1000"):
        bundles.load(place, mmap=True, verify=False)


def test_a_cut_off_file_is_refused(place: Path) -> None:
    path = place / "weights.safetensors"
    os.truncate(path, path.stat().st_size - 2**16)
    with pytest.raises(BundleError, match="truncated"):
        bundles.load(place, mmap=True)


def test_where_nothing_can_be_mapped_weights_are_read(
    place: Path, first: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENODEV, "no such device")

    monkeypatch.setattr(tensorfile.mmap, "mmap", refused)  # type: ignore[attr-defined]
    found = bundles.load(place, mmap=True).tensors[TABLE]
    assert found.flags.owndata or found.base is not None
    assert found.flags.writeable
    assert found.tobytes() == first.tensors[TABLE].tobytes()


def test_data_that_is_not_aligned_is_read(place: Path, first: Bundle) -> None:
    """Headers of other writers may have any length."""
    path = place / "weights.safetensors"
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    moved = (begin - 8 + 3).to_bytes(8, "little") + data[8:begin] + b"   " + data[begin:]
    path.write_bytes(moved)
    with open(path, "rb", buffering=0) as stream:
        entries = tensorfile.read_header(stream, len(moved), lambda _: None)
        found = tensorfile.read_tensors(stream, entries, None, mapped=True)
    for name, wanted in first.tensors.items():
        assert found[name].tobytes() == wanted.tobytes()
        assert not is_mapped(found[name])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_are_those_of_the_file(place: Path) -> None:
    kept = bundles.load(place, mmap=True)
    address = kept.tensors[TABLE].ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, mode, *rest = line.split()
        begin, end = (int(part, 16) for part in extent.split("-"))
        if begin <= address < end:
            assert mode == "r--s"
            assert rest[-1].endswith("weights.safetensors")
            return
    pytest.fail("the table lies in no mapping")
