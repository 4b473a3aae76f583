# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast recommend``: items for one history, by raw id, with titles and scores."""

from __future__ import annotations

import csv
from argparse import ArgumentParser, Namespace
from typing import Any

from seqrec_fast.cli.console import (
    add_index_option,
    check_threads,
    print_json,
    read_ids,
    say,
    table,
    whole_number,
)
from seqrec_fast.cli.rule_options import (
    add_diversity_argument,
    add_rule_arguments,
    read_limits,
    read_where,
)
from seqrec_fast.errors import InputError

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  seqrec-fast recommend bundle --history "318,296,593"
  seqrec-fast recommend bundle --history "B004OHQR1Q" --k 5 --json
  seqrec-fast recommend bundle --history "a,b" --allow @in-stock.txt --deny "c,d"
  seqrec-fast recommend bundle --history "a,b" --where "genre=Drama|Crime" --limit brand=2

Ids are those of the log, oldest first; an id with a comma stands in double quotes. Ids that the
bundle does not know are ignored and named; where none is known, the most popular items are given,
and the answer says so.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by train")
    parser.add_argument(
        "--history", required=True, metavar="IDS", help="what the user did, oldest first: a,b,c"
    )
    parser.add_argument(
        "--k", type=whole_number(1), default=10, metavar="N", help="how many (default: 10)"
    )
    parser.add_argument(
        "--include-seen", action="store_true", help="items of the history may come back"
    )
    parser.add_argument("--allow", metavar="IDS", help="only these: a,b,c or @FILE, one id a line")
    parser.add_argument("--deny", metavar="IDS", help="never these: a,b,c or @FILE, one id a line")
    add_rule_arguments(parser)
    add_diversity_argument(parser)
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="(default: all cores)")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)"
    )
    add_index_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code."""
    history = _ids("--history", args.history)
    allow = None if args.allow is None else _ids("--allow", args.allow)
    deny = None if args.deny is None else _ids("--deny", args.deny)
    where, limit = read_where(args), read_limits(args)

    from seqrec_fast.engine import Recommender

    recommender = Recommender.load(
        args.bundle,
        threads=check_threads(args.threads),
        device=args.device,
        retrieval=args.retrieval,
    )
    answer = recommender.recommend(
        [history],
        k=args.k,
        exclude_seen=not args.include_seen,
        allow=allow,
        deny=deny,
        where=where,
        limit=limit,
        diversity=args.diversity,
    )[0]
    rows: list[dict[str, Any]] = [
        {"rank": rank, "item": item, "title": title, "score": score}
        for rank, (item, title, score) in enumerate(
            zip(answer.items.tolist(), answer.titles, answer.scores.tolist(), strict=True), start=1
        )
    ]
    unknown = [str(item) for item in answer.unknown]
    unknown_filters = [str(item) for item in answer.unknown_filters]
    if args.json:
        print_json(
            {
                "history": history,
                "k": args.k,
                "unknown": unknown,
                "unknown_filters": unknown_filters,
                "fallback": answer.fallback,
                "recommendations": rows,
            }
        )
        return 0
    if unknown:
        say(f"not in the bundle, ignored: {', '.join(unknown)}")
    if unknown_filters:
        say(f"not in the bundle, no effect: {', '.join(unknown_filters)}")
    if answer.fallback is not None:
        say(f"no known item in the history: {answer.fallback} instead")
    if not rows:
        say("nothing is left to recommend")
        return 0
    say(
        table(
            ["rank", "item", "title", "score"],
            [[str(r["rank"]), str(r["item"]), r["title"] or "", f"{r['score']:.4f}"] for r in rows],
            left=(1, 2),
        )
    )
    if len(rows) < args.k:
        say(f"{len(rows)} of the {args.k} asked for: no more items are left")
    return 0


def _ids(option: str, text: str) -> list[str]:
    """Raw ids from ``a,b,c`` (an id with a comma in double quotes) or from ``@FILE``.

    Raises:
        InputError: no id in it, or a file that can't be read as text.
    """
    if text.startswith("@"):
        return read_ids(option, text[1:])
    try:
        found = [part.strip() for part in next(csv.reader([text], skipinitialspace=True), [])]
    except csv.Error as error:
        raise InputError(f"{option}: {error}; separate ids with commas") from None
    found = [item for item in found if item]
    if not found:
        raise InputError(
            f"{option}: no id in {text!r}; give raw ids as in the log, for instance a,b"
        )
    return found
