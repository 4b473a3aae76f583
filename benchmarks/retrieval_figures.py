# SPDX-License-Identifier: Apache-2.0
"""The tables of retrieval, written from ``benchmarks/results``; see :mod:`benchmarks.figures`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["filters_table", "retrieval_rows", "retrieval_table"]


def retrieval_table(results: Path) -> str:
    """Exact search beside faiss, the overhead of Python, and the choice beside rivals."""
    path = results / "retrieval.json"
    if not path.is_file():
        return "None yet.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    parts = [
        make(found[name])
        for name, make in (("exact", _exact), ("overhead", _overhead), ("auto", _auto))
        if name in found
    ]
    return "\n".join(parts)


def retrieval_rows(results: Path) -> list[list[str]]:
    """What the first screen says of a million items: exact, and the index chosen by measurement."""
    found = json.loads((results / "retrieval.json").read_text(encoding="utf-8"))
    rows = [
        [
            "exact top-100 of 1,000,000 x 64 from bytes, 1 query, one thread",
            f"{row['times']['int8']['median_us'] / 1000:.2f} ms, "
            f"{row['faiss_to_int8']:.1f} x as fast as faiss IndexFlatIP",
            "`python -m benchmarks.bench_retrieval exact`",
        ]
        for row in found["exact"]["rows"]
        if (row["data"], row["threads"], row["batch"]) == ("1000000 clustered", 1, 1)
    ]
    for row in found["auto"]["rows"]:
        if row["data"] == "1000000 clustered" and row["best_rival"] is not None:
            ours = row["contenders"]["auto"]
            rows.append(
                [
                    f"the same, recall {ours['recall']:.3f}, index chosen by measurement",
                    f"{ours['median_us'] / 1000:.2f} ms, {row['ratio']:.1f} x as fast as the best "
                    f"rival of that recall ({row['best_rival']})",
                    "`python -m benchmarks.bench_retrieval auto`",
                ]
            )
    return rows


def filters_table(results: Path) -> str:
    """Filtered searches beside the unfiltered one and faiss."""
    path = results / "filters.json"
    if not path.is_file():
        return "None yet.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    header = ["filter", "queries", "threads", "table", "time", "of unfiltered", "faiss takes"]
    lines = []
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
    return _table(header, lines) + _where(found)


def _exact(part: dict[str, Any]) -> str:
    rows = []
    for row in sorted(part["rows"], key=lambda r: (r["items"], r["batch"], r["threads"])):
        times = row["times"]
        faiss = min(t["median_us"] for name, t in times.items() if name.startswith("faiss"))
        rows.append(
            [
                f"{row['data']}",
                str(row["batch"]),
                str(row["threads"]),
                *(_time(times[dtype]["median_us"]) for dtype in ("float32", "int8")),
                _time(faiss),
                f"{row['faiss_to_float32']:.2f} x",
                f"{row['faiss_to_int8']:.2f} x",
            ]
        )
    header = ["items", "queries", "threads", "float32", "int8", "faiss IndexFlatIP"]
    return _table([*header, "float32 as fast", "int8 as fast"], rows) + _where(part)


def _overhead(part: dict[str, Any]) -> str:
    row = part["rows"][0]
    return (
        f"`Index.search` for one query takes {row['overhead_us']:.1f} µs more than the call of the "
        f"kernel alone.\n" + _where(part)
    )


def _auto(part: dict[str, Any]) -> str:
    rows = []
    for row in sorted(part["rows"], key=lambda r: r["items"]):
        for name, one in row["contenders"].items():
            title = f"**auto**: {one['kind']}" if name == "auto" else name
            parameter = one["parameter"]
            if isinstance(parameter, dict):
                parameter = ", ".join(f"{key} {value}" for key, value in parameter.items())
            rows.append(
                [
                    row["data"],
                    title,
                    str(parameter),
                    f"{one['recall']:.4f}",
                    _time(one["median_us"]),
                    _time(one["p99_us"]),
                    f"{one['build_seconds']:.1f} s",
                ]
            )
    header = ["items", "index", "parameter", "recall@100", "median", "p99", "build"]
    return _table(header, rows) + _where(part)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _time(microseconds: float) -> str:
    return f"{microseconds:.3g} µs" if microseconds < 1000 else f"{microseconds / 1000:.3g} ms"


def _where(part: dict[str, Any]) -> str:
    machine = part["machine"]
    return f"\nMeasured on {machine['cpu']}, {machine['date']}.\n"
