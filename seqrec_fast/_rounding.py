# SPDX-License-Identifier: Apache-2.0
"""Numbers in less than 32 bits: how float32 is rounded to them, and what they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError

__all__ = ["bfloat16_bits", "dequantise_rows", "quantise_rows", "round_to_bfloat16"]

Float = NDArray[np.float32]

_STEPS = np.float32(127.0)


def round_to_bfloat16(array: NDArray[Any]) -> Float:
    """The nearest bfloat16 of every entry, as float32; of two equally near, the even one.

    Args:
        array: float32 of any shape. Infinities stay, and so do NaN; a finite number beyond the
            largest bfloat16 (3.39e38) becomes infinite.

    Returns:
        float32 of the same shape whose lower 16 bits are 0.

    Raises:
        InputError: another type.
    """
    bits = _floats("array", array).view(np.uint32)
    # Adding just less than half of the last kept place carries where more than half is dropped;
    # at exactly half the last kept bit decides, which is rounding to even.
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    rounded &= np.uint32(0xFFFF0000)
    nan = np.isnan(array)
    if nan.any():
        # the carry could run through the exponent, and a fraction of lower bits would vanish
        rounded[nan] = np.uint32(0x7FC00000)
    return rounded.view(np.float32)


def bfloat16_bits(array: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of every entry: see :func:`round_to_bfloat16`."""
    return (round_to_bfloat16(array).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def quantise_rows(table: NDArray[Any]) -> tuple[NDArray[np.int8], Float]:
    """A table as bytes: every row in 127 equal steps to either side of 0.

    Args:
        table: float32 ``[rows, dim]``, finite.

    Returns:
        int8 ``[rows, dim]`` in -127 to 127 and float32 scales ``[rows]``: the value of a step of
        each row, its largest magnitude / 127 (0 for a row of zeros). No entry is off by more than
        half a step, up to the rounding of float32.

    Raises:
        InputError: another type or shape, or entries that are not finite.
    """
    rows = _floats("table", table)
    if rows.ndim != 2:
        raise InputError(f"table: expected two dimensions [rows, dim], found shape {rows.shape}")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise InputError(f"table: row {bad} holds NaN or infinity, which has no place in int8")
    largest = np.abs(rows).max(axis=1, initial=np.float32(0.0))
    scales = (largest / _STEPS).astype(np.float32)
    # Below the normal numbers a step has too few bits to be a 127th: such a row counts as zeros.
    scales[scales < np.finfo(np.float32).tiny] = 0.0
    with np.errstate(over="ignore"):
        beyond = ~np.isfinite(scales * _STEPS)  # only where the largest is that of float32 itself
    scales[beyond] = np.nextafter(scales[beyond], np.float32(0.0))
    steps = np.divide(rows, scales[:, None], out=np.zeros_like(rows), where=(scales > 0)[:, None])
    return np.clip(np.rint(steps), -_STEPS, _STEPS).astype(np.int8), scales


def dequantise_rows(values: NDArray[np.int8], scales: Float) -> Float:
    """The table that :func:`quantise_rows` stands for.

    Args:
        values: int8 ``[rows, dim]``.
        scales: float32 ``[rows]``.

    Returns:
        float32 ``[rows, dim]``.

    Raises:
        InputError: the shapes do not fit together.
    """
    if values.ndim != 2 or scales.shape != values.shape[:1]:
        raise InputError(
            f"scales: expected one a row of the values {values.shape}, found {scales.shape}"
        )
    return values.astype(np.float32) * scales.astype(np.float32)[:, None]


def _floats(name: str, array: NDArray[Any]) -> Float:
    if array.dtype != np.float32:
        raise InputError(f"{name}: expected float32, found {array.dtype}; convert it first")
    return np.ascontiguousarray(array)
