# SPDX-License-Identifier: Apache-2.0
"""HSTU attention under pytest-benchmark, as ``seqrec-fast bench kernels`` has it."""

from __future__ import annotations

from benchmarks.suite import suite

test_hstu_attention = suite("hstu_attention", rivals=("torch.compile",))
