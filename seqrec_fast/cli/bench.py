# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast bench``: the speed of kernels and of indexes on a GPU, beside others."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from seqrec_fast.benchmarks import OPERATIONS
from seqrec_fast.cli.console import check_threads, number, print_json, say, table, whole_number
from seqrec_fast.errors import InputError

__all__ = ["EPILOG", "add_arguments", "run"]

_GPU_ONLY = ("decode_attention", "topk")

EPILOG = """\
Every contender is warmed up and timed in turn with the others; the median counts. A case whose
error against float64 is too great is red, and its time does not count. Rivals that are not
installed are left out: pip install 'seqrec-fast[bench]'. Close other programs first.
"gpu" judges every operation on the GPU against float64 first, then times those that are right
beside cuDNN and torch, with the cache warm and emptied, by events of the device. Without
--operation and --match it then compares the recall of each gpu-* kind of index with the exact
search and times those that find enough.

examples:
  seqrec-fast bench kernels --operation linear --threads 1
  seqrec-fast bench kernels --operation recurrent --match "lstm 256" --budget 10
  seqrec-fast bench kernels --threads 1 2 --out results --plot
  seqrec-fast bench kernels --list
  seqrec-fast bench gpu --out results --plot
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("what", metavar="WHAT", choices=["kernels", "gpu"], help="kernels or gpu")
    parser.add_argument(
        "--operation",
        nargs="+",
        metavar="NAME",
        choices=[*OPERATIONS, *_GPU_ONLY],
        help=f"only these of: {', '.join(OPERATIONS)}; on the GPU {', '.join(_GPU_ONLY)} too",
    )
    parser.add_argument(
        "--match", metavar="TEXT", default="", help="only cases with this in the name"
    )
    parser.add_argument(
        "--threads",
        nargs="+",
        type=whole_number(1),
        metavar="N",
        default=[1],
        help="cores for every contender; several numbers are measured one after another (1)",
    )
    parser.add_argument(
        "--budget",
        type=number,
        metavar="SECONDS",
        default=3.0,
        help="timed calls of a case, all contenders together (3)",
    )
    parser.add_argument(
        "--without", nargs="+", metavar="RIVAL", default=[], help="leave out rivals so named"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and measure nothing")
    parser.add_argument("--out", metavar="FOLDER", help="write or renew one JSON file an operation")
    parser.add_argument("--plot", action="store_true", help="draw pictures into --out as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code: 1 where an error was too great."""
    if args.what == "gpu":
        return _gpu(args)
    if args.plot and args.out is None:
        raise InputError("--plot: needs a folder; give --out FOLDER")
    if args.budget <= 0:
        raise InputError(f"--budget: must be above 0, found {args.budget:g}")
    for threads in args.threads:
        check_threads(threads)
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InputError("bench: needs torch: pip install 'seqrec-fast[train]'") from None
    from seqrec_fast import benchmarks

    chosen = {
        operation: [case for case in benchmarks.cases(operation) if args.match in case.name]
        for operation in args.operation or OPERATIONS
        if operation in OPERATIONS
    }
    if not any(chosen.values()):
        raise InputError(f"--match: no case has {args.match!r} in its name; see --list")
    if args.list:
        names = {operation: [case.name for case in found] for operation, found in chosen.items()}
        if args.json:
            print_json(names)
        else:
            say("\n".join(f"{o}: {name}" for o, found in names.items() for name in found))
        return 0
    return _measure(chosen, args)


def _gpu(args: Namespace) -> int:
    from seqrec_fast.benchmarks.machine import describe_machine

    if args.plot and args.out is None:
        raise InputError("--plot: needs a folder; give --out FOLDER")
    if args.budget <= 0:
        raise InputError(f"--budget: must be above 0, found {args.budget:g}")
    if len(args.threads) > 1:
        raise InputError("--threads: bench gpu takes one number")
    check_threads(args.threads[0])
    try:
        from seqrec_fast.benchmarks import gpu_cases
    except ImportError:
        raise InputError("bench: needs torch: pip install 'seqrec-fast[train]'") from None
    chosen = gpu_cases.cases(tuple(args.operation or ()), args.match)
    if not chosen:
        raise InputError(f"--match: no case has {args.match!r} in its name; see --list")
    if args.list:
        names = [f"{case.operation}: {case.name}" for case in chosen]
        print_json({"cases": names}) if args.json else say("\n".join(names))
        return 0
    from seqrec_fast.benchmarks import gpu_device

    device = gpu_device.require_gpu()
    quiet: bool = args.json
    machine = {**describe_machine(), "device": device.facts()}
    say(f"{machine['device']['gpu']}; {_versions(machine)}", quiet=quiet)
    results: dict[str, Any] = {"machine": machine}
    red = _gpu_operations(chosen, device, args, results)
    if not args.operation and not args.match:
        red += _gpu_indexes(args, results)
    if args.out is not None:
        from seqrec_fast.benchmarks import gpu_report

        for path in gpu_report.write(Path(args.out), results, plot=args.plot):
            say(f"wrote {path}", quiet=quiet)
    if quiet:
        print_json(results)
    return 1 if red else 0


