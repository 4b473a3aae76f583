# SPDX-License-Identifier: Apache-2.0
"""Products with prepared weights under pytest-benchmark; also in ``seqrec-fast bench kernels``."""

from __future__ import annotations

from benchmarks.suite import suite

test_linear = suite("linear", rivals=("onnxruntime", "openvino"))
