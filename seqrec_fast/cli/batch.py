# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast batch``: recommendations for every user of a file, written to another file."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from seqrec_fast.cli.console import (
    add_index_option,
    check_threads,
    print_json,
    read_ids,
    say,
    weight_forms,
    whole_number,
)
from seqrec_fast.cli.log_options import add_table_options, table_options
from seqrec_fast.cli.rule_options import (
    add_diversity_argument,
    add_rule_arguments,
    read_limits,
    read_where,
)

if TYPE_CHECKING:
    from seqrec_fast.batch import BatchSummary

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  seqrec-fast batch bundle users.parquet out.parquet --k 100
  seqrec-fast batch bundle users.parquet out.parquet --user customer --item basket --deny gone.txt
  seqrec-fast batch bundle users.parquet out.parquet --where "genre=Drama|Crime" --limit brand=2
  seqrec-fast batch bundle events.parquet out.parquet --time ts --flat --overwrite --json

USERS is Parquet with a row a user, the history as a list of item ids, oldest first; or a log of
events, which is sorted by user and time. OUT gets a row a user: the user, items, scores, and
whether they are the most popular items for want of a known history. It appears when it is complete.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by train")
    parser.add_argument("users", metavar="USERS", help="file, folder of parquet files, or pattern")
    parser.add_argument("out", metavar="OUT", help="Parquet file to write")
    parser.add_argument(
        "--k", type=whole_number(1), default=100, metavar="N", help="how many (default: 100)"
    )
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument(
        "--exclude-seen",
        action="store_true",
        help="no item of the history comes back (the default)",
    )
    seen.add_argument(
        "--include-seen", action="store_true", help="items of the history may come back"
    )
    parser.add_argument("--allow", metavar="FILE", help="only these items: one id a line")
    parser.add_argument("--deny", metavar="FILE", help="never these items: one id a line")
    add_rule_arguments(parser)
    add_diversity_argument(parser)
    parser.add_argument(
        "--flat", action="store_true", help="a row for each user and item: user, rank, item, score"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--weights",
        type=_one_form,
        default="float32",
        metavar="FORM",
        help="float32, bfloat16 or int8 (default: float32)",
    )
    add_index_option(parser)
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="(default: all cores)")
    parser.add_argument(
        "--chunk-users",
        type=whole_number(1),
        default=16384,
        metavar="N",
        help="users in memory at once, at most (default: 16384)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_table_options(parser, ("user", "item", "time"))


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code."""
    threads = check_threads(args.threads)
    allow = None if args.allow is None else read_ids("--allow", args.allow)
    deny = None if args.deny is None else read_ids("--deny", args.deny)
    where, limit = read_where(args), read_limits(args)

    from seqrec_fast.batch import recommend_users
    from seqrec_fast.engine import Recommender

    recommender = Recommender.load(
        args.bundle, threads=threads, weights=args.weights, retrieval=args.retrieval
    )
    with _bar() as progress:
        summary = recommend_users(
            recommender,
            args.users,
            args.out,
            k=args.k,
            exclude_seen=not args.include_seen,
            allow=allow,
            deny=deny,
            where=where,
            limit=limit,
            diversity=args.diversity,
            flat=args.flat,
            overwrite=args.overwrite,
            chunk_users=args.chunk_users,
            memory=args.memory,
            threads=threads,
            progress=progress,
            **table_options(args, ("user", "item", "time")),
        )
    if args.json:
        print_json(summary.to_dict())
    else:
        _tell(summary)
    return 0


def _tell(summary: BatchSummary) -> None:
    say(
        f"wrote {summary.out}: {summary.users:,} users, top {summary.k}, in "
        f"{summary.seconds:.1f} s ({summary.users_per_second:,.0f} users/s)"
    )
    if summary.unknown_ids:
        say(
            f"not in the bundle, ignored: {summary.unknown_ids:,} of {summary.events:,} ids of "
            f"histories"
        )
    if summary.without_known_items:
        say(
            f"without a known item: {summary.without_known_items:,} users (given the most popular "
            f"items)"
        )
    if summary.unknown_filters:
        say(f"not in the bundle, no effect: {summary.unknown_filters:,} ids of --allow and --deny")


@contextmanager
def _bar() -> Iterator[Callable[[int, int | None], None] | None]:
    """A bar on a terminal, if tqdm is there; ``None`` elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:  # it comes with the extra of training
        yield None
        return
    bar: Any = tqdm(unit="user", unit_scale=True, leave=False, file=sys.stderr)

    def move(done: int, total: int | None) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield move
    finally:
        bar.close()


def _one_form(text: str) -> str:
    found = weight_forms(text)
    if len(found) != 1:
        raise ArgumentTypeError(f"expected one form, found {text!r}")
    return found[0]
