# SPDX-License-Identifier: Apache-2.0
"""The one type in which data moves: rows of different lengths, laid end to end, without padding.

Row ``i`` of a :class:`JaggedBatch` is ``values[offsets[i]:offsets[i + 1]]``. Values and offsets are
either both numpy arrays or both torch tensors; the class itself imports only numpy, and torch only
when a method is asked for a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["JaggedBatch", "row_positions"]

A = TypeVar("A")  # numpy.ndarray or torch.Tensor


def row_positions(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of every value inside its own row, counted from the start of the row.

    Args:
        offsets: int64 ``[rows + 1]``.

    Returns:
        int64 ``[offsets[-1] - offsets[0]]``: 0, 1, 2, … anew for each row.
    """
    lengths = np.diff(offsets)
    total = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    positions: NDArray[np.int64] = np.arange(total, dtype=np.int64) - np.repeat(starts, lengths)
    return positions


@dataclass(frozen=True, slots=True)
class JaggedBatch(Generic[A]):
    """Rows of different lengths without padding.

    Attributes:
        values: ``[tokens, ...]``, all rows end to end.
        offsets: int64 ``[rows + 1]``, non-decreasing, first 0, last ``tokens``. Checked where they
            are in the memory of the host.
    """

    values: A
    offsets: A

    def __post_init__(self) -> None:
        values: Any = self.values
        offsets: Any = self.offsets
        if offsets.ndim != 1 or offsets.shape[0] < 1:
            raise InputError(
                f"offsets: expected one dimension of at least 1 entry, found shape "
                f"{tuple(offsets.shape)}; give int64 [rows + 1]"
            )
        if str(offsets.dtype).removeprefix("torch.") != "int64":
            raise InputError(f"offsets: expected int64, found {offsets.dtype}; convert them first")
        if getattr(offsets, "is_cuda", False):
            return  # a look at their values would wait for the GPU
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0 or last != values.shape[0]:
            raise InputError(
                f"offsets: must run from 0 to the {values.shape[0]} values, found {first} to {last}"
            )
        if bool((offsets[1:] < offsets[:-1]).any()):
            raise InputError("offsets: must not decrease; each row ends where the next begins")

    # ---------------------------------------------------------------- construction

    @staticmethod
    def from_lists(rows: Sequence[ArrayLike], dtype: DTypeLike = np.int32) -> JaggedBatch[Any]:
        """Lays a list of rows end to end (numpy).

        Args:
            rows: one sequence of numbers a row; empty rows are allowed.
            dtype: type of the values.
        """
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        lengths = np.fromiter((len(a) for a in arrays), dtype=np.int64, count=len(arrays))
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
        return JaggedBatch.from_lengths(values, lengths)

    @staticmethod
    def from_lengths(values: NDArray[Any], lengths: ArrayLike) -> JaggedBatch[Any]:
        """Cuts ``values`` into rows of the given lengths (numpy)."""
        counts = np.asarray(lengths, dtype=np.int64)
        offsets = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        return JaggedBatch(values, offsets)

    # ---------------------------------------------------------------- shape

    def __len__(self) -> int:
        offsets: Any = self.offsets
        return int(offsets.shape[0]) - 1

    @property
    def tokens(self) -> int:
        """Number of values in all rows together."""
        values: Any = self.values
        return int(values.shape[0])

    @property
    def lengths(self) -> A:
        """int64 ``[rows]``: length of each row."""
        offsets: Any = self.offsets
        lengths: A = offsets[1:] - offsets[:-1]
        return lengths

    @property
    def is_torch(self) -> bool:
        """Whether the values are torch tensors (else numpy arrays)."""
        return not isinstance(self.values, np.ndarray)

    def __getitem__(self, row: int) -> A:
        rows = len(self)
        if not -rows <= row < rows:
            raise IndexError(f"row {row} of a batch of {rows} rows")
        row %= rows
        values: Any = self.values
        offsets: Any = self.offsets
        found: A = values[int(offsets[row]) : int(offsets[row + 1])]
        return found

    def __iter__(self) -> Iterator[A]:
        offsets: Any = self.offsets
        values: Any = self.values
        ends = offsets.tolist()
        for begin, end in pairwise(ends):
            yield values[begin:end]

    # ---------------------------------------------------------------- rows

    def with_values(self, values: Any) -> JaggedBatch[Any]:
        """The same rows with other values; may be traced by ``torch.compile``.

        Args:
            values: ``[tokens, ...]``.

        Raises:
            InputError: there are not as many values as here.
        """
        if values.shape[0] != self.tokens:
            raise InputError(
                f"values: expected {self.tokens}, one for each value of the batch, found "
                f"{values.shape[0]}"
            )
        # the offsets were checked when this batch was made, and cannot be looked at in a trace
        made: JaggedBatch[Any] = object.__new__(JaggedBatch)
        object.__setattr__(made, "values", values)
        object.__setattr__(made, "offsets", self.offsets)
        return made

    def select(self, rows: ArrayLike) -> JaggedBatch[Any]:
        """The given rows, in the given order (numpy batches only).

        Args:
            rows: int ``[n]`` row numbers, repeats allowed.
        """
        values, offsets = self._arrays("select")
        wanted = np.asarray(rows, dtype=np.int64)
        lengths = offsets[wanted + 1] - offsets[wanted]
        return self._gather(values, offsets[wanted], lengths)

    def last(self, count: int) -> JaggedBatch[Any]:
        """At most the last ``count`` values of each row (numpy batches only)."""
        values, offsets = self._arrays("last")
        if count < 0:
            raise InputError(f"count: must not be negative, found {count}")
        lengths = np.minimum(np.diff(offsets), count)
        return self._gather(values, offsets[1:] - lengths, lengths)

    def drop_last(self, count: int = 1) -> JaggedBatch[Any]:
        """Each row without its last ``count`` values (numpy batches only)."""
        values, offsets = self._arrays("drop_last")
        if count < 0:
            raise InputError(f"count: must not be negative, found {count}")
        lengths = np.maximum(np.diff(offsets) - count, 0)
        return self._gather(values, offsets[:-1], lengths)

    def drop_first(self, count: int = 1) -> JaggedBatch[Any]:
        """Each row without its first ``count`` values (numpy batches only)."""
        values, offsets = self._arrays("drop_first")
        if count < 0:
            raise InputError(f"count: must not be negative, found {count}")
        skipped = np.minimum(np.diff(offsets), count)
        return self._gather(values, offsets[:-1] + skipped, np.diff(offsets) - skipped)

    # ---------------------------------------------------------------- conversion

    def to_torch(self, device: str | torch.device = "cpu") -> JaggedBatch[torch.Tensor]:
        """The same batch as torch tensors (no copy on the CPU where numpy allows it)."""
        import torch

        if self.is_torch:
            values: Any = self.values
            offsets: Any = self.offsets
        else:
            values = torch.from_numpy(np.ascontiguousarray(self.values))
            offsets = torch.from_numpy(np.ascontiguousarray(self.offsets))
        return JaggedBatch(values.to(device), offsets.to(device))

    def to_numpy(self) -> JaggedBatch[NDArray[Any]]:
        """The same batch as numpy arrays (detached, on the CPU)."""
        if not self.is_torch:
            return JaggedBatch(np.asarray(self.values), np.asarray(self.offsets))
        values: Any = self.values
        offsets: Any = self.offsets
        return JaggedBatch(values.detach().cpu().numpy(), offsets.cpu().numpy())

    def to_lists(self) -> list[list[Any]]:
        """Plain Python lists, one a row."""
        values: Any = self.values
        offsets: Any = self.offsets
        flat, ends = values.tolist(), offsets.tolist()
        return [flat[b:e] for b, e in pairwise(ends)]

    # ---------------------------------------------------------------- private

    def _arrays(self, method: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
        if self.is_torch:
            raise InputError(f"{method}: works on numpy batches; call to_numpy() first")
        return np.asarray(self.values), np.asarray(self.offsets)

    @staticmethod
    def _gather(
        values: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> JaggedBatch[Any]:
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        index = row_positions(offsets) + np.repeat(starts, lengths)
        return JaggedBatch(values[index], offsets)
