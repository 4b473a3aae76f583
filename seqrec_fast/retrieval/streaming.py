# SPDX-License-Identifier: Apache-2.0
"""An exact index of more items than fit into memory, written some at a time.

The file is that of :meth:`ExactIndex.save`. Loaded with ``mmap=True`` its vectors, and the table of
bytes of ``dtype="int8"``, stay on the disk and in the memory that the system uses for files anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from seqrec_fast import native
from seqrec_fast._files import write_whole
from seqrec_fast._rounding import bfloat16_bits
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.exact import ExactIndex, rounded_rows
from seqrec_fast.retrieval.index import METRICS, Float, Metric, unit_rows, vector_rows
from seqrec_fast.retrieval.options import ExactOptions, choice
from seqrec_fast.retrieval.storage import META, meta_bytes

__all__ = ["write_exact"]

# Room for the header, which is known only at the end; a multiple of 64, as the data begin there.
_HEADER = 4096
_LEAST_COLUMNS = 1
_LINE = 64
_BLOCK = 16  # items of a block of the table of bytes
_PIECE = 2**22


def write_exact(
    path: str | os.PathLike[str],
    chunks: Iterable[ArrayLike],
    metric: Metric | str = "ip",
    **options: Any,
) -> int:
    """Writes the file of an exact index in one pass, holding one chunk at a time.

    Args:
        path: the file, which appears whole or not at all; one that is there is replaced.
        chunks: float ``[items, dim]`` each, finite, in the order of the ids.
        metric: ``"ip"`` or ``"cosine"``.
        options: those of ``kind="exact"``.

    Returns:
        The number of items.

    Raises:
        InputError: chunks that do not fit together, or the system refused; nothing is left behind.
    """
    choice("metric", metric, METRICS)
    chosen = ExactOptions(**options)
    written = 0

    def fill(stream: IO[bytes]) -> None:
        nonlocal written
        with _Writer(stream, Path(os.path.realpath(path)).parent) as writer:
            for rows in _checked(chunks, cast("Metric", metric)):
                writer.add(rows, chosen.dtype)
            written = writer.finish(cast("Metric", metric), chosen)

    write_whole(Path(path), fill, "index")
    return written


def _checked(chunks: Iterable[ArrayLike], metric: Metric) -> Iterator[Float]:
    """The chunks as rows of one width; at least one."""
    dim = -1
    for number, chunk in enumerate(chunks):
        rows = vector_rows(f"chunks: number {number}", chunk)
        if dim not in (-1, rows.shape[1]) or rows.shape[1] < _LEAST_COLUMNS:
            raise InputError(
                f"chunks: number {number} has {rows.shape[1]} columns, "
                f"{'expected at least 1' if dim < 0 else f'the others have {dim}'}"
            )
        dim = rows.shape[1]
        yield unit_rows(rows) if metric == "cosine" else rows
    if dim < 0:
        raise InputError("chunks: found none; give at least one, of no rows if need be")


class _Writer:
    """One pass over the items: they go to the file, their table of bytes to one beside it at first.

    The order in the file is items, facts, blocks, bounds. The facts are padded, so that the blocks
    begin where a line of the cache does.
    """

    def __init__(self, stream: IO[bytes], folder: Path) -> None:
        self._stream, self._folder = stream, folder
        self._blocks: IO[bytes] | None = None
        self._bounds: list[Float] = []
        self._left: Float | None = None  # items that do not fill a block yet
        self._digests = {"items": hashlib.sha256()}
        self._rows, self._dim, self._itemsize, self._width = 0, 0, 4, 0

    def __enter__(self) -> _Writer:
        self._stream.seek(_HEADER)
        return self

    def __exit__(self, *_: object) -> None:
        if self._blocks is not None:
            self._blocks.close()

    def add(self, rows: Float, dtype: str) -> None:
        """Writes some items; ``dtype`` is that of the index."""
        self._dim = rows.shape[1]
        held: Any = rows
        if dtype == "bfloat16":
            held = bfloat16_bits(rounded_rows("chunks", rows, self._rows))
        self._itemsize = held.dtype.itemsize
        raw = held.reshape(-1).view(np.uint8)
        self._digests["items"].update(raw)
        _write(self._stream, raw)
        self._rows += len(rows)
        if dtype == "int8":
            self._add_blocks(rows, last=False)

    def _add_blocks(self, rows: Float, *, last: bool) -> None:
        if self._left is not None and len(self._left):
            rows = np.concatenate([self._left, rows])
        whole = len(rows) if last else len(rows) // _BLOCK * _BLOCK
        blocks, bounds = native.QuantizedItems(rows[:whole]).arrays()
        if self._blocks is None:
            self._blocks = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._digests |= {name: hashlib.sha256() for name in ("table.blocks", "table.bounds")}
        for name, part in (("table.blocks", blocks), ("table.bounds", bounds)):
            raw: Any = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            self._digests[name].update(raw)
        _write(self._blocks, blocks.reshape(-1))
        self._bounds.append(bounds.copy())
        self._width = blocks.shape[1]
        self._left = rows[whole:].copy()

    def finish(self, metric: Metric, options: ExactOptions) -> int:
        """Writes the rest and the header; returns the number of items."""
        if options.dtype == "int8":
            self._add_blocks(np.empty((0, self._dim), np.float32), last=True)
        facts = ExactIndex.facts(metric, self._dim, self._rows, options)
        text = meta_bytes(facts, {name: one.hexdigest() for name, one in self._digests.items()})
        at = self._rows * self._dim * self._itemsize
        text += b" " * (-(at + len(text)) % _LINE)
        described = {"items": _entry(_CODES[options.dtype], [self._rows, self._dim], 0, at)}
        described[META] = _entry("U8", [len(text)], at, at + len(text))
        _write(self._stream, text)
        if self._blocks is not None:
            at += len(text)
            bounds = np.concatenate(self._bounds)
            size = len(bounds) * self._width
            described["table.blocks"] = _entry("U8", [len(bounds), self._width], at, at + size)
            described["table.bounds"] = _entry(
                "F32", list(bounds.shape), at + size, at + size + bounds.nbytes
            )
            self._blocks.seek(0)
            while piece := self._blocks.read(_PIECE):
                _write(self._stream, piece)
            _write(self._stream, bounds.reshape(-1).view(np.uint8))
        header = json.dumps(described, separators=(",", ":")).encode().ljust(_HEADER - 8)
        self._stream.seek(0)
        _write(self._stream, len(header).to_bytes(8, "little") + header)
        return self._rows


_CODES = {"float32": "F32", "int8": "F32", "bfloat16": "U16"}


def _entry(code: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": code, "shape": shape, "data_offsets": [begin, end]}


def _write(stream: IO[bytes], piece: Any) -> None:
    left = memoryview(piece)
    while len(left):  # a file without a buffer may take less than it is given
        left = left[stream.write(left[: 2**26]) :]
