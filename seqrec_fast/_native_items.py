# SPDX-License-Identifier: Apache-2.0
"""Tables of items for the native search: bytes beside float32 rows, and rows in fewer bits alone.

Both are searched with the result of float32 over the rows that they hold, bit for bit; they differ
in what memory they take and how fast they are (``docs/ops/topk.md`` has the figures).
"""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast import _C
from seqrec_fast._arguments import float_array, float_matrix, integers, numbers, thread_count
from seqrec_fast._rounding import bfloat16_bits, quantise_rows
from seqrec_fast.errors import InputError

__all__ = ["CompactForm", "CompactItems", "ItemTable", "QuantizedItems", "item_rows"]

CompactForm = Literal["bfloat16", "int8"]

#: tells tables apart that are laid out in another way, or by a machine of another order of bytes
LAYOUT = f"16x4 {sys.byteorder}"

_ROWS_AT_ONCE = 1 << 15  # bounds the memory of a conversion
_LINE = 64


class QuantizedItems:
    """Items that :func:`score_topk` searches through a table of bytes, with the exact result.

    A search reads one byte a dimension instead of four, bounds every score, and computes again
    from the float32 rows the scores of the few items that the bounds leave. Items, scores and the
    order of ties are those of the search in float32, whatever the items are. It is faster where
    the items do not fit the caches, and worth its memory from about 50,000 items on.

    Holds the float32 items and, beside them, ``nbytes`` of the table: ``dim`` + 5 bytes an item
    (+ 4 with biases), ``dim`` rounded up to a multiple of four. May be searched from many threads
    at once.
    """

    dtype = "float32"

    def __init__(
        self, items: ArrayLike, bias: ArrayLike | None = None, *, threads: int | None = None
    ) -> None:
        """Makes the table.

        Args:
            items: float ``[items, dim]``, ``dim`` at most 32,768. A contiguous float32 array is
                used where it lies: do not change it afterwards.
            bias: float ``[items]``, added to the scores; likewise.
            threads: cores to use at most; ``None`` takes :func:`get_num_threads`.

        Raises:
            InputError: an argument has the wrong type, shape or range; the message names it.
        """
        self.items = float_matrix("items", items)
        self.bias = None if bias is None else float_array("bias", bias)
        self._table = _C.Int8Table(
            self.items, self.bias, 0 if threads is None else thread_count(threads)
        )

    @classmethod
    def from_arrays(
        cls,
        items: ArrayLike,
        blocks: NDArray[np.uint8],
        bounds: NDArray[np.float32],
        bias: ArrayLike | None = None,
    ) -> QuantizedItems:
        """The table that :meth:`arrays` gave, which is not made anew.

        Args:
            items: as in the constructor: those that the table was made of. With others a search
                finds anything.
            blocks: uint8 ``[ceil(items / 16), bytes]``, used where they lie if they begin at a
                multiple of 64 bytes, as they do in a file that is mapped; else copied. Do not
                change them afterwards.
            bounds: float32 ``[ceil(items / 16), 4]``; likewise.
            bias: as in the constructor; with it or without it as the table was made.

        Raises:
            InputError: an argument has the wrong type, shape or range; the message names it.
        """
        made = cls.__new__(cls)
        made.items = float_matrix("items", items)
        made.bias = None if bias is None else float_array("bias", bias)
        if blocks.dtype != np.uint8 or bounds.dtype != np.float32:
            raise InputError(
                f"blocks, bounds: expected uint8 and float32, found {blocks.dtype} and "
                f"{bounds.dtype}"
            )
        made._table = _C.Int8Table.stored(
            np.ascontiguousarray(blocks),
            np.ascontiguousarray(bounds),
            len(made.items),
            made.dim,
            made.bias is not None,
        )
        return made

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The table as it lies in memory, to be stored: blocks of bytes, and their bounds.

        Its form is that of :data:`LAYOUT`. Read-only, and kept alive by the arrays.
        """
        blocks, bounds = self._table.blocks, self._table.bounds
        blocks.flags.writeable = bounds.flags.writeable = False
        return blocks, bounds

    def __len__(self) -> int:
        return len(self.items)

    @property
    def dim(self) -> int:
        """Length of an item."""
        return int(self.items.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the table, beside the float32 items."""
        return self._table.nbytes

    def rows(self, indices: ArrayLike) -> NDArray[np.float32]:
        """As :meth:`CompactItems.rows`."""
        return item_rows(self.items, indices)

    def __reduce__(self) -> tuple[Any, ...]:
        return QuantizedItems, (self.items, self.bias)


