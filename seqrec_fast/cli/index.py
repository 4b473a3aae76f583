# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast index``: chooses an index over a bundle's items by measurement, and keeps it."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec_fast.cli.console import (
    check_output,
    check_threads,
    number,
    print_json,
    say,
    whole_number,
)
from seqrec_fast.cli.log_options import add_log_options
from seqrec_fast.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from seqrec_fast.bundle import Bundle
    from seqrec_fast.cli.index_queries import Queries

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  seqrec-fast index bundle --log events.csv
  seqrec-fast index bundle --kind auto --recall 0.95 --k 50 --log events.csv --budget 600
  seqrec-fast index bundle --kind exact --dtype bfloat16
  seqrec-fast index bundle --kind ivf-native --option nlist=500
  seqrec-fast index bundle --remove

With --kind auto every kind that is installed is built, and its search is tuned to find --recall of
the --k best items; the quickest of those that do is kept in the bundle, beside what was measured.
The exact index is always tried. Queries are the embeddings of users of --log before their held-out
events; without a log they are made up from popularity and neighbours, and the bundle says so.

The index serves with Recommender.load(..., retrieval="index") and --index of recommend, batch and
serve; evaluate measures with it and without.
"""

_PICTURE = "index.png"


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    from seqrec_fast.retrieval import KINDS

    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by train")
    parser.add_argument(
        "--kind",
        choices=("auto", *KINDS),
        default="auto",
        metavar="KIND",
        help=f"auto (the default), or one of {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--option",
        action="append",
        type=_option,
        metavar="NAME=VALUE",
        help="of that kind; may be repeated; not with auto",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        help="what --kind exact reads of every vector: float32; int8, the same result from a table "
        "of bytes beside the vectors; or bfloat16, rounded vectors in half the memory",
    )
    parser.add_argument(
        "--recall",
        type=number,
        metavar="SHARE",
        help="of the k best items that auto has to find (default: 0.99)",
    )
    parser.add_argument(
        "--k", type=whole_number(1), default=100, metavar="N", help="(default: 100)"
    )
    parser.add_argument(
        "--log", metavar="LOG", help="file, folder of parquet files, or pattern: users to measure"
    )
    parser.add_argument(
        "--queries",
        type=whole_number(2),
        default=1000,
        metavar="N",
        help="users to measure with, at most (default: 1000)",
    )
    parser.add_argument(
        "--threads",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="cores of one search (default: 1)",
    )
    parser.add_argument(
        "--budget", type=number, metavar="SECONDS", help="begin nothing new after so long (auto)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--remove", action="store_true", help="only take the index out")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_log_options(parser)


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code."""
    _check(args)
    from seqrec_fast import bundle as bundles

    seen = bundles.stamp(args.bundle)
    bundle = bundles.load(args.bundle, mmap=True, index=False)
    place = _place(args.bundle)
    bundle.extra_files.pop(_PICTURE, None)
    if args.remove:
        bundles.save(bundle, place, after=seen)
        result: dict[str, Any] = {"bundle": args.bundle, "index": None}
        if args.json:
            print_json(result)
        else:
            say(f"{args.bundle} has no index now")
        return 0
    result = _made(args, bundle)
    bundles.save(bundle, place, after=seen)
    if args.json:
        print_json(result)
    else:
        chosen = next(one for one in result["trials"] if one["chosen"])
        say(
            f"{chosen['kind']} is now the index of {args.bundle}: recall@{result['k']} "
            f"{chosen['recall']:.4f}, {chosen['median_us']:,.0f} µs a query"
        )
    return 0


def _made(args: Namespace, bundle: Bundle) -> dict[str, Any]:
    """Puts an index and its picture into the bundle; returns what ``--json`` prints."""
    import numpy as np

    from seqrec_fast.benchmarks.machine import cpu_name
    from seqrec_fast.cli.index_queries import float_vectors, of_log, sampled
    from seqrec_fast.cli.trade import trade_table
    from seqrec_fast.engine.encoders import build_encoder
    from seqrec_fast.engine.index_ranker import item_rows, query_rows

    encoder = build_encoder(bundle.config, bundle.tensors)
    if args.log is not None:
        queries = of_log(args, bundle, encoder, args.queries, args.threads)
    else:
        queries = sampled(bundle, encoder, args.queries, args.seed, args.threads)
    vectors = item_rows(float_vectors(encoder), encoder.item_bias)
    # Of several interests a user each is a query of its own, as it is when it is served.
    each = queries.embeddings.reshape(-1, queries.embeddings.shape[-1])
    rows = query_rows(each, encoder.item_bias)
    removed = np.empty(0, np.int64) if bundle.removed is None else np.flatnonzero(bundle.removed)
    left = f"; {len(removed):,} removed items are left out" if len(removed) else ""
    say(f"measuring on {queries.source}{left}", quiet=args.json)
    find = _chosen if args.kind == "auto" else _given
    index, result = find(args, vectors, rows, removed)
    result["removed"] = len(removed)
    result["measured_on"] = queries.source
    result["cpu"] = cpu_name()
    index.measured = {
        **(index.measured or {}),
        "measured_on": queries.source,
        "cpu": result["cpu"],
        "items": len(index),
    }
    bundle.index = index.to_tensors()
    target = result.get("target")
    if not args.json:
        say(trade_table(result["trials"], result["k"]))
        for one in result["skipped"]:
            options = "".join(f" {name}={value}" for name, value in one["build"].items())
            say(f"not measured: {one['kind']}{options}: {one['reason']}")
        if target is not None and not any(
            one["reached"] and not one["exact"] for one in result["trials"]
        ):
            say(f"no kind but the exact one reached a recall of {target:g}")
    result["picture"] = _draw(args, bundle, result, queries)
    return {"bundle": args.bundle, **result}


