# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import data
from seqrec_fast.data import Prepared
from seqrec_fast.errors import InputError

Row = tuple[Any, Any, Any, Any]  # user, item, time, event


def log_of(rows: list[Row], **more: Any) -> data.Log:
    users, items, times, events = (list(column) for column in zip(*rows, strict=True))
    return data.log_from_columns(
        users,
        items,
        None if all(time is None for time in times) else times,
        None if all(event is None for event in events) else events,
        **more,
    )


def raw(prepared: Prepared) -> dict[Any, list[Any]]:
    return {
        user: prepared.items.decode(row).tolist()
        for user, row in zip(prepared.users.ids.tolist(), prepared.sequences, strict=True)
    }


def step(prepared: Prepared, name: str) -> data.CleaningStep:
    return next(step for step in prepared.report.steps if step.name.startswith(name))


# -------------------------------------------------------------------- the whole, by definition


def by_definition(
    rows: list[Row], min_user: int, min_item: int, duplicates: str, repeats: str, most: int | None
) -> dict[Any, list[Any]]:
    """What preparation should give, in the plainest Python."""
    first: dict[Any, int] = {}
    for place, (user, *_) in enumerate(rows):
        if user is not None:
            first.setdefault(user, place)
    kept = [row for row in rows if None not in row and row[2] >= 0]
    kept.sort(key=lambda row: (first[row[0]], row[2]))  # stable
    if duplicates == "drop":
        kept = list(dict.fromkeys(kept))
    if repeats == "drop":
        kept = [
            row for before, row in zip([None, *kept], kept, strict=False)
            if before is None or before[:2] != row[:2]
        ]  # fmt: skip
    if most is not None:
        active = Counter(row[0] for row in kept)
        kept = [row for row in kept if active[row[0]] <= most]
    while True:
        users, items = Counter(row[0] for row in kept), Counter(row[1] for row in kept)
        fewer = [r for r in kept if users[r[0]] >= min_user and items[r[1]] >= min_item]
        if len(fewer) == len(kept):
            break
        kept = fewer
    found: dict[Any, list[Any]] = {}
    for row in kept:
        found.setdefault(row[0], []).append((row[1], row[2], row[3]))
    return found


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(strategy, strategy, strategy, strategy, st.none())


ROWS = st.lists(
    st.tuples(
        maybe(st.integers(1, 4)),
        maybe(st.sampled_from("abc")),
        maybe(st.integers(-1, 4)),
        maybe(st.sampled_from(["view", "buy"])),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=80)
@given(
    ROWS,
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["drop", "keep"]),
    st.sampled_from(["drop", "keep"]),
    st.sampled_from([None, 3, 6]),
)
def test_prepare_agrees_with_its_definition(
    rows: list[Row], min_user: int, min_item: int, duplicates: str, repeats: str, most: int | None
) -> None:
    # a column of nothing but None would not be there at all
    rows = [*rows, (4, "a", 0, "view")]
    expected = by_definition(rows, min_user, min_item, duplicates, repeats, most)
    options: dict[str, Any] = {
        "min_user_events": min_user,
        "min_item_events": min_item,
        "duplicates": duplicates,
        "repeats": repeats,
        "max_user_events": most,
    }
    if not expected:
        with pytest.raises(InputError, match="nothing is left"):
            data.prepare(log_of(rows), **options)
        return
    prepared = data.prepare(log_of(rows), **options)
    assert prepared.times is not None
    assert prepared.events is not None
    found: dict[Any, list[Any]] = {}
    owner = np.repeat(prepared.users.ids, prepared.sequences.lengths).tolist()
    items = prepared.items.decode(prepared.sequences.values).tolist()
    names = [prepared.event_names[code] for code in prepared.events]
    for user, *event in zip(owner, items, prepared.times.tolist(), names, strict=True):
        found.setdefault(user, []).append(tuple(event))
    assert list(found.items()) == list(expected.items())
    counts = [prepared.report.steps[0].rows_in] + [s.rows_out for s in prepared.report.steps]
    assert counts[0] == len(rows)
    assert counts[-1] == sum(map(len, expected.values()))
    assert [s.rows_in for s in prepared.report.steps] == counts[:-1]
    assert prepared.report.steps[-1].users == len(expected)
    assert prepared.popularity.sum() == counts[-1]
    assert prepared.popularity.min() > 0


# -------------------------------------------------------------------- order


def test_equal_times_keep_the_order_of_the_rows() -> None:
    items = [5, 3, 9, 1, 7]
    prepared = data.prepare(log_of([("u", item, 100, None) for item in items]))
    assert raw(prepared) == {"u": items}
    assert prepared.items.ids.tolist() == items


