# SPDX-License-Identifier: Apache-2.0
"""Prepares a made-up log of tens of millions of rows and reports time and peak memory.

The log is written to a temporary folder, and prepared in a process of its own, so that the peak
is that of preparation alone. ``python benchmarks/bench_prepare.py --rows 50000000``
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "prepare.json"


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def prepare_once(path: str, memory: str) -> dict[str, Any]:
    """Prepares the log at ``path`` in this process."""
    from seqrec_fast import data

    begin = time.perf_counter()
    prepared = data.prepare(
        data.read_log(path, memory=memory), min_user_events=5, min_item_events=5
    )
    seconds = time.perf_counter() - begin
    print(prepared.report, file=sys.stderr)
    return {
        "seconds": round(seconds, 2),
        "peak_bytes": peak_bytes(),
        "rows": prepared.report.steps[0].rows_in,
        "events_out": prepared.sequences.tokens,
        "users_out": len(prepared.users),
        "items_out": len(prepared.items),
    }


def main() -> int:
    """Runs the benchmark; exit code 1 if the peak is 4 GiB or more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--memory", default="2GiB", help="limit of the engine")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--prepare", metavar="LOG", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        print(json.dumps(prepare_once(arguments.prepare, arguments.memory)))
        return 0

    import duckdb
    import pyarrow as pa

    from seqrec_fast import data

    with tempfile.TemporaryDirectory(prefix="bench_prepare-") as folder:
        path = Path(folder) / f"log.{arguments.format}"
        begin = time.perf_counter()
        data.write_synthetic(path, rows=arguments.rows, seed=0, dirty=0.03)
        written = time.perf_counter() - begin
        size = path.stat().st_size
        print(f"wrote {arguments.rows:,} rows, {size / 2**20:,.0f} MiB, in {written:.1f} s")
        command = [sys.executable, __file__, "--prepare", str(path), "--memory", arguments.memory]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
    figures = json.loads(done.stdout.splitlines()[-1])
    figures["rows_per_second"] = round(figures["rows"] / figures["seconds"])
    print(
        f"prepared in {figures['seconds']:.1f} s, {figures['rows_per_second']:,} rows/s, peak "
        f"{figures['peak_bytes'] / 2**30:.2f} GiB"
    )
    result = {
        "what": "read_log + prepare(min_user_events=5, min_item_events=5) of a synthetic log",
        "format": arguments.format,
        "memory": arguments.memory,
        "file_bytes": size,
        "write_seconds": round(written, 2),
        **figures,
        "cpu": cpu_name(),
        "threads": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "duckdb": duckdb.__version__,
            "pyarrow": pa.__version__,
        },
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if figures["peak_bytes"] < 4 * 2**30 else 1


if __name__ == "__main__":
    sys.exit(main())
