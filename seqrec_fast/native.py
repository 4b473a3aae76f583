# SPDX-License-Identifier: Apache-2.0
"""The native kernels, with their arguments checked: numpy in, numpy out, no torch.

Everything above calls the kernels through this module. It turns what it is given into contiguous
arrays of the right type (a copy only where needed), names the argument that cannot be used, and
leaves the work to ``seqrec_fast._C``. The interpreter lock is released while a kernel runs, and
every function may be called from many threads at once.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast import _C
from seqrec_fast._arguments import (
    MAX_THREADS,
    MOST_PLACES,
    float_array,
    float_matrix,
    integer,
    thread_count,
)
from seqrec_fast._native_attention import attention, decode_attention
from seqrec_fast._native_items import (
    CompactForm,
    CompactItems,
    ItemTable,
    QuantizedItems,
    item_rows,
)
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

__all__ = [
    "ACTIVATIONS",
    "MAX_THREADS",
    "CompactForm",
    "CompactItems",
    "ItemTable",
    "Operation",
    "PackedLinear",
    "Peak",
    "QuantizedItems",
    "attention",
    "build_info",
    "cpu_features",
    "decode_attention",
    "get_num_threads",
    "item_rows",
    "measure_peak",
    "operations",
    "score_topk",
    "set_num_threads",
]

#: what a linear layer may apply to its outputs, in the order of the native codes
ACTIVATIONS = ("none", "relu", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid")


class PackedLinear:
    """A linear layer whose weight is laid out once for the kernels: ``activation(x W^T + bias)``.

    The layer keeps a copy of the weight in the order that the instruction set in use reads; later
    changes of the array given are not seen.

    Args:
        weight: float ``[outputs, inputs]``.
        bias: float ``[outputs]`` or None.

    Raises:
        InputError: a shape does not fit.
    """

    def __init__(self, weight: ArrayLike, bias: ArrayLike | None = None) -> None:
        matrix = float_matrix("weight", weight)
        self.outputs, self.inputs = matrix.shape
        self._packed = _C.PackedLinear(matrix, None if bias is None else float_array("bias", bias))

    def __call__(
        self, x: ArrayLike, *, activation: str = "none", threads: int | None = None
    ) -> NDArray[np.float32]:
        """float32 ``[rows, outputs]`` for float ``x [rows, inputs]``.

        Args:
            x: the inputs.
            activation: one of :data:`ACTIVATIONS`; ``gelu_tanh`` is the approximation with tanh.
            threads: cores to use at most; ``None`` takes :func:`get_num_threads`.

        Raises:
            InputError: ``x`` has another width, or the activation is unknown.
        """
        rows = float_matrix("x", x)
        if activation not in ACTIVATIONS:
            raise InputError(
                f"activation: unknown {activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        code = ACTIVATIONS.index(activation)
        return self._packed(rows, code, 0 if threads is None else thread_count(threads))


def score_topk(
    queries: ArrayLike,
    items: ArrayLike | QuantizedItems | CompactItems,
    k: int,
    *,
    bias: ArrayLike | None = None,
    seen: JaggedBatch[Any] | None = None,
    blocked: ArrayLike | None = None,
    threads: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``k`` best items of every query by inner product, found in one pass over the items.

    ``score[q, i] = queries[q] · items[i] + bias[i]``, in float32. Items come by descending score,
    at equal scores the lower index first. Blocked and seen items and scores that are NaN or -inf
    are never chosen. The answer to a query depends neither on the number of threads nor on the
    queries beside it.

    Args:
        queries: float ``[queries, dim]``.
        items: float ``[items, dim]``; or :class:`QuantizedItems`, which are searched faster with
            the same result; or :class:`CompactItems`, which take less memory.
        k: how many items a query gets, at least 1; may exceed the number of items.
        bias: float ``[items]``, added to the scores; tables hold their own.
        seen: int, one row a query: item indices hidden from that query, in any order.
        blocked: bool or uint8 ``[items]``: where true, hidden from all queries.
        threads: cores to use at most; ``None`` takes :func:`get_num_threads`.

    Returns:
        Scores float32 ``[queries, k]`` and item indices int64 ``[queries, k]``, filled up with
        ``-inf`` and ``-1`` where fewer items can be chosen.

    Raises:
        InputError: an argument has the wrong type, shape or range; the message names it.
    """
    query_rows = float_matrix("queries", queries)
    if isinstance(items, QuantizedItems | CompactItems) and bias is not None:
        raise InputError(f"bias: give it to {type(items).__name__}, whose table holds it")
    rows: NDArray[np.float32] | None = None
    table: _C.Int8Table | None = None
    if isinstance(items, QuantizedItems):
        rows, bias, table = items.items, items.bias, items._table
    elif not isinstance(items, CompactItems):
        rows = float_matrix("items", items)
    seen_values, seen_offsets = _seen_rows(seen)
    wanted = integer("k", k)
    mask = None if blocked is None else _flags(blocked)
    cores = 0 if threads is None else thread_count(threads)
    try:
        if wanted * len(query_rows) >= MOST_PLACES:
            raise MemoryError
        if isinstance(items, CompactItems):
            return _C.score_topk_table(
                query_rows, items.native, seen_values, seen_offsets, mask, wanted, cores
            )
        assert rows is not None
        added = None if bias is None else float_array("bias", bias)
        return _C.score_topk(
            query_rows, rows, added, seen_values, seen_offsets, mask, wanted, cores, table
        )
    except MemoryError:
        held = len(items) if isinstance(items, CompactItems) else len(cast("Sized", rows))
        raise InputError(
            f"k: {wanted:,} places for each of {len(query_rows):,} queries take more memory than "
            f"there is; the {held:,} items are enough"
        ) from None


