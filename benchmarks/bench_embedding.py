# SPDX-License-Identifier: Apache-2.0
"""The cases of ``embedding`` under pytest-benchmark; see ``seqrec-fast bench kernels``."""

from __future__ import annotations

from benchmarks.suite import suite

test_embedding = suite("embedding", rivals=("torch.compile",))
