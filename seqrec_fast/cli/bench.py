# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast bench``: the speed of kernels and of indexes on a GPU, beside others."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from seqrec_fast.benchmarks import OPERATIONS
from seqrec_fast.cli.console import check_threads, number, print_json, say, table, whole_number
from seqrec_fast.errors import InputError

__all__ = ["EPILOG", "add_arguments", "run"]

#: whole models and indexes of faiss, which "bench gpu" measures beside the operations
_MODELS, _INDEXES = ("train_step", "recommend"), "indexes"
_GPU_ONLY = (
    *("decode_attention", "paged_decode_attention", "sampled_cross_entropy"),
    *("add_layer_norm", "dropout", "topk", *_MODELS, _INDEXES),
)
_DTYPES = ("float32", "tf32", "float16", "bfloat16")
#: seconds for one kind of index of a million items, built on the CPU too
_INDEX_PATIENCE = 1800.0

EPILOG = """\
Every contender is warmed up and timed in turn with the others; the median counts. A case whose
error against float64 is too great is red, and its time does not count. Rivals that are not
installed are left out: pip install 'seqrec-fast[bench]'. Close other programs first.
"gpu" judges every operation on the GPU against float64 first, then times those that are right
beside cuDNN and torch, with the cache warm and emptied, by events of the device; then steps of
training and requests. Without a choice of cases it then compares the recall of each gpu-* kind of
index with the exact search and times those that find enough. Cases run in processes of their own:
one that ends, or does not answer for minutes, is told and the rest goes on. The file of results is
renewed after every case.

examples:
  seqrec-fast bench kernels --operation linear --threads 1
  seqrec-fast bench kernels --operation recurrent --match "lstm 256" --budget 10
  seqrec-fast bench kernels --threads 1 2 --out results --plot
  seqrec-fast bench kernels --list
  seqrec-fast bench gpu --out results --plot
  seqrec-fast bench gpu --errors
  seqrec-fast bench gpu --operation attention --dtype bfloat16 --match "64 x 200"
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
    parser.add_argument(
        "--dtype",
        nargs="+",
        metavar="TYPE",
        choices=_DTYPES,
        help=f"gpu: only these of {', '.join(_DTYPES)}",
    )
    parser.add_argument(
        "--errors", action="store_true", help="gpu: stop after the errors, and time nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and measure nothing")
    parser.add_argument("--out", metavar="FOLDER", help="write or renew one JSON file an operation")
    parser.add_argument("--plot", action="store_true", help="draw pictures into --out as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code: 1 where an error was too great.

    ``bench gpu`` ends with 1 also where ours failed, or nothing could be judged.
    """
    if args.what == "gpu":
        return _gpu(args)
    if args.dtype or args.errors:
        raise InputError("--dtype and --errors: are for bench gpu; leave them out")
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
    if args.plot and args.out is None:
        raise InputError("--plot: needs a folder; give --out FOLDER")
    if args.budget <= 0:
        raise InputError(f"--budget: must be above 0, found {args.budget:g}")
    if len(args.threads) > 1:
        raise InputError("--threads: bench gpu takes one number")
    check_threads(args.threads[0])
    try:
        from seqrec_fast.benchmarks import gpu_cases, gpu_models
    except ImportError as error:
        if error.name != "torch":
            raise
        raise InputError("bench: needs torch: pip install 'seqrec-fast[train]'") from None
    named = tuple(args.operation or ())
    chosen: list[Any] = []
    if not named or set(named) & set(gpu_cases.operations()):
        chosen += gpu_cases.cases(named, args.match, tuple(args.dtype or ()))
    if not named or set(named) & set(_MODELS):
        chosen += gpu_models.model_cases(named, args.match, tuple(args.dtype or ()))
    if not chosen and not (named and set(named) <= {_INDEXES}):
        raise InputError(f"--match: no case has {args.match!r} in its name; see --list")
    if args.list:
        names = [f"{case.operation}: {case.name}" for case in chosen]
        print_json({"cases": names}) if args.json else say("\n".join(names))
        return 0
    return _gpu_run(chosen, args)


