# SPDX-License-Identifier: Apache-2.0
"""A batch answers what the Recommender answers, whatever the form of the input and the chunks."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec_fast.batch import recommend_users
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommender
from tests.batch.conftest import Witness

ITEMS = 60
texts = st.sampled_from([*(f"i{n}" for n in range(ITEMS)), "unknown", "é"])
numbers = st.sampled_from([*range(1000, 1000 + ITEMS), -5, 2**40])


def counts(rec: Recommender, histories: list[list[Any]]) -> tuple[int, int, int]:
    """Users without a known item, ids, unknown ids."""
    known = set(rec.item_ids.tolist())
    hits = [[item in known for item in history] for history in histories]
    return sum(not any(row) for row in hits), sum(map(len, hits)), sum(map(len, hits)) - sum(
        map(sum, hits)
    )  # fmt: skip


@pytest.mark.parametrize("ids", ["text", "numbers"])
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_row_a_user(by_text: Witness, by_number: Witness, ids: str, data: st.DataObject) -> None:
    by_text.forget()
    by_number.forget()
    rec, one, kind = (
        (by_text, texts, data.draw(st.sampled_from(["string", "large", "dictionary"])))
        if ids == "text"
        else (by_number, numbers, "int64")
    )
    histories = data.draw(st.lists(st.none() | st.lists(one, max_size=9), max_size=12))
    k, exclude_seen = data.draw(st.integers(1, ITEMS + 5)), data.draw(st.booleans())
    values: Any = {"string": pa.string(), "large": pa.large_string(), "int64": pa.int64()}.get(
        kind, pa.dictionary(pa.int32(), pa.string())
    )
    lists: Any = pa.large_list(values) if kind == "large" else pa.list_(values)
    users = pa.array(np.arange(len(histories))[::-1] * 7, pa.int32())
    table = pa.table({"who": users, "history": pa.array(histories, pa.list_(pa.string()) if
                      ids == "text" else lists)}).cast(
        pa.schema([("who", pa.int32()), ("history", lists)])
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "users.parquet"), Path(folder, "out.parquet")
        pq.write_table(table, source, row_group_size=max(1, data.draw(st.integers(1, 5))))
        summary = recommend_users(
            rec, source, out, k=k, exclude_seen=exclude_seen,
            chunk_users=data.draw(st.integers(1, 13)),
        )  # fmt: skip
        found = pq.read_table(out)
        assert sorted(path.name for path in Path(folder).iterdir()) == [
            "out.parquet", "users.parquet",
        ]  # fmt: skip
    plain = [history or [] for history in histories]
    rec.check(found, users.to_pylist(), plain, k=k, exclude_seen=exclude_seen)
    item = pa.string() if ids == "text" else pa.int64()
    assert found.schema.types == [
        pa.int32(), pa.list_(item), pa.list_(pa.float32()), pa.bool_(),
    ]  # fmt: skip
    assert summary.users == len(histories)
    assert (summary.without_known_items, summary.events, summary.unknown_ids) == counts(rec, plain)


@given(data=st.data())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_log(by_text: Witness, data: st.DataObject) -> None:
    """Sorted by user, then by time, then by row; with and without times, in chunks of any size."""
    by_text.forget()
    user = st.sampled_from(["b", "a", "c", "ä", "a ", "zz"])
    events = data.draw(st.lists(st.tuples(user, texts, st.integers(0, 3)), min_size=1, max_size=30))
    timed, csv = data.draw(st.booleans()), data.draw(st.booleans())
    rows: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for row, (who, what, when) in enumerate(events):
        rows[who].append((when if timed else 0, row, what))
    users = sorted(rows, key=lambda name: name.encode())
    histories = [[what for _, _, what in sorted(rows[name])] for name in users]
    columns: dict[str, Any] = {"user_id": [e[0] for e in events], "item_id": [e[1] for e in events]}
    if timed:
        columns["timestamp"] = [1_700_000_000 + e[2] for e in events]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqrec_fast.batch.log_users._ROWS_PER_BATCH", data.draw(st.integers(1, 40)))
        source, out = Path(folder, "log.csv" if csv else "log.parquet"), Path(folder, "o.parquet")
        if csv:
            pa.csv.write_csv(pa.table(columns), source)
        else:
            pq.write_table(pa.table(columns), source)
        summary = recommend_users(
            by_text, source, out, k=7, chunk_users=data.draw(st.integers(1, 4)), threads=1
        )
        found = pq.read_table(out)
    assert found.column_names == ["user_id", "items", "scores", "fallback"]
    by_text.check(found, users, histories, k=7)
    assert (summary.without_known_items, summary.events, summary.unknown_ids) == counts(
        by_text, histories
    )


def test_users_of_a_log_keep_their_type(by_number: Witness, tmp_path: Path) -> None:
    for number, users in enumerate(
        (
            pa.array([3, 1, 3], pa.int32()),
            pa.array([3, 1, 3], pa.uint8()),
            pa.array(["x", "a", "x"]),
        )
    ):
        log, out = tmp_path / f"{number}.parquet", tmp_path / f"out{number}.parquet"
        pq.write_table(pa.table({"user": users, "item": ["1001", "1002", "nothing"]}), log)
        by_number.forget()
        recommend_users(by_number, log, out, k=3, threads=1)
        found = pq.read_table(out)
        assert found.schema.field("user").type == users.type
        by_number.check(found, sorted(set(users.to_pylist())),
              [[1002], [1001]], k=3)  # fmt: skip


def test_flat_rows_are_the_lists(by_text: Witness, tmp_path: Path) -> None:
    source = tmp_path / "u.parquet"
    histories = [["i1"], [], [f"i{n}" for n in range(58)], ["i3", "i4"]]
    pq.write_table(pa.table({"user": ["a", "b", "c", "d"], "items": histories}), source)
    recommend_users(by_text, source, tmp_path / "lists.parquet", k=5, chunk_users=2)
    recommend_users(by_text, source, tmp_path / "flat.parquet", k=5, chunk_users=3, flat=True)
    lists, flat = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("lists", "flat"))
    expected = [
        {"user": row["user"], "rank": rank, "item": item, "score": pytest.approx(score, rel=1e-5),
         "fallback": row["fallback"]}
        for row in lists.to_pylist()
        for rank, (item, score) in enumerate(zip(row["items"], row["scores"], strict=True), 1)
    ]  # fmt: skip
    assert flat.to_pylist() == expected
    assert flat.schema.types == [
        pa.string(), pa.int32(), pa.string(), pa.float32(), pa.bool_(),
    ]  # fmt: skip
    assert [len(row) for row in lists.column("items").to_pylist()] == [5, 5, 2, 5]


def test_filters_hold_for_all_users(by_text: Witness, tmp_path: Path) -> None:
    source, out = tmp_path / "u.parquet", tmp_path / "out.parquet"
    histories: list[list[str]] = [["i1", "i2"], [], ["nobody"]]
    pq.write_table(pa.table({"user": [1, 2, 3], "h": histories}), source)
    allow, deny = [f"i{n}" for n in range(9)], ["i3", "gone"]
    summary = recommend_users(by_text, source, out, k=4, allow=allow, deny=deny)
    by_text.check(pq.read_table(out), [1, 2, 3], histories, k=4, allow=allow, deny=deny)
    assert summary.unknown_filters == 1


def test_several_files_are_one_batch(by_text: Witness, tmp_path: Path) -> None:
    for number in range(3):
        users = [f"{number}-{n}" for n in range(4)]
        pq.write_table(
            pa.table({"user": users, "history": [[f"i{number}"]] * 4}),
            tmp_path / f"part-{number}.parquet",
        )
    told: list[tuple[int, int | None]] = []
    summary = recommend_users(
        by_text, tmp_path, tmp_path.with_suffix(".parquet"), k=2, chunk_users=3,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    found = pq.read_table(tmp_path.with_suffix(".parquet"))
    assert found.column("user").to_pylist() == [f"{a}-{b}" for a in range(3) for b in range(4)]
    assert summary.users == 12
    assert told == [(3, 12), (4, 12), (7, 12), (8, 12), (11, 12), (12, 12)]


def test_a_file_without_users_gives_one(by_text: Witness, tmp_path: Path) -> None:
    source, out = tmp_path / "u.parquet", tmp_path / "out.parquet"
    empty = {"user": pa.array([], pa.string()), "history": pa.array([], pa.list_(pa.string()))}
    pq.write_table(pa.table(empty), source)
    assert recommend_users(by_text, source, out).users == 0
    assert pq.read_table(out).column_names == ["user", "items", "scores", "fallback"]


def test_text_that_writes_the_integers_of_the_bundle(
    by_text: Witness, by_number: Witness, tmp_path: Path
) -> None:
    source, out = tmp_path / "u.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"user": ["a", "b"], "history": [["1001", "01002"], ["x"]]}), source)
    summary = recommend_users(by_number, source, out, k=3)
    by_number.check(pq.read_table(out), ["a", "b"], [[1001], []], k=3)
    assert (summary.unknown_ids, summary.without_known_items) == (2, 1)


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.int64(), pa.uint64(), pa.int8()])
def test_ids_are_looked_up_by_the_rule_of_the_vocabulary(kind: Any) -> None:
    from seqrec_fast.batch.ids import encode_ids

    raw: list[Any] = [5, 7, 100, 5]
    if pa.types.is_unsigned_integer(kind):
        raw.append(2**64 - 1)
    values = pa.array(raw, kind) if pa.types.is_integer(kind) else pa.array(
        ["5", "7", "07", "5"]).cast(kind)  # fmt: skip
    plain = values.to_pylist() if not pa.types.is_binary(kind) else ["5", "7", "07", "5"]
    for vocabulary in (Vocabulary.from_ids([7, 5, -1]), Vocabulary.from_ids(["5", "x", "7"])):
        expected = vocabulary.encode(plain)
        found = encode_ids(values, vocabulary)
        assert found.dtype == np.int32
        assert found.tolist() == expected.tolist()
        coded = pa.concat_arrays([values, values]).dictionary_encode().slice(1, 2)
        assert encode_ids(coded, vocabulary).tolist() == expected.tolist()[1:3]
