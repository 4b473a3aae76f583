# SPDX-License-Identifier: Apache-2.0
"""MovieLens-100k from the raw typed-header file through the command line alone.

    python -m benchmarks.quality.ml100k --data DATA

Trains by time stamps with titles, evaluates the bundle, recommends by title, and writes the
commands with what they printed to ``benchmarks/results/quality/ml100k.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

_RESULT = Path(__file__).parents[1] / "results" / "quality" / "ml100k.json"


def command(*words: str) -> Any:
    """Runs ``seqrec-fast`` with ``--json`` and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "seqrec_fast.cli.main", *words, "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    """Runs the three commands and writes their output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    given = parser.parse_args()
    log = str(given.data / "ml-100k" / "ml-100k.inter")
    items = str(given.data / "ml-100k" / "ml-100k.item")
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "bundle")
        train = [log, "--items", items, "--model", "sasrec", "--split", "by-time"]
        train += ["--temperature", "0.1", "--dropout", "0.4", "--epochs", "40"]
        trained = command("train", *train, "--out", bundle)
        evaluated = command("evaluate", bundle, log, "--split", "by-time", "--k", "10")
        shown = command("recommend", bundle, "--history", "50,181,172", "--k", "5")
    result = {
        "machine": describe_machine(),
        "train": {"command": train[2:], "output": trained},
        "evaluate": evaluated,
        "recommend": shown,
    }
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    _RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(evaluated, indent=1))
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
