# SPDX-License-Identifier: Apache-2.0
"""Files as other programs leave them: nothing is lost or made up without a word."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from seqrec_fast import data
from seqrec_fast.errors import InputError


def events(path: Path, text: str, **options: Any) -> tuple[dict[Any, list[Any]], list[str]]:
    """User → items, and the notes of the report."""
    path.write_text(text, encoding="utf-8")
    prepared = data.prepare(data.read_log(path, **options))
    found = {
        user: prepared.items.decode(row).tolist()
        for user, row in zip(prepared.users.ids.tolist(), prepared.sequences, strict=True)
    }
    return found, list(prepared.report.notes)


@pytest.mark.parametrize(
    "word", ["NaN", "nan", "NA", "N/A", "n/a", "<NA>", "#N/A", "NULL", "null", "None", "\\N"]
)
def test_words_for_missing_ids_are_missing(tmp_path: Path, word: str) -> None:
    text = f"user_id,item_id,time\n1,5,1\n{word},6,2\n1,{word},3\n1,7,4\n2,{word},5\n"
    found, notes = events(tmp_path / "a.csv", text)
    assert found == {1: [5, 7]}, "and the other ids are integers"
    assert any(f"item: 2 values of the column 'item_id' say {word!r}" in note for note in notes)
    assert any(f"user: 1 values of the column 'user_id' say {word!r}" in note for note in notes)


def test_words_for_missing_ids_can_be_filled_and_mean_nothing_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id\n1,None\n2,a\nNA,b\n")
    prepared = data.prepare(data.read_log(path), missing={"item": "None", "user": "NA"})
    assert prepared.items.ids.tolist() == ["None", "a", "b"]
    assert prepared.users.ids.tolist() == ["1", "2", "NA"]
    lines, _ = events(tmp_path / "a.txt", "u1 None x y\nu2 NA x\n")
    assert lines == {"u1": ["None", "x", "y"], "u2": ["NA", "x"]}
    typed = data.prepare(data.log_from_columns(["u", "u"], ["NA", "b"]))
    assert typed.items.ids.tolist() == ["NA", "b"]


FIRST_LINES_OF_VALUES = {
    "time": "u1\t2009-05-04T23:08:57Z\ta\nu2\t2009-05-04T13:54:10Z\tb\n",
    "date": "u1\t11/1/2000\ta\nu2\t11/2/2000\tb\n",
    "same user": "u1\tx\ta\nu1\ty\tb\n",
    "word like a name": "u1\tevent\ta\t5\nu2\tx\tb\t4\n",
}


@pytest.mark.parametrize("text", FIRST_LINES_OF_VALUES.values(), ids=FIRST_LINES_OF_VALUES)
def test_the_first_event_is_not_taken_for_a_header(tmp_path: Path, text: str) -> None:
    found, notes = events(tmp_path / "a.tsv", text, user=0, item=2)
    assert sum(map(len, found.values())) == 2
    assert any("no header line" in note for note in notes)


@pytest.mark.parametrize(
    "header", ["wer\twas\twann", "user_id\tb\tc", "user_id\titem_id\t2020", "\tu\ti"]
)
def test_a_line_of_names_is_a_header(tmp_path: Path, header: str) -> None:
    found, _ = events(tmp_path / "a.tsv", f"{header}\nu1\ta\tx\nu1\tb\ty\n", user=0, item=1)
    assert found == {"u1": ["a", "b"]}


def test_without_a_header_the_error_shows_the_first_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no header line \(line 1 is 'A1,B7,5\.0,1600000000'\)"):
        events(tmp_path / "a.csv", "A1,B7,5.0,1600000000\nA2,B7,4.0,1600000001\n")


@pytest.mark.parametrize("text", ['{"user": 1, "item": 2}\n' * 3, "[{'user': 1, 'item': 2}]\n"])
def test_json_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"holds JSON, which is not read; turn it into CSV"):
        events(tmp_path / "a.json", text)


def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="is a pipe; write its content to a file"):
        data.read_log(pipe)
    # what is open already, as the shell's <(command), could be read once
    reader, writer = os.pipe()
    try:
        os.write(writer, b"user,item\n1,2\n")
        with pytest.raises(InputError, match="is a pipe"):
            data.read_log(f"/dev/fd/{reader}")
    finally:
        os.close(reader)
        os.close(writer)


def test_a_day_of_the_month_is_no_time(tmp_path: Path) -> None:
    text = "userID\tartistID\tday\tmonth\tyear\n2\t52\t9\t1\t2009\n2\t53\t1\t4\t2009\n"
    found, notes = events(tmp_path / "a.dat", text)
    assert found == {2: [52, 53]}
    assert any("no time column" in note for note in notes)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    ("raw", "name"), [(b"\x93q\x94", "“q”"), (b"caf\xe9", "café"), (b"\x81\xe9", "\x81é")]
)
@pytest.mark.parametrize("kind", ["a.csv", "a.txt"])
def test_text_of_windows(tmp_path: Path, raw: bytes, name: str, early: bool, kind: str) -> None:
    """Also where the odd bytes come after the part of the file that tells its encoding."""
    plain = "".join(f"u{number},i{number}\n" for number in range(0 if early else 12_000))
    text = b"user,item\n" + plain.encode() + b"w," + raw + b"\nv,x\n"
    if kind == "a.txt":
        text = text.replace(b"user,item\n", b"a b c\n").replace(b",", b" ")
    log, items = tmp_path / kind, tmp_path / "items.csv"
    log.write_bytes(text)
    items.write_bytes(b"item,title\n" + plain.encode() + raw + b",T " + raw + b"\n")
    prepared = data.prepare(data.read_log(log, items=items))
    (index,) = prepared.items.encode([name])
    assert index >= 0
    assert prepared.item_table is not None
    assert prepared.item_table.title(int(index)) == f"T {name}"
    encoding = "latin-1" if raw.startswith(b"\x81") else "cp1252"
    assert any(f"read as {encoding}" in note for note in prepared.report.notes)


def test_a_folder_without_parquet_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        data.read_log(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: is a folder without .parquet files; give")
