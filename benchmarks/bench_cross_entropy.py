# SPDX-License-Identifier: Apache-2.0
"""Linear layer + cross-entropy under pytest-benchmark, as in ``seqrec-fast bench kernels``."""

from __future__ import annotations

from benchmarks.suite import suite

test_cross_entropy = suite("cross_entropy", rivals=("torch, chunked", "F.linear_cross_entropy"))
