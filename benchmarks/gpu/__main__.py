# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast bench gpu`` with its results and pictures in ``benchmarks/results/gpu``."""

from __future__ import annotations

import sys
from pathlib import Path

from seqrec_fast.cli.main import main

RESULTS = Path(__file__).parents[1] / "results" / "gpu"


def arguments(given: list[str]) -> list[str]:
    """The command line: what was given, and where the results go."""
    places = [] if "--out" in given else ["--out", str(RESULTS), "--plot"]
    return ["bench", "gpu", *given, *places]


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
