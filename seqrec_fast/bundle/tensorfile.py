# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the safetensors format with everything checked before it is believed.

The format (github.com/huggingface/safetensors): 8 bytes little-endian length of the header, the
header (a JSON object from name to dtype, shape and extent), then the data. Files written here are
read by the safetensors library and the other way round. It is written out here because a tensor is
then read straight into its own array while the file is hashed (no second copy of the weights in
memory), or seen where the file is mapped into memory; and because every extent is compared with the
size of the file before memory is reserved.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.bundle.jsonio import parse_object
from seqrec_fast.errors import InputError

__all__ = ["Entry", "header", "read_header", "read_one", "read_tensors", "write_tensors"]

MAX_HEADER_BYTES = 8 * 2**20
MAX_DIMENSIONS = 8

#: bytes from which on a tensor is mapped; smaller ones would save less than a mapping costs
LEAST_MAPPED = 2**20
_PIECE = 2**22
# Where the data begin, and each tensor of whole cache lines: so do the rows of a mapped table then.
_ALIGNMENT = 64

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class Entry(NamedTuple):
    """One tensor as the header describes it; ``begin`` counts from the end of the header."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(stream: IO[bytes], size: int, seen: Callable[[bytes], None]) -> list[Entry]:
    """Reads and checks the header.

    Args:
        stream: the file, at its beginning; afterwards at the first byte of the data.
        size: size of the file in bytes.
        seen: is given every byte read, for a checksum.

    Returns:
        The tensors in the order of the file. Together they cover the data exactly.

    Raises:
        InputError: the reason, without a file name.
    """
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise InputError(f"it is truncated ({size} bytes)")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise InputError(
            f"its header claims {length} bytes, but the file has {size} and a header at most "
            f"{MAX_HEADER_BYTES}"
        )
    text = stream.read(length)
    if len(text) < length:
        raise InputError("it is truncated inside its header")
    seen(prefix)
    seen(text)
    described = parse_object(text)
    described.pop("__metadata__", None)
    entries = sorted((_entry(name, what) for name, what in described.items()), key=_extent)
    at = 0
    for entry in entries:
        if entry.begin != at:
            raise InputError(f"tensor {entry.name[:80]!r} leaves a gap or overlaps another tensor")
        at = entry.end
    if at != size - 8 - length:
        raise InputError(
            f"its tensors take {at} bytes, but it holds {size - 8 - length} bytes of data "
            f"(truncated or altered)"
        )
    return entries


def read_tensors(
    stream: IO[bytes],
    entries: list[Entry],
    seen: Callable[[Any], None] | None,
    mapped: bool = False,
) -> dict[str, NDArray[Any]]:
    """Reads all tensors, each into an array of its own.

    Args:
        stream: at the first byte of the data.
        entries: from :func:`read_header`.
        seen: is given every byte of the data, in order; ``None``: what is mapped is not read.
        mapped: large tensors of numbers are read-only views of the file in memory where the system
            allows it. They hold what the file holds for as long as nobody writes into it.

    Raises:
        InputError: the file ended early, or a truth value is neither 0 nor 1.
    """
    tensors: dict[str, NDArray[Any]] = {}
    base = stream.tell()
    pages = _map(stream) if mapped and any(map(_is_large, entries)) else None
    piece: Any = None
    for entry in entries:
        at = base + entry.begin
        view: Any
        if pages is not None and _is_large(entry) and at % entry.dtype.itemsize == 0:
            if entry.end + base > len(pages):
                raise InputError(f"it ended inside tensor {entry.name[:80]!r}")
            tensors[entry.name] = np.frombuffer(
                pages, entry.dtype, math.prod(entry.shape), at
            ).reshape(entry.shape)
            if seen is None:
                stream.seek(base + entry.end)
                continue
            # Read rather than looked at, so that a disk that fails is an error and no signal.
            piece = memoryview(bytearray(_PIECE)) if piece is None else piece
            left = entry.end - entry.begin
            while left:
                view = piece[: min(left, _PIECE)]
                left -= _fill(stream, view, entry, seen)
            continue
        array = np.empty(entry.shape, dtype=entry.dtype)
        raw: Any = array.reshape(-1).view(np.uint8)
        filled = 0
        while filled < len(raw):
            view = memoryview(raw)[filled : filled + _PIECE]
            filled += _fill(stream, view, entry, seen)
        if entry.dtype == np.bool_ and (raw > 1).any():
            raise InputError(f"tensor {entry.name[:80]!r} holds a truth value other than 0 and 1")
        tensors[entry.name] = array
    return tensors


def read_one(stream: IO[bytes], entries: list[Entry], name: str) -> NDArray[Any] | None:
    """One tensor alone.

    Args:
        stream: at the first byte of the data.
        entries: from :func:`read_header`.
        name: of the tensor.

    Returns:
        The tensor, or ``None`` where there is none of that name.

    Raises:
        InputError: as :func:`read_tensors`.
    """
    for entry in entries:
        if entry.name == name:
            stream.seek(entry.begin, os.SEEK_CUR)
            return read_tensors(stream, [entry], None)[name]
    return None


def _is_large(entry: Entry) -> bool:
    return entry.dtype != np.bool_ and entry.end - entry.begin >= LEAST_MAPPED


def _map(stream: IO[bytes]) -> mmap.mmap | None:
    """The file in memory, read-only and shared; ``None`` where that can't be had."""
    if os.name != "posix":
        return None  # elsewhere a file that is mapped can be neither renamed nor replaced
    try:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None


