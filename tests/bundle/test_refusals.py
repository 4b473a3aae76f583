# SPDX-License-Identifier: Apache-2.0
"""Bundles that are missing, damaged, newer or hostile: one line each, before memory is taken."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from seqrec_fast import bundle as bundles
from seqrec_fast.bundle.folder import sealed
from seqrec_fast.errors import BundleError

FILES = [
    "manifest.json",
    "model.json",
    "weights.safetensors",
    "vocabulary.safetensors",
    "items.safetensors",
    "metrics.json",
    "cleaning.json",
    "training.json",
    "curve.png",
]


def refused(path: Path, name: str, reason: str, *, verify: bool = True) -> str:
    """Loads, and checks that the one line names the file and the reason."""
    with pytest.raises(BundleError, match=reason) as caught:
        bundles.load(path, verify=verify)
    message = str(caught.value)
    assert name in message
    assert str(path) in message
    assert "\n" not in message
    return message


def reseal(path: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Makes the manifest fit the files again, as one who forges a bundle would."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    change(manifest)
    (path / "manifest.json").write_bytes(sealed(manifest))


def replace(path: Path, name: str, data: bytes) -> None:
    (path / name).write_bytes(data)
    reseal(path)


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("bit", [0, 5])
def test_a_flipped_bit_is_found(saved: Path, name: str, place: float, bit: int) -> None:
    data = bytearray((saved / name).read_bytes())
    data[int(place * (len(data) - 1))] ^= 1 << bit
    (saved / name).write_bytes(data)
    refused(saved, name, ".")


def test_every_byte_of_the_manifest_counts(saved: Path) -> None:
    original = (saved / "manifest.json").read_bytes()
    for at in range(len(original)):
        data = bytearray(original)
        data[at] ^= 1 << at % 7
        (saved / "manifest.json").write_bytes(data)
        with pytest.raises(BundleError):
            bundles.load(saved)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_found(saved: Path, name: str, verify: bool, kept: float) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(kept * len(data))])
    refused(saved, name, ".", verify=verify)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_longer_file_is_found(saved: Path, name: str, verify: bool) -> None:
    with open(saved / name, "ab") as stream:
        stream.write(b"x")
    refused(saved, name, ".", verify=verify)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    refused(saved, name, "it is missing")


@pytest.mark.parametrize("name", FILES)
def test_info_finds_missing_and_truncated_files(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:-1])
    with pytest.raises(BundleError, match=name):
        bundles.info(saved)
    (saved / name).unlink()
    with pytest.raises(BundleError, match=name):
        bundles.info(saved)


def test_no_folder_and_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none", "there is no bundle")
    with pytest.raises(BundleError, match="no path holds a null character"):
        bundles.load(tmp_path / "a\0b")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "file", "not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "manifest.json", "not a bundle")


@pytest.mark.parametrize("name", FILES)
def test_symbolic_links_folders_and_pipes_are_refused(saved: Path, name: str) -> None:
    outside = saved.parent / "outside"
    (saved / name).rename(outside)
    (saved / name).symlink_to(outside)
    refused(saved, name, "symbolic link")
    (saved / name).unlink()
    (saved / name).mkdir()
    refused(saved, name, "not a plain file")
    (saved / name).rmdir()
    os.mkfifo(saved / name)
    refused(saved, name, "not a plain file")


# ---------------------------------------------------------------------- manifest


def entry(**changes: Any) -> dict[str, Any]:
    return {"sha256": "0" * 64, "size": 1, **changes}


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer": (lambda m: m.update(format_version=2), "format version 2.*upgrade seqrec-fast"),
    "version text": (lambda m: m.update(format_version="1"), "must be a whole number"),
    "version true": (lambda m: m.update(format_version=True), "must be a whole number"),
    "version zero": (lambda m: m.update(format_version=0), "must be a whole number"),
    "other format": (lambda m: m.update(format="zip"), "'format' is 'zip'"),
    "no format": (lambda m: m.pop("format"), "'format' is 'None'"),
    "no version of the library": (lambda m: m.pop("library_version"), "'library_version' must be"),
    "date a number": (lambda m: m.update(created=5), "'created' must be text"),
    "files a list": (lambda m: m.update(files=[]), "'files' must be an object"),
    "no files": (lambda m: m.pop("files"), "'files' must be an object"),
    "many files": (
        lambda m: m["files"].update({f"f{n}": entry() for n in range(200)}),
        "at most 100 files",
    ),
    "parent": (lambda m: m["files"].update({"../x": entry()}), r"'\.\./x' is not allowed"),
    "absolute": (lambda m: m["files"].update({"/etc/passwd": entry()}), "is not allowed"),
    "inside": (lambda m: m["files"].update({"a/b": entry()}), "'a/b' is not allowed"),
    "backslash": (lambda m: m["files"].update({"..\\x": entry()}), "is not allowed"),
    "hidden": (lambda m: m["files"].update({".x": entry()}), "is not allowed"),
    "line break": (lambda m: m["files"].update({"a\nb": entry()}), "is not allowed"),
    "NUL": (lambda m: m["files"].update({"a\0b": entry()}), "is not allowed"),
    "itself": (lambda m: m["files"].update({"manifest.json": entry()}), "names itself"),
    "no weights": (lambda m: m["files"].pop("weights.safetensors"), "not name weights.safetensors"),
    "entry text": (lambda m: m["files"].update({"a": "x"}), "the entry of 'a'"),
    "hash short": (lambda m: m["files"].update({"a": entry(sha256="0")}), "the entry of 'a'"),
    "size negative": (lambda m: m["files"].update({"a": entry(size=-1)}), "the entry of 'a'"),
    "size text": (lambda m: m["files"].update({"a": entry(size="1")}), "the entry of 'a'"),
}


@pytest.mark.parametrize("case", MANIFESTS)
@pytest.mark.parametrize("verify", [True, False])
def test_a_forged_manifest_is_refused(saved: Path, case: str, verify: bool) -> None:
    change, reason = MANIFESTS[case]
    reseal(saved, change)
    refused(saved, "manifest.json", reason, verify=verify)


def test_a_file_that_only_the_manifest_names_is_missed(saved: Path) -> None:
    reseal(saved, lambda m: m["files"].update({"extra.bin": entry()}))
    refused(saved, "extra.bin", "it is missing")


def test_a_wrong_hash_is_found_only_when_verifying(saved: Path) -> None:
    reseal(saved, lambda m: m["files"]["metrics.json"].update(sha256="0" * 64))
    refused(saved, "metrics.json", "SHA-256")
    assert bundles.load(saved, verify=False).metrics


@pytest.mark.parametrize("name", FILES)
def test_a_huge_file_is_not_read(saved: Path, name: str) -> None:
    os.truncate(saved / name, 2**43)  # sparse: takes no space
    refused(saved, name, "bytes, more than the .* that are allowed", verify=False)


# ---------------------------------------------------------------------- JSON

JSONS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "list": (b"[]", "must be a JSON object, found list"),
    "number": (b"3", "must be a JSON object, found int"),
    "cut": (b'{"a": ', "not JSON"),
    "NaN": (b'{"a": NaN}', "holds NaN"),
    "infinity": (b'{"a": -Infinity}', "holds -Infinity"),
    "overflow": (b'{"a": 1e999}', "too large for a number"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "too long"),
    "twice": (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
    "latin-1": (b'{"a": "\xe9"}', "not UTF-8"),
    "depth 50": (b'{"a":' * 50 + b"1" + b"}" * 50, "levels deep"),
    "depth 100000": (b'{"a":' * 100_000, "nested too deeply|not JSON"),
    "lists 100000": (b'{"a":' + b"[" * 100_000, "nested too deeply|not JSON"),
    "pickle": (b"\x80\x04N.", "not UTF-8"),
}


@pytest.mark.parametrize("case", JSONS)
@pytest.mark.parametrize("name", ["model.json", "metrics.json", "cleaning.json", "training.json"])
def test_bad_json_is_refused(saved: Path, name: str, case: str) -> None:
    data, reason = JSONS[case]
    (saved / name).write_bytes(data)
    reseal(saved)
    refused(saved, name, reason)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"num_items": 30}, "'model' must be"),
    "model a number": ({"model": 3, "num_items": 30}, "'model' must be"),
    "no items": ({"model": "gru"}, "'num_items' must be"),
    "items text": ({"model": "gru", "num_items": "30"}, "'num_items' must be"),
    "items float": ({"model": "gru", "num_items": 30.0}, "'num_items' must be"),
    "items negative": ({"model": "gru", "num_items": -1}, "'num_items' must be"),
    "items absurd": ({"model": "gru", "num_items": 10**30}, "'num_items' must be"),
    "items differ": ({"model": "gru", "num_items": 31}, "states 31 items"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_configuration_is_refused(saved: Path, case: str) -> None:
    config, reason = CONFIGS[case]
    replace(saved, "model.json", json.dumps(config).encode())
    refused(saved, "weights.safetensors" if "differ" in case else "model.json", reason)


# ---------------------------------------------------------------------- safetensors


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(
    dtype: Any = "F32", shape: Any = (1,), extent: Any = (0, 4), data: bytes = b"\0" * 4
) -> bytes:
    return raw({"w": {"dtype": dtype, "shape": shape, "data_offsets": extent}}, data)


HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "seven bytes": (b"\0" * 7, "truncated"),
    "length absurd": (raw({}, length=2**63), "its header claims 9223372036854775808 bytes"),
    "length beyond the file": (raw({}, length=200), "its header claims 200 bytes"),
    "not JSON": (raw(b"xxxx"), "not JSON"),
    "list": (raw([]), "must be a JSON object"),
    "entry a number": (raw({"w": 1}), "entry of tensor 'w' is malformed"),
    "entry short": (raw({"w": {"dtype": "F32"}}), "entry of tensor 'w' is malformed"),
    "type unknown": (one(dtype="F16"), "has type 'F16'"),
    "type a list": (one(dtype=["F32"]), "has type"),
    "shape negative": (one(shape=[-1]), "impossible shape"),
    "shape float": (one(shape=[1.0]), "impossible shape"),
    "shape text": (one(shape="1"), "impossible shape"),
    "shape true": (one(shape=[True]), "impossible shape"),
    "shape absurd": (one(shape=[2**62, 2**62]), "needs .* bytes, but its extent is 4"),
    "shape absurd and empty": (one(shape=[0, 2**62], extent=[0, 0], data=b""), "impossible shape"),
    "many dimensions": (one(shape=[1] * 40), "impossible shape"),
    "extent short": (one(extent=[0, 3]), "needs 4 bytes, but its extent is 3"),
    "extent backwards": (one(extent=[4, 0]), "its extent is -4"),
    "extent negative": (one(extent=[-4, 0]), "impossible extent"),
    "extent beyond": (one(shape=[2**30], extent=[0, 2**32]), "take 4294967296 bytes, but it holds"),
    "three extents": (one(extent=[0, 4, 8]), "impossible extent"),
    "gap": (one(extent=[4, 8], data=b"\0" * 8), "leaves a gap or overlaps"),
    "overlap": (
        raw(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            },
            b"\0" * 8,
        ),
        "leaves a gap or overlaps",
    ),
    "data left over": (one(data=b"\0" * 8), "take 4 bytes, but it holds 8"),
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize(
    "name", ["weights.safetensors", "vocabulary.safetensors", "items.safetensors"]
)
def test_a_hostile_header_is_refused_before_memory_is_taken(
    saved: Path, name: str, case: str
) -> None:
    data, reason = HEADERS[case]
    replace(saved, name, data)
    tracemalloc.start()
    try:
        refused(saved, name, reason, verify=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_weights_of_another_type_are_refused(saved: Path) -> None:
    replace(saved, "weights.safetensors", save({"w": np.ones(3)}))
    refused(saved, "weights.safetensors", "'w' is float64; weights are float32")


def test_no_weights_are_refused(saved: Path) -> None:
    replace(saved, "weights.safetensors", save({}))
    refused(saved, "weights.safetensors", "no weights")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("verify", [True, False])
def test_weights_that_are_no_numbers_are_refused(saved: Path, value: float, verify: bool) -> None:
    tensors = dict(bundles.load(saved).tensors)
    tensors["projection.bias"][2] = value
    replace(saved, "weights.safetensors", save(tensors))
    refused(saved, "weights.safetensors", "'projection.bias' holds .* at entry 2", verify=verify)


def vocabulary(**changes: Any) -> bytes:
    tensors = {"ids": np.arange(30), "popularity": np.ones(30, np.int64), **changes}
    return save({name: tensor for name, tensor in tensors.items() if tensor is not None})


VOCABULARIES: dict[str, tuple[bytes, str]] = {
    "short": (vocabulary(ids=np.arange(29)), "29 ids, but model.json states 30"),
    "twice": (vocabulary(ids=np.arange(30) % 29), "id 0 occurs twice"),
    "no popularity": (vocabulary(popularity=None), "'popularity' is missing"),
    "popularity short": (vocabulary(popularity=np.ones(5, np.int64)), "popularity must be int64"),
    "popularity float": (vocabulary(popularity=np.ones(30)), "popularity must be int64"),
    "popularity negative": (vocabulary(popularity=np.full(30, -1)), "popularity of item 0"),
    "two dimensions": (vocabulary(ids=np.arange(30).reshape(5, 6)), "one dimension"),
    "ids float": (vocabulary(ids=np.arange(30.0)), "must be int64"),
    "no ids": (vocabulary(ids=None), "expected the array 'ids'"),
    "extra": (vocabulary(more=np.arange(3)), "expected the array 'ids'"),
    "text that is not UTF-8": (
        vocabulary(
            ids=None, text=np.full(30, 255, np.uint8), offsets=np.arange(31, dtype=np.int64)
        ),
        "not valid UTF-8",
    ),
    "text offsets": (
        vocabulary(ids=None, text=np.full(30, 65, np.uint8), offsets=np.arange(1, 32)),
        "do not span",
    ),
    "same text": (
        vocabulary(ids=None, text=np.full(30, 65, np.uint8), offsets=np.arange(31)),
        "'A' occurs twice",
    ),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_wrong_vocabulary_is_refused(saved: Path, case: str) -> None:
    data, reason = VOCABULARIES[case]
    replace(saved, "vocabulary.safetensors", data)
    refused(saved, "vocabulary.safetensors", reason)


def table(schema: Any, **columns: Any) -> bytes:
    text = schema if isinstance(schema, bytes) else json.dumps(schema).encode()
    return save({"schema": np.frombuffer(text, np.uint8), **columns})


NUMBER = {"title": None, "columns": [{"name": "a", "kind": "number"}]}
TABLES: dict[str, tuple[bytes, str]] = {
    "rows": (table(NUMBER, **{"0.values": np.arange(29)}), "29 rows, but model.json states 30"),
    "column missing": (table(NUMBER), "'0.values' is missing"),
    "column left over": (
        table(NUMBER, **{"0.values": np.arange(30), "1.values": np.arange(30)}),
        "unexpected array '1.values'",
    ),
    "schema not JSON": (table(b"x"), "'schema' is not JSON"),
    "no schema": (save({"0.values": np.arange(30)}), "'schema'"),
    "title unknown": (
        table({**NUMBER, "title": "b"}, **{"0.values": np.arange(30)}),
        "title column 'b'",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_wrong_item_table_is_refused(saved: Path, case: str) -> None:
    data, reason = TABLES[case]
    replace(saved, "items.safetensors", data)
    refused(saved, "items.safetensors", reason)


def test_a_truth_value_other_than_0_and_1_is_refused(saved: Path) -> None:
    data = raw({"w": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2")
    replace(saved, "items.safetensors", data)
    refused(saved, "items.safetensors", "truth value")
