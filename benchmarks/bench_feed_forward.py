# SPDX-License-Identifier: Apache-2.0
"""The cases of ``feed_forward`` under pytest-benchmark; see ``seqrec-fast bench kernels``."""

from __future__ import annotations

from benchmarks.suite import suite

test_feed_forward = suite("feed_forward", rivals=("torch.compile",))
