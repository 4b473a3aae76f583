# SPDX-License-Identifier: Apache-2.0
"""The tables of retrieval, written from ``benchmarks/results``; see :mod:`benchmarks.figures`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["filters_table"]


def filters_table(results: Path) -> str:
    """Filtered searches beside the unfiltered one and faiss."""
    path = results / "filters.json"
    if not path.is_file():
        return "None yet.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    header = ["filter", "queries", "threads", "table", "time", "of unfiltered", "faiss takes"]
    lines = [header, ["---"] * len(header)]
    rows: list[dict[str, Any]] = found["rows"]
    for row in sorted(rows, key=lambda r: (r["queries"], r["threads"], r["dtype"])):
        rival = f"{row['faiss']:.1f} x as long" if "faiss" in row else ""
        lines.append(
            [
                row["case"],
                str(row["queries"]),
                str(row["threads"]),
                row["dtype"],
                f"{row['median_ms']:.3g} ms",
                f"{row['to_unfiltered']:.2f} x",
                rival,
            ]
        )
    machine = found["machine"]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{table}\nMeasured on {machine['cpu']}, {machine['cores']} cores, {machine['date']}.\n"