def _gpu_operations(chosen: Any, device: Any, args: Namespace, results: dict[str, Any]) -> int:
    from seqrec_fast.benchmarks import gpu

    rows = []
    for row in gpu.measure(chosen, device, budget=args.budget, without=args.without):
        rows.append(row)
        say("  ".join(gpu.cells(row)), quiet=args.json)
    say("\n" + table(gpu.HEADER, [gpu.cells(row) for row in rows], left=(0, 1)), quiet=args.json)
    for name, reason in {n: r for row in rows for n, r in row.get("missing", {}).items()}.items():
        say(f"without {name}: {reason}", quiet=args.json)
    results["rows"] = rows
    return sum(bool(row["red"]) for row in rows)


def _gpu_indexes(args: Namespace, results: dict[str, Any]) -> int:
    from seqrec_fast.benchmarks import gpu_indexes
    from seqrec_fast.errors import DeviceError

    quiet: bool = args.json
    try:
        results["faiss"] = gpu_indexes.require_gpu()
    except DeviceError as error:
        results["faiss"] = {"missing": str(error)}
        say(str(error), quiet=quiet)
        return 0
    rows = list(
        gpu_indexes.measure(
            gpu_indexes.SIZES,
            threads=args.threads[0],
            seconds=args.budget,
            say=lambda line: say(line, quiet=quiet),
        )
    )
    results["indexes"] = rows
    shown = [gpu_indexes.cells(row) for row in rows]
    say("\n" + table(gpu_indexes.HEADER, shown, left=(0, 1)), quiet=quiet)
    for line in {f"{row['kind']}: {row['missing']}": 0 for row in rows if "missing" in row}:
        say(line, quiet=quiet)
    return sum(bool(row.get("red")) for row in rows)


def _measure(chosen: dict[str, list[Any]], args: Namespace) -> int:
    from seqrec_fast import native
    from seqrec_fast.benchmarks import harness, report
    from seqrec_fast.benchmarks.machine import describe_machine

    quiet: bool = args.json
    machine = {**describe_machine(), "build": native.build_info()}
    load = ", ".join(f"{value:.2f}" for value in machine["load"])
    say(f"{machine['cpu']}, {machine['cores']} cores, {machine['build']['isa']}", quiet=quiet)
    say(f"load {load}; {_versions(machine)}", quiet=quiet)
    results: dict[str, Any] = {"machine": machine, "operations": {}}
    told: set[str] = set()
    red = 0
    for operation, cases in chosen.items():
        rows: list[dict[str, Any]] = []
        for case in cases:
            judged: dict[str, Any] = {}
            for threads in args.threads:
                row = harness.measure(
                    case, threads, budget=args.budget, without=args.without, judged=judged
                )
                rows.append(row)
                for name, reason in row.get("missing", {}).items():
                    if (line := f"{operation}: without {name}: {reason}") not in told:
                        told.add(line)
                        say(line, quiet=quiet)
                say("  ".join(report.cells(row, rows)), quiet=quiet)
            if args.out is not None and rows:
                report.write_results(Path(args.out), operation, machine, rows)
        red += sum(bool(row.get("red")) for row in rows)
        results["operations"][operation] = rows
        if rows:
            shown = [report.cells(row, rows) for row in rows]
            say("\n" + table(report.HEADER, shown, left=(0, 6, 11)) + "\n", quiet=quiet)
    if args.plot:
        from seqrec_fast.benchmarks import plots

        for path in plots.draw(Path(args.out), Path(args.out)):
            say(f"wrote {path}", quiet=quiet)
    if quiet:
        print_json(results)
    return 1 if red else 0


def _versions(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
