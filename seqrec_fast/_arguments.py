# SPDX-License-Identifier: Apache-2.0
"""Numbers that the numpy functions over the kernels take, checked."""

from __future__ import annotations

import operator
import os
from typing import Any, SupportsIndex, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.errors import InputError

__all__ = [
    "MAX_THREADS",
    "MOST_PLACES",
    "float_array",
    "float_matrix",
    "integer",
    "integers",
    "number",
    "numbers",
    "thread_count",
]

MAX_THREADS = 1024


def _most_places() -> int:
    try:
        held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # another system
        held = 1 << 63
    return max(held, 1 << 30) // 16


#: places of results, 16 bytes each, that could lie in the memory of this machine. A system that
#: promises more memory than it has ends the process that uses it, so that is not left to it.
MOST_PLACES = _most_places()


def integer(name: str, value: SupportsIndex) -> int:
    """A whole number of at least 1, or an error that names the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}: expected a whole number, found {value!r}") from None
    if isinstance(value, (bool, np.bool_)) or not 1 <= number < 2**62:
        raise InputError(f"{name}: expected a whole number of at least 1, found {value!r}")
    return number


def thread_count(threads: SupportsIndex) -> int:
    """A number of threads that the pool takes, or an error."""
    number = integer("threads", threads)
    if number > MAX_THREADS:
        raise InputError(f"threads: expected 1 to {MAX_THREADS}, found {number}")
    return number


def number(name: str, value: float) -> float:
    """A number, or an error that names the argument."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected a number, found {value!r}") from None


def numbers(name: str, value: ArrayLike, what: str = "floating-point numbers") -> NDArray[Any]:
    """An array of real numbers, of whatever type and layout it has, or an error."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected an array of numbers, found uneven rows") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: expected {what}, found {array.dtype}")
    return array


def float_array(name: str, value: ArrayLike) -> NDArray[np.float32]:
    """A contiguous float32 array; what is one already is not copied."""
    if type(value) is np.ndarray and value.dtype == np.float32 and value.flags.c_contiguous:
        return cast("NDArray[np.float32]", value)
    array = numbers(name, value)
    return np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape)


def float_matrix(name: str, value: ArrayLike) -> NDArray[np.float32]:
    """The same of two dimensions, or an error."""
    array = float_array(name, value)
    if array.ndim != 2:
        raise InputError(f"{name}: expected two dimensions [rows, dim], found shape {array.shape}")
    return array


def integers(name: str, value: ArrayLike) -> NDArray[np.int64]:
    """A contiguous array of whole numbers, or an error."""
    array = numbers(name, value, "whole numbers")
    if array.dtype.kind == "f" and array.size:
        raise InputError(f"{name}: expected whole numbers, found {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64).reshape(array.shape)
