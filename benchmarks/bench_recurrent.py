# SPDX-License-Identifier: Apache-2.0
"""RNN, LSTM and GRU layers under pytest-benchmark, as ``seqrec-fast bench kernels`` has them."""

from __future__ import annotations

from benchmarks.suite import suite

test_recurrent = suite("recurrent", rivals=("torch, packed", "onnxruntime", "openvino"))
