# SPDX-License-Identifier: Apache-2.0
"""Writes the measured figures from ``benchmarks/results`` into the README and the documentation.

    python -m benchmarks.figures          # rewrites the tables
    python -m benchmarks.figures --check  # exit code 1 where a table is not what was measured

The pictures of the kernels are drawn into ``docs/assets`` as well. A table stands between
``<!-- figures: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kernel_figures import kernel_table, topk_table
from benchmarks.quality.interests import FIGURES as interest_figures
from benchmarks.retrieval_figures import filters_table, retrieval_rows, retrieval_table
from benchmarks.serving_figures import (
    engine_table,
    serving_rows,
    serving_table,
    sessions_table,
)
from seqrec_fast.benchmarks import OPERATIONS, plots
from seqrec_fast.benchmarks.case import OURS
from seqrec_fast.benchmarks.report import read_results

__all__ = ["TABLES", "filled", "main"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KERNELS = RESULTS / "kernels"
PICTURES = ROOT / "docs" / "assets"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "quality.md",
    ROOT / "docs" / "interests.md",
    ROOT / "docs" / "benchmarks.md",
    ROOT / "docs" / "engine.md",
    ROOT / "docs" / "retrieval.md",
    ROOT / "docs" / "serving.md",
    ROOT / "docs" / "sessions.md",
    ROOT / "docs" / "filters.md",
    *sorted((ROOT / "docs" / "ops").glob("*.md")),
)

_NAMES = {
    "beauty-sasrec": "Amazon Beauty, SASRec",
    "beauty-gru": "Amazon Beauty, GRU",
    "ml1m-sasrec": "MovieLens-1M set A, SASRec",
    "ml1m-gru": "MovieLens-1M set A, GRU",
}
_MARK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _rows(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _quality() -> str:
    rows = []
    for name, title in _NAMES.items():
        found = _read(f"quality/{name}")
        runs = found["runs"]
        strict, popular = found["summary"]["test"], found["summary"]["popularity"]
        minutes = sum(r["select_seconds"] for r in runs) / len(runs) / 60
        threads = runs[0]["threads"]
        for kind, protocol in (("test", "strict"), ("test_refit", "refit")):
            if kind not in found["summary"]:
                continue
            figures = found["summary"][kind]
            rows.append(
                [
                    title,
                    protocol,
                    *(_figure(figures, metric) for metric in ("HR@10", "NDCG@10")),
                    f"{popular['NDCG@10']:.4f}",
                    str(len(runs)),
                    f"{minutes:.0f} min, {threads} thread{'s' if threads > 1 else ''}"
                    if figures is strict
                    else "",
                ]
            )
    header = ["data, model", "protocol", "HR@10", "NDCG@10", "popularity NDCG@10", "seeds"]
    return _rows([*header, "training"], rows)


def _interests() -> str:
    rows = []
    for path in sorted((RESULTS / "quality").glob("interests-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for interests, figures in found["summary"].items():
            if not interests.isdigit():
                continue
            of_same = [r for r in found["runs"] if str(r["interests"]) == interests]
            shown = [f"{figures[name]:.4f}" for name in interest_figures]
            rows.append([_NAMES[found["recipe"]], interests, *shown, str(len(of_same))])
    return _rows(["data, model", "interests", *interest_figures, "seeds"], rows)


def _figure(figures: dict[str, float], metric: str) -> str:
    spread = figures.get(f"{metric} spread")
    return f"{figures[metric]:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


def _start() -> str:
    """The table of the README's first screen."""
    epoch, prepare = _read("epoch"), _read("prepare")
    quality = {n: _read(f"quality/{n}")["summary"] for n in _NAMES}
    rows = [
        [
            "50 million rows of Parquet cleaned, encoded and sorted",
            f"{prepare['seconds']:.0f} s, {prepare['rows_per_second'] / 1e6:.2f} million rows/s, "
            f"peak {prepare['peak_bytes'] / 2**30:.1f} GiB",
            "`python benchmarks/bench_prepare.py`",
        ],
        [
            "SASRec training epoch, Amazon Beauty, width 64, 2 blocks, full softmax",
            f"{epoch['median_seconds']:.1f} s on {epoch['threads']} cores{_rival(epoch)}",
            "`python -m benchmarks.quality.epoch`",
        ],
        *(
            [
                f"{title}, test NDCG@10, strict",
                f"{quality[name]['test']['NDCG@10']:.4f} "
                f"(popularity {quality[name]['popularity']['NDCG@10']:.4f})",
                f"`python -m benchmarks.quality {name}`",
            ]
            for name, title in _NAMES.items()
        ),
        *serving_rows(RESULTS),
        *_kernels(),
        *_topk(),
        *retrieval_rows(RESULTS),
    ]
    where = f"Measured on {epoch['machine']['cpu']}, {epoch['machine']['cores']} cores"
    versions = epoch["machine"]["versions"]
    return (
        _rows(["what", "measured", "command"], rows)
        + f"\n{where}, torch {versions['torch']}, {epoch['machine']['date']}.\n"
    )


