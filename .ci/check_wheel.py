# SPDX-License-Identifier: Apache-2.0
"""Tries an installed wheel: the native core loads, is of this version, and finds the best items."""

import json
import subprocess
import sys
from importlib import metadata

import numpy as np

import seqrec_fast
from seqrec_fast import native

assert seqrec_fast.__version__ == metadata.version("seqrec-fast")
scores, ids = native.score_topk(np.eye(3, 4, dtype=np.float32), np.eye(5, 4, dtype=np.float32), 1)
assert ids.ravel().tolist() == [0, 1, 2], ids
assert scores.ravel().tolist() == [1.0, 1.0, 1.0], scores
told = subprocess.run(
    [sys.executable, "-m", "seqrec_fast.cli.main", "info", "--json"],
    check=True,
    capture_output=True,
    text=True,
)
facts = json.loads(told.stdout)
assert facts["native"]["available"], facts["native"]
sys.stdout.write(f"seqrec-fast {facts['version']}: {facts['native']}\n")
