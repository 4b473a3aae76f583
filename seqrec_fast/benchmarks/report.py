# SPDX-License-Identifier: Apache-2.0
"""The figures as lines, as JSON files, and the verdict on each bar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrec_fast.benchmarks.case import OURS

__all__ = ["HEADER", "Row", "cells", "merged", "read_results", "verdict", "write_results"]

#: a result of ``harness.measure``
Row = Mapping[str, Any]

HEADER = (
    *("case", "threads", "ms", "GFLOP/s", "of peak", "of roof"),
    *("best rival", "its ms", "ratio", "bar", "error", "verdict"),
)


def verdict(row: Row, rows: Sequence[Row] = ()) -> tuple[str, float | None]:
    """Whether a row reaches its bar, and the ratio that was asked.

    Args:
        row: one result.
        rows: all results of the operation, in which a ragged case finds that of equal lengths: it
            is asked for 0.8 x the ratio there, or the one asked there if that is more, x padding.

    Returns:
        ``"red"`` (too great an error; no time counts), ``"missing"``, ``"reached"``, ``"missed"``,
        or ``"-"`` where nothing is asked; and the least ratio, None where none is asked.
    """
    if "reason" in row:
        return "missing", None
    bar = row["bar"]
    asked, reached = bar["ratio"], bar["reached"]
    if row["equal"] is not None:
        for other in rows:
            same = other["case"] == row["equal"] and other["threads"] == row["threads"]
            if same and other.get("ratio"):
                equal = max(other["ratio"], other["bar"]["ratio"] or 0.0)
                asked = 0.8 * equal * row["padding"]
    if row["red"]:
        return "red", asked
    checks = []
    if asked is not None and reached is not None:
        checks.append(reached >= asked)
    if bar["share_of_peak"] is not None:
        checks.append(row["share_of_peak"] >= bar["share_of_peak"])
    if bar["extra_bytes"] is not None and OURS in row["extra_bytes"]:
        checks.append(row["extra_bytes"][OURS] <= bar["extra_bytes"])
    if not checks:
        return "-", asked
    return ("reached" if all(checks) else "missed"), asked


def cells(row: Row, rows: Sequence[Row] = ()) -> list[str]:
    """The cells of one row under ``HEADER``."""
    found, asked = verdict(row, rows)
    if found == "missing":
        return [row["case"], str(row["threads"]), *["-"] * 9, row["reason"]]
    bar = row["bar"]
    against = f" {bar['against']}" if bar["against"] else ""
    wanted = [] if asked is None else [f"{asked:.2f}x{against}"]
    if bar["share_of_peak"] is not None:
        wanted.append(f"{bar['share_of_peak']:.0%}")
    worst = max(row["errors"].values(), key=lambda e: e["ours"] / max(e["allowed"], 1e-300))
    best = row["best_rival"]
    return [
        row["case"],
        str(row["threads"]),
        _milliseconds(row["contenders"][OURS]["median_ms"]),
        f"{row['gflops']:.1f}",
        f"{row['share_of_peak']:.0%}",
        f"{row['share_of_roof']:.0%}",
        best or "-",
        _milliseconds(row["contenders"][best]["median_ms"]) if best else "-",
        f"{row['ratio']:.2f}x" if best else "-",
        ", ".join(wanted) or "-",
        f"{worst['ours']:.1e} ({worst['torch']:.1e})",
        found,
    ]


def _milliseconds(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def read_results(folder: Path, operation: str) -> dict[str, Any] | None:
    """The results of an operation, None where none are written."""
    path = folder / f"{operation}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def merged(
    before: dict[str, Any] | None, machine: dict[str, Any], rows: Sequence[Row]
) -> dict[str, Any]:
    """Results with these rows in the place of older ones of the same case and threads.

    Rows of another processor or of other versions are dropped: a file tells of one machine. A
    library that was installed since, or is no longer there, took no part in the older rows.
    """
    kept: list[Row] = []
    if before is not None and _is_same(before["machine"], machine):
        fresh = {(row["case"], row["threads"]) for row in rows}
        kept = [row for row in before["rows"] if (row["case"], row["threads"]) not in fresh]
    return {"machine": machine, "rows": [*kept, *rows]}


def _is_same(before: dict[str, Any], machine: dict[str, Any]) -> bool:
    versions = machine["versions"]
    return before.get("cpu") == machine["cpu"] and all(
        versions.get(name, version) == version for name, version in before["versions"].items()
    )


def write_results(
    folder: Path, operation: str, machine: dict[str, Any], rows: Sequence[Row]
) -> Path:
    """Writes or renews ``OPERATION.json`` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{operation}.json"
    result = merged(read_results(folder, operation), machine, rows)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
