# SPDX-License-Identifier: Apache-2.0
"""The results of ``bench gpu`` as one JSON file and two pictures."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from seqrec_fast.benchmarks.case import OURS

__all__ = ["write"]

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")


def write(folder: Path, results: dict[str, Any], *, plot: bool) -> list[Path]:
    """Writes ``gpu.json`` and, where asked, ``gpu-ratio.svg`` and ``gpu-ceilings.svg``.

    Returns:
        The files written; no picture where no case got times.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpu.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)
    rows = [row for row in results["rows"] if "contenders" in row]
    if not plot or not rows:
        return [path]
    import_module("matplotlib").use("Agg")
    title = str(results["machine"]["device"]["gpu"])
    written = [path]
    for name, draw in (("ratio", _ratios), ("ceilings", _ceilings)):
        figure = draw(rows, title)
        written.append(folder / f"gpu-{name}.svg")
        with import_module("matplotlib").rc_context({"svg.hashsalt": "seqrec-fast"}):
            figure.savefig(written[-1], metadata={"Date": None})
        import_module("matplotlib.pyplot").close(figure)
    return written


def _colour(rows: list[dict[str, Any]], row: dict[str, Any]) -> str:
    names = list(dict.fromkeys(one["operation"] for one in rows))
    return _COLOURS[names.index(row["operation"]) % len(_COLOURS)]


def _axes(rows: list[dict[str, Any]], title: str) -> tuple[Any, Any]:
    plt = import_module("matplotlib.pyplot")
    size = (8.0, 1.2 + 0.2 * len(rows))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    names = [f"{row['operation']} {row['case']}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title(title, fontsize=9)
    return figure, axes


def _ratios(rows: list[dict[str, Any]], title: str) -> Any:
    """How many times as fast as the best rival."""
    rows = [row for row in rows if row["ratio"]]
    figure, axes = _axes(rows, title)
    for place, row in enumerate(rows):
        axes.barh(place, row["ratio"], color=_colour(rows, row), height=0.7)
        axes.text(row["ratio"], place, f" {row['best_rival']}", va="center", fontsize=5)
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("times as fast as the best rival, cache warm", fontsize=8)
    return figure


def _ceilings(rows: list[dict[str, Any]], title: str) -> Any:
    """Shares of what was measured: bars of bandwidth with the cache cold, marks of products."""
    figure, axes = _axes(rows, title)
    for place, row in enumerate(rows):
        mine = row["contenders"][OURS]
        cold = row["share_of_copy"] * mine["warm_ms"] / mine["cold_ms"]
        axes.barh(place, cold, color=_colour(rows, row), height=0.7)
        if row["share_of_product"] is not None:
            axes.plot(row["share_of_product"], place, marker="|", color="black")
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("bar: share of the copy's bandwidth; mark: of the product's FLOP/s", fontsize=8)
    return figure
