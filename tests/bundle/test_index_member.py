# SPDX-License-Identifier: Apache-2.0
"""An index inside a bundle: it comes back, it is mapped, and a damaged one is refused."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import bundle as bundles
from seqrec_fast import retrieval
from seqrec_fast.bundle import Bundle
from seqrec_fast.bundle.folder import sealed
from seqrec_fast.errors import BundleError, InputError
from seqrec_fast.retrieval import storage

NAME = "index.safetensors"


def index_of(items: int, dim: int = 5) -> Any:
    vectors = np.random.default_rng(0).standard_normal((items, dim)).astype(np.float32)
    index = retrieval.build(vectors, dtype="int8")
    index.measured = {"recall": 0.997, "k": 100}
    return index


@pytest.fixture
def saved(tmp_path: Path, content: Bundle) -> Path:
    content.index = index_of(30).to_tensors()
    bundles.save(content, tmp_path / "bundle")
    return tmp_path / "bundle"


def reseal(path: Path) -> None:
    """Makes the manifest fit the files again, as one who forges a bundle would."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (path / "manifest.json").write_bytes(sealed(manifest))


@pytest.mark.parametrize("mapped", [True, False])
def test_it_comes_back(saved: Path, content: Bundle, mapped: bool) -> None:
    found = bundles.load(saved, mmap=mapped)
    assert found.index is not None
    assert content.index is not None
    index = retrieval.from_tensors(found.index)
    assert index.measured == {"recall": 0.997, "k": 100}
    assert index.describe() == index_of(30).describe()
    for name, tensor in content.index.items():
        np.testing.assert_array_equal(found.index[name], tensor)
    # the file is that of an index by itself
    assert retrieval.load(saved / NAME).describe() == index.describe()
    assert NAME not in found.extra_files


def test_a_copy_keeps_it_and_a_load_may_leave_it_out(saved: Path, tmp_path: Path) -> None:
    bundles.save(bundles.load(saved), tmp_path / "copy")
    assert (tmp_path / "copy" / NAME).read_bytes() == (saved / NAME).read_bytes()
    without = bundles.load(saved, index=False)
    assert without.index is None
    bundles.save(without, tmp_path / "copy")
    assert not (tmp_path / "copy" / NAME).exists()
    assert bundles.info(tmp_path / "copy")["index"] is None


def test_info_tells_of_it_without_reading_vectors(saved: Path) -> None:
    assert bundles.info(saved)["index"] == {
        "kind": "exact",
        "metric": "ip",
        "dim": 5,
        "size": 30,
        "options": {"dtype": "int8"},
        "measured": {"recall": 0.997, "k": 100},
    }


@pytest.mark.skipif(os.name != "posix", reason="files are read there")
def test_a_large_one_is_mapped(tmp_path: Path, content: Bundle) -> None:
    content.index = index_of(30, 10_000).to_tensors()
    bundles.save(content, tmp_path / "bundle")
    for mapped in (True, False):
        found: Any = bundles.load(tmp_path / "bundle", mmap=mapped).index
        array = found["items"]
        while isinstance(array, np.ndarray):
            array = array.base
        assert isinstance(getattr(array, "obj", array), mmap.mmap) == mapped


@pytest.mark.parametrize("place", [0.0, 0.05, 0.4, 0.8, 1.0])
def test_a_flipped_bit_is_found(saved: Path, place: float) -> None:
    data = bytearray((saved / NAME).read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    (saved / NAME).write_bytes(data)
    with pytest.raises(BundleError, match=rf"/{NAME}: ") as caught:
        bundles.load(saved)
    assert "\n" not in str(caught.value)


def test_a_missing_or_cut_one_is_found(saved: Path) -> None:
    data = (saved / NAME).read_bytes()
    (saved / NAME).write_bytes(data[:-1])
    with pytest.raises(BundleError, match=rf"{NAME}: it has {len(data) - 1} bytes, but"):
        bundles.load(saved)
    (saved / NAME).unlink()
    with pytest.raises(BundleError, match=rf"{NAME}: it is missing, the bundle is incomplete"):
        bundles.load(saved)


def test_an_index_of_another_number_of_items_is_refused(
    saved: Path, content: Bundle, tmp_path: Path
) -> None:
    content.index = index_of(31).to_tensors()
    with pytest.raises(InputError, match=f"{NAME}: an index of 31 items, but model.json states 30"):
        bundles.save(content, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    index_of(29).save(saved / NAME)
    reseal(saved)
    with pytest.raises(BundleError, match=rf"/{NAME}: an index of 29 items, but model.json states"):
        bundles.load(saved)


def test_another_file_in_its_place_is_refused(saved: Path, content: Bundle, tmp_path: Path) -> None:
    (saved / NAME).write_bytes((saved / "weights.safetensors").read_bytes())
    reseal(saved)
    with pytest.raises(BundleError, match=rf"/{NAME}: it is not an index"):
        bundles.load(saved)
    with pytest.raises(BundleError, match=rf"/{NAME}: it is not an index"):
        bundles.info(saved)
    content.index, content.extra_files = None, {NAME: b"x"}
    with pytest.raises(InputError, match="belongs to the bundle itself"):
        bundles.save(content, tmp_path / "other")


@pytest.mark.parametrize(
    "change", [{"options": []}, {"options": None}, {"measured": [1]}, {"measured": "0.99"}]
)
def test_facts_of_other_forms_are_refused(saved: Path, change: dict[str, Any]) -> None:
    meta, tensors = storage.read_index(saved / NAME)
    storage.write_index(saved / NAME, {**meta, **change}, tensors)
    reseal(saved)
    with pytest.raises(BundleError, match=rf"/{NAME}: its options or what was measured"):
        bundles.info(saved)
    with pytest.raises(InputError, match="altered"):
        retrieval.load(saved / NAME)
