# SPDX-License-Identifier: Apache-2.0
"""Operators on a GPU by kernels in CUDA C++ (``csrc/cuda``), one module an operation.

The functions have the names, arguments and results of the operators that they implement and are
named where these are registered. They start kernels on the current stream of torch and wait for
nothing; memory comes from torch's allocator, so that CUDA graphs capture them.
"""
