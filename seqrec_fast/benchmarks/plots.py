# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: speed-up by shape as bars, and every case under its roofline.

Colours are those of Okabe and Ito (2008), which readers with any kind of colour vision can tell
apart; marks differ in form too.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from seqrec_fast.benchmarks import OPERATIONS
from seqrec_fast.benchmarks.report import Row, read_results, verdict

__all__ = ["draw", "roofline", "speed_ups"]

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_RED = "#D55E00"


def draw(results: Path, folder: Path) -> list[Path]:
    """Draws what is found in a folder of results, as SVG.

    Args:
        results: folder with ``OPERATION.json`` files.
        folder: where the pictures go: ``OPERATION-THREADS.svg`` and ``roofline-THREADS.svg``.

    Returns:
        The files written.
    """
    found: dict[str, list[Row]] = {}
    machine: dict[str, Any] = {}
    for operation in OPERATIONS:
        result = read_results(results, operation)
        if result is not None:
            machine = result["machine"]
            found[operation] = [row for row in result["rows"] if "reason" not in row]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for threads in sorted({row["threads"] for rows in found.values() for row in rows}):
        title = f"{machine['cpu']}, {threads} thread{'s' if threads > 1 else ''}"
        chosen = {
            operation: [row for row in rows if row["threads"] == threads]
            for operation, rows in found.items()
        }
        for operation, rows in chosen.items():
            if any(row["ratio"] for row in rows):
                written.append(folder / f"{operation}-{threads}.svg")
                _save(speed_ups(rows, f"{operation}: {title}"), written[-1])
        if any(chosen.values()):
            written.append(folder / f"roofline-{threads}.svg")
            _save(roofline(chosen, title), written[-1])
    return written


def speed_ups(rows: Sequence[Row], title: str) -> Any:
    """A figure with a bar for each case: how many times as fast as the best rival.

    A short line across a bar is what was asked; a red case has no bar.
    """
    plt = _pyplot()
    rows = [row for row in rows if row["ratio"]]
    figure, axes = plt.subplots(
        figsize=(8.0, 1.2 + 0.26 * len(rows)), layout="constrained", squeeze=True
    )
    rivals = list(dict.fromkeys(row["best_rival"] for row in rows))
    for place, row in enumerate(rows):
        state, asked = verdict(row, rows)
        if state == "red":
            axes.text(0.02, place, "error too great", color=_RED, va="center", fontsize=7)
            continue
        colour = _COLOURS[rivals.index(row["best_rival"]) % len(_COLOURS)]
        axes.barh(place, row["ratio"], color=colour, height=0.7)
        axes.text(row["ratio"], place, f" {row['ratio']:.2f}", va="center", fontsize=7)
        if asked is not None and row["bar"]["against"] is None:
            axes.plot([asked, asked], [place - 0.42, place + 0.42], color="black", linewidth=1.6)
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.12 * max(max(r["ratio"], verdict(r, rows)[1] or 0.0) for r in rows))
    axes.set_xlabel("times as fast as the best rival; black line: asked", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=_COLOURS[i % len(_COLOURS)]) for i in range(len(rivals))
    ]
    axes.legend(handles, rivals, title="best rival", fontsize=7, title_fontsize=7)
    return figure


def roofline(found: dict[str, list[Row]], title: str) -> Any:
    """A figure with a mark for each case: work for each byte against work a second.

    The roof is the lesser of the measured multiply-add peak and memory bandwidth x intensity
    (Williams et al. 2009). What fits into a cache may lie above the slope.
    """
    plt = _pyplot()
    found = {name: [row for row in rows if row["flops"]] for name, rows in found.items()}
    rows = [row for each in found.values() for row in each]
    peak = max(row["peak_gflops"] for row in rows)
    bandwidth = max(row["peak_gigabytes"] for row in rows)
    figure, axes = plt.subplots(figsize=(8.0, 5.0), layout="constrained")
    intensity = [row["flops"] / row["bytes"] for row in rows]
    low, high = min(*intensity, 0.5) / 2, max(*intensity, 4 * peak / bandwidth) * 2
    ridge = peak / bandwidth
    axes.plot(
        [low, ridge, high], [low * bandwidth, peak, peak], color="black", linewidth=1.5, zorder=1
    )
    axes.text(high, peak * 1.05, f"{peak:.0f} GFLOP/s", ha="right", va="bottom", fontsize=8)
    axes.text(low * 1.1, low * bandwidth * 1.6, f"{bandwidth:.0f} GB/s", va="bottom", fontsize=8)
    for number, (operation, each) in enumerate(found.items()):
        good = [row for row in each if not row["red"]]
        axes.scatter(
            [row["flops"] / row["bytes"] for row in good],
            [row["gflops"] for row in good],
            s=26,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKS[number % len(_MARKS)],
            edgecolors="white",
            linewidths=0.5,
            label=operation,
            zorder=2,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("operations for each byte of arguments and results", fontsize=9)
    axes.set_ylabel("GFLOP/s", fontsize=9)
    axes.set_title(title, fontsize=9)
    axes.grid(which="major", color="0.9", zorder=0)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _pyplot() -> Any:
    import_module("matplotlib").use("Agg")
    return import_module("matplotlib.pyplot")


def _save(figure: Any, path: Path) -> None:
    # no date and a fixed salt: the same results make the same file
    with import_module("matplotlib").rc_context({"svg.hashsalt": "seqrec-fast"}):
        figure.savefig(path, metadata={"Date": None})
    _pyplot().close(figure)
