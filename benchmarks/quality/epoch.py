# SPDX-License-Identifier: Apache-2.0
"""Times training epochs of SASRec on Amazon Beauty: width 64, 2 blocks, length 50, full softmax.

python -m benchmarks.quality.epoch --data DATA --threads 2
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.quality.recipes import RECIPES
from seqrec_fast import data, training

_RESULT = Path(__file__).parents[1] / "results" / "epoch.json"
_EPOCHS = 3


def main() -> None:
    """Trains three epochs and writes seconds and tokens/s of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    recipe = RECIPES["beauty-sasrec-inner-product"]
    split = data.leave_one_out(data.prepare(data.read_log(given.data / recipe.log)))
    before = describe_machine()
    options = {**recipe.options, "epochs": _EPOCHS}
    run = training.fit(split, recipe.model, threads=given.threads, **options)
    seconds = [record["seconds"] for record in run.history]
    result = {
        "what": "SASRec training epoch, Amazon Beauty",
        "options": options,
        "threads": given.threads,
        "machine": before,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "tokens_per_second": [record["tokens_per_second"] for record in run.history],
    }
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    _RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"median epoch {result['median_seconds']:.1f} s of {_EPOCHS}, {given.threads} threads")


if __name__ == "__main__":
    main()