def _rival(epoch: dict[str, Any]) -> str:
    """The rival of the same run, where one was timed."""
    if "rival" not in epoch:
        return ""
    rival = epoch["rival"]
    name = rival["rival"].partition(" ")[0]
    return f", {rival['ratio']:.0f} x as fast as {name}"


#: what the first screen shows of the kernels: an operation, one of its cases, its name there
_SHOWN = (
    ("linear", "16 x 256 x 1024, forward", "linear layer 16 x 256 x 1024"),
    (
        "recurrent",
        "gru 256 x 50, 64 to 128, equal, forward+backward",
        "GRU 256 x 50, width 128, trained",
    ),
    ("attention", "64 x 200, heads 2 x 32, equal, forward+backward", "causal attention, trained"),
    ("hstu_attention", "64 x 200, heads 2 x 32, equal, forward+backward", "HSTU, trained"),
    ("cross_entropy", "4096 x 12000 x 64, forward+backward", "linear + cross-entropy, trained"),
)


def _kernels() -> list[list[str]]:
    rows = []
    for operation, case, title in _SHOWN:
        found = read_results(KERNELS, operation)
        for row in [] if found is None else found["rows"]:
            if row["case"] != case or row["threads"] != 1 or not row.get("ratio"):
                continue
            rows.append(
                [
                    f"{title}, one thread",
                    f"{row['contenders'][OURS]['median_ms']:.3g} ms, {row['ratio']:.1f} x as fast "
                    f"as the best rival ({row['best_rival']})",
                    f"`seqrec-fast bench kernels --operation {operation}`",
                ]
            )
    return rows


def _topk() -> list[list[str]]:
    found = _read("topk")
    rows = []
    for row in found["rows"]:
        shape = row["shape"]
        if row["threads"] != 1 or (shape["items"], shape["dim"]) != (100_000, 64):
            continue
        if shape["queries"] not in (1, 256):
            continue
        rows.append(
            [
                f"exact top-{shape['k']} of {shape['items']:,} x {shape['dim']}, "
                f"{shape['queries']} quer{'y' if shape['queries'] == 1 else 'ies'}, one thread",
                f"{row['median_ms']['seqrec_fast']:.2f} ms, {row['ratio']:.1f} x as fast as the "
                f"best rival ({row['best_rival']})",
                "`python -m benchmarks.bench_topk`",
            ]
        )
    return rows


def _roofs() -> str:
    """The pictures of all operations under their roof."""
    found = sorted(PICTURES.glob("roofline-*.svg"))
    return "".join(f"![{path.stem}](assets/{path.name})\n" for path in found) or "None yet.\n"


TABLES: dict[str, Callable[[], str]] = {
    "quality": _quality,
    "interests": _interests,
    "start": _start,
    "roofline": _roofs,
    "topk": partial(topk_table, RESULTS),
    "engine": partial(engine_table, RESULTS),
    "serving": partial(serving_table, RESULTS),
    "retrieval": partial(retrieval_table, RESULTS),
    "sessions": partial(sessions_table, RESULTS),
    "filters": partial(filters_table, RESULTS),
    **{name: partial(kernel_table, name, KERNELS, "../assets") for name in OPERATIONS},
}


def filled(text: str) -> str:
    """The text with each of its tables made anew from the results."""
    return _MARK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> int:
    """Rewrites the pages, or with ``--check`` says which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = 0
    if not check:
        plots.draw(KERNELS, PICTURES)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fresh = filled(text)
        if fresh == text:
            continue
        stale += 1
        if check:
            print(f"{page.name}: a table is out of date; run python -m benchmarks.figures")
        else:
            page.write_text(fresh, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
