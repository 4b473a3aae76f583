# SPDX-License-Identifier: Apache-2.0
"""Attention on numpy arrays: the part of :mod:`seqrec_fast.native` that checks its arguments."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast import _C
from seqrec_fast._arguments import integers, number, numbers, thread_count
from seqrec_fast.errors import InputError

__all__ = ["attention", "decode_attention"]


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    offsets: ArrayLike,
    *,
    causal: bool = True,
    scale: float | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Softmax self-attention inside each row of a jagged batch.

    Args:
        q: float ``[tokens, heads, width]``, rows end to end. Float32 views whose last dimension is
            dense are read where they lie.
        k: as ``q``.
        v: as ``q``.
        offsets: int ``[rows + 1]``.
        causal: whether a token sees only itself and earlier tokens of its row.
        scale: factor of the scores; ``1 / sqrt(width)`` where None.
        threads: at most this many; the set number where None.

    Returns:
        float32 ``[tokens, heads, width]``.

    Raises:
        InputError: an argument is of the wrong type or shape.
    """
    views = [_heads(name, value) for name, value in (("q", q), ("k", k), ("v", v))]
    shape = views[0].shape
    for name, view in zip("kv", views[1:], strict=True):
        if view.shape != shape:
            raise InputError(f"{name}: expected the shape {shape} of q, found {view.shape}")
    ends = _offsets(offsets, shape[0])
    out = np.empty(shape, np.float32)
    statistics = np.empty((2, shape[1], shape[0]), np.float32)
    _C.attention(
        _view(views[0]),
        _view(views[1]),
        _view(views[2]),
        ends.ctypes.data,
        shape[0],
        len(ends) - 1,
        shape[1],
        shape[2],
        number("scale", scale) if scale is not None else max(shape[2], 1) ** -0.5,
        causal,
        _view(out),
        statistics.ctypes.data,
        0 if threads is None else thread_count(threads),
    )
    return out


def decode_attention(
    q: ArrayLike,
    keys: ArrayLike,
    values: ArrayLike,
    offsets: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    scale: float | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Attention of one query a row to the keys and values that the row has cached.

    Args:
        q: float ``[rows, heads, width]``.
        keys: float ``[cached tokens, heads, width]``, the caches of the rows end to end. Float32
            views whose last dimension is dense are read where they lie.
        values: as ``keys``.
        offsets: int ``[rows + 1]``: where each row's cache begins and ends.
        lengths: int ``[rows]``: how many of a row's places are filled, from its start; all of them
            where None.
        scale: factor of the scores; ``1 / sqrt(width)`` where None.
        threads: at most this many; the set number where None.

    Returns:
        float32 ``[rows, heads, width]``; zeros for a row with nothing cached.

    Raises:
        InputError: an argument is of the wrong type or shape.
    """
    query, key, value = _heads("q", q), _heads("keys", keys), _heads("values", values)
    if key.shape[1:] != query.shape[1:]:
        raise InputError(
            f"keys: expected [cached tokens, {query.shape[1]}, {query.shape[2]}], found {key.shape}"
        )
    if value.shape != key.shape:
        raise InputError(f"values: expected the shape {key.shape} of keys, found {value.shape}")
    ends = _offsets(offsets, key.shape[0])
    if len(ends) != len(query) + 1:
        raise InputError(
            f"offsets: expected {len(query) + 1} for {len(query)} rows of q, found {len(ends)}"
        )
    counts = None
    if lengths is not None:
        counts = integers("lengths", lengths)
        if counts.shape != (len(query),) or ((counts < 0) | (counts > np.diff(ends))).any():
            raise InputError("lengths: expected one a row, from 0 to its tokens in offsets")
    out = np.empty(query.shape, np.float32)
    _C.decode_attention(
        _view(query),
        _view(key),
        _view(value),
        ends.ctypes.data,
        0 if counts is None else counts.ctypes.data,
        key.shape[0],
        query.shape[0],
        query.shape[1],
        query.shape[2],
        number("scale", scale) if scale is not None else max(query.shape[2], 1) ** -0.5,
        _view(out),
        0 if threads is None else thread_count(threads),
    )
    return out


def _heads(name: str, value: ArrayLike) -> NDArray[np.float32]:
    """``[tokens, heads, width]`` as it lies, or a copy where the kernels could not read it."""
    array = numbers(name, value)
    if array.dtype != np.float32 or (array.size and array.strides[-1] != 4):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if array.ndim != 3:
        raise InputError(f"{name}: expected [tokens, heads, width], found shape {array.shape}")
    if any(stride % 4 for stride in array.strides):
        array = np.ascontiguousarray(array)
    return cast("NDArray[np.float32]", array)


def _view(array: NDArray[np.float32]) -> tuple[int, int, int]:
    return array.ctypes.data, array.strides[0] // 4, array.strides[1] // 4


def _offsets(offsets: ArrayLike, tokens: int) -> NDArray[np.int64]:
    ends = integers("offsets", offsets)
    if ends.ndim != 1 or not len(ends) or ends[0] != 0 or ends[-1] != tokens:
        raise InputError(f"offsets: must run from 0 to the {tokens} tokens")
    if (np.diff(ends) < 0).any():
        raise InputError("offsets: must not decrease")
    return ends
