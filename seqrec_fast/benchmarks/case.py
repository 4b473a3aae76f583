# SPDX-License-Identifier: Apache-2.0
"""What is measured: a case, its contenders, and the bar that it has to reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["OURS", "STANDARD", "Bar", "Case", "Contender", "Direction", "Outputs", "Prepared"]

#: name of our contender, and of the one whose float32 error is the standard
OURS, STANDARD = "seqrec_fast", "torch"

Direction = Literal["forward", "forward+backward"]
Outputs = dict[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Bar:
    """What is asked of a case; None asks nothing.

    Attributes:
        ratio: least speed-up on one thread.
        ratio_threads: least speed-up on more threads; as ``ratio`` where None.
        share_of_peak: least share of the multiply-add peak.
        against: name of the rival that the ratio is to; the fastest of all where None.
        extra_bytes: most memory beyond arguments and results.
    """

    ratio: float | None = None
    ratio_threads: float | None = None
    share_of_peak: float | None = None
    against: str | None = None
    extra_bytes: int | None = None

    def ratio_on(self, threads: int) -> float | None:
        """The least speed-up on so many threads."""
        if threads > 1 and self.ratio_threads is not None:
            return self.ratio_threads
        return self.ratio


@dataclass(frozen=True)
class Contender:
    """One way of computing a case.

    Attributes:
        name: ``OURS``, ``STANDARD`` or the name of another rival.
        run: the timed call.
        read: what ``run`` returned -> outputs by name, laid out alike for all contenders.
        padded: whether it computes padding too.
    """

    name: str
    run: Callable[[], Any]
    read: Callable[[Any], Outputs]
    padded: bool = False


@dataclass
class Prepared:
    """The contenders of a case for one number of threads, and the judge in float64.

    Attributes:
        judge: computes the outputs in float64.
        contenders: in the order in which they are timed.
        missing: rival -> why it is left out.
        without: names (or beginnings of names) of rivals that are not wanted.
    """

    judge: Callable[[], Outputs]
    without: tuple[str, ...] = ()
    contenders: list[Contender] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def offer(
        self,
        name: str,
        build: Callable[[], tuple[Callable[[], Any], Callable[[Any], Outputs]]],
        *,
        padded: bool = False,
    ) -> None:
        """Adds a contender; a rival that cannot be built is left out, with the reason.

        Args:
            name: of the contender.
            build: returns ``run`` and ``read`` of :class:`Contender`.
            padded: whether it computes padding too.

        Raises:
            Exception: what ``build`` raised, where the contender is ours or the standard.
        """
        if any(name.startswith(word) for word in self.without) and name not in (OURS, STANDARD):
            self.missing[name] = "not wanted"
            return
        try:
            run, read = build()
        except Exception as error:
            if name in (OURS, STANDARD):
                raise
            self.missing[name] = why(error)
            return
        self.contenders.append(Contender(name, run, read, padded))


def why(error: BaseException) -> str:
    """One line that says why a rival is left out."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


@dataclass(frozen=True)
class Case:
    """One row of a table of figures.

    Attributes:
        operation: module of ``seqrec_fast.benchmarks.operations`` that made it.
        shape: a NamedTuple of :mod:`seqrec_fast.benchmarks.shapes`.
        direction: whether gradients are computed too.
        flops: floating-point operations that the result needs, padding not counted, a multiply-add
            counted as two.
        bytes: memory that must be read and written at least once: arguments and results.
        padding: tokens of the padded batch for each real one.
        bar: what is asked of it.
        equal: name of the case of equal lengths to whose ratio a ragged case is held: at least
            0.8 x that ratio x ``padding``.
        prepare: ``(threads, without) -> Prepared``; builds everything outside the timed calls.
    """

    operation: str
    shape: Any
    direction: Direction
    flops: float
    bytes: float
    prepare: Callable[[int, tuple[str, ...]], Prepared]
    bar: Bar = Bar()
    padding: float = 1.0
    equal: str | None = None

    @property
    def name(self) -> str:
        """Shape and direction, unique in an operation."""
        return f"{self.shape}, {self.direction}"

    def facts(self) -> Mapping[str, Any]:
        """What is known before measuring, as plain values."""
        return {
            "operation": self.operation,
            "case": self.name,
            "shape": dict(self.shape._asdict()),
            "direction": self.direction,
            "flops": self.flops,
            "bytes": self.bytes,
            "padding": self.padding,
            "equal": self.equal,
        }
