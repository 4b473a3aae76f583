# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for the GPU: one module an operation, imported when first called.

A function here takes and returns exactly what the CPU implementation of its operator does, tensors
saved for the backward included. Importing this package imports no Triton.
"""
