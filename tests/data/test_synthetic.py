# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqrec_fast import data
from seqrec_fast.data.synthetic_titles import GENRES, make_titles
from seqrec_fast.errors import InputError


@pytest.fixture(scope="module")
def prepared() -> data.Prepared:
    return data.prepare(data.synthetic_log(seed=1))


def test_it_is_quick_readable_and_repeatable(prepared: data.Prepared) -> None:
    begin = time.perf_counter()
    again = data.prepare(data.synthetic_log(seed=1))
    assert time.perf_counter() - begin < 10
    np.testing.assert_array_equal(again.sequences.values, prepared.sequences.values)
    other = data.prepare(data.synthetic_log(seed=2))
    assert not np.array_equal(other.sequences.values[:99], prepared.sequences.values[:99])
    assert len(prepared.users) == 2000
    assert len(prepared.items) <= 800
    assert set(prepared.event_names) == {"view", "cart", "purchase"}
    assert prepared.item_table is not None
    titles = [prepared.item_table.title(index) for index in range(len(prepared.items))]
    assert None not in titles
    assert len(set(titles)) == len(titles)
    assert set(prepared.item_table.columns["genre"]) == set(GENRES)


def test_what_is_planted_is_there(prepared: data.Prepared) -> None:
    assert prepared.item_table is not None
    genre = np.array(prepared.item_table.columns["genre"])
    # popularity skew
    popularity = np.sort(prepared.popularity)[::-1]
    assert popularity[: len(popularity) // 10].sum() > 0.2 * popularity.sum()
    # tastes that drift: the most common genre of the first half of a user is rarely overall top
    changed, same = 0, 0
    for row in prepared.sequences:
        if len(row) >= 40:
            early, late = genre[row[:15]], genre[row[-15:]]
            first, last = (Counter(part).most_common(1)[0] for part in (early, late))
            assert first[1] >= 3
            changed += first[0] != last[0]
            same += first[0] == last[0]
    assert changed > same


def test_the_follow_up_beats_popularity_by_far(prepared: data.Prepared) -> None:
    split = data.leave_one_out(prepared)
    follow: dict[int, Counter[int]] = defaultdict(Counter)
    for row in split.train:
        for before, after in zip(row[:-1].tolist(), row[1:].tolist(), strict=True):
            follow[before][after] += 1
    popular = set(np.argsort(-split.popularity, kind="stable")[:10].tolist())
    by_popularity, by_transition = 0, 0
    for history, target in zip(split.test.histories, split.test.targets, strict=True):
        by_popularity += int(target[0]) in popular
        best = {item for item, _ in follow[int(history[-1])].most_common(10)}
        by_transition += int(target[0]) in best
    assert by_transition > 4 * by_popularity
    assert by_transition > 0.4 * len(split.test)


@pytest.mark.parametrize(("users", "items"), [(1, 1), (3, 2), (50, 7), (20, 2000)])
def test_any_size(users: int, items: int) -> None:
    prepared = data.prepare(data.synthetic_log(users=users, items=items))
    assert len(prepared.users) == users
    assert len(prepared.items) <= items


def test_titles_go_on() -> None:
    titles, genres = make_titles([250, 120])
    assert len(set(titles)) == 370
    assert genres[250] == GENRES[1]
    assert titles[200].endswith("Volume 3")


def test_written_logs(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    data.write_synthetic(path, rows=1_200_000, users=5000, items=700, seed=3, dirty=0.09)
    stored = pq.read_metadata(path)
    assert stored.num_rows == 1_200_000
    assert stored.num_row_groups == 2
    prepared = data.prepare(data.read_log(path))
    dropped = {step.name: step.dropped for step in prepared.report.steps}
    for name in ("missing fields", "impossible times", "exact duplicates"):
        assert 0.02 * 1_200_000 < dropped[name] < 0.04 * 1_200_000
    assert len(prepared.users) <= 5000
    assert len(prepared.items) <= 700
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv"])
def test_written_logs_are_the_same_in_each_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"log.{ending}"
    data.write_synthetic(path, rows=3000, seed=5, dirty=0.2)
    prepared = data.prepare(data.read_log(path))
    data.write_synthetic(tmp_path / "other.parquet", rows=3000, seed=5, dirty=0.2)
    other = data.prepare(data.read_log(tmp_path / "other.parquet"))
    assert prepared.users == other.users
    assert prepared.items == other.items
    np.testing.assert_array_equal(prepared.sequences.values, other.sequences.values)


def test_clean_logs_lose_nothing_but_chance_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    data.write_synthetic(path, rows=5000)
    report = data.prepare(data.read_log(path)).report
    assert report.steps[-1].rows_out >= 4990
    times = pq.read_table(path)["timestamp"].to_numpy()
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": 0}, "rows"),
        ({"rows": 5, "users": 0}, "users"),
        ({"rows": 5, "items": -1}, "items"),
        ({"rows": 5, "dirty": 1.0}, "dirty"),
        ({"rows": 5, "path": "a.xml"}, "unknown kind"),
        ({"rows": 5, "path": "none/a.csv"}, "cannot write"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, options: dict, said: str) -> None:
    path = tmp_path / options.pop("path", "a.parquet")
    with pytest.raises(InputError, match=said):
        data.write_synthetic(path, **options)
    assert not list(tmp_path.iterdir())