def test_users_come_by_first_appearance_even_if_that_row_is_dropped() -> None:
    prepared = data.prepare(log_of([("b", None, 1, None), ("a", 1, 2, None), ("b", 2, 3, None)]))
    assert prepared.users.ids.tolist() == ["b", "a"]


def test_without_times_the_rows_are_the_order() -> None:
    rows = [("u", 1, None, None), ("v", 1, None, None), ("u", 1, None, None)]
    prepared = data.prepare(log_of(rows))
    assert prepared.times is None
    assert raw(prepared) == {"u": [1, 1], "v": [1]}
    assert any("duplicates: without times" in note for note in prepared.report.notes)


def test_more_users_than_sixteen_bits() -> None:
    rng = np.random.default_rng(1)
    user = rng.permutation(np.repeat(np.arange(70_000), 2))
    time = rng.integers(0, 50, len(user))
    prepared = data.prepare(data.log_from_columns(user, np.arange(len(user)), time))
    order = np.lexsort((time, prepared.users.encode(user)))
    np.testing.assert_array_equal(prepared.items.decode(prepared.sequences.values), order)


# -------------------------------------------------------------------- steps


def test_missing_fields_are_counted_by_column() -> None:
    rows = [(1, 1, 1, "a"), (None, 1, 1, "a"), (1, None, 1, None), (1, 2, None, "a")]
    prepared = data.prepare(log_of(rows))
    assert step(prepared, "missing").note == "user 1, item 1, time 1, event 1"
    assert step(prepared, "missing").dropped == 3


def test_missing_fields_are_filled_by_rule() -> None:
    rows = [
        ("u", 1, 10, "view"),
        (None, 2, 20, None),
        ("u", None, 5, "buy"),
        ("u", 3, None, "buy"),
        ("v", 4, None, "buy"),
    ]
    prepared = data.prepare(
        log_of(rows),
        missing={"user": "anonymous", "item": 0, "event": "view", "time": "previous"},
    )
    # the time of item 3 is that of the row before it of u, which is 5
    assert raw(prepared) == {"u": [0, 3, 1], "anonymous": [2]}
    assert prepared.items.kind == "int"
    notes = "\n".join(prepared.report.notes)
    assert "missing user: 1 filled with 'anonymous'" in notes
    assert "missing time: 1 filled with that of the previous event" in notes
    assert step(prepared, "missing").note == "time 1"
    constant = data.prepare(log_of(rows), missing={"time": "1970-01-01", "user": "drop"})
    assert raw(constant)["v"] == [4]


def test_a_text_that_fills_integer_ids_makes_them_text() -> None:
    prepared = data.prepare(log_of([(1, 5, 1, None), (None, 6, 2, None)]), missing={"user": "x"})
    assert raw(prepared) == {"1": [5], "x": [6]}


def test_missing_ratings_matter_only_if_ratings_are_used() -> None:
    log = data.log_from_columns([1, 1, 1], [1, 2, 3], ratings=[5.0, None, 1.0])
    assert raw(data.prepare(log)) == {1: [1, 2, 3]}
    assert raw(data.prepare(log, min_rating=2)) == {1: [1]}
    assert raw(data.prepare(log, min_rating=2, missing={"rating": 3})) == {1: [1, 2]}


def test_impossible_times() -> None:
    rows = [("u", 1, -5, None), ("u", 2, 10, None), ("u", 3, 4_000_000_000, None)]
    assert raw(data.prepare(log_of(rows))) == {"u": [2]}
    prepared = data.prepare(log_of(rows), min_time=-10, max_time="2100-01-01")
    assert raw(prepared) == {"u": [1, 2, 3]}
    assert prepared.times is not None
    assert prepared.times.tolist() == [-5, 10, 4_000_000_000]
    assert raw(data.prepare(log_of(rows), min_time=10, max_time=10)) == {"u": [2]}
    assert "before" in step(data.prepare(log_of(rows)), "impossible").note


def test_event_types_and_weights() -> None:
    rows = [("u", 1, 1, "view"), ("u", 2, 2, "buy"), ("u", 3, 3, "click"), ("u", 4, 4, "view")]
    plain = data.prepare(log_of(rows))
    assert plain.event_names == ("view", "buy", "click")
    assert plain.weights is None
    assert plain.events is not None
    assert plain.events.dtype == np.uint8
    chosen = data.prepare(log_of(rows), event_weights={"buy": 5, "view": 0.5})
    assert raw(chosen) == {"u": [1, 2, 4]}
    assert chosen.weights is not None
    assert chosen.weights.tolist() == [0.5, 5, 0.5]
    assert chosen.event_names == ("view", "buy")
    assert step(chosen, "event types").dropped == 1
    assert step(chosen, "event types").note == "click 1"
    both = data.prepare(log_of(rows, weights=[1, 2, 3, 4]), event_weights={"buy": 5, "view": 0.5})
    assert both.weights is not None
    assert both.weights.tolist() == [0.5, 10, 2]


