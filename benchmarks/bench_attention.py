# SPDX-License-Identifier: Apache-2.0
"""Causal attention under pytest-benchmark, as ``seqrec-fast bench kernels`` has them."""

from __future__ import annotations

from benchmarks.suite import suite

test_attention = suite("attention", rivals=("torch, row by row", "onnxruntime", "openvino"))
