# SPDX-License-Identifier: Apache-2.0
"""Jobs answered one after another, here or in a process that is replaced where it is lost.

A kernel that reads where it must not spoils its whole process, and one whose blocks wait for each
other for ever never returns. Neither may take what was measured before with it, nor what comes
after.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

__all__ = ["Lost", "children", "here"]

#: seconds for one answer; kernels are compiled and rivals tuned meanwhile
PATIENCE = 300.0
#: so many processes may be lost over jobs of one group before the rest of it is left out
LIVES = 3

#: makes what answers jobs; that may have ``is_usable``, asked after every answer
Start = Callable[[], Callable[[Any], Any]]


class Lost(NamedTuple):
    """Stands for an answer that never came."""

    reason: str


def here(start: Start, jobs: Iterable[Any]) -> Iterator[Any]:
    """The answers, made in this process: for tests, whose jobs neither end nor block it."""
    answer: Any = None
    for job in jobs:
        answer = answer or start()
        yield answer(job)


def children(
    start: Start,
    jobs: Iterable[Any],
    *,
    patience: float = PATIENCE,
    group: Callable[[Any], str] = lambda job: "",
) -> Iterator[Any]:
    """The answers, made in a process of its own, and in a new one where that is lost.

    Args:
        start: can be handed to another process, like the jobs and answers.
        jobs: what to answer, in order.
        patience: seconds to wait for one answer.
        group: of a job: when :data:`LIVES` processes are lost over jobs of one group, the rest of
            its jobs are not tried.

    Yields:
        An answer a job, or :class:`Lost`.
    """
    lost: dict[str, int] = {}
    child: _Child | None = None
    try:
        for job in jobs:
            name = group(job)
            if lost.get(name, 0) >= LIVES:
                yield Lost(f"not tried after {LIVES} lost processes")
                continue
            if child is None:
                child = _Child(start)
            answer, usable = child.answer(job, patience)
            if isinstance(answer, Lost):
                lost[name] = lost.get(name, 0) + 1
            if not usable:
                child.end()
                child = None
            yield answer
    finally:
        if child is not None:
            child.end()


class _Child:
    """A process that answers jobs."""

    def __init__(self, start: Start) -> None:
        # a forked process cannot use a GPU that its parent has looked at
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        # not a daemon, which might not start the processes that torch compiles in
        self._process = context.Process(target=_serve, args=(start, theirs))
        self._process.start()
        theirs.close()

    def answer(self, job: Any, patience: float) -> tuple[Any, bool]:
        """The answer or :class:`Lost`, and whether the process can go on."""
        try:
            self._ours.send(job)
            if not self._ours.poll(patience):
                return Lost(f"no answer within {patience:g} s"), False
            kind, value, usable = self._ours.recv()
        except (EOFError, OSError):
            return Lost(f"its process ended with {self._code()}"), False
        return (Lost(value) if kind == "raised" else value), usable

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._ours.close()
        self._process.join(1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(30.0)

    def _code(self) -> str:
        self._process.join(5.0)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"


def _serve(start: Start, connection: Any) -> None:
    """The child: answers until the parent closes the line."""
    # Ctrl-C is for the parent, which ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer: Any = None
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            if answer is None:
                answer = start()
            value = answer(job)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            connection.send(("raised", f"{type(error).__name__}: {lines[0][:160]}", False))
            return
        usable = bool(getattr(answer, "is_usable", lambda: True)())
        connection.send(("answer", value, usable))
        if not usable:
            return
