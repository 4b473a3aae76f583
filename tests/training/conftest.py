# SPDX-License-Identifier: Apache-2.0
"""A small log with structure that a sequence model can learn and popularity cannot."""

from __future__ import annotations

import numpy as np
import pytest

from seqrec_fast import data


@pytest.fixture(scope="session")
def split() -> data.Split:
    """240 users walk along a ring of 40 items from random places, with a few jumps."""
    random = np.random.default_rng(5)
    users: list[int] = []
    items: list[int] = []
    for user in range(240):
        place = int(random.integers(40))
        for _ in range(int(random.integers(4, 14))):
            users.append(user)
            items.append(place)
            place = int(random.integers(40)) if random.random() < 0.1 else (place + 1) % 40
    times = np.arange(len(users))
    return data.leave_one_out(data.prepare(data.log_from_columns(users, items, times)))
