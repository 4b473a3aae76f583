# SPDX-License-Identifier: Apache-2.0
"""The cleaning report: what each step dropped, and a first look at the behaviour that is left."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seqrec_fast.errors import InputError

__all__ = ["CleaningReport", "CleaningStep"]


@dataclass(frozen=True, slots=True)
class CleaningStep:
    """One step of cleaning.

    Attributes:
        name: what the step does.
        rows_in: events before it.
        rows_out: events after it.
        users: users that still have an event after it.
        items: items that still have an event after it.
        note: figures or reasons in words; empty if there is nothing to add.
    """

    name: str
    rows_in: int
    rows_out: int
    users: int
    items: int
    note: str = ""

    @property
    def dropped(self) -> int:
        """Events that the step removed."""
        return self.rows_in - self.rows_out


@dataclass(frozen=True, slots=True)
class CleaningReport:
    """Everything that was recognised, filled and dropped on the way from a log to sequences.

    Attributes:
        source: the log in words (file names).
        steps: the cleaning steps in the order in which they ran.
        notes: what was recognised or decided (format, columns, encoding, time unit, fills).
        behaviour: figures of the cleaned log: ``users``, ``items``, ``events``, ``density``,
            ``events_per_user`` and ``events_per_item`` (quantiles), ``repeat_share``, and
            ``time_span`` (ISO first and last) where there are times.
        seconds: time that preparation took.
    """

    source: str
    steps: tuple[CleaningStep, ...] = ()
    notes: tuple[str, ...] = ()
    behaviour: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("step", "rows in", "dropped", "rows out", "users", "items", "note")
        ]
        for step in self.steps:
            counts = (step.rows_in, step.dropped, step.rows_out, step.users, step.items)
            rows.append((step.name, *(f"{count:,}" for count in counts), step.note))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = [f"Cleaning report of {self.source}", ""]
        for number, row in enumerate(rows):
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:6], widths[1:], strict=True)]
            lines.append("  ".join([*cells, row[6]]).rstrip())
            if number == 0:
                lines.append("  ".join("-" * width for width in widths))
        lines += ["", *_behaviour_lines(self.behaviour)]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        return {
            "source": self.source,
            "steps": [{**asdict(step), "dropped": step.dropped} for step in self.steps],
            "notes": list(self.notes),
            "behaviour": dict(self.behaviour),
            "seconds": self.seconds,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON: all of it, or nothing.

        Args:
            path: file to write; an existing one is replaced.

        Raises:
            InputError: the folder does not exist or cannot be written.
        """
        target = Path(path)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        try:
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        except OSError as error:
            raise InputError(
                f"{target}: cannot write the report there ({error.strerror}); "
                f"give a file in a folder that exists and may be written"
            ) from error
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, target)
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            raise InputError(
                f"{target}: cannot write the report ({error.strerror}); free space or give "
                f"another file"
            ) from error

    def with_notes(self, *notes: str) -> CleaningReport:
        """The same report with more notes at its end."""
        return CleaningReport(
            self.source, self.steps, (*self.notes, *notes), self.behaviour, self.seconds
        )


def _behaviour_lines(behaviour: Mapping[str, Any]) -> list[str]:
    if not behaviour:
        return []
    lines = [
        f"{behaviour['events']:,} events of {behaviour['users']:,} users on "
        f"{behaviour['items']:,} items, density {behaviour['density']:.3%}, "
        f"{behaviour['repeat_share']:.1%} of events repeat an item of the same user"
    ]
    for key, label in (("events_per_user", "events a user"), ("events_per_item", "events an item")):
        quantiles = behaviour[key]
        shown = ", ".join(f"{name} {value:,}" for name, value in quantiles.items())
        lines.append(f"{label}: {shown}")
    if "time_span" in behaviour:
        first, last = behaviour["time_span"]
        lines.append(f"time: {first} to {last}")
    return [*lines, ""]
