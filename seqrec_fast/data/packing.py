# SPDX-License-Identifier: Apache-2.0
"""Text columns as plain arrays: one UTF-8 blob, where each text ends, and which texts are present.

This is how strings travel into and out of a bundle without pickle: tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError

__all__ = ["pack_text", "unpack_text"]


def pack_text(texts: Sequence[str | None], what: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lays texts end to end as UTF-8.

    Args:
        texts: ``n`` texts; ``None`` takes no bytes.
        what: name of the column, for the error message.

    Returns:
        uint8 ``[bytes]`` and int64 ``[n + 1]`` offsets into it.

    Raises:
        InputError: a text that has no UTF-8 form (a lone surrogate).
    """
    encoded: list[bytes] = []
    for index, text in enumerate(texts):
        try:
            encoded.append(b"" if text is None else text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InputError(
                f"{what}: entry {index} ({text!r}) is not valid Unicode and cannot be stored; "
                f"clean it first"
            ) from error
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)), out=offsets[1:])
    # bytearray, so that the array owns writable memory
    return np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8), offsets


def unpack_text(blob: Any, offsets: Any, what: str) -> list[str]:
    """The inverse of :func:`pack_text`; trusts nothing about its arguments.

    Args:
        blob: uint8 ``[bytes]``.
        offsets: int64 ``[n + 1]``.
        what: name of the column, for the error message.

    Raises:
        InputError: wrong types or shapes, offsets that do not fit, bytes that are not UTF-8.
    """
    if not isinstance(blob, np.ndarray) or blob.dtype != np.uint8 or blob.ndim != 1:
        raise InputError(f"{what}: the text must be one row of uint8, found {_describe(blob)}")
    if not isinstance(offsets, np.ndarray) or offsets.dtype != np.int64 or offsets.ndim != 1:
        raise InputError(f"{what}: the offsets must be int64 [n + 1], found {_describe(offsets)}")
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(blob):
        raise InputError(f"{what}: the offsets do not span the {len(blob)} bytes of text")
    if bool((offsets[1:] < offsets[:-1]).any()):
        raise InputError(f"{what}: the offsets of the texts must not decrease")
    data = blob.tobytes()
    ends = offsets.tolist()
    try:
        return [data[b:e].decode("utf-8") for b, e in pairwise(ends)]
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: the stored text is not valid UTF-8 ({error.reason})") from error


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return "nothing" if value is None else type(value).__name__
