# SPDX-License-Identifier: Apache-2.0
"""Tries an installed wheel: the native core loads, is of this version, and finds the best items.

``--cuda`` asks for the CUDA kernels as well: their module loads, with or without a driver.
"""

import json
import subprocess
import sys
from importlib import import_module, metadata

import numpy as np

import seqrec_fast
from seqrec_fast import native

assert seqrec_fast.__version__ == metadata.version("seqrec-fast")
assert "site-packages" in seqrec_fast.__file__, f"not the installed package: {seqrec_fast}"
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
if "--cuda" in sys.argv[1:]:
    kernels = import_module("seqrec_fast._cuda")
    built = kernels.build_info()
    assert built["version"] == seqrec_fast.__version__, built
    assert not built["emulated"], built
    assert built["architectures"], built
    sys.stdout.write(f"CUDA kernels: {built}, {kernels.why_not() or 'can run here'}\n")
