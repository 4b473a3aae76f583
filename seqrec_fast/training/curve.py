# SPDX-License-Identifier: Apache-2.0
"""The training curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from seqrec_fast._pictures import new_figure, png
from seqrec_fast.training.progress import EpochRecord

__all__ = ["training_curve"]


def training_curve(history: Sequence[EpochRecord], title: str) -> bytes:
    """Loss and validation NDCG@10 by epoch, the chosen epoch marked, as PNG.

    Args:
        history: records of :class:`seqrec_fast.training.Run`.
        title: headline of the picture.

    Returns:
        The bytes of a PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    # a run that was stopped in its first epoch has no record: an empty picture
    selected = [r for r in history if r["phase"] == "select"] or list(history)
    epochs = [r["epoch"] for r in selected]
    figure = new_figure("the training curve", 7.0, 4.2)
    losses = figure.subplots()
    losses.plot(epochs, [r["loss"] for r in selected], color="tab:blue", marker=".")
    losses.set_xlabel("epoch")
    losses.set_ylabel("training loss", color="tab:blue")
    losses.set_title(title)
    losses.grid(alpha=0.25)
    scored = [r for r in selected if "NDCG@10" in r]
    if scored:
        ranking = losses.twinx()
        ranking.plot(
            [r["epoch"] for r in scored],
            [r["NDCG@10"] for r in scored],
            color="tab:orange",
            marker=".",
        )
        ranking.set_ylabel("validation NDCG@10", color="tab:orange")
        best = max(scored, key=lambda r: r["NDCG@10"])
        ranking.plot(best["epoch"], best["NDCG@10"], "o", color="tab:red")
        ranking.annotate(
            f"best {best['NDCG@10']:.4f}",
            (best["epoch"], best["NDCG@10"]),
            textcoords="offset points",
            xytext=(0, -14),
            ha="center",
            color="tab:red",
        )
    return png(figure)
