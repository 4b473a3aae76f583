# SPDX-License-Identifier: Apache-2.0
"""A lock that many may hold to read, or one to write."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ReadersWriter"]


class ReadersWriter:
    """Readers share it; a writer has it alone, and goes before readers that come after it.

    It must not be taken twice by one thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._readers = 0
        self._waiting = 0  # writers that wait or write

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Holds it beside other readers."""
        with self._changed:
            while self._waiting:
                self._changed.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                if not self._readers:
                    self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds it alone; writers must be kept apart by a lock of their own."""
        with self._changed:
            self._waiting += 1
            while self._readers:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1
                self._changed.notify_all()
