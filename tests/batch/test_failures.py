# SPDX-License-Identifier: Apache-2.0
"""What can't be used is refused in one line; whatever happens, no half a file is left."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqrec_fast.batch import output as output_module
from seqrec_fast.batch import recommend_users
from seqrec_fast.data.workspace import Workspace
from seqrec_fast.engine import Recommender
from seqrec_fast.errors import InputError


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.parquet"
    table = pa.table({"user": range(40), "history": [[f"i{n % 60}"] for n in range(40)]})
    pq.write_table(table, path, row_group_size=10)
    return path


def refused(rec: Recommender, source: Any, out: Any, named: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        recommend_users(rec, source, out, **options)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_on_the_way_leaves_nothing(
    by_text: Recommender, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the reading, in the model, in the writing and at the end; an older file stays as it is."""
    out = users.with_name("out.parquet")
    out.write_bytes(b"older")
    before = {path.name: path.read_bytes() for path in users.parent.iterdir()}
    real = output_module.Output.write

    def full(self: Any, *arguments: Any) -> None:
        if arguments[0][0].as_py():
            raise OSError(28, "No space left on device")
        real(self, *arguments)

    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    def broken(*arguments: Any, **options: Any) -> Any:
        raise OSError(5, "Input/output error")

    for place, fault, expected in (
        ("seqrec_fast.batch.output.Output.write", full, InputError),
        ("seqrec_fast.engine.Recommender.recommend_arrays", stop, KeyboardInterrupt),
        ("seqrec_fast.batch.output.os.fsync", broken, InputError),
        ("seqrec_fast.batch.output.os.replace", stop, KeyboardInterrupt),
        ("seqrec_fast.batch.users.encode_ids", broken, InputError),
    ):
        threads = threading.active_count()
        with monkeypatch.context() as patch:
            patch.setattr(place, fault)
            with pytest.raises(expected) as caught:
                recommend_users(by_text, users, out, k=2, chunk_users=10, overwrite=True)
        if expected is InputError:
            assert str(caught.value).startswith(str(users if place.endswith("encode_ids") else out))
        assert {path.name: path.read_bytes() for path in users.parent.iterdir()} == before
        assert threading.active_count() == threads


