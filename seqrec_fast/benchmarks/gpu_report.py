# SPDX-License-Identifier: Apache-2.0
"""The results of ``bench gpu`` as one JSON file, and as pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from seqrec_fast.benchmarks.case import OURS
from seqrec_fast.errors import InputError

__all__ = ["check_plots", "draw", "earlier", "merged", "write"]

Row = dict[str, Any]
_COLOURS = {
    "float32": "#0072B2",
    "tf32": "#56B4E9",
    "float16": "#009E73",
    "bfloat16": "#D55E00",
}
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "8", "*")


#: what has to be the same for rows of an earlier run to stand beside new ones
_SAME = ("gpu", "driver", "capability", "torch", "cuda", "cudnn", "triton")


def earlier(folder: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Results that a folder has of the same GPU, driver and versions; empty where it has none.

    Args:
        folder: where :func:`write` wrote.
        machine: what is measured on now.
    """
    path = folder / "gpu.json"
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        before = found["machine"]
        same = before["versions"] == machine["versions"] and all(
            before["device"].get(name) == machine["device"].get(name) for name in _SAME
        )
        {(row["operation"], row["case"]) for row in found["rows"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--out: {path} is not a file of results ({error!r}); move it away or choose another "
            "folder"
        ) from None
    return found if same else {}


def merged(before: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Results with earlier rows of other cases, and earlier indexes where there are no new ones."""
    rows = {(row["operation"], row["case"]): row for row in before.get("rows", [])}
    rows |= {(row["operation"], row["case"]): row for row in results["rows"]}
    return {**before, **results, "rows": list(rows.values())}


def write(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes or replaces ``gpu.json``; what is not finite becomes ``null``, as JSON has none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpu.json"
    fresh = path.with_suffix(".new")
    text = json.dumps(_plain(results), indent=1, allow_nan=False) + "\n"
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, path)
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_plots() -> None:
    """Looks, before an hour of measuring, whether pictures can be drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import_module("matplotlib")
    except ImportError:
        raise InputError("--plot: needs matplotlib: pip install 'seqrec-fast[bench]'") from None


def draw(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """Draws ``gpu-OPERATION.svg`` for each operation with times, and ``gpu-roofline.svg``.

    Returns:
        The files written; none where no case got times.
    """
    rows = [row for row in results["rows"] if "contenders" in row]
    if not rows:
        return []
    import_module("matplotlib").use("Agg")
    title = str(results["machine"]["device"].get("gpu", "unknown"))
    figures = {}
    for operation in dict.fromkeys(row["operation"] for row in rows):
        chosen = [row for row in rows if row["operation"] == operation]
        figures[operation] = _beside(chosen, f"{operation}: {title}")
    under = [row for row in rows if row["gflops"] and row["gigabytes"]]
    if under:
        figures["roofline"] = _roofline(under, title)
    written = []
    for name, figure in figures.items():
        written.append(folder / f"gpu-{name}.svg")
        with import_module("matplotlib").rc_context({"svg.hashsalt": "seqrec-fast"}):
            figure.savefig(written[-1], metadata={"Date": None})
        import_module("matplotlib.pyplot").close(figure)
    return written


def _beside(rows: Sequence[Row], title: str) -> Any:
    """Times beside the best rival's, and shares of what the device reached."""
    plt = import_module("matplotlib.pyplot")
    size = (10.0, 1.4 + 0.22 * len(rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True)
    for place, row in enumerate(rows):
        colour = _COLOURS[row["dtype"]]
        if row["ratio"]:
            left.barh(place, row["ratio"], color=colour, height=0.7)
            left.text(row["ratio"], place, f" {row['best_rival']}", va="center", fontsize=5)
        if row["share_of_copy"] is not None:
            right.barh(place, row["share_of_copy"], color=colour, height=0.7)
        if row["share_of_product"] is not None:
            right.plot(row["share_of_product"], place, marker="|", color="black")
    left.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=5)
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlabel("times as fast as the best rival, cache warm", fontsize=8)
    shares = "bar: share of the copy's bandwidth; mark: of the product's FLOP/s"
    right.set_xlabel(shares, fontsize=8)
    for axes in (left, right):
        axes.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")
    figure.suptitle(title, fontsize=9)
    return figure


def _roofline(rows: Sequence[Row], title: str) -> Any:
    """Every case by its work for each byte, under what the device reached in its type."""
    plt = import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(8.0, 6.0), layout="constrained")
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    intensities = []
    for row in rows:
        # bytes a second with the cache emptied, operations a second with it warm
        mine = row["contenders"][OURS]
        moved = row["gigabytes"] * mine["cold_ms"]
        done = row["gflops"] * mine["warm_ms"]
        intensities.append(done / moved)
        mark = _MARKS[operations.index(row["operation"]) % len(_MARKS)]
        colour = _COLOURS[row["dtype"]]
        axes.plot(intensities[-1], row["gflops"], mark, color=colour, markersize=4)
    ends = [min(intensities) / 2, max(intensities) * 2]
    ceilings = rows[-1]["ceilings"]
    for dtype, peak in ceilings["gflops"].items():
        bend = peak / ceilings["gigabytes"] if ceilings["gigabytes"] else ends[0]
        xs = sorted({*ends, min(max(bend, ends[0]), ends[1])})
        roof = [min(peak, ceilings["gigabytes"] * x) for x in xs]
        axes.plot(xs, roof, color=_COLOURS[dtype], linewidth=0.8, label=dtype)
    for place, operation in enumerate(operations):
        mark = _MARKS[place % len(_MARKS)]
        axes.plot([], [], mark, color="grey", markersize=4, label=operation)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte that has to be moved", fontsize=8)
    axes.set_ylabel("GFLOP/s", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=6)
    return figure