def _chosen(args: Namespace, vectors: Any, rows: Any, removed: Any) -> tuple[Any, dict[str, Any]]:
    from seqrec_fast.retrieval.tuning import tune

    progress = _Progress()
    try:
        found = tune(
            vectors,
            rows,
            args.k,
            0.99 if args.recall is None else args.recall,
            threads=args.threads,
            budget=args.budget,
            seed=args.seed,
            removed=removed,
            say=progress,
        )
    finally:
        progress.close()
    return found.best, found.to_dict()


def _given(args: Namespace, vectors: Any, rows: Any, removed: Any) -> tuple[Any, dict[str, Any]]:
    import time

    from seqrec_fast.retrieval import build
    from seqrec_fast.retrieval.tuning import measure

    options = dict(args.option or ())
    began = time.perf_counter()
    index = build(vectors, args.kind, **options)
    seconds = time.perf_counter() - began
    index.remove(removed)
    found = measure(index, vectors, rows, args.k, threads=args.threads, removed=removed)
    index.measured = {**found, "build_seconds": seconds}
    trial = {
        "kind": args.kind,
        "build": options,
        "search": {},
        **{name: found[name] for name in ("recall", "median_us", "p99_us", "bytes")},
        "reached": True,
        "build_seconds": seconds,
        "exact": index.exact,
        "curve": [],
        "chosen": True,
    }
    return index, {
        "k": found["k"],
        "queries_measured_on": found["queries_measured_on"],
        "threads": args.threads,
        "trials": [trial],
        "skipped": [],
    }


def _draw(args: Namespace, bundle: Bundle, result: dict[str, Any], queries: Queries) -> str | None:
    """Puts the picture into the bundle; returns its name, or ``None`` without matplotlib."""
    if result.get("target") is None:
        return None  # one index alone is no trade
    from seqrec_fast.cli.trade import trade_picture

    title = (
        f"{bundle.config['model']}, {len(bundle.items):,} items, {len(queries.embeddings):,} users"
    )
    try:
        bundle.extra_files[_PICTURE] = trade_picture(
            result["trials"], result["k"], result["target"], title
        )
    except MissingExtraError as error:
        say(f"no picture: {error}", quiet=args.json)
        return None
    return _PICTURE


class _Progress:
    """One line that changes on a terminal; a line each elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _check(args: Namespace) -> None:
    """Options that do not go together, before anything is read."""
    check_threads(args.threads)
    if args.recall is not None and not 0 < args.recall <= 1:
        raise InputError(f"--recall: expected above 0 and at most 1, found {args.recall:g}")
    if args.budget is not None and args.budget <= 0:
        raise InputError(f"--budget: must be above 0, found {args.budget:g}")
    if args.dtype is not None:
        if args.kind != "exact":
            raise InputError("--dtype: belongs to --kind exact; give that too, or leave it out")
        args.option = [*(args.option or ()), ("dtype", args.dtype)]
    if args.kind == "auto":
        if args.option:
            raise InputError("--option: belongs to one kind; give --kind too")
    else:
        for option, value in (("--recall", args.recall), ("--budget", args.budget)):
            if value is not None:
                raise InputError(f"{option}: belongs to --kind auto; leave it out")
    names = [name for name, _ in args.option or ()]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--option: {name} is given twice")


def _option(text: str) -> tuple[str, Any]:
    """An argparse type: ``name=value``; numbers, true and false are read as such."""
    name, equals, value = text.partition("=")
    name, value = name.strip().replace("-", "_"), value.strip()
    if not equals or not name.isidentifier() or not value:
        raise ArgumentTypeError(f"expected NAME=VALUE, for instance dtype=int8, found {text!r}")
    try:
        found = json.loads(value)
    except ValueError:
        return name, value
    return name, value if isinstance(found, (list, dict)) else found


def _place(path: str) -> Path:
    """Where the bundle is written again, checked before the work instead of after it."""
    from seqrec_fast import bundle as bundles

    place = check_output(path, "BUNDLE", marker="manifest.json")
    if place.is_dir():
        known = {"manifest.json", *bundles.info(place)["files"]}
        foreign = sorted({entry.name for entry in place.iterdir()} - known)
        if foreign:
            raise InputError(
                f"BUNDLE: {path} also holds {foreign[0]!r}, which would be lost; move it away first"
            )
    return place
