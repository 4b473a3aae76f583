# SPDX-License-Identifier: Apache-2.0
"""Trains recipes with one and with several interests a user and writes their figures.

    python -m benchmarks.quality.interests beauty-gru --interests 1 2 --data DATA --seeds 0

All else of a recipe stays as it is. One JSON file a recipe, ``interests-RECIPE.json``, goes to
``benchmarks/results/quality``; what is run again replaces its figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.quality.__main__ import RESULTS, measure
from benchmarks.quality.recipes import RECIPES

__all__ = ["FIGURES", "main", "summary", "write"]

FIGURES = ("Recall@10", "NDCG@10", "Recall@50", "NDCG@50")


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the seeds on the test events, by number of interests, and of popularity."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        of_same = [r for r in runs if r["interests"] == run["interests"]]
        found[str(run["interests"])] = {
            name: statistics.mean(r["metrics"]["test"]["values"][name] for r in of_same)
            for name in FIGURES
        }
    popular = runs[0]["metrics"]["popularity"]["values"]
    return found | {"popularity": {name: popular[name] for name in FIGURES}}


def write(name: str, fresh: dict[str, Any]) -> dict[str, Any]:
    """Puts a run into the file of its recipe, in the place of one of equal interests and seed."""
    path = RESULTS / f"interests-{name}.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    key = ("interests", "seed")
    runs = [r for r in runs if any(r[k] != fresh[k] for k in key)] + [fresh]
    runs.sort(key=lambda r: [r[k] for k in key])
    recipe = RECIPES[name]
    result: dict[str, Any] = {
        "recipe": name,
        "log": recipe.log,
        "model": recipe.model,
        "options": recipe.options,
        "machine": describe_machine(),
        "summary": summary(runs),
        "runs": runs,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def main() -> None:
    """Runs the recipes that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--interests", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    for name in given.recipes:
        for interests in given.interests:
            options = {**RECIPES[name].options, "interests": interests}
            recipe = replace(RECIPES[name], options=options, refit=False)
            for seed in given.seeds:
                run = measure(recipe, given.data, seed, given.threads)
                found = write(name, {"interests": interests, **run})
                print(name, interests, seed, json.dumps(found["summary"]), flush=True)


if __name__ == "__main__":
    main()
