# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from seqrec_fast import data
from seqrec_fast.data.moments import iso_second, to_microseconds
from seqrec_fast.data.times import unit_of
from seqrec_fast.errors import InputError

NOON = 1_577_880_000  # 2020-01-01 12:00 UTC


def times_of(values: Any, **options: Any) -> tuple[list[int], str]:
    """Times of one user's events in order, and the notes."""
    log = data.log_from_columns(["u"] * len(values), list(range(len(values))), values)
    prepared = data.prepare(log, **options)
    assert prepared.times is not None
    return prepared.times.tolist(), "\n".join(prepared.report.notes)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)],
)
@pytest.mark.parametrize("kind", ["int", "float", "text"])
def test_unit_is_recognised_by_size(unit: str, factor: int, kind: str) -> None:
    values: list[Any] = [NOON * factor, (NOON + 7) * factor]
    if kind == "float":
        values = [float(value) for value in values]
    elif kind == "text":
        values = [str(value) for value in values]
    found, notes = times_of(values)
    assert found == [NOON, NOON + 7]
    assert f"unix {unit} (recognised" in notes


def test_an_outlier_does_not_change_the_unit() -> None:
    found, notes = times_of([NOON, NOON + 1, NOON + 2, 10**18, -(10**18)])
    assert found == [NOON, NOON + 1, NOON + 2]
    assert "unix seconds" in notes
    assert unit_of(1e10)[0] == "seconds"
    assert unit_of(1e12)[0] == "milliseconds"


def test_order_uses_more_than_seconds() -> None:
    log = data.log_from_columns(["u"] * 3, [0, 1, 2], [NOON + 0.75, NOON + 0.25, NOON + 0.5])
    prepared = data.prepare(log)
    assert prepared.items.decode(prepared.sequences.values).tolist() == [1, 2, 0]
    assert prepared.times is not None
    assert prepared.times.tolist() == [NOON] * 3
    nanoseconds = [NOON * 10**9 + part for part in (2000, 1000)]
    prepared = data.prepare(data.log_from_columns(["u"] * 2, [0, 1], nanoseconds))
    assert prepared.items.decode(prepared.sequences.values).tolist() == [1, 0]


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-01T12:00:00",
        "2020-01-01 12:00:00",
        "2020-01-01T12:00:00Z",
        "2020-01-01T12:00:00.000Z",
        "2020-01-01T14:00:00+02:00",
        "2020-01-01 07:00:00-0500",
        "2020-01-01 12:00:00 UTC",
    ],
)
def test_iso_texts(text: str) -> None:
    found, notes = times_of([text, text])
    assert found == [NOON, NOON]
    assert "ISO" in notes


def test_dates() -> None:
    day = NOON - 12 * 3600
    assert times_of(["2020-01-01", "2020-01-02"])[0] == [day, day + 86_400]
    found, notes = times_of([20200101, 20200102])
    assert found == [day, day + 86_400]
    assert "YYYYMMDD" in notes
    # one that is no calendar date makes them numbers
    assert times_of([20200101, 20200199])[0] == [20200101, 20200199]
    assert times_of(["2020-01-01", str(NOON)])[0] == [day, NOON]


@pytest.mark.parametrize(
    "column",
    [
        np.array([NOON, NOON + 1]).astype("datetime64[s]"),
        np.array([NOON * 10**9, (NOON + 1) * 10**9]).astype("datetime64[ns]"),
        pd.Series(pd.to_datetime([NOON, NOON + 1], unit="s")),
        pa.array([NOON, NOON + 1]).cast(pa.timestamp("s")),
        pa.array([NOON * 1000, (NOON + 1) * 1000]).cast(pa.timestamp("ms", "Europe/Paris")),
        pa.array([NOON * 10**9, (NOON + 1) * 10**9]).cast(pa.timestamp("ns", "UTC")),
        [dt.datetime.fromtimestamp(NOON + i, dt.timezone.utc) for i in range(2)],
    ],
)
def test_typed_timestamps(column: Any) -> None:
    assert times_of(column)[0] == [NOON, NOON + 1]
    shown = data.log_from_columns([1, 1], [1, 2], column).preview(1)[0]["time"]
    assert str(shown).startswith("2020-01-01 12:00:00")


def test_typed_dates() -> None:
    assert times_of([dt.date(2020, 1, 1), dt.date(2020, 1, 2)])[0][0] == NOON - 12 * 3600


def test_a_time_that_cannot_be_read_is_missing() -> None:
    log = data.log_from_columns(["u"] * 3, [0, 1, 2], ["2020-01-01", "soon", ""])
    report = data.prepare(log).report
    assert report.steps[1].dropped == 2
    assert "time 2" in report.steps[1].note
    assert any("'soon', in row 2" in note for note in report.notes)


def test_a_column_without_any_time_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,date\n1,2,\n1,3,soon\n")
    with pytest.raises(InputError, match=r"'date' \(time\) is a time \(row 2 holds 'soon'"):
        data.prepare(data.read_log(tmp_path / "a.csv"))
    with pytest.raises(InputError, match="bool"):
        data.prepare(data.log_from_columns([1], [1], [True]))
    with pytest.raises(InputError, match="time"):
        data.prepare(data.log_from_columns([1], [1], [[1]]))


def test_not_finite_times_are_impossible() -> None:
    log = data.log_from_columns(["u"] * 4, [0, 1, 2, 3], ["100", "inf", "-inf", "1e300"])
    report = data.prepare(log).report
    assert report.steps[2].name == "impossible times"
    assert report.steps[2].dropped == 3


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (5, 5_000_000),
        (5.25, 5_250_000),
        ("1970-01-02", 86_400_000_000),
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        (dt.date(1970, 1, 2), 86_400_000_000),
        (dt.datetime(1970, 1, 1, 0, 0, 1), 1_000_000),
        (np.datetime64("1970-01-01T00:00:01"), 1_000_000),
        (np.int64(3), 3_000_000),
        (-1, -1_000_000),
    ],
)
def test_moments(moment: Any, expected: int) -> None:
    assert to_microseconds(moment, "x") == expected


@pytest.mark.parametrize("moment", ["soon", None, float("nan"), True, [1], np.datetime64("NaT")])
def test_moments_that_are_none(moment: Any) -> None:
    with pytest.raises(InputError, match=r"x: .* is not a time"):
        to_microseconds(moment, "x")
    assert iso_second(0).startswith("1970-01-01")
    assert iso_second(10**15) == "1000000000000000 s"