class CompactItems:
    """Items held in 16 or 8 bits a dimension and in no other form.

    ``"bfloat16"`` keeps the nearest bfloat16 of every number, in half the memory of float32;
    ``"int8"`` keeps whole numbers from -127 to 127 and a float32 scale for each item, in a quarter.
    The vectors themselves are thereby rounded, once; a search is then exact: items, scores and the
    order of ties are those of the search in float32 over :meth:`rows` of all items.

    May be searched from many threads at once.

    Attributes:
        values: uint16 ``[items, dim]``, the bits of bfloat16; or int8 ``[items, dim]``.
        scales: float32 ``[items]``, the value of a step of each item; ``None`` for bfloat16.
        bias: float32 ``[items]``, added to the scores, or ``None``.
        native: the same for the native functions.
    """

    def __init__(
        self,
        vectors: ArrayLike,
        form: CompactForm,
        bias: ArrayLike | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Rounds vectors, some thousands at a time, so that they may be mapped from a large file.

        Args:
            vectors: float ``[items, dim]``; finite and ``dim`` at most 32,768 for ``"int8"``.
            form: ``"bfloat16"`` or ``"int8"``.
            bias: float ``[items]``, added to the scores.
            threads: cores to use at most; ``None`` takes :func:`get_num_threads`.

        Raises:
            InputError: an argument has the wrong type, shape or range; the message names it.
        """
        rows = numbers("vectors", vectors)
        if rows.ndim != 2:
            raise InputError(f"vectors: expected two dimensions [rows, dim], found {rows.shape}")
        if form not in ("bfloat16", "int8"):
            raise InputError(f"form: found {form!r}; choose bfloat16 or int8")
        values = _aligned(rows.shape, np.dtype(np.uint16 if form == "bfloat16" else np.int8))
        scales = None if form == "bfloat16" else np.empty(len(rows), dtype=np.float32)
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(begin, begin + _ROWS_AT_ONCE)
            some = float_matrix("vectors", rows[part])
            if scales is None:
                values[part] = bfloat16_bits(some)
                continue
            finite = np.isfinite(some).all(axis=1)
            if not finite.all():
                bad = begin + int(np.argmin(finite))
                raise InputError(f"vectors: row {bad} holds NaN or infinity; int8 cannot hold it")
            values[part], scales[part] = quantise_rows(some)
        self._hold(values, scales, bias, threads)

    @classmethod
    def from_arrays(
        cls,
        values: NDArray[Any],
        scales: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        *,
        threads: int | None = None,
    ) -> CompactItems:
        """Items that are stored in one of the forms, used where they lie.

        Nothing is copied, so that a file of any size can be mapped (``numpy.load(mmap_mode="r")``)
        and searched. Of int8, all of it is read once, for bounds that take one byte an item.

        Args:
            values: uint16 ``[items, dim]``, the bits of bfloat16 numbers, or int8. Do not change
                them afterwards, nor the scales.
            scales: float32 ``[items]``, finite and at least 0, where ``values`` are int8.
            bias: as in the constructor.
            threads: as there.

        Raises:
            InputError: an argument has the wrong type, shape or range; the message names it.
        """
        made = cls.__new__(cls)
        made._hold(values, scales, bias, threads)
        return made

    def _hold(
        self, values: Any, scales: ArrayLike | None, bias: ArrayLike | None, threads: int | None
    ) -> None:
        array = np.asarray(values)
        if array.dtype not in (np.uint16, np.int8):
            raise InputError(
                f"values: expected uint16 (the bits of bfloat16) or int8, found {array.dtype}"
            )
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise InputError("values: expected rows side by side; call numpy.ascontiguousarray")
        self.values: NDArray[Any] = array
        self.scales = None if scales is None else float_array("scales", scales)
        self.bias = None if bias is None else float_array("bias", bias)
        self.native = _C.ItemTable(
            array, self.scales, self.bias, 0 if threads is None else thread_count(threads)
        )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        """Length of an item."""
        return int(self.values.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Items and the length of one."""
        return len(self.values), self.dim

    @property
    def dtype(self) -> CompactForm:
        """``"bfloat16"`` or ``"int8"``."""
        return "int8" if self.values.dtype == np.int8 else "bfloat16"

    @property
    def nbytes(self) -> int:
        """Bytes of values, scales and bounds: all but the bias."""
        scales = 0 if self.scales is None else self.scales.nbytes
        return self.values.nbytes + scales + self.native.bounds_bytes

    def rows(self, indices: ArrayLike) -> NDArray[np.float32]:
        """float32 ``[n, dim]``: the vectors that some items stand for.

        Args:
            indices: int ``[n]``, from 0 to the number of items less 1.

        Raises:
            InputError: an index is no item, or no whole number.
        """
        wanted = integers("indices", indices)
        # A value beyond int32 stays out of range, so that it is refused and not wrapped around.
        narrow = np.clip(wanted, -1, np.iinfo(np.int32).max).astype(np.int32)
        return self.native.rows(narrow)

    def __reduce__(self) -> tuple[Any, ...]:
        return CompactItems.from_arrays, (self.values, self.scales, self.bias)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array that begins on a boundary of cache lines, so that few reads lie in two."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _LINE, dtype=np.uint8)
    begin = -memory.ctypes.data % _LINE
    return memory[begin : begin + size].view(dtype).reshape(shape)


#: what :func:`score_topk` searches
ItemTable: TypeAlias = "NDArray[np.float32] | QuantizedItems | CompactItems"


def item_rows(items: ItemTable, indices: ArrayLike) -> NDArray[np.float32]:
    """float32 ``[n, dim]``: the vectors of some items of a table of any form.

    Args:
        items: the table.
        indices: int ``[n]``, from 0 to the number of items less 1.

    Raises:
        InputError: an index is no item, or no whole number.
    """
    if not isinstance(items, np.ndarray):
        return items.rows(indices)
    wanted = integers("indices", indices)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(items):
        raise InputError(f"indices: expected items from 0 to {len(items) - 1}")
    return items[wanted]
