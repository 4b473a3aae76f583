# SPDX-License-Identifier: Apache-2.0
"""An exact index of more items than fit into memory, written some at a time.

The file is that of :meth:`ExactIndex.save`. Loaded with ``mmap=True`` its vectors stay on the disk
and in the memory that the system uses for files anyway; with ``dtype="int8"`` a table of bytes
(``dim`` + 5 bytes an item) is all that a process holds itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from seqrec_fast._files import write_whole
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.exact import ExactIndex
from seqrec_fast.retrieval.index import METRICS, Metric, unit_rows, vector_rows
from seqrec_fast.retrieval.options import ExactOptions, choice
from seqrec_fast.retrieval.storage import META, meta_bytes

__all__ = ["write_exact"]

# Room for the header, which is known only at the end; a multiple of 64, as the data begin there.
_HEADER = 4096
_LEAST_COLUMNS = 1


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
        stream.seek(_HEADER)
        digest, dim = hashlib.sha256(), -1
        for number, chunk in enumerate(chunks):
            rows = vector_rows(f"chunks: number {number}", chunk)
            if dim not in (-1, rows.shape[1]) or rows.shape[1] < _LEAST_COLUMNS:
                raise InputError(
                    f"chunks: number {number} has {rows.shape[1]} columns, "
                    f"{'expected at least 1' if dim < 0 else f'the others have {dim}'}"
                )
            dim = rows.shape[1]
            if metric == "cosine":
                rows = unit_rows(rows)
            raw: Any = rows.reshape(-1).view(np.uint8)
            digest.update(raw)
            _write(stream, raw)
            written += len(rows)
        if dim < 0:
            raise InputError("chunks: found none; give at least one, of no rows if need be")
        facts = ExactIndex.facts(cast("Metric", metric), dim, written, chosen)
        text = meta_bytes(facts, {"items": digest.hexdigest()})
        _write(stream, text)
        size = written * dim * 4
        described = {
            "items": {"dtype": "F32", "shape": [written, dim], "data_offsets": [0, size]},
            META: {"dtype": "U8", "shape": [len(text)], "data_offsets": [size, size + len(text)]},
        }
        header = json.dumps(described, separators=(",", ":")).encode().ljust(_HEADER - 8)
        stream.seek(0)
        _write(stream, len(header).to_bytes(8, "little") + header)

    write_whole(Path(path), fill, "index")
    return written


def _write(stream: IO[bytes], piece: Any) -> None:
    left = memoryview(piece)
    while len(left):  # a file without a buffer may take less than it is given
        left = left[stream.write(left[: 2**26]) :]
