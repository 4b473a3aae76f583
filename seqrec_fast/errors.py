# SPDX-License-Identifier: Apache-2.0
"""The errors that seqrec_fast raises on purpose.

Every message is one line that names the file, row, column or argument at fault, says what was
found there, and tells the remedy. The command line prints that line and exits with code 2.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "DeviceError",
    "InputError",
    "MissingExtraError",
    "SeqrecError",
    "TrainingError",
]


class SeqrecError(Exception):
    """Base of all errors of this library."""


class InputError(SeqrecError, ValueError):
    """What the caller gave (a file, a column, an argument) cannot be used."""


class BundleError(InputError):
    """A bundle on disk is missing, damaged, too new, or not to be trusted."""


class DeviceError(InputError):
    """The device that is asked for is not there, or cannot do this."""


class MissingExtraError(SeqrecError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class TrainingError(SeqrecError, RuntimeError):
    """Training cannot go on, for instance because the loss is no longer a number."""
