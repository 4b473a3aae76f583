# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast items``: adds items to a bundle, changes or removes them, without training."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from seqrec_fast.cli.console import check_output, number, print_json, read_ids, say
from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    from seqrec_fast.bundle.catalogue import Changed
    from seqrec_fast.data.items import ItemTable

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  seqrec-fast items bundle --add new.csv
  seqrec-fast items bundle --add new.csv --like similar --remove sold-out.txt --out changed
  seqrec-fast items bundle --remove sold-out.txt --json

new.csv is an item table: a column of ids, and any of those that the bundle's item table has, for
instance a title. A new item's vector comes from the column that --vector names, or from the items
that --like names, or else from its title and its other columns, by a regression on the items that
the bundle knows; how far that can be relied on is printed. Known ids get what the file tells of
them. A removed item is not recommended any more, but histories that hold it are understood.
"""

# what may stand between the columns of a table
_BETWEEN = (",", "\t", ";", "|", "::", " ")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by train")
    parser.add_argument("--add", metavar="FILE", help="item table of new or changed items")
    parser.add_argument("--remove", metavar="FILE", help="ids to remove, one a line")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: BUNDLE itself)")
    parser.add_argument("--item-id", metavar="COLUMN", help="column of the ids in --add")
    parser.add_argument("--title", metavar="COLUMN", help="column of the titles in --add")
    parser.add_argument(
        "--like", metavar="COLUMN", help="column of similar items in --add: ids with | between them"
    )
    parser.add_argument(
        "--vector", metavar="COLUMN", help="column of vectors in --add: numbers with spaces between"
    )
    parser.add_argument(
        "--boost",
        type=number,
        metavar="X",
        help="how boldly predicted items compete (default: 0.8)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code."""
    from seqrec_fast import bundle as bundles
    from seqrec_fast.bundle import catalogue

    if args.add is None and args.remove is None:
        raise InputError("--add: neither it nor --remove is given; give a file to one of them")
    if args.add is None and (args.like or args.vector):
        raise InputError("--like: it and --vector name columns of --add, which is not given")
    out = Path(args.bundle)
    if args.out is not None:
        out = check_output(args.out, "--out", marker="manifest.json")
    gone = [] if args.remove is None else read_ids("--remove", args.remove)
    seen = bundles.stamp(args.bundle)
    content = bundles.load(args.bundle)
    added = _Added([], None, None, None)
    if args.add is not None:
        added = _read(args)
    done = catalogue.change(
        content,
        add=added.ids,
        vectors=added.vectors,
        like=added.like,
        table=added.table,
        remove=gone,
        **({} if args.boost is None else {"boost": args.boost}),
    )
    itself = out.resolve() == Path(args.bundle).resolve()
    bundles.save(done.bundle, out, after=seen if itself else None)
    facts = _facts(done, out)
    if args.json:
        print_json(facts)
    else:
        say(_describe(facts))
    return 0


class _Added(NamedTuple):
    """What --add holds."""

    ids: list[Any]
    table: ItemTable | None
    like: list[Any] | None
    vectors: list[Any] | None


def _read(args: Namespace) -> _Added:
    from seqrec_fast.data.item_source import open_item_table
    from seqrec_fast.data.items import ItemTable
    from seqrec_fast.data.vocabulary import Vocabulary

    alone = _ids_alone(args)
    if alone is not None:
        return _Added(alone, None, None, None)
    source = open_item_table(Path(args.add), args.item_id, args.title, None)
    ids = source.ids()
    if not ids:
        raise InputError(f"--add: {args.add} has no rows; write one item a row")
    # Texts: as numbers "7" and "07" would be one id.
    table, _ = source.load(Vocabulary.from_ids([str(raw) for raw in ids]))
    columns = {} if table is None else dict(table.columns)

    def taken(option: str, name: str | None, parse: Callable[[str], Any]) -> list[Any] | None:
        if name is None:
            return None
        if name not in columns:
            raise InputError(
                f"{option}: {args.add} has no column {name!r}; it has {', '.join(columns) or 'ids'}"
            )
        found = columns.pop(name)
        cells = found.tolist() if isinstance(found, np.ndarray) else found
        filled = [None if cell is None or cell != cell else _text(cell) for cell in cells]
        return [parse(cell) if cell else None for cell in filled]

    def numbers(cell: str) -> Any:
        try:
            return [float(part) for part in cell.split()]
        except ValueError:
            raise InputError(
                f"--vector: {args.add}: expected numbers with spaces between, found {cell[:40]!r}"
            ) from None

    def names(cell: str) -> Any:
        return [part.strip() for part in cell.split("|") if part.strip()]

    like = taken("--like", args.like, names)
    vectors = taken("--vector", args.vector, numbers)
    title = None if table is None else table.title_column
    rest = ItemTable(columns, title if title in columns else None) if columns else None
    return _Added(ids, rest, like, vectors)


def _ids_alone(args: Namespace) -> list[Any] | None:
    """The ids of a text file of one column, with a header or without; ``None`` for any other.

    That is what brings removed items back, which have vectors and rows of the item table already.
    """
    from seqrec_fast.data.recognition import recognise
    from seqrec_fast.data.sniffing import read_head

    head = read_head(Path(args.add), None)
    if head.parquet or head.gzipped or args.like or args.vector or args.title:
        return None
    if any(mark in line.strip() for line in head.lines for mark in _BETWEEN):
        return None
    ids = read_ids("--add", args.add)
    if ids[0] == args.item_id or recognise("item", ids[:1]):
        del ids[0]
    if not ids:
        raise InputError(f"--add: {args.add} has no rows; write one item a row")
    return list(ids)


def _text(cell: Any) -> str:
    """A cell as it stood in the file, also where the column was taken for one of numbers."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _facts(done: Changed, out: Path) -> dict[str, Any]:
    removed = done.bundle.removed
    gone = 0 if removed is None else int(np.count_nonzero(removed))
    return {
        "out": str(out),
        "added": done.added,
        "changed": done.changed,
        "restored": done.restored,
        "removed": done.removed,
        "unknown": list(done.unknown),
        "vectors": done.sources,
        "quality": None if done.quality is None else asdict(done.quality),
        "items": len(done.bundle.items),
        "recommended": len(done.bundle.items) - gone,
    }


def _describe(facts: dict[str, Any]) -> str:
    vectors, quality = facts["vectors"], facts["quality"]
    lines = [
        f"added {facts['added']:,}, changed {facts['changed']:,}, restored "
        f"{facts['restored']:,}, removed {facts['removed']:,}",
    ]
    if any(vectors.values()):
        lines.append(
            f"vectors: {vectors['given']:,} given, {vectors['like']:,} from similar items, "
            f"{vectors['features']:,} predicted from the item table"
        )
    if quality is not None:
        lines.append(
            f"predictions, judged on {quality['items']:,} items held out: R2 {quality['r2']:.3f}, "
            f"{quality['recall']:.1%} of the 10 nearest items found (by chance "
            f"{quality['chance']:.1%})"
        )
    if unknown := facts["unknown"]:
        shown = ", ".join(str(raw) for raw in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        lines.append(f"not known, so not removed: {len(unknown):,} ({shown})")
    lines.append(
        f"{facts['out']}: {facts['items']:,} items, {facts['recommended']:,} of them recommended"
    )
    return "\n".join(lines)
