# SPDX-License-Identifier: Apache-2.0
"""The public research files, by the counts that their README gives (skipped where absent)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import data

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    ("name", "users", "items", "events", "first"),
    [
        ("ml-1m/ml-1m.a.seq.txt", 6_040, 3_416, 999_611, "user"),
        ("ml-1m/ml-1m.b.seq.txt", 6_040, 3_706, 1_000_209, "user"),
        ("amazon-beauty/Beauty.txt", 22_363, 12_101, 198_502, "user"),
        ("lastfm/LastFM.txt", 1_090, 3_646, 52_551, "user"),
        ("diginetica/diginetica.train.txt", 186_670, 43_097, 906_140, "item"),
    ],
)
def test_sequence_files(
    shared_data: Path, name: str, users: int, items: int, events: int, first: str
) -> None:
    path = shared_data / name
    log = data.read_log(path)
    assert log.format == "sequences"
    assert log.sequences is not None
    assert log.sequences.first == first
    prepared = data.prepare(log)
    assert (len(prepared.users), len(prepared.items), prepared.sequences.tokens) == (
        users,
        items,
        events,
    )
    assert prepared.items.kind == "int"
    assert prepared.times is None
    # word for word what stands in the file
    with open(path) as stream:
        for row, line in zip(prepared.sequences, stream, strict=True):
            words = [int(word) for word in line.split()]
            assert prepared.items.decode(row).tolist() == words[1 if first == "user" else 0 :]


def test_ml_100k(shared_data: Path) -> None:
    folder = shared_data / "ml-100k"
    prepared = data.prepare(data.read_log(folder / "ml-100k.inter", items=folder / "ml-100k.item"))
    assert (len(prepared.users), len(prepared.items)) == (943, 1_682)
    assert prepared.sequences.tokens == 100_000
    assert prepared.times is not None
    rows: dict[int, list[tuple[int, int]]] = {}
    with open(folder / "ml-100k.inter") as stream:
        next(stream)
        for line in stream:
            user, item, _, time = line.split("\t")
            rows.setdefault(int(user), []).append((int(float(time)), int(item)))
    assert list(rows) == prepared.users.ids.tolist()
    for user, row in zip(prepared.users.ids.tolist(), prepared.sequences, strict=True):
        expected = sorted(rows[user], key=lambda event: event[0])  # stable
        assert prepared.items.decode(row).tolist() == [item for _, item in expected]
    assert prepared.item_table is not None
    assert prepared.item_table.title(int(prepared.items.encode([1])[0])) == "Toy Story"


def test_beauty_with_times_and_titles(shared_data: Path) -> None:
    folder = shared_data / "amazon-beauty"
    prepared = data.prepare(
        data.read_log(
            folder / "Beauty.txt",
            times=folder / "Beauty.timestamps.txt",
            items=folder / "Beauty_titles.tsv",
        )
    )
    assert len(prepared.users) == 22_287
    assert prepared.times is not None
    assert data.by_time(prepared).protocol == "by-time"
    table: Any = prepared.item_table
    assert table.title(int(prepared.items.encode([1])[0])).startswith("OPI Nail Lacquer")
    # dates are whole days and lines are in order of time, so nothing moves
    order = data.prepare(data.read_log(folder / "Beauty.txt"))
    known = np.isin(order.users.ids, prepared.users.ids)
    assert order.sequences.select(np.flatnonzero(known)).tokens == prepared.sequences.tokens


@pytest.mark.parametrize("name", ["movies.dat", "movies_extrainfos.dat"])
def test_movie_titles(shared_data: Path, name: str) -> None:
    folder = shared_data / "ml-1m"
    prepared = data.prepare(data.read_log(folder / "ml-1m.b.seq.txt", items=folder / name))
    table: Any = prepared.item_table
    assert table.title(int(prepared.items.encode([1])[0])).startswith("Toy Story")
    titles = [table.title(index) for index in range(len(prepared.items))]
    assert sum(title is None for title in titles) <= 2
    if name == "movies.dat":
        assert any("é" in title for title in titles)  # Latin-1 was read as such


def test_quality_protocol_of_beauty(shared_data: Path) -> None:
    split = data.leave_one_out(
        data.prepare(data.read_log(shared_data / "amazon-beauty/Beauty.txt"))
    )
    assert len(split.test) == len(split.validation) == 22_363
    assert split.train.tokens == 198_502 - 2 * 22_363
    assert split.refit().train.tokens == 198_502 - 22_363
