# SPDX-License-Identifier: Apache-2.0
"""The kernels for GPUs beside other libraries: ``python -m benchmarks.gpu``.

The command is ``seqrec-fast bench gpu``, which every installation has; here its results go to
``benchmarks/results/gpu`` unless ``--out`` says otherwise. docs/gpu.md tells how it measures.
"""
