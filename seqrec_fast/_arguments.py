# SPDX-License-Identifier: Apache-2.0
"""Numbers that the numpy functions over the kernels take, checked."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import numpy as np

from seqrec_fast.errors import InputError

__all__ = ["MAX_THREADS", "integer", "thread_count"]

MAX_THREADS = 1024


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