def _fill(stream: IO[bytes], view: Any, entry: Entry, seen: Callable[[Any], None] | None) -> int:
    """Reads into a part of a buffer; returns how many bytes came."""
    count: int = stream.readinto(view)  # type: ignore[attr-defined]
    if not count:
        raise InputError(f"it ended inside tensor {entry.name[:80]!r}")
    if seen is not None:
        seen(view[:count])
    return count


def header(tensors: Mapping[str, NDArray[Any]]) -> tuple[bytes, list[str]]:
    """The first bytes of a file that holds these tensors.

    Returns:
        Length and header, padded so that the data begins at a multiple of 64, and the order in
        which the data has to follow: widest type first, so that each tensor is aligned; of one
        type those that fill whole lines of 64 bytes first, so that they begin at such a line.

    Raises:
        InputError: a type that the format of the bundle does not hold.
    """
    described: dict[str, Any] = {}
    at = 0

    def place(name: str) -> tuple[int, bool, str]:
        array = tensors[name]
        return -array.dtype.itemsize, array.nbytes % _ALIGNMENT > 0, name

    order = sorted(tensors, key=place)
    for name in order:
        array = tensors[name]
        if array.dtype not in _CODES:
            raise InputError(f"tensor {name!r} has type {array.dtype}; use {', '.join(_DTYPES)}")
        described[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(described, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, order


def write_tensors(tensors: Mapping[str, NDArray[Any]], write: Callable[[Any], None]) -> None:
    """Writes a whole file by calls of ``write``, without a second copy of the tensors."""
    begin, order = header(tensors)
    write(begin)
    for name in order:
        raw: Any = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8)
        for at in range(0, len(raw), 2**22):
            write(memoryview(raw)[at : at + 2**22])


def _extent(entry: Entry) -> tuple[int, int]:
    return entry.begin, entry.end


def _entry(name: str, what: Any) -> Entry:
    short = repr(name[:80])
    if not isinstance(what, dict) or set(what) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"the header entry of tensor {short} is malformed")
    code, shape, extent = what["dtype"], what["shape"], what["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise InputError(f"tensor {short} has type {str(code)[:20]!r}; known are {list(_DTYPES)}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise InputError(f"tensor {short} has the impossible shape {str(shape)[:80]}")
    if not _naturals(extent) or len(extent) != 2:
        raise InputError(f"tensor {short} has the impossible extent {str(extent)[:80]}")
    dtype = _DTYPES[code]
    if extent[1] - extent[0] != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"tensor {short} of shape {shape} needs {math.prod(shape) * dtype.itemsize} bytes, but "
            f"its extent is {extent[1] - extent[0]}"
        )
    # numpy refuses a shape whose other dimensions overflow even when one of them is 0.
    if math.prod(max(size, 1) for size in shape) > 2**40:
        raise InputError(f"tensor {short} has the impossible shape {str(shape)[:80]}")
    return Entry(name, dtype, tuple(shape), extent[0], extent[1])


def _naturals(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**63 for one in found
    )
