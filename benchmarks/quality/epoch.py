# SPDX-License-Identifier: Apache-2.0
"""Times training epochs of SASRec on Amazon Beauty: width 64, 2 blocks, length 50, full softmax.

    python -m benchmarks.quality.epoch --data DATA --threads 2
    python -m benchmarks.quality.epoch --data DATA --threads 2 \
        --rival rectools --rival-python ENVIRONMENT/bin/python --rival-steps 20

The rival trains on the same sequences with the same sizes and loss, in a process of its own under
the interpreter that is given (one that has ``rectools[torch]``). Its epoch takes minutes;
``--rival-steps N`` times N steps after a warm-up and scales them by the number of steps in an
epoch, and the output says so. The processes run one after the other, so that neither disturbs the
other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.quality.recipes import RECIPES
from seqrec_fast import data, training

_RESULT = Path(__file__).parents[1] / "results" / "epoch.json"
_RIVALS = {"rectools": Path(__file__).with_name("rectools_epoch.py")}


def ours(split: data.Split, options: dict[str, Any], model: str, threads: int) -> dict[str, Any]:
    """Trains some epochs; seconds and tokens/s of each."""
    run = training.fit(split, model, threads=threads, **options)
    seconds = [record["seconds"] for record in run.history]
    return {
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "tokens_per_second": [record["tokens_per_second"] for record in run.history],
    }


def rival(
    name: str, python: str, split: data.Split, options: dict[str, Any], threads: int, steps: int
) -> dict[str, Any]:
    """Trains a rival on the same sequences in a process of its own; see ``rectools_epoch.py``."""
    lengths = np.diff(split.train.offsets)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.npz"
        np.savez(path, users=np.repeat(split.train_users, lengths), items=split.train.values)
        words = [python, str(_RIVALS[name]), str(path), "--threads", str(threads)]
        words += ["--steps", str(steps), "--dim", str(options["dim"])]
        words += ["--layers", str(options["layers"]), "--heads", str(options["heads"])]
        words += ["--length", str(options["max_length"]), "--batch", str(options["batch_size"])]
        words += ["--dropout", str(options["dropout"])]
        unset = ("PYTHONPATH", "PYTHONHOME", "GOMP_SPINCOUNT")
        environment = {k: v for k, v in os.environ.items() if k not in unset}
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Trains three epochs, and a rival where one is asked for, and writes their seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rival", choices=sorted(_RIVALS))
    parser.add_argument("--rival-python", help="interpreter of the rival's environment")
    parser.add_argument("--rival-steps", type=int, default=0, help="0: the whole epoch")
    parser.add_argument("--out", type=Path, default=_RESULT)
    given = parser.parse_args()
    if given.rival and not given.rival_python:
        parser.error("--rival needs --rival-python, an interpreter that has it installed")
    recipe = RECIPES["beauty-sasrec-inner-product"]
    split = data.leave_one_out(data.prepare(data.read_log(given.data / recipe.log)))
    before = describe_machine()
    options = {**recipe.options, "epochs": given.epochs}
    result: dict[str, Any] = {
        "what": "SASRec training epoch, Amazon Beauty",
        "options": options,
        "threads": given.threads,
        "machine": before,
        **ours(split, options, recipe.model, given.threads),
    }
    mine = result["median_seconds"]
    print(f"median epoch {mine:.1f} s of {given.epochs}, {given.threads} threads", flush=True)
    if given.rival:
        found = rival(
            given.rival, given.rival_python, split, options, given.threads, given.rival_steps
        )
        result["rival"] = {**found, "ratio": found["seconds"] / mine}
        how = (
            f"scaled from {found['timed_steps']} of {found['steps_an_epoch']} steps"
            if found["scaled"]
            else "the whole epoch"
        )
        print(f"{found['rival']}: {found['seconds']:.0f} s ({how})")
        print(f"ratio {result['rival']['ratio']:.1f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
