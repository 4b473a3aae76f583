# SPDX-License-Identifier: Apache-2.0
"""Metrics side by side, with the protocol that says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqrec_fast.cli.console import table

__all__ = ["figures_table"]


def figures_table(columns: Mapping[str, Mapping[str, Any]], *, cutoff: int | None = None) -> str:
    """A row for each metric, a column for each evaluation, the protocols below.

    Args:
        columns: title of the column -> ``Metrics.to_dict()``.
        cutoff: leave out the metrics of other cut-offs.
    """
    names: dict[str, None] = {}
    for one in columns.values():
        names.update(dict.fromkeys(name for name in one["values"] if _wanted(name, cutoff)))
    rows = [
        [name, *(_figure(name, one["values"].get(name)) for one in columns.values())]
        for name in names
    ]
    lines = [table(["metric", *columns], rows)]
    seen: dict[tuple[str, int], list[str]] = {}
    for title, one in columns.items():
        seen.setdefault((one["protocol"], one["users"]), []).append(title)
    for (protocol, users), titles in seen.items():
        lines.append(f"{'; '.join(titles)}: {users:,} users, {protocol}")
    return "\n".join(lines)


def _wanted(name: str, cutoff: int | None) -> bool:
    at = name.partition("@")[2]
    return cutoff is None or not at or at == str(cutoff)


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name.startswith("Novelty") else f"{value:.4f}"
