# SPDX-License-Identifier: Apache-2.0
"""Trains the recipes on public data and writes their figures.

    python -m benchmarks.quality beauty-sasrec --data DATA --seeds 0 1 2 --threads 2

``DATA`` is a folder with the public data sets (``amazon-beauty/Beauty.txt``, …). One JSON file a
recipe goes to ``benchmarks/results/quality``; a seed that is run again replaces its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.quality.recipes import RECIPES, Recipe
from seqrec_fast import data, training

RESULTS = Path(__file__).parents[1] / "results" / "quality"


def measure(recipe: Recipe, folder: Path, seed: int, threads: int) -> dict[str, Any]:
    """Trains a recipe once and returns its figures."""
    split = data.leave_one_out(data.prepare(data.read_log(folder / recipe.log)))
    began = time.monotonic()
    run = training.fit(
        split, recipe.model, refit=recipe.refit, seed=seed, threads=threads, **recipe.options
    )
    return {
        "seed": seed,
        "threads": threads,
        "load": os.getloadavg()[0],
        "epochs": len(run.history),
        "best_epoch": run.best_epoch,
        "training_seconds": run.seconds,
        "select_seconds": sum(r["seconds"] for r in run.history if r["phase"] == "select"),
        "total_seconds": time.monotonic() - began,
        "epoch_seconds_median": statistics.median(r["seconds"] for r in run.history),
        "metrics": run.metrics,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation over the seeds, by kind of figure."""
    found: dict[str, dict[str, float]] = {}
    for kind in runs[0]["metrics"]:
        for name in ("HR@10", "NDCG@10"):
            values = [r["metrics"][kind]["values"][name] for r in runs if kind in r["metrics"]]
            found.setdefault(kind, {})[name] = statistics.mean(values)
            if len(values) > 1:
                found[kind][f"{name} spread"] = statistics.stdev(values)
    return found


def main() -> None:
    """Runs the recipes that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", choices=[[], *RECIPES], metavar="RECIPE")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    for name in given.recipes or RECIPES:
        recipe = RECIPES[name]
        path = RESULTS / f"{name}.json"
        runs: list[dict[str, Any]] = []
        if path.exists():
            runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        for seed in given.seeds:
            fresh = measure(recipe, given.data, seed, given.threads)
            runs = sorted([r for r in runs if r["seed"] != seed] + [fresh], key=lambda r: r["seed"])
            result = {
                "recipe": name,
                "log": recipe.log,
                "model": recipe.model,
                "options": recipe.options,
                "machine": describe_machine(),
                "summary": summary(runs),
                "runs": runs,
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(name, "seed", seed, json.dumps(result["summary"]), flush=True)


if __name__ == "__main__":
    main()
