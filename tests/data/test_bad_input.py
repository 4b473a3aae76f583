# SPDX-License-Identifier: Apache-2.0
"""Everything that cannot be used gives one clear line that names the fault and the remedy."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqrec_fast import data
from seqrec_fast.errors import InputError

CSV = "user,item,time\n1,5,100\n2,6,200\n"
PARQUET = pa.table({"user": [1, 2], "item": [5, 6], "time": [100, 200]})


def file(folder: Path, content: str | bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(folder: Path, table: pa.Table, name: str = "log.parquet") -> Path:
    pq.write_table(table, folder / name)
    return folder / name


def cut(path: Path, keep: int) -> Path:
    path.write_bytes(path.read_bytes()[:keep])
    return path


def overwritten(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(bytes(content))
    return path


def read(path: Any, **options: Any) -> None:
    data.prepare(data.read_log(path, **options))


FILES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no file": (lambda d: read(d / "none.csv"), ["none.csv", "no such file"]),
    "no match": (lambda d: read(d / "*.csv"), ["*.csv", "no file matches"]),
    "a folder": (lambda d: read(d), ["is a folder without .parquet"]),
    "no files": (lambda d: read([]), ["list of files is empty"]),
    "not a path": (lambda d: read(7), ["path: must be a path"]),
    "empty": (lambda d: read(file(d, "")), ["log.csv: is empty"]),
    "blank": (lambda d: read(file(d, "\n\n \n")), ["nothing but blank lines"]),
    "header only": (lambda d: read(file(d, "user,item\n")), ["header and no rows"]),
    "binary": (lambda d: read(file(d, bytes(range(256)) * 9)), ["log.csv", "binary file"]),
    "empty gz": (lambda d: read(file(d, gzip.compress(b""), "a.csv.gz")), ["is empty inside"]),
    "cut gz": (
        lambda d: read(file(d, gzip.compress(os.urandom(99_000).hex().encode())[:5000], "a.gz")),
        ["a.gz", "damaged or truncated"],
    ),
    "gz cut late": (
        lambda d: read(
            file(
                d,
                gzip.compress(
                    b"user,item\n"
                    + b"".join(b"%d,%d\n" % (i, i * 7919 % 10007) for i in range(200_000))
                )[:-5000],
                "a.csv.gz",
            )
        ),
        ["a.csv.gz", "truncated"],
    ),
    "missing column": (
        lambda d: read(file(d, CSV), user="member"),
        ["no column 'member'", "user, item, time", "user="],
    ),
    "no user column": (
        lambda d: read(file(d, "a,item\nx,y\n")),
        ["recognised as the user", "a, item", "user="],
    ),
    "no item column": (
        lambda d: read(file(d, "user,b\nx,y\n")),
        ["recognised as the item", "item="],
    ),
    "two users": (
        lambda d: read(file(d, "user_id,userId,item\n1,2,3\n")),
        ["'user_id' and 'userId'", "user="],
    ),
    "column twice": (
        lambda d: read(file(d, CSV), user="user", item="user"),
        ["user= and item= both name", "'user'"],
    ),
    "same names": (
        lambda d: read(file(d, "user,item,item\n1,2,3\n"), item="item"),
        ["2 columns named 'item'", "as a number"],
    ),
    "column number": (lambda d: read(file(d, CSV), user=9), ["user=9", "0 to 2"]),
    "column kind": (lambda d: read(file(d, CSV), user=1.5), ["user: must be a column name"]),
    "wrong delimiter": (
        lambda d: read(file(d, CSV), delimiter=";"),
        ["log.csv", "only one column", "delimiter=','"],
    ),
    "odd delimiter": (
        lambda d: read(file(d, CSV.replace(",", "^"))),
        ["only one column", "'user^item^time'", "delimiter="],
    ),
    "empty delimiter": (lambda d: read(file(d, CSV), delimiter=""), ["delimiter: must be"]),
    "too wide": (
        lambda d: read(file(d, "user,item\n1,2\n3,4,5\n")),
        ["log.csv: line 3 has 3 columns, expected 2"],
    ),
    "too narrow": (
        lambda d: read(file(d, CSV + "7\n")),
        ["log.csv: line 4 has 1 columns, expected 3"],
    ),
    "ragged second file": (
        lambda d: read([file(d, CSV), file(d, CSV + "7\n", "more.csv")]),
        ["more.csv: line 4"],
    ),
    "open quote": (lambda d: read(file(d, 'user,item\n1,"2\n')), ["log.csv", "quote"]),
    "no header": (
        lambda d: read(file(d, "1,2,3\n4,5,6\n")),
        ["3 columns and no header line", "user=0", "header="],
    ),
    "names do not fit": (
        lambda d: read(file(d, CSV), header=["user", "item"]),
        ["header= names 2 columns, but line 1 has 3"],
    ),
    "header kind": (lambda d: read(file(d, CSV), header="yes"), ["header: must be"]),
    "format": (lambda d: read(file(d, CSV), format="xml"), ["'xml' is not known", "parquet"]),
    "not parquet": (
        lambda d: read(file(d, CSV), format="parquet"),
        ["format='parquet'", "the file is text"],
    ),
    "parquet as csv": (
        lambda d: read(parquet(d, PARQUET), format="csv"),
        ["format='csv'", "the file is Parquet"],
    ),
    "named parquet": (lambda d: read(file(d, CSV, "a.parquet")), ["a.parquet: is not Parquet"]),
    "cut parquet": (
        lambda d: read(cut(parquet(d, PARQUET), 300)),
        ["log.parquet", "truncated"],
    ),
    "damaged parquet": (
        lambda d: read(overwritten(parquet(d, PARQUET))),
        ["log.parquet"],
    ),
    "parquet delimiter": (
        lambda d: read(parquet(d, PARQUET), delimiter=","),
        ["delimiter: Parquet files have none"],
    ),
    "parquet column": (
        lambda d: read(parquet(d, PARQUET), time="when"),
        ["no column 'when'", "user, item, time"],
    ),
    "list ids": (
        lambda d: read(parquet(d, pa.table({"user": [[1]], "item": [1]}))),
        ["'user' (user) holds", "integers or text"],
    ),
    "struct ids": (
        lambda d: read(parquet(d, pa.table({"user": [1], "item": [{"a": 1}]}))),
        ["'item' (item) holds", "integers or text"],
    ),
    "bool ids": (
        lambda d: read(parquet(d, pa.table({"user": [True], "item": [1]}))),
        ["'user' (user) holds boolean"],
    ),
    "fraction ids": (
        lambda d: read(parquet(d, pa.table({"user": [1.0, 2.5], "item": [1, 2]}))),
        ["'user' (user) holds 2.5 in row 2"],
    ),
    "typed header": (
        lambda d: read(file(d, CSV, "a.inter"), format="inter"),
        ["not a typed header"],
    ),
    "mixed files": (
        lambda d: read([file(d, CSV), parquet(d, PARQUET)]),
        ["log.parquet: is Parquet", "one format"],
    ),
    "times in one file only": (
        lambda d: read([file(d, CSV), file(d, "user,item\n1,5\n", "more.csv")]),
        ["more.csv", "differ", "user, item, time"],
    ),
    "times in one Parquet only": (
        lambda d: read([parquet(d, PARQUET), parquet(d, PARQUET.drop(["time"]), "b.parquet")]),
        ["b.parquet: has no column 'time' (time)"],
    ),
    "partly compressed": (
        lambda d: read([file(d, CSV), file(d, gzip.compress(CSV.encode()), "b.csv.gz")]),
        ["some files are compressed"],
    ),
    "encoding": (lambda d: read(file(d, CSV), encoding="klingon"), ["'klingon' is not known"]),
    "not that encoding": (
        lambda d: read(file(d, b"user,item\n1,\xe9\n"), encoding="utf-8"),
        ["log.csv", "utf-8"],
    ),
    "late not that encoding": (
        lambda d: read(file(d, b"user,item\n" + b"1,2\n" * 30_000 + b"1,\xe9\n"), encoding="utf-8"),
        ["log.csv: line 30002 is not UTF-8"],
    ),
    "memory": (lambda d: read(file(d, CSV), memory="lots"), ["memory: 'lots'", "2GiB"]),
    "little memory": (lambda d: read(file(d, CSV), memory=5), ["memory: 5 is too little"]),
    "threads": (lambda d: read(file(d, CSV), threads=0), ["threads: must be"]),
    "negative weight": (
        lambda d: read(file(d, "user,item,weight\n1,2,1\n1,3,-2\n")),
        ["'weight' is negative in row 2 (-2)"],
    ),
    "weights of words": (
        lambda d: read(file(d, "user,item,weight\n1,2,heavy\n")),
        ["'weight' (weight) is a number (row 1 holds 'heavy')"],
    ),
    "second line of a user": (
        lambda d: read(file(d, "1 2 3\n2 3\n1 4\n", "a.txt"), first="user"),
        ["a.txt: line 3 is the second of user '1'", "first='item'"],
    ),
    "first": (lambda d: read(file(d, "1 2\n2\n", "a.txt"), first="x"), ["first: must be"]),
    "column of a sequence": (
        lambda d: read(file(d, "1 2 3\n2 3\n", "a.txt"), user="u"),
        ["user: sequence files have no columns"],
    ),
    "first of a table": (lambda d: read(file(d, CSV), first="user"), ["is for sequence files"]),
    "times of a table": (
        lambda d: read(file(d, CSV), times=file(d, "1 5\n", "t.txt")),
        ["times: is for sequence files", "time="],
    ),
    "too few times": (
        lambda d: read(file(d, "1 2 3\n2 3\n", "a.txt"), times=file(d, "1 100\n2 100\n", "t.txt")),
        ["t.txt: line 1 has 1 times for 2 items"],
    ),
    "lines without times": (
        lambda d: read(file(d, "1 2 3\n2 3\n", "a.txt"), times=file(d, "1 1 2\n", "t.txt")),
        ["t.txt: has fewer lines than"],
    ),
    "times of others": (
        lambda d: read(file(d, "1 2\n2 3 4\n", "a.txt"), times=file(d, "1 1\n3 1 2\n", "t.txt")),
        ["t.txt: line 2 is of user '3'"],
    ),
    "no items table": (
        lambda d: read(file(d, CSV), items=d / "none.tsv"),
        ["none.tsv: no such file"],
    ),
    "title without table": (lambda d: read(file(d, CSV), title="t"), ["give items="]),
    "title column": (
        lambda d: read(file(d, CSV), items=file(d, "item,name\n5,x\n", "i.csv"), title="t"),
        ["i.csv: has no column 't' (title=)", "item, name"],
    ),
    "item id column": (
        lambda d: read(file(d, CSV), items=file(d, "a,name\n5,x\n", "i.csv")),
        ["i.csv: no column is recognised as the item id", "item_id="],
    ),
    "ragged table": (
        lambda d: read(file(d, CSV), items=file(d, "item,name\n5,x\n6,y,z\n", "i.csv")),
        ["i.csv: row 3 has 3 columns, expected 2"],
    ),
    "damaged table": (
        lambda d: read(
            file(d, CSV),
            items=cut(parquet(d, pa.table({"item": [5], "title": ["x"]}), "i.parquet"), 60),
        ),
        ["i.parquet", "truncated"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, tmp_path: Path) -> None:
    call, said = FILES[case]
    with pytest.raises(InputError) as caught:
        call(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "seqrec_fast-" not in message
    for part in said:
        assert part in message


def log(**more: Any) -> data.Log:
    return data.log_from_columns([1, 1, 2], [5, 6, 5], [1, 2, 3], **more)


def typed() -> data.Log:
    return log(events=["view", "buy", "view"], ratings=[1.0, 2.0, 3.0])


ARGUMENTS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "negative minimum": (
        lambda: data.prepare(log(), min_user_events=-1),
        ["min_user_events: must be an integer of at least 1, found -1"],
    ),
    "zero minimum": (lambda: data.prepare(log(), min_item_events=0), ["min_item_events"]),
    "fraction": (lambda: data.prepare(log(), min_user_events=1.5), ["found 1.5"]),  # type: ignore[arg-type]
    "max length": (lambda: data.prepare(log(), max_length=0), ["max_length"]),
    "max events": (lambda: data.prepare(log(), max_user_events=-3), ["max_user_events"]),
    "crossed": (
        lambda: data.prepare(log(), min_user_events=5, max_user_events=4),
        ["max_user_events: 4 is below min_user_events 5"],
    ),
    "duplicates": (lambda: data.prepare(log(), duplicates="merge"), ["'drop' or 'keep'"]),
    "repeats": (lambda: data.prepare(log(), repeats=True), ["repeats: must be"]),  # type: ignore[arg-type]
    "missing rule": (lambda: data.prepare(log(), missing="mean"), ["'mean' is not a rule"]),
    "missing column": (
        lambda: data.prepare(log(), missing={"price": 0}),
        ["'price' is not a column", "user, item, time"],
    ),
    "missing time rule": (
        lambda: data.prepare(log(), missing={"time": "next"}),
        ["'next' is not a rule for the time", "'previous'"],
    ),
    "missing rating rule": (
        lambda: data.prepare(typed(), missing={"rating": "previous"}),
        ["missing['rating']: must be a number"],
    ),
    "missing user rule": (
        lambda: data.prepare(log(), missing={"user": None}),
        ["missing['user']: must be a text or an integer"],
    ),
    "min time": (lambda: data.prepare(log(), min_time="soon"), ["min_time: 'soon'"]),
    "time order": (lambda: data.prepare(log(), min_time=5, max_time=4), ["after max_time"]),
    "time of none": (
        lambda: data.prepare(data.log_from_columns([1], [1]), min_time=1),
        ["min_time: ", "has no times"],
    ),
    "rating of none": (lambda: data.prepare(log(), min_rating=3), ["no rating column"]),
    "rating kind": (lambda: data.prepare(typed(), min_rating="good"), ["min_rating"]),  # type: ignore[arg-type]
    "rating nan": (lambda: data.prepare(typed(), min_rating=float("nan")), ["min_rating"]),
    "unknown event": (
        lambda: data.prepare(typed(), event_weights={"click": 1}),
        ["'click' is not an event type", "view, buy"],
    ),
    "event weights of none": (
        lambda: data.prepare(log(), event_weights={"view": 1}),
        ["has no event types", "event="],
    ),
    "event weights kind": (
        lambda: data.prepare(typed(), event_weights=["view"]),  # type: ignore[arg-type]
        ["event_weights: must be a mapping"],
    ),
    "event weight": (
        lambda: data.prepare(typed(), event_weights={"view": -1}),
        ["event_weights['view']: must be 0 or more"],
    ),
    "event weight kind": (
        lambda: data.prepare(typed(), event_weights={"view": "much"}),  # type: ignore[dict-item]
        ["event_weights['view']: must be a number"],
    ),
    "nothing left, k-core": (
        lambda: data.prepare(log(), min_user_events=3),
        ["nothing is left", "'k-core, round 1'", "relax min_user_events= or min_item_events="],
    ),
    "nothing left, times": (
        lambda: data.prepare(log(), min_time="2020-01-01"),
        ["nothing is left", "'impossible times'", "relax min_time="],
    ),
    "nothing left, rating": (
        lambda: data.prepare(typed(), min_rating=9),
        ["nothing is left", "'minimum rating'", "relax min_rating="],
    ),
    "nothing left, missing": (
        lambda: data.prepare(data.log_from_columns([None, None], [1, 2])),
        ["nothing is left", "'missing fields'", "user 2"],
    ),
    "lengths": (
        lambda: data.log_from_columns([1, 2], [1]),
        ["items: has 1 rows, users has 2"],
    ),
    "no columns": (lambda: data.log_from_columns(None, [1]), ["users: must be given"]),
    "no rows": (lambda: data.log_from_columns([], []), ["no rows"]),
    "a text": (lambda: data.log_from_columns("abc", [1, 2, 3]), ["users: must be a column"]),
    "two dimensions": (
        lambda: data.log_from_columns(np.zeros((2, 2)), [1, 2]),
        ["users: must be one column"],
    ),
    "objects": (
        lambda: data.log_from_columns([1, object()], [1, 2]),
        ["users: cannot be used as a column"],
    ),
    "mixed floats": (
        lambda: data.log_from_columns([1, "a", 2.5], [1, 2, 3]),
        ["users: cannot be used"],
    ),
    "item table": (
        lambda: data.log_from_columns([1], [1], item_table=7),
        ["item_table: must be a mapping"],
    ),
    "item table lengths": (
        lambda: data.log_from_columns([1], [1], item_table={"item": [1], "title": []}),
        ["item_table: columns must have one length"],
    ),
    "item table key": (
        lambda: data.log_from_columns([1], [1], item_table=pd.DataFrame({"title": ["x"]})),
        ["item_table: no column is recognised as the item id"],
    ),
    "preview": (lambda: log().preview(0), ["rows: must be an integer"]),
    "synthetic": (lambda: data.synthetic_log(users=0), ["users: must be an integer"]),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(case: str) -> None:
    call, said = ARGUMENTS[case]
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, CSV)

    def refuse(*_: Any, **__: Any) -> None:  # file modes do not stop the administrator
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=r"log.csv: cannot be opened \(Permission denied\)"):
        data.read_log(path)


def test_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match="set TMPDIR"):
        data.prepare(log())


def test_without_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqrec_fast.errors import MissingExtraError

    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        data.prepare(log())


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    from seqrec_fast.data import workspace

    def fail(*_: Any) -> None:
        raise duckdb.IOException('IO Error: Could not write file "x": No space left on device')

    monkeypatch.setattr(workspace.Workspace, "row", lambda self, sql: translate())

    def translate() -> None:
        with workspace.translated("log.csv"):
            fail()

    with pytest.raises(InputError, match=r"log.csv: the temporary folder .* is full.*TMPDIR"):
        data.prepare(log())
