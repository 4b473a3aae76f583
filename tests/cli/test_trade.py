# SPDX-License-Identifier: Apache-2.0
"""The table of a trade: why a kind was not chosen; and marks that tell many kinds apart."""

from __future__ import annotations

from typing import Any

import pytest

from seqrec_fast.cli import trade


def trial(kind: str, median: float, **facts: Any) -> dict[str, Any]:
    whole = {"kind": kind, "build": {}, "search": {}, "recall": 1.0, "median_us": median}
    whole |= {"p99_us": median, "bytes": 1, "build_seconds": 0.0, "curve": []}
    return {**whole, "exact": kind == "exact", "reached": True, "chosen": False, **facts}


def test_the_table_says_why() -> None:
    lines = trade.trade_table(
        [
            trial("exact", 10.0, chosen=True),
            trial("flat", 20.0),
            trial("ivf", 30.0, reached=False),
            trial("hnsw", 5.0, reached=False),
        ],
        100,
    ).splitlines()
    ends = ("chosen", "0.00 s", "recall too low, slower than exact", "recall too low")
    for line, end in zip(lines[-4:], ends, strict=True):
        assert line.rstrip().endswith(end)


def test_the_picture_tells_all_kinds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    figures: list[Any] = []
    made = trade.new_figure
    monkeypatch.setattr(trade, "new_figure", lambda *a: figures.append(made(*a)) or figures[-1])
    trade.trade_picture([trial(f"kind {n}", 10.0 + n) for n in range(20)], 100, 0.99, "title")
    marks = [
        (line.get_color(), line.get_marker())
        for line in figures[0].axes[0].lines
        if str(line.get_label()).startswith("kind")
    ]
    assert len(set(marks)) == len(marks) == 20
