# SPDX-License-Identifier: Apache-2.0
"""The trade of recall against time, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqrec_fast._pictures import new_figure, png
from seqrec_fast.cli.console import table

__all__ = ["trade_picture", "trade_table"]

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink")


def trade_table(trials: Sequence[Mapping[str, Any]], k: int) -> str:
    """A row a trial, as :meth:`seqrec_fast.retrieval.tuning.Trial.to_dict` gives them."""
    rows = [
        [
            one["kind"],
            _options(one) or "-",
            f"{one['recall']:.4f}",
            f"{one['median_us']:,.0f} µs",
            f"{one['p99_us']:,.0f} µs",
            f"{one['bytes'] / 2**20:,.1f} MiB",
            f"{one['build_seconds']:.2f} s",
            "chosen" if one["chosen"] else "" if one["reached"] else "recall too low",
        ]
        for one in trials
    ]
    header = ["kind", "options", f"recall@{k}", "median", "p99", "memory", "build", ""]
    return table(header, rows, left=(0, 1, 7))


def trade_picture(trials: Sequence[Mapping[str, Any]], k: int, target: float, title: str) -> bytes:
    """Recall against the median time of one query, the chosen index marked, as PNG.

    Args:
        trials: as in :func:`trade_table`.
        k: items that a query had to find.
        target: the recall that was asked for.
        title: headline of the picture.

    Returns:
        The bytes of a PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure("the picture", 7.0, 4.6)
    plot = figure.subplots()
    for place, one in enumerate(trials):
        colour = _COLOURS[place % len(_COLOURS)]
        label = " ".join([one["kind"], _options(one)]).strip()
        steps = sorted(one["curve"], key=lambda step: step["recall"])
        plot.plot(
            [step["recall"] for step in steps],
            [step["median_us"] for step in steps],
            color=colour,
            marker=".",
            alpha=0.5,
        )
        plot.plot(one["recall"], one["median_us"], "o", color=colour, label=label)
        if one["chosen"]:
            plot.plot(one["recall"], one["median_us"], "o", ms=14, mfc="none", mec="tab:red", mew=2)
    plot.axvline(target, color="grey", linestyle=":")
    plot.set_yscale("log")
    plot.set_xlabel(f"recall@{k} against the exact search")
    plot.set_ylabel("median of one query, µs")
    plot.set_title(title)
    plot.grid(alpha=0.25, which="both")
    plot.legend(fontsize=8)
    return png(figure)


def _options(one: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in {**one["build"], **one["search"]}.items())
