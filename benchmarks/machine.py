# SPDX-License-Identifier: Apache-2.0
"""What a figure was measured on; see :mod:`seqrec_fast.benchmarks.machine`."""

from __future__ import annotations

from seqrec_fast.benchmarks.machine import cpu_name, describe_machine

__all__ = ["cpu_name", "describe_machine"]
