# SPDX-License-Identifier: Apache-2.0
"""Tables of the kernels' figures, from ``benchmarks/results/kernels``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqrec_fast.benchmarks.case import OURS
from seqrec_fast.benchmarks.report import Row, read_results, verdict

__all__ = ["kernel_table", "topk_table"]

NOTHING = "No figures of this version have been recorded.\n"


def kernel_table(operation: str, results: Path, pictures: str) -> str:
    """What is measured of an operation, as Markdown.

    A row a case, with the numbers of threads side by side; the recurrent layers, which are many,
    have a row a batch and a column a width.

    Args:
        operation: its name.
        results: folder of ``OPERATION.json``.
        pictures: where the pictures are, as seen from the page.
    """
    found = read_results(results, operation)
    if found is None:
        return NOTHING
    rows = [row for row in found["rows"] if "reason" not in row]
    if not rows:
        return NOTHING
    threads = sorted({row["threads"] for row in rows})
    table = _by_width(rows) if operation == "recurrent" else _by_case(rows, threads)
    links = [
        f"![{operation}: times as fast as the best rival, {n} thread{'s' if n > 1 else ''}]"
        f"({pictures}/{operation}-{n}.svg)\n"
        for n in threads
        if any(row["ratio"] and row["threads"] == n for row in rows)
    ]
    return table + "\n" + _where(found, rows, threads) + "\n" + "".join(links)


def _by_case(rows: Sequence[Row], threads: Sequence[int]) -> str:
    """Each case: our time, share of the peak, best rival, ratio, what is asked, errors."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        by_threads = {row["threads"]: row for row in rows if row["case"] == case}
        some = [by_threads[n] for n in threads if n in by_threads]
        worst = max(
            (error for row in some for error in row["errors"].values()),
            key=lambda e: e["ours"] / max(e["allowed"], 1e-300),
        )
        lines.append(
            [
                case,
                _each(some, lambda row: _time(row["contenders"][OURS]["median_ms"])),
                _each(some, lambda row: f"{row['gflops']:.0f}"),
                _each(some, lambda row: f"{row['share_of_peak']:.0%}"),
                _each(some, _rival),
                _each(some, lambda row: _ratio(row, rows)),
                _asked(some[0], rows),
                f"{worst['ours']:.1e} ({worst['torch']:.1e})",
            ]
        )
    header = ["case", "ms", "GFLOP/s", "of peak", "best rival, ms", "ratio", "asked"]
    return _table([*header, "error (torch's)"], lines)


def _by_width(rows: Sequence[Row]) -> str:
    """Each batch: ratio to the best rival and share of the peak, a column a width."""
    widths = sorted({row["shape"]["hidden"] for row in rows})
    keys = dict.fromkeys(_batch(row) for row in rows)
    lines = []
    for key in keys:
        cells = []
        for width in widths:
            same = [r for r in rows if _batch(r) == key and r["shape"]["hidden"] == width]
            some = sorted(same, key=lambda row: row["threads"])
            ratios = _each(some, lambda row: _ratio(row, rows))
            peaks = _each(some, lambda row: f"{row['share_of_peak']:.0%}")
            cells.append(f"{ratios}, {peaks}" if some else "")
        first = next(row for row in rows if _batch(row) == key)
        lines.append([*key, *cells, _asked(first, rows)])
    header = ["cell", "rows × time", "lengths", "direction"]
    columns = [f"H {width}: ratio, of peak" for width in widths]
    return _table([*header, *columns, f"asked at H {widths[0]}"], lines)


def _batch(row: Row) -> tuple[str, str, str, str]:
    shape = row["shape"]
    size = f"{shape['rows']} × {shape['time']}"
    return shape["cell"], size, shape["lengths"], row["direction"]


def _each(rows: Sequence[Row], cell: Any) -> str:
    """The cell for each number of threads; once where all are the same."""
    return " / ".join(dict.fromkeys(cell(row) for row in rows))


def _ratio(row: Row, rows: Sequence[Row]) -> str:
    state, _ = verdict(row, rows)
    if state == "red":
        return "error too great"
    if not row["ratio"]:
        return "-"
    return f"{row['ratio']:.2f}" + (" (missed)" if state == "missed" else "")


def _asked(row: Row, rows: Sequence[Row]) -> str:
    bar, asked = row["bar"], verdict(row, rows)[1]
    words = [] if asked is None else [f"{asked:.2f}"]
    if asked is not None and bar["against"]:
        words[-1] += f" to {bar['against']}"
    if bar["share_of_peak"] is not None:
        words.append(f"{bar['share_of_peak']:.0%} of peak")
    return ", ".join(words) or "-"


def _rival(row: Row) -> str:
    best = row["best_rival"]
    return f"{best} {_time(row['contenders'][best]['median_ms'])}" if best else "-"


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.3f}" if milliseconds < 1 else f"{milliseconds:.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _where(found: dict[str, Any], rows: Sequence[Row], threads: Sequence[int]) -> str:
    """What the figures were measured on."""
    machine = found["machine"]
    peaks = ", ".join(
        f"{max(r['peak_gflops'] for r in rows if r['threads'] == n):.0f} GFLOP/s on {n}"
        for n in threads
    )
    names = ("torch", "onnxruntime", "openvino")
    versions = [f"{n} {machine['versions'][n]}" for n in names if n in machine["versions"]]
    loads = [row["load"] for row in rows]
    return (
        f"{machine['cpu']}, {machine['build']['isa']}; {', '.join(versions)}; {machine['date']}; "
        f"threads {' / '.join(map(str, threads))}; peak {peaks}; load {min(loads):.1f} to "
        f"{max(loads):.1f}. The ratio is to the fastest of all rivals.\n"
    )


def topk_table(results: Path) -> str:
    """What is measured of top-k (``topk.json``), as Markdown: a row a shape and thread count."""
    found = json.loads((results / "topk.json").read_text(encoding="utf-8"))
    header = ["queries × items × dim", "threads", "ms", "GFLOP/s", "against torch", "against faiss"]
    header += ["from bytes, ms", "against faiss", "against float32"]
    lines = []
    for row in found["rows"]:
        shape, median = row["shape"], row["median_ms"]
        lines.append(
            [
                f"{shape['queries']} × {shape['items']:,} × {shape['dim']}",
                str(row["threads"]),
                f"{median['seqrec_fast']:.3g}",
                f"{row['gflops']:.0f}",
                *(_times(row.get(name)) for name in ("torch", "faiss")),
                f"{median['seqrec_fast, from bytes']:.3g}",
                *(_times(row.get(name)) for name in ("int8_to_faiss", "int8_to_float32")),
            ]
        )
    machine = found["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "faiss-cpu"))
    table = "".join("| " + " | ".join(line) + " |\n" for line in [header, ["---"] * 9, *lines])
    return table + f"\nMedians; {machine['cpu']}, {versions}, {machine['date']}.\n"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
