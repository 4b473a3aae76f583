# SPDX-License-Identifier: Apache-2.0
"""Files that are no index, or a part of one, are refused in one line, read or mapped."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import retrieval
from seqrec_fast.bundle import tensorfile
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval import storage

# large enough to be mapped
VECTORS = np.random.default_rng(0).standard_normal((20_000, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "index"
    retrieval.build(VECTORS, dtype="int8").save(path)
    return path.read_bytes()


def check_refused(path: Path, message: str = "") -> None:
    for verify in (True, False):
        for mmap in (True, False):
            with pytest.raises(InputError, match=rf"/index: .*{message}") as caught:
                retrieval.load(path, verify=verify, mmap=mmap)
            assert "\n" not in str(caught.value)


def test_a_cut_or_longer_file(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "index"
    for length in (0, 1, 8, 9, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        check_refused(path)
    path.write_bytes(whole + b"x")
    check_refused(path, "altered")


def saved(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def tensors(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    tensorfile.write_tensors(arrays, stream.write)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"user,item\n" * 500_000, id="text"),
        pytest.param(bytes(3_000_000), id="zeros"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(range(256)), id="picture"),
        pytest.param(saved(VECTORS), id="numpy"),
        pytest.param(tensors(items=VECTORS), id="weights"),
        pytest.param(tensors(items=VECTORS, **{"index.json": VECTORS}), id="facts of numbers"),
        pytest.param(
            tensors(**{"index.json": np.frombuffer(b'{"format": "other"}', np.uint8)}), id="other"
        ),
    ],
)
def test_a_foreign_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(content)
    check_refused(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    check_refused(tmp_path / "index", re.escape("(no such file or directory)"))
    (tmp_path / "index").mkdir()
    check_refused(tmp_path / "index", "not a plain file")


def test_a_newer_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage, "FORMAT_VERSION", 2)
        retrieval.build(VECTORS[:3]).save(tmp_path / "index")
    check_refused(tmp_path / "index", "format version 2, .* up to 1; upgrade seqrec-fast")


def test_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/no/index: the index can't be written \(no such file"):
        retrieval.build(VECTORS[:3]).save(tmp_path / "no" / "index")
