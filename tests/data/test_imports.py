# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_importing_loads_numpy_alone() -> None:
    code = (
        "import sys, seqrec_fast.data as d; d.Vocabulary.from_ids(['a']).encode(['a']); "
        "heavy = {'duckdb', 'pyarrow', 'torch', 'pandas'} & set(sys.modules); "
        "print(sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_everything_works_with_torch_blocked() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from seqrec_fast import data; "
        "split = data.leave_one_out(data.prepare(data.synthetic_log(users=50, items=40))); "
        "print(len(split.test))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) == 50
