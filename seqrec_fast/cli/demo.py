# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast demo``: the whole way, from a made-up log on disk to recommendations by title."""

from __future__ import annotations

import csv
import os
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrec_fast.cli.console import check_output, check_threads, print_json, say, whole_number
from seqrec_fast.cli.figures import figures_table

if TYPE_CHECKING:
    from seqrec_fast.data import Split
    from seqrec_fast.engine import Recommender

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  seqrec-fast demo
  seqrec-fast demo --out /tmp/demo --seed 7 --epochs 5
  seqrec-fast demo --model gru --json

The log is a small bookshop, made up: readers with a favourite genre that changes in the course of
the year, books that lead to one another, a few bestsellers, and some dirt (rows twice, fields
missing, impossible times). What the folder then holds can be used with the other commands.
"""

#: a run takes about a minute on two cores with these
_EPOCHS, _USERS, _ITEMS = 10, 2000, 800
_FILTERS: dict[str, Any] = {"min_user_events": 5, "min_item_events": 5}
_SHOWN_USERS, _SHOWN_ITEMS, _SHOWN_HISTORY = 3, 5, 5
_TWICE, _BLANK, _IMPOSSIBLE = 0.01, 0.005, 0.002  # shares of the rows that are spoiled


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "--out", default="seqrec-demo", metavar="DIR", help="folder to write (default: seqrec-demo)"
    )
    parser.add_argument(
        "--model",
        choices=("sasrec", "gru", "lstm", "rnn"),
        default="sasrec",
        help="(default: sasrec)",
    )
    for name, value, least in (
        ("epochs", _EPOCHS, 1),
        ("users", _USERS, 50),
        ("items", _ITEMS, 20),
    ):
        parser.add_argument(
            f"--{name}",
            type=whole_number(least),
            default=value,
            metavar="N",
            help=f"(default: {value})",
        )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="of log and model (default: 0)"
    )
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="(default: all cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code."""
    threads = check_threads(args.threads)
    out = check_output(args.out, "--out", marker="events.csv")
    from seqrec_fast import data, training

    began = time.monotonic()
    out.mkdir(exist_ok=True)
    events, items, place = out / "events.csv", out / "items.csv", out / "bundle"

    _headline("1. a log", args)
    log = data.synthetic_log(users=args.users, items=args.items, seed=args.seed)
    rows = _write_log(log, events, items, args.seed)
    say(f"{rows:,} events written to {events}, titles to {items}", quiet=args.json)

    _headline("2. cleaning", args)
    prepared = data.prepare(data.read_log(events, items=items, threads=threads), **_FILTERS)
    split = data.leave_one_out(prepared)
    say(f"{prepared.report}", quiet=args.json)

    _headline(f"3. training: {args.model}", args)
    result = training.fit(
        split,
        args.model,
        epochs=args.epochs,
        seed=args.seed,
        max_length=50,
        patience=3,
        threads=threads,
    )
    if not result.history:
        raise KeyboardInterrupt
    _save(result, place, events)
    _headline("4. evaluation: the last book of each reader, among all books", args)
    columns = {args.model: result.metrics["test"], "popularity": result.metrics["popularity"]}
    say(figures_table(columns, cutoff=10), quiet=args.json)

    _headline("5. recommendations from the bundle, without torch", args)
    from seqrec_fast.engine import Recommender

    shown = _examples(Recommender.load(place, threads=threads), split)
    say("\n\n".join(_describe(one) for one in shown), quiet=args.json)
    seconds = time.monotonic() - began
    if args.json:
        print_json(
            {
                "out": os.fspath(out),
                "bundle": os.fspath(place),
                "curve": os.fspath(place / "curve.png"),
                "seconds": seconds,
                "metrics": result.metrics,
                "cleaning": split.report.to_dict(),
                "users": shown,
            }
        )
    else:
        say(_farewell(out, shown, seconds))
    return 130 if result.interrupted else 0


def _headline(text: str, args: Namespace) -> None:
    say(f"\n--- {text} " + "-" * (95 - len(text)), quiet=args.json)


def _save(result: Any, place: Path, events: Path) -> None:
    from seqrec_fast.cli.train import save

    save(result, place, {"log": os.fspath(events), "options": dict(_FILTERS)})


# -------------------------------------------------------------------- the log on disk