def test_many_event_types_need_more_than_a_byte() -> None:
    names = [f"type {number}" for number in range(300)]
    prepared = data.prepare(data.log_from_columns([1] * 300, [1] * 300, range_of(300), names))
    assert prepared.events is not None
    assert prepared.events.dtype == np.int32
    assert [prepared.event_names[code] for code in prepared.events] == names
    exactly = data.prepare(
        data.log_from_columns([1] * 257, [1] * 257, range_of(257), [*names[:256], None])
    )
    assert exactly.sequences.tokens == 256


def range_of(count: int) -> list[int]:
    return list(range(count))


def test_repeats_look_at_the_event_just_before() -> None:
    rows = [("u", item, time, None) for time, item in enumerate([1, 1, 2, 1, 1, 1])]
    rows.append(("v", 1, 9, None))
    prepared = data.prepare(log_of(rows), repeats="drop")
    assert raw(prepared) == {"u": [1, 2, 1], "v": [1]}
    assert step(prepared, "repeated").dropped == 3


def test_active_users_go_whole() -> None:
    rows = [("robot", item, item, None) for item in range(9)] + [("u", 1, 1, None)]
    prepared = data.prepare(log_of(rows), max_user_events=8)
    assert raw(prepared) == {"u": [1]}
    assert step(prepared, "implausibly").note == "1 users with more than 8 events"


def test_k_core_runs_until_it_holds() -> None:
    # dropping item 9 leaves w too short, dropping w leaves item 3 too rare, and so on
    rows = [
        ("u", 1, 1, None), ("u", 2, 2, None), ("v", 1, 3, None), ("v", 2, 4, None),
        ("v", 3, 5, None), ("w", 3, 6, None), ("w", 9, 7, None),
    ]  # fmt: skip
    prepared = data.prepare(log_of(rows), min_user_events=2, min_item_events=2)
    assert raw(prepared) == {"u": [1, 2], "v": [1, 2]}
    rounds = [s for s in prepared.report.steps if s.name.startswith("k-core")]
    assert [s.dropped for s in rounds] == [1, 1, 1]


def test_max_length_keeps_the_last() -> None:
    rows = [("u", item, item, None) for item in (1, 2, 3)] + [("v", 1, 1, None)]
    prepared = data.prepare(log_of(rows), max_length=2)
    assert raw(prepared) == {"u": [2, 3], "v": [1]}


# -------------------------------------------------------------------- report


def test_report_prints_and_saves(tmp_path: Path) -> None:
    rows = [("u", 1, 1, None), ("u", 2, 86_400, None), ("u", 1, 86_500, None), ("v", 1, 5, None)]
    report = data.prepare(log_of(rows)).report
    lines = str(report).splitlines()
    header = next(line for line in lines if line.startswith("step"))
    body = lines[lines.index(header) + 2 : lines.index(header) + 2 + len(report.steps)]
    end = header.index("rows in") + len("rows in")
    assert all(line[end - 1].isdigit() and line[end] == " " for line in body)  # aligned
    report.save(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_dict()))
    assert [s["dropped"] for s in stored["steps"]] == [s.dropped for s in report.steps]
    look = stored["behaviour"]
    assert (look["users"], look["items"], look["events"]) == (2, 2, 4)
    assert look["density"] == 1.0
    assert look["repeat_share"] == 0.25
    assert look["events_per_user"]["max"] == 3
    assert look["events_per_item"]["max"] == 3
    assert look["gap_seconds"]["min"] == 100
    assert look["events_per_session"] == 1.33
    assert look["time_span"][1].startswith("1970-01-02")
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]
    with pytest.raises(InputError, match="cannot write"):
        report.save(tmp_path / "nowhere" / "report.json")
    assert report.with_notes("more").notes[-1] == "more"


def test_prepared_says_what_it_is() -> None:
    prepared = data.prepare(log_of([("u", 1, 1, "view")]))
    assert repr(prepared) == "Prepared(1 users, 1 items, 1 events; with times, events)"


# -------------------------------------------------------------------- out of core


def test_a_small_memory_limit_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    data.write_synthetic(path, rows=300_000, dirty=0.1)
    small = data.prepare(data.read_log(path, memory="96MiB", threads=1), min_user_events=3)
    large = data.prepare(data.read_log(path), min_user_events=3)
    np.testing.assert_array_equal(small.sequences.values, large.sequences.values)
    assert small.items == large.items
    assert small.users == large.users


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data.prepare(log_of([("u", 1, 1, None)]))
    with pytest.raises(InputError):
        data.prepare(log_of([("u", 1, 1, None)]), min_user_events=2)
    assert not list(tmp_path.iterdir())
