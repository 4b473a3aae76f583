# SPDX-License-Identifier: Apache-2.0
"""Workers for the tests of ``gpu_workers``: they answer, raise, end, or never come back."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


class Worker:
    """Answers with what it was asked and the number of its process."""

    def __init__(self) -> None:
        self._usable = True

    def __call__(self, job: tuple[str, str]) -> tuple[str, int]:
        if job[1] == "ends":
            os._exit(7)
        if job[1] == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if job[1] == "hangs":
            time.sleep(600)
        if job[1] == "raises":
            raise ValueError("a bad job\nwith more lines")
        self._usable = job[1] != "spoils"
        return job[1], os.getpid()

    def is_usable(self) -> bool:
        return self._usable


class Unable:
    """Cannot be made, as where there is no device."""

    def __init__(self) -> None:
        raise RuntimeError("no device")

    def __call__(self, job: Any) -> Any:
        return job