def _gpu_run(chosen: list[Any], args: Namespace) -> int:
    from seqrec_fast.benchmarks import gpu, gpu_device, gpu_report, gpu_workers
    from seqrec_fast.benchmarks.machine import describe_machine

    if args.plot:
        gpu_report.check_plots()
    gpu_device.check_gpu()
    quiet: bool = args.json
    out = None if args.out is None else Path(args.out)
    plan = gpu.Plan(
        gpu_device.open_gpu,
        budget=args.budget,
        without=args.without,
        only_errors=args.errors,
        answers=partial(
            gpu_workers.children,
            patience=gpu_workers.PATIENCE + 4 * args.budget,
            group=gpu.group_of,
        ),
    )
    machine = {**describe_machine(), "device": gpu.describe(plan)}
    say(f"{machine['device']['gpu']}; {_versions(machine)}", quiet=quiet)
    for name, value in machine["device"].items():
        say(f"  {name}: {value}", quiet=quiet)
    results: dict[str, Any] = {"machine": machine, "complete": False, "rows": []}
    before = {} if out is None else gpu_report.earlier(out, machine)

    def keep() -> None:
        if out is not None:
            gpu_report.write(out, gpu_report.merged(before, results))

    keep()  # a folder that cannot be written is found out before
    red = _gpu_cases(chosen, plan, results, keep, quiet=quiet)
    everything = not args.operation and not args.match and not args.dtype
    if not args.errors and (everything or _INDEXES in (args.operation or ())):
        red += _gpu_indexes(args, results, keep)
    results["complete"] = True
    keep()
    if out is not None:
        everything_known = gpu_report.merged(before, results)
        pictures = gpu_report.draw(out, everything_known) if args.plot else []
        for path in [out / "gpu.json", *pictures]:
            say(f"wrote {path}", quiet=quiet)
    if quiet:
        print_json(results)
    return 1 if red else 0


def _gpu_cases(
    chosen: list[Any],
    plan: Any,
    results: dict[str, Any],
    keep: Callable[[], None],
    *,
    quiet: bool,
) -> int:
    """Judges and times the cases; the file of results is renewed after each."""
    from seqrec_fast.benchmarks import gpu

    found: dict[tuple[str, str], dict[str, Any]] = {}
    reached: dict[str, Any] | None = None
    if chosen:
        say(f"comparing {len(chosen)} cases with float64; what is wrong is told", quiet=quiet)
    for row in gpu.measure(chosen, plan):
        judged = (row["operation"], row["case"]) not in found
        if "ceilings" in row and row["ceilings"] != reached:
            reached = row["ceilings"]
            say("\n".join(gpu.ceilings_lines(reached)), quiet=quiet)
        found[row["operation"], row["case"]] = row
        results["rows"] = list(found.values())
        keep()
        if judged and len(found) % 50 == 0:
            say(f"{len(found)} of {len(chosen)}", quiet=quiet)
        if not judged or row["verdict"] != "right":
            say("  ".join(gpu.cells(row)), quiet=quiet)
        if judged and len(found) == len(chosen):
            say(f"errors: {gpu.counted(results['rows'])}", quiet=quiet)
    rows = results["rows"]
    shown = [gpu.cells(row) for row in rows]
    say("\n" + table(gpu.HEADER, shown, left=(0, 1)) if rows else "", quiet=quiet)
    for title, kind in (("without", "missing"), ("without a CUDA graph:", "not_recorded")):
        told = dict.fromkeys(
            f"{row['operation']}: {title} {name}: {reason}"
            for row in rows
            for name, reason in row.get(kind, {}).items()
        )
        say("\n".join(told), quiet=quiet or not told)
    say(gpu.counted(rows), quiet=quiet or not rows)
    # a run in which nothing could be judged has shown nothing
    nothing = bool(rows) and all(row["verdict"] != "right" for row in rows)
    return sum(bool(row["red"]) for row in rows) + nothing


def _gpu_indexes(args: Namespace, results: dict[str, Any], keep: Callable[[], None]) -> int:
    from seqrec_fast.benchmarks import gpu_indexes, gpu_workers
    from seqrec_fast.errors import DeviceError

    quiet: bool = args.json
    try:
        results["faiss"] = gpu_indexes.require_gpu()
    except DeviceError as error:
        results["faiss"] = {"missing": str(error)}
        say(str(error), quiet=quiet)
        return 0
    rows: list[dict[str, Any]] = []
    results["indexes"] = rows
    measured = gpu_indexes.measure(
        gpu_indexes.SIZES,
        threads=args.threads[0],
        seconds=args.budget,
        say=lambda line: say(line, quiet=quiet),
        answers=partial(gpu_workers.children, patience=_INDEX_PATIENCE + 8 * args.budget),
    )
    for row in measured:
        rows.append(row)
        keep()
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
