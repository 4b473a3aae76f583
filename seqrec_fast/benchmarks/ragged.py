# SPDX-License-Identifier: Apache-2.0
"""One batch in the three layouts of the contenders: jagged, padded, and torch's packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqrec_fast.benchmarks.shapes import Lengths, row_lengths

__all__ = ["Ragged"]


class Ragged:
    """Lengths of the rows of a batch, and what turns its tokens from one layout into another.

    Attributes:
        lengths: of the rows.
        offsets: int64 ``[rows + 1]``.
        tokens: in all rows.
        padding: tokens of the padded batch for each real one.
    """

    def __init__(self, lengths: Lengths, rows: int, time: int) -> None:
        self.time = time
        self.lengths = torch.tensor(row_lengths(lengths, rows, time))
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])
        self.tokens = int(self.offsets[-1])
        self.padding = rows * time / self.tokens
        #: bool [rows, time]: where the padded batch has a token
        self.present = torch.arange(time)[None, :] < self.lengths[:, None]

    def to_padded(self, values: Tensor, *, time_major: bool = False) -> Tensor:
        """``[tokens, ...]`` -> ``[rows, time, ...]``, zeros where a row has ended."""
        padded = values.new_zeros(*self.present.shape, *values.shape[1:])
        padded[self.present] = values
        return padded.transpose(0, 1).contiguous() if time_major else padded

    def from_padded(self, padded: Tensor, *, time_major: bool = False) -> Tensor:
        """The inverse of :meth:`to_padded`."""
        return (padded.transpose(0, 1) if time_major else padded)[self.present]

    def packed(self, values: Tensor) -> Any:
        """``[tokens, ...]`` -> torch's ``PackedSequence``."""
        return pack_padded_sequence(
            self.to_padded(values), self.lengths, batch_first=True, enforce_sorted=False
        )

    def from_packed(self, data: Tensor) -> Tensor:
        """The values of a ``PackedSequence`` of these lengths -> ``[tokens, ...]``."""
        like = self.packed(torch.zeros(self.tokens, 1))
        padded = pad_packed_sequence(like._replace(data=data), batch_first=True)[0]
        return padded[self.present[:, : padded.shape[1]]]
