# SPDX-License-Identifier: Apache-2.0
"""Jagged batches: what is not tested where they are used."""

from __future__ import annotations

import numpy as np
import pytest

from seqrec_fast import JaggedBatch
from seqrec_fast.errors import InputError


def test_with_values_keeps_the_rows() -> None:
    batch = JaggedBatch.from_lists([[1, 2], [], [3]])
    other = batch.with_values(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert other.to_lists() == [[[1.0, 2.0], [3.0, 4.0]], [], [[5.0, 6.0]]]
    assert batch.to_lists() == [[1, 2], [], [3]]
    with pytest.raises(InputError, match="values: expected 3"):
        batch.with_values(np.zeros(2))
