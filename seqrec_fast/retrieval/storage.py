# SPDX-License-Identifier: Apache-2.0
"""An index as one file: a safetensors file whose tensor ``index.json`` tells what the others are.

One file can take another's place in one step, and its tensors lie at multiples of 64 bytes, so that
large ones are used where the file is mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast._files import open_plain, write_whole
from seqrec_fast.bundle.jsonio import MAX_BYTES, parse_object
from seqrec_fast.bundle.tensorfile import (
    Entry,
    read_header,
    read_one,
    read_tensors,
    write_tensors,
)
from seqrec_fast.errors import InputError

__all__ = [
    "META",
    "Stored",
    "as_tensors",
    "from_tensors",
    "meta_bytes",
    "read_index",
    "read_meta",
    "write_index",
]

FORMAT = "seqrec-fast-index"
FORMAT_VERSION = 1
META = "index.json"


class Stored(NamedTuple):
    """What a file holds: the facts that were given to :func:`write_index`, and its tensors."""

    meta: dict[str, Any]
    tensors: dict[str, NDArray[Any]]


def write_index(path: Path, meta: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes a file that appears whole or not at all.

    Args:
        path: the file; one that is there is replaced.
        meta: facts, ready for JSON.
        tensors: arrays of types that the format holds, by name.

    Raises:
        InputError: the system refused; what was there stays.
    """
    whole = as_tensors(meta, tensors)

    def fill(stream: IO[bytes]) -> None:
        def write(piece: Any) -> None:
            left = memoryview(piece)
            while len(left):  # a file without a buffer may take less than it is given
                left = left[stream.write(left) :]

        write_tensors(whole, write)

    write_whole(path, fill, "index")


def meta_bytes(meta: Mapping[str, Any], digests: Mapping[str, str]) -> bytes:
    """The contents of the tensor that tells what the others are.

    Args:
        meta: facts, ready for JSON.
        digests: SHA-256 of every other tensor, by name.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **meta,
        "sha256": dict(digests),
    }
    return json.dumps(content, sort_keys=True).encode("utf-8")


def as_tensors(
    meta: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Facts and tensors as tensors alone: what a file of an index holds."""
    text = meta_bytes(meta, {name: _digest(tensor) for name, tensor in sorted(tensors.items())})
    return {**tensors, META: np.frombuffer(text, dtype=np.uint8)}


def from_tensors(found: Mapping[str, NDArray[Any]], *, verify: bool) -> Stored:
    """The reverse of :func:`as_tensors`, believing nothing.

    Args:
        found: tensors by name.
        verify: compare every tensor with its checksum.

    Raises:
        InputError: they are no index, were altered, or belong to a newer version.
    """
    tensors = dict(found)
    text = tensors.pop(META, None)
    if text is None or text.dtype != np.uint8 or text.ndim != 1 or len(text) > MAX_BYTES:
        raise InputError("it is not an index; give the file that save wrote")
    meta = _meta(text)
    digests = meta.pop("sha256", None)
    if not isinstance(digests, dict) or set(digests) != set(tensors):
        raise InputError("its list of checksums does not fit its tensors; it was altered")
    if verify:
        for name, tensor in tensors.items():
            if _digest(tensor) != digests[name]:
                raise InputError(
                    f"the SHA-256 of {name!r} is not the one that was written; the file "
                    f"was damaged or altered"
                )
    return Stored(meta, tensors)


def read_index(path: Path, *, verify: bool = True, mmap: bool = True) -> Stored:
    """Reads a file of :func:`write_index`, believing nothing.

    Args:
        path: the file.
        verify: compare every tensor with its checksum, which reads all of it.
        mmap: large tensors are read-only views of the file, mapped into memory. It must not be
            written into while they are used; :func:`write_index` never does.

    Raises:
        InputError: it is missing, damaged, cut off, of another kind or a newer version.
    """
    with open_plain(path, "index") as stream:
        try:
            size = os.fstat(stream.fileno()).st_size
            entries = read_header(stream, size, _nothing)
            _check_entries(entries)
            tensors = read_tensors(stream, entries, None, mapped=mmap)
            return from_tensors(tensors, verify=verify)
        except MemoryError:
            raise InputError(f"{path}: it does not fit into memory; give mmap=True") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def read_meta(stream: IO[bytes], size: int) -> dict[str, Any]:
    """The facts alone, from a file at its beginning; no other tensor is read.

    Args:
        stream: the file.
        size: its size in bytes.

    Raises:
        InputError: it is no index, or one of a newer version.
    """
    entries = read_header(stream, size, _nothing)
    _check_entries(entries)
    text = read_one(stream, entries, META)
    assert text is not None
    return _meta(text)


def _check_entries(entries: list[Entry]) -> None:
    for entry in entries:
        if entry.name == META:
            if entry.dtype == np.uint8 and len(entry.shape) == 1 and entry.shape[0] <= MAX_BYTES:
                return
            break
    raise InputError("it is not an index; give the file that save wrote")


def _meta(text: NDArray[np.uint8]) -> dict[str, Any]:
    found = parse_object(text.tobytes())
    if found.pop("format", None) != FORMAT:
        raise InputError("it is not an index; give the file that save wrote")
    version = found.pop("format_version", None)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"'format_version' must be a whole number, found {version!r}")
    if version > FORMAT_VERSION:
        raise InputError(
            f"the index has format version {version}, this library reads up to "
            f"{FORMAT_VERSION}; upgrade seqrec-fast"
        )
    return found


def _digest(tensor: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    raw: Any = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    for begin in range(0, len(raw), 2**22):
        digest.update(memoryview(raw)[begin : begin + 2**22])
    return digest.hexdigest()


def _nothing(seen: bytes) -> None:
    """The header has no checksum of its own: what it says is compared with the tensors."""
