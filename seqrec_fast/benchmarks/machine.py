# SPDX-License-Identifier: Apache-2.0
"""What a figure was measured on: processor, load, versions, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["cpu_name", "describe_machine"]

_PACKAGES = (
    *("seqrec-fast", "numpy", "torch", "triton", "duckdb", "pyarrow"),
    *("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs"),
    *("hnswlib", "onnxruntime", "onnx", "openvino"),
)
#: settings of the libraries' threads that change what is measured
_SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "SEQREC_FAST_")


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """Processor, cores, load, Python and package versions, and the date, as plain values."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": versions,
        "environment": {k: v for k, v in os.environ.items() if k.startswith(_SETTINGS)},
        "date": datetime.date.today().isoformat(),
    }