def test_a_reading_that_takes_long_is_stopped(
    by_text: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while the log is still being sorted: the engine is told until it gives up."""
    log, out = tmp_path / "log.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"user": [1, 2], "item": ["i1", "i2"]}), log)
    real, calls = Workspace.row, []

    def endless(self: Workspace, sql: str) -> Any:
        calls.append(sql)
        return real(self, "SELECT count(*) FROM range(1000000) a, range(1000000) b")

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workspace, "row", endless)
    monkeypatch.setattr("seqrec_fast.batch.run._Ahead.__iter__", interrupted)
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        recommend_users(by_text, log, out, threads=1)
    assert len(calls) == 1
    assert threading.active_count() == threads
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_a_file_that_appears_meanwhile_is_kept(by_text: Recommender, users: Path) -> None:
    out = users.with_name("out.parquet")
    refused(by_text, users, out, "meanwhile", progress=lambda done, total: out.write_text("mine"))
    assert out.read_text() == "mine"
    recommend_users(by_text, users, out, k=1, overwrite=True)
    assert pq.read_table(out).num_rows == 40


@pytest.mark.parametrize(
    ("columns", "options", "named"),
    [
        ({"who": [1], "h": [["i1"]]}, {"user": "user"}, "no column 'user' (user=); the columns are "
         "who, h"),
        ({"who": [1], "h": [["i1"]]}, {"item": "x"}, "no column 'x' (item=); the columns are"),
        ({"a": [1], "b": [2], "h": [["i1"]]}, {}, "as the user; the columns are a, b, h"),
        ({"user": [1], "a": [["i1"]], "b": [["i2"]]}, {}, "'a' and 'b' could each be the history"),
        ({"user": [1], "h": [["i1"]]}, {"user": "h"}, "both name the column 'h'"),
        ({"user": [1], "h": [["i1"]]}, {"time": "user"}, "time=: is for a log"),
        ({"user": [1], "h": [["i1"]]}, {"delimiter": ","}, "delimiter=: is for a log"),
        ({"user": [1], "h": [[0.5]]}, {}, "holds double values; ids are integers or text"),
        ({"user": [1.5], "h": [["i1"]]}, {}, "holds double values; ids are integers or text"),
        ({"user": [1, None], "h": [["i1"]] * 2}, {}, "'user' (user) is null in row 2"),
        ({"user": [1, 2, 3], "h": [[], ["i1"], ["i1", None]]}, {}, "the history in row 3"),
        ({"user": [1, 2], "h": [[], [7, 8]]}, {}, "holds integers and none of its first 2 ids is "
         "known; the ids of the bundle are text such as 'i0'"),
        ({"user": [1, 2], "item": ["i1", None]}, {}, "'item' (item) is missing in row 2"),
        ({"user": ["a", ""], "item": ["i1", "i2"]}, {}, "'user' (user) is missing in row 2"),
        ({"user": [1], "item": ["i1"], "time": pa.array([None], pa.int64())}, {}, "(time) is miss"),
        ({"user": [1], "item": [7]}, {}, "holds integers and none of its first 1 ids"),
        ({"user": [1], "item": pa.array([], pa.int64())[:0]}, {}, ""),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_used(
    by_text: Recommender, tmp_path: Path, columns: Any, options: Any, named: str
) -> None:
    source, out = tmp_path / "u.parquet", tmp_path / "out.parquet"
    if not named:
        columns, named = {name: pa.array([], pa.int64()) for name in columns}, "holds no rows"
    pq.write_table(pa.table(columns), source)
    refused(by_text, source, out, named, chunk_users=2, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["u.parquet"]


def test_rows_are_counted_through_the_chunks(by_text: Recommender, tmp_path: Path) -> None:
    source = tmp_path / "u.parquet"
    histories: list[list[str | None]] = [["i1"]] * 7 + [["i1", None]]
    pq.write_table(pa.table({"user": range(8), "h": histories}), source)
    refused(by_text, source, tmp_path / "o.parquet", "in row 8", chunk_users=3)


def test_damaged_files(by_text: Recommender, users: Path) -> None:
    whole, out = users.read_bytes(), users.with_name("out.parquet")
    for damaged in (whole[: len(whole) // 2], whole[:60] + bytes(300) + whole[360:]):
        users.write_bytes(damaged)
        refused(by_text, users, out, "damaged or truncated Parquet")
        assert not out.exists()


def test_outputs_that_cannot_be_written(by_text: Recommender, users: Path) -> None:
    folder = users.parent
    (folder / "taken.parquet").write_bytes(b"precious")
    (folder / "folder.parquet").mkdir()
    for out, named in (
        (users, "is the input itself"),
        ("taken.parquet", "exists already; give overwrite="),
        ("folder.parquet", "is a folder"),
        ("missing/out.parquet", "does not exist"),
        ("users.parquet/out.parquet", "is not a folder"),
        ("out.csv", "end the name in .parquet"),
        ("", "path is empty"),
        ("/proc/out.parquet", "cannot write in /proc"),
    ):
        path = folder / out if out else ""
        refused(by_text, users, path, named)
        refused(by_text, users, path, named, overwrite=True) if "taken" not in str(out) else None
    assert (folder / "taken.parquet").read_bytes() == b"precious"
    (folder / "link.parquet").symlink_to(users)
    refused(by_text, users, folder / "link.parquet", "is the input itself", overwrite=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"k": 0}, "k: must be a whole number of at least 1"),
        ({"chunk_users": 0}, "chunk_users: must be"),
        ({"allow": ["nothing"]}, "allow: none of the 1 ids"),
        ({"deny": [f"i{n}" for n in range(60)]}, "deny: leaves no item"),
        ({"deny": "i1"}, "deny: found 'i1'"),
    ],
)
def test_requests_that_cannot_be_answered(
    by_text: Recommender, users: Path, options: Any, named: str
) -> None:
    refused(by_text, users, users.with_name("out.parquet"), named, **options)
    assert len(list(users.parent.iterdir())) == 1


def test_files_of_two_kinds(by_text: Recommender, users: Path) -> None:
    other = users.with_name("b.parquet")
    pq.write_table(pa.table({"user": ["a"], "history": [["i1"]]}), other)
    refused(by_text, [users, other], users.with_name("o.parquet"), "'user' holds string")
    pq.write_table(pa.table({"user": [1], "h": [["i1"]]}), other)
    refused(by_text, [users, other], users.with_name("o.parquet"), "has no column 'history'")
