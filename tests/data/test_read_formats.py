# SPDX-License-Identifier: Apache-2.0
"""The same five events in every format come out as the same sequences."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from seqrec_fast import data
from seqrec_fast.data import Prepared

ROWS = [("u2", "b", 30), ("u1", "a,1", 10), ("u2", "🎵é", 20), ("u1", "b", 10), ("u1", "c", 5)]
EXPECTED = {"u2": ["🎵é", "b"], "u1": ["c", "a,1", "b"]}


def raw(prepared: Prepared) -> dict[Any, list[Any]]:
    """User → raw item ids, in order."""
    return {
        user: prepared.items.decode(row).tolist()
        for user, row in zip(prepared.users.ids.tolist(), prepared.sequences, strict=True)
    }


def read(path: Any, **options: Any) -> Prepared:
    return data.prepare(data.read_log(path, **options))


def table(delimiter: str, quote: str = "", header: str | None = "user_id,item_id,timestamp") -> str:
    lines = [] if header is None else [header.replace(",", delimiter)]
    for user, item, time in ROWS:
        field = f"{quote}{item}{quote}" if delimiter in item else item
        lines.append(delimiter.join((user, field, str(time))))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", table(",", '"')),
        ("a.csv", table(";")),
        ("a.csv", table("|")),
        ("a.tsv", table("\t")),
        ("a.txt", table("\t")),
        ("a.dat", table("::")),
        ("a.inter", table("\t", header="user_id:token,item_id:token,timestamp:float")),
        ("no_ending", table(",", '"')),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_tables(
    tmp_path: Path, name: str, text: str, ending: str, compress: bool, mark: bytes
) -> None:
    content = mark + text.replace("\n", ending).encode()
    path = tmp_path / (name + ".gz" if compress else name)
    path.write_bytes(gzip.compress(content) if compress else content)
    prepared = read(path)
    assert raw(prepared) == EXPECTED
    assert prepared.times is not None
    assert prepared.times.tolist() == [20, 30, 5, 10, 10]


def test_ratings_without_header(tmp_path: Path) -> None:
    path = tmp_path / "ratings.dat"
    path.write_text("7::10::5::300\n7::11::3::100\n8::10::1::200\n")
    prepared = read(path)
    assert raw(prepared) == {7: [11, 10], 8: [10]}
    assert raw(data.prepare(data.read_log(path), min_rating=3)) == {7: [11, 10]}


@pytest.mark.parametrize(
    "options",
    [
        {"header": False, "user": 0, "item": 1, "time": 2},
        {"header": False, "user": "column0", "item": "column1", "time": "column2"},
        {"header": ["user", "item", "time"]},
        {"header": ["x", "y", "z"], "user": "x", "item": "y", "time": 2},
        {"user": 0, "item": 1, "time": 2, "header": False, "format": "csv"},
    ],
)
def test_tables_without_header(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(table(",", '"', header=None))
    assert raw(read(path, **options)) == EXPECTED


def test_numbers_without_header_are_recognised_as_values(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text("196\t242\t3\t881\n186\t302\t3\t891\n")
    assert raw(read(path, user=0, item=1, time=3)) == {196: [242], 186: [302]}


def test_columns_by_name_number_and_case(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("When,Who,What,user_id\n3,u,a,9\n1,u,b,9\n")
    assert raw(read(path, user="Who", item="What", time="When")) == {"u": ["b", "a"]}
    assert raw(read(path, user="who", item=2, time=0)) == {"u": ["b", "a"]}
    assert raw(read(path, item="What", time="When")) == {9: ["b", "a"]}


@pytest.mark.parametrize(
    "header",
    [
        "user,item,time",
        "userId,movieId,timestamp",
        "User ID,Item ID,Date",
        "reviewerID,asin,unixReviewTime",
        "visitorid,itemid,timestamp",
        "session_id,sid,ts",
        "customer_id,product_id,event_time",
        "UID,Article_ID,TIMESTAMP",
    ],
)
def test_names_that_are_recognised(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(header + "\n1,5,100\n1,6,50\n")
    assert raw(read(path)) == {1: [6, 5]}


def test_a_user_column_wins_over_a_session_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("session_id,user_id,item_id\n1,7,5\n2,7,6\n")
    log = data.read_log(path)
    assert log.columns["user"] == "user_id"
    assert any("user = user_id (recognised)" in note for note in log.notes)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1", "2"], [1, 2]),
        (["1", "007"], ["1", "007"]),
        (["1", "+2"], ["1", "+2"]),
        (["1", "2.0", "1.00"], [1, 2]),
        (["1.0", "2.5"], ["1.0", "2.5"]),
        (["1.0", "007.0"], ["1.0", "007.0"]),
        (["-1.0", "0.0", ""], [-1, 0]),
        (["1.0", f"{2**63}.0"], ["1.0", f"{2**63}.0"]),
        (["1", str(2**63)], ["1", str(2**63)]),
        (["-5", str(2**63 - 1)], [-5, 2**63 - 1]),
        (["1", "x"], ["1", "x"]),
        ([" 1", "1 ", "2"], [1, 2]),
        ([" 1", "x"], [" 1", "x"]),
    ],
)
def test_text_ids_are_integers_only_if_all_can_be_read_as_such(
    tmp_path: Path, ids: list[str], expected: list[Any]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,item\n" + "".join(f"u,{item}\n" for item in ids))
    prepared = read(path)
    assert prepared.items.ids.tolist() == expected
    notes = prepared.report.notes
    spaced = any(item != item.strip() for item in ids)
    kept = any("begin or end with a space" in note for note in notes)
    assert kept == (spaced and prepared.items.kind == "str")
    changed = any("read as integers" in note for note in notes)
    assert changed == (
        prepared.items.kind == "int" and any(i not in map(str, expected) and i for i in ids)
    )


# -------------------------------------------------------------------- parquet and memory


def frame(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_parquet_keeps_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    users = pa.array([2, 1, 2], pa.int16())
    items = pa.array(["1", "2", "3"]).dictionary_encode()
    pq.write_table(frame(user_id=users, item_id=items, ts=pa.array([3, 1, 2])), path)
    prepared = read(path)
    assert prepared.users.kind == "int"
    assert prepared.items.kind == "str"
    assert raw(prepared) == {2: ["3", "1"], 1: ["2"]}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1.0, None, 3.0]), [1, 3]),
        (pa.array([1.0, float("nan"), 3.0]), [1, 3]),
        (pa.array([1, None, 2**63 - 1], pa.uint64()), [1, 2**63 - 1]),
        (pa.array([1, None, 2**63], pa.uint64()), ["1", str(2**63)]),
        (pa.array(["", None, "x"]), ["x"]),
        (pa.array([b"k", None, b"l"]), ["k", "l"]),
    ],
)
def test_parquet_ids_of_other_types(tmp_path: Path, column: pa.Array, expected: list[Any]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(frame(user=column, item=pa.array([1, 2, 3])), path)
    assert read(path).users.ids.tolist() == expected


def test_several_files_count_in_order(tmp_path: Path) -> None:
    for number, name in enumerate(["b", "a", "c"]):
        pq.write_table(frame(user=[number, 9], item=[number, number + 10]), tmp_path / f"{name}.pq")
    listed = read([tmp_path / "b.pq", tmp_path / "a.pq", tmp_path / "c.pq"])
    assert raw(listed) == {0: [0], 9: [10, 11, 12], 1: [1], 2: [2]}
    assert list(raw(listed)) == [0, 9, 1, 2]
    for path in (tmp_path, tmp_path / "*.pq", str(tmp_path / "?.pq")):
        assert raw(read(path)) == {1: [1], 9: [11, 10, 12], 0: [0], 2: [2]}


def test_several_text_files_count_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("user,item\n1,1\n2,2\n")
    (tmp_path / "a.csv").write_text("user,item\n2,3\n1,4\n")
    assert raw(read([tmp_path / "b.csv", tmp_path / "a.csv"])) == {1: [1, 4], 2: [2, 3]}
    assert raw(read(tmp_path / "*.csv")) == {2: [3, 2], 1: [4, 1]}


def test_many_row_groups_and_threads_keep_the_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 50, 300_000), rng.integers(0, 1000, 300_000)
    columns = frame(user=user, item=item)
    pq.write_table(columns, tmp_path / "a.parquet", row_group_size=5000)
    pc.write_csv(columns, tmp_path / "a.csv")
    order = np.argsort(user, kind="stable")
    _, first = np.unique(user, return_index=True)
    for path in (tmp_path / "a.parquet", tmp_path / "a.csv"):
        prepared = read(path, threads=4)
        assert prepared.users.ids.tolist() == user[np.sort(first)].tolist()
        found = raw(prepared)
        for one in range(50):
            assert found[one] == item[order][user[order] == one].tolist()


@pytest.mark.parametrize(
    "make",
    [list, np.array, pa.array, pd.Series, lambda column: pa.chunked_array([pa.array(column)])],
)
def test_columns_in_memory(make: Any) -> None:
    users, items, times = zip(*ROWS, strict=True)
    log = data.log_from_columns(make(list(users)), make(list(items)), make(list(times)))
    assert raw(data.prepare(log)) == EXPECTED
    assert log.count() == 5
    assert log.preview(1) == [{"user": "u2", "item": "b", "time": 30}]


def test_columns_in_memory_of_mixed_types() -> None:
    log = data.log_from_columns([1, "x", None], [np.int64(5), 6, 7], weights=[1.0, 2.0, 3.0])
    prepared = data.prepare(log)
    assert raw(prepared) == {"1": [5], "x": [6]}
    assert prepared.weights is not None
    assert prepared.weights.tolist() == [1.0, 2.0]


# -------------------------------------------------------------------- encodings


def test_latin_1_is_recognised_and_said(tmp_path: Path) -> None:
    late = "user,item\n" + "u,plain\n" * 20_000 + "u,café\n"
    for name, text in (("early.csv", "user,item\nu,café\n"), ("late.csv", late)):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        prepared = read(tmp_path / name)
        assert prepared.items.ids.tolist()[-1] == "café"
        assert any("cp1252" in note for note in prepared.report.notes)
    (tmp_path / "s.txt").write_bytes("u café thé\nv thé\n".encode("latin-1"))
    assert raw(read(tmp_path / "s.txt")) == {"u": ["café", "thé"], "v": ["thé"]}


@pytest.mark.parametrize("encoding", ["utf-16", "cp1251", "gb18030", "shift_jis"])
def test_other_encodings_by_argument(tmp_path: Path, encoding: str) -> None:
    item = "кино" if encoding != "shift_jis" else "映画"
    (tmp_path / "a.csv").write_bytes(f"user,item\nu,{item}\n".encode(encoding))
    assert raw(read(tmp_path / "a.csv", encoding=encoding)) == {"u": [item]}


def test_utf_16_is_recognised_by_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("user,item\nu,кино\n".encode("utf-16"))
    assert raw(read(tmp_path / "a.csv")) == {"u": ["кино"]}


def test_mixed_line_ends_blank_lines_and_quoted_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'user,item\r\nu,a\n\nu,"b""q"\r\n"u",c\nu,"d\ne"')
    assert raw(read(tmp_path / "a.csv"))["u"] == ["a", 'b"q', "c", "d\ne"]


# -------------------------------------------------------------------- sequence files


def test_sequences_by_user(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("7 1 2 1\n\n9 2\n8\n")
    prepared = read(path)
    assert raw(prepared) == {7: [1, 2, 1], 9: [2]}
    notes = "\n".join(prepared.report.notes)
    assert "begin with the user (recognised" in notes
    assert "1 lines hold a user" in notes


def test_sequences_of_sessions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1 2\n3 4 5\n1 5\n")
    prepared = read(path)
    assert raw(prepared) == {1: [1, 2], 2: [3, 4, 5], 3: [1, 5]}
    assert any("sessions" in n or "session of its own" in n for n in prepared.report.notes)
    path.write_text("1 2\n3 4 5\n")
    assert raw(read(path, first="item")) == {1: [1, 2], 2: [3, 4, 5]}


def test_sequences_with_a_delimiter_and_text_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("u,red shoe,hat\nv,hat\n")
    found = raw(read(path, format="sequences", delimiter=","))
    assert found == {"u": ["red shoe", "hat"], "v": ["hat"]}


def test_pairs_of_user_and_item(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("1 10\n1 11\n1 12\n2 10\n2 13\n")
    assert raw(read(path)) == {1: [10, 11, 12], 2: [10, 13]}


def test_companion_times(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("1 10 11 12\n2 10\n3 11 12\n")
    (tmp_path / "t.txt").write_text("1 300 100 200\n2\n3 5 5\n")
    prepared = read(tmp_path / "s.txt", times=tmp_path / "t.txt")
    assert raw(prepared) == {1: [11, 12, 10], 3: [11, 12]}
    assert prepared.times is not None
    assert prepared.times.tolist() == [100, 200, 300, 5, 5]
    kept = data.prepare(
        data.read_log(tmp_path / "s.txt", times=tmp_path / "t.txt"), missing={"time": 50}
    )
    assert raw(kept)[2] == [10]


# -------------------------------------------------------------------- item tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("i.csv", 'item_id,title,year\nb,"Bees, all",1999\na,Ants,2001\nz,Zoo,1\n'),
        ("i.tsv", "item_id\ttitle\tyear\nb\tBees, all\t1999\na\tAnts\t2001\n"),
        (
            "i.item",
            "item_id:token\ttitle:token_seq\tyear:float\nb\tBees, all\t1999\na\tAnts\t2001\n",
        ),
        ("i.csv", 'year,name,id\n1999,"Bees, all",b\n2001,Ants,a\n'),
    ],
)
def test_item_tables(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "log.csv").write_text("user,item\nu,a\nu,b\nu,c\n")
    (tmp_path / name).write_text(text)
    table = read(tmp_path / "log.csv", items=tmp_path / name).item_table
    assert table is not None
    assert [table.title(index) for index in range(3)] == ["Ants", "Bees, all", None]
    np.testing.assert_array_equal(table.columns["year"], [2001, 1999, np.nan])


def test_item_table_without_header_guesses_the_title(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\nu,1\nu,2\nu,3\n")
    lines = [f"{i}::The Film {i} (1995)::Drama|War::Someone Else {i}" for i in (1, 2, 3)]
    (tmp_path / "movies.dat").write_bytes(
        "\n".join(lines).replace("Film 2", "Café 2").encode("latin-1")
    )
    prepared = read(tmp_path / "log.csv", items=tmp_path / "movies.dat")
    assert prepared.item_table is not None
    assert prepared.item_table.title(1) == "The Café 2 (1995)"
    assert any("title = column 1" in note for note in prepared.report.notes)


def test_item_table_in_parquet_and_memory(tmp_path: Path) -> None:
    columns = {"item": [2, 1, 2], "title": ["two", "one", "again"], "tags": [["x", "y"], [], None]}
    pq.write_table(pa.table(columns), tmp_path / "i.parquet")
    (tmp_path / "log.csv").write_text("user,item\nu,1\nu,2\n")
    stored = read(tmp_path / "log.csv", items=tmp_path / "i.parquet")
    memory = data.prepare(
        data.log_from_columns(["u", "u"], [1, 2], item_table=pd.DataFrame(columns))
    )
    for prepared in (stored, memory):
        assert prepared.item_table is not None
        assert [prepared.item_table.title(i) for i in range(2)] == ["one", "two"]
        assert prepared.item_table.columns["tags"][1] == "x, y"
        assert any("repeat an item id" in note for note in prepared.report.notes)


def test_count_preview_and_repr(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,ts\n1,x,5\n2,,6\n")
    log = data.read_log(tmp_path / "a.csv")
    assert log.count() == 2
    assert log.preview() == [
        {"user": "1", "item": "x", "time": "5"},
        {"user": "2", "item": None, "time": "6"},
    ]
    assert "csv" in repr(log)
    assert "time='ts'" in repr(log)