def _write_log(log: Any, events: Path, items: Path, seed: int) -> int:
    """Writes the log and its titles as CSV, a few rows spoiled; returns the number of rows."""
    import numpy as np

    columns = {name: log.table.column(name).to_pylist() for name in log.table.column_names}
    order = ("user", "item", "event", "time")
    rows = list(zip(*(columns[name] for name in order), strict=True))
    chance = np.random.default_rng(seed).random((len(rows), 2))
    spoiled: list[Sequence[Any]] = []
    for (user, item, event, moment), (kind, place) in zip(rows, chance, strict=True):
        if kind < _TWICE:
            spoiled.append((user, item, event, moment))
        elif kind < _TWICE + _BLANK:
            user, item = ("", item) if place < 0.5 else (user, "")
        elif kind < _TWICE + _BLANK + _IMPOSSIBLE:
            moment = -1
        spoiled.append((user, item, event, moment))
    _write_csv(events, ("user_id", "item_id", "event", "timestamp"), spoiled)

    from seqrec_fast import data

    clean = data.prepare(log)
    table = clean.item_table
    assert table is not None, "synthetic_log comes with titles"
    names = list(table.columns)
    raw = clean.items.decode(np.arange(len(clean.items))).tolist()
    _write_csv(
        items,
        ("item_id", *names),
        zip(raw, *(list(table.columns[name]) for name in names), strict=True),
    )
    return len(spoiled)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


# -------------------------------------------------------------------- what is shown


def _examples(recommender: Recommender, split: Split) -> list[dict[str, Any]]:
    """A few readers: what they read, what they read next, what was recommended."""
    import numpy as np

    holdout = split.test
    lengths = np.diff(holdout.histories.offsets)
    long_enough = np.flatnonzero(lengths >= min(_SHOWN_HISTORY, int(lengths.max())))
    chosen = long_enough[np.linspace(0, len(long_enough) - 1, _SHOWN_USERS).astype(np.int64)]
    histories = [split.items.decode(holdout.histories[int(row)]).tolist() for row in chosen]
    table = split.item_table

    def titled(raw: Sequence[Any]) -> list[dict[str, Any]]:
        indices = split.items.encode(list(raw)).tolist()
        return [
            {"item": item, "title": None if table is None else table.title(index)}
            for item, index in zip(raw, indices, strict=True)
        ]

    shown = []
    for row, history, answer in zip(
        chosen.tolist(), histories, recommender.recommend(histories, k=_SHOWN_ITEMS), strict=True
    ):
        scored = zip(answer.items.tolist(), answer.titles, answer.scores.tolist(), strict=True)
        shown.append(
            {
                "user": split.users.decode([int(holdout.users[row])]).tolist()[0],
                "history": titled(history[-_SHOWN_HISTORY:]),
                "earlier": max(0, len(history) - _SHOWN_HISTORY),
                "next": titled(split.items.decode(holdout.targets[row]).tolist())[0],
                "recommendations": [
                    {"rank": rank, "item": item, "title": title, "score": score}
                    for rank, (item, title, score) in enumerate(scored, start=1)
                ],
            }
        )
    return shown


def _describe(one: dict[str, Any]) -> str:
    history = "\n".join(f"    {entry['title']}  ({entry['item']})" for entry in one["history"])
    earlier = f" (and {one['earlier']} before)" if one["earlier"] else ""
    lines = [f"{one['user']} lately read{earlier}", history, "  recommended"]
    for entry in one["recommendations"]:
        mark = "  <- what the reader took next" if entry["item"] == one["next"]["item"] else ""
        title = f"{entry['title']}  ({entry['item']})"
        lines.append(f"    {entry['rank']}. {title:<58} {entry['score']:8.4f}{mark}")
    return "\n".join(lines)


def _farewell(out: Path, shown: Sequence[dict[str, Any]], seconds: float) -> str:
    place = _short(out)
    command = _command()
    history = ",".join(str(entry["item"]) for entry in shown[0]["history"])
    return "\n".join(
        [
            "",
            f"done in {seconds:.0f} s; the bundle is {place}/bundle, the training curve "
            f"{place}/bundle/curve.png",
            "go on with",
            f'  {command} recommend {place}/bundle --history "{history}"',
            f"  {command} evaluate {place}/bundle {place}/events.csv --k 5,10,20",
            f"  {command} train {place}/events.csv --items {place}/items.csv "
            "--model gru --out bundle",
        ]
    )


def _command() -> str:
    """How this program is called from here: by its path where the shell would not find it."""
    called = Path(sys.argv[0])
    if called.name != "seqrec-fast" or shutil.which("seqrec-fast"):
        return "seqrec-fast"
    return _short(called.absolute())


def _short(path: Path) -> str:
    """The path as it can be typed from here."""
    here = Path.cwd()
    return os.fspath(path.relative_to(here) if path.is_relative_to(here) else path)