def build_info() -> dict[str, Any]:
    """How the native code was built and which instruction set it uses here.

    Returns:
        ``version``, ``compiler``, ``cxx_standard``, ``flags``, ``isa_compiled``,
        ``isa_supported`` (by this processor), ``isa`` (in use) and ``lanes`` (floats a register).

    Raises:
        InputError: ``SEQREC_FAST_ISA`` is not one of baseline, avx2, avx512.
    """
    return _C.build_info()


def cpu_features() -> tuple[str, ...]:
    """Names of the processor features that the kernels could use, e.g. ``"avx2"``."""
    return tuple(_C.cpu_features())


def get_num_threads() -> int:
    """Cores that a native call may use; at first, all that the process may run on."""
    return _C.get_num_threads()


def set_num_threads(threads: int) -> None:
    """Sets how many cores a native call may use, for the whole process.

    Args:
        threads: 1 to 1024.

    Raises:
        InputError: ``threads`` is not such a number.
    """
    _C.set_num_threads(thread_count(threads))


def measure_peak(threads: int | None = None, *, buffer_bytes: int = 256 << 20) -> Peak:
    """What the processor can do at most, now: the measure by which the kernels are judged.

    Runs multiply-adds from registers, and reads a buffer that should exceed every cache, each a few
    times for some milliseconds, and returns the best. Takes about a fifth of a second.

    Args:
        threads: cores to use; ``None`` takes :func:`get_num_threads`.
        buffer_bytes: size of that buffer.

    Raises:
        InputError: an argument is not such a number, or there is no memory for the buffer.
    """
    size = integer("buffer_bytes", buffer_bytes)
    try:
        found = _C.measure_peak(0 if threads is None else thread_count(threads), size)
    except MemoryError:
        raise InputError(f"buffer_bytes: there is no memory for {size:,} bytes") from None
    return Peak(found[0] / 1e9, found[1] / 1e9)


# ------------------------------------------------------------------------------- what exists


class Peak(NamedTuple):
    """The most that the processor does in a second.

    Attributes:
        gflops: float32 operations in 10^9 a second, a multiply-add counted as two.
        gigabytes: bytes read from memory, in 10^9 a second.
    """

    gflops: float
    gigabytes: float


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one backend.

    Attributes:
        name: the operation, e.g. ``"topk"``.
        backend: ``"reference"`` (plain torch) or ``"native"`` (this library, CPU).
        available: whether it can be used here.
        reason: why not, or how it runs.
    """

    name: str
    backend: str
    available: bool
    reason: str


_REFERENCES = (
    "linear",
    "dropout",
    "layer_norm",
    "feed_forward",
    "embedding",
    "recurrent",
    "attention",
    "hstu_attention",
    "decode_attention",
    "cross_entropy",
    "topk",
)
_NATIVE = (
    "hstu_attention",
    "attention",
    "decode_attention",
    "cross_entropy",
    "linear",
    "recurrent",
    "dropout",
    "layer_norm",
    "feed_forward",
    "embedding",
    "topk",
)


def operations() -> tuple[Operation, ...]:
    """Every operation on every backend: whether it can be used here, and why not.

    Looks whether torch is installed without importing it.
    """
    found: list[Operation] = []
    has_torch = find_spec("torch") is not None
    for name in _REFERENCES:
        reason = "plain torch" if has_torch else "torch is not installed: pip install '.[train]'"
        found.append(Operation(name, "reference", has_torch, reason))
        native = name in _NATIVE
        how = f"{build_info()['isa']} kernels" if native else "runs by the reference"
        found.append(Operation(name, "native", native, how))
    return tuple(found)


# ------------------------------------------------------------------------------- arguments


def _flags(blocked: ArrayLike) -> NDArray[np.uint8]:
    array = np.asarray(blocked)
    if array.dtype not in (np.bool_, np.uint8):
        raise InputError(
            f"blocked: expected bool or uint8, one flag an item, found {array.dtype}; "
            "an array of item indices is not accepted here"
        )
    return np.ascontiguousarray(array).view(np.uint8).reshape(array.shape)


def _seen_rows(
    seen: JaggedBatch[Any] | None,
) -> tuple[NDArray[np.int32] | None, NDArray[np.int64] | None]:
    if seen is None:
        return None, None
    if not isinstance(seen, JaggedBatch):
        raise InputError(f"seen: expected a JaggedBatch, found {type(seen).__name__}")
    if seen.is_torch:
        raise InputError("seen: expected numpy arrays, found torch tensors; call to_numpy() first")
    values = np.asarray(seen.values)
    if values.ndim != 1:
        raise InputError(f"seen: expected one item index a value, found shape {values.shape}")
    if values.dtype != np.int32:
        if values.dtype.kind not in "iu" and values.size:
            raise InputError(f"seen: expected integer item indices, found {values.dtype}")
        wide = values.astype(np.int64)
        # A value beyond int32 stays out of range, so that it is refused and not wrapped around.
        values = np.clip(wide, -1, np.iinfo(np.int32).max).astype(np.int32)
    return np.ascontiguousarray(values), np.ascontiguousarray(seen.offsets, dtype=np.int64)
