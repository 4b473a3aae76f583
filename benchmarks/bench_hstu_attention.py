# SPDX-License-Identifier: Apache-2.0
"""The cases of ``hstu_attention`` under pytest-benchmark; see ``seqrec-fast bench kernels``."""

from __future__ import annotations

from benchmarks.suite import suite

test_hstu_attention = suite("hstu_attention", rivals=("torch.compile",))
