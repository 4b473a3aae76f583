# SPDX-License-Identifier: Apache-2.0
"""The cases, a module an operation: each has ``cases()``."""
