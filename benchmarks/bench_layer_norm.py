# SPDX-License-Identifier: Apache-2.0
"""The cases of ``layer_norm`` under pytest-benchmark; see ``seqrec-fast bench kernels``."""

from __future__ import annotations

from benchmarks.suite import suite

test_layer_norm = suite("layer_norm", rivals=("torch.compile",))
