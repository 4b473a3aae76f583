# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest

from seqrec_fast.data import ItemTable
from seqrec_fast.errors import InputError


def table() -> ItemTable:
    return ItemTable(
        {
            "title": ["Café 🎵", None, ""],
            "year": np.array([1999, 2001, 2024]),
            "price": np.array([1.5, np.nan, 2.0]),
        },
        "title",
    )


def test_titles() -> None:
    assert [table().title(i) for i in range(3)] == ["Café 🎵", None, ""]
    assert ItemTable({"year": np.array([7])}, "year").title(0) == "7"
    assert ItemTable({"price": np.array([np.nan])}, "price").title(0) is None
    assert ItemTable({"title": ["x"]}).title(0) is None
    with pytest.raises(InputError, match="outside"):
        table().title(3)


def test_select() -> None:
    chosen = table().select([2, -1, 0])
    assert chosen.columns["title"] == ["", None, "Café 🎵"]
    np.testing.assert_array_equal(chosen.columns["year"], [2024, np.nan, 1999])
    assert table().select([1]).columns["year"].dtype == np.int64  # type: ignore[union-attr]


def test_tensors_travel_in_any_order() -> None:
    tensors = table().to_tensors()
    assert all(isinstance(part, np.ndarray) for part in tensors.values())
    assert ItemTable.from_tensors(dict(sorted(tensors.items(), reverse=True))) == table()
    assert table() != ItemTable({"title": ["x"]})


def schema(columns: object, title: object = None) -> np.ndarray:
    text = json.dumps({"columns": columns, "title": title}).encode()
    return np.frombuffer(text, dtype=np.uint8)


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t.pop("schema"),
        lambda t: t.pop("0.present"),
        lambda t: t.pop("1.values"),
        lambda t: t.update(extra=np.zeros(1)),
        lambda t: t.update(schema=np.frombuffer(b"[1", dtype=np.uint8)),
        lambda t: t.update(schema=np.frombuffer(b"[" * 100_000, dtype=np.uint8)),
        lambda t: t.update(schema=np.frombuffer(b"[1]", dtype=np.uint8)),
        lambda t: t.update(schema=schema([{"name": "title"}])),
        lambda t: t.update(schema=schema([{"name": 1, "kind": "text"}])),
        lambda t: t.update(schema=schema([], "title")),
        lambda t: t.update({"1.values": np.zeros(2, dtype=np.int64)}),
        lambda t: t.update({"1.values": np.zeros((3, 1), dtype=np.int64)}),
        lambda t: t.update({"1.values": np.zeros(3, dtype=np.float16)}),
        lambda t: t.update({"0.present": np.zeros(2, dtype=np.uint8)}),
        lambda t: t.update({"0.offsets": np.zeros(4, dtype=np.int64)}),
        lambda t: t.update({"0.text": t["0.text"] | 0x80}),
    ],
)
def test_damaged_tensors_are_refused(damage: object) -> None:
    tensors = table().to_tensors()
    damage(tensors)  # type: ignore[operator]
    with pytest.raises(InputError):
        ItemTable.from_tensors(tensors)


@pytest.mark.parametrize(
    ("columns", "title"),
    [
        ({}, None),
        ({"a": ["x"], "b": ["x", "y"]}, None),
        ({"a": ["x"]}, "b"),
        ({"a": [1]}, None),
        ({"a": np.zeros(1, dtype=np.float32)}, None),
    ],
)
def test_tables_that_cannot_be(columns: dict, title: str | None) -> None:
    with pytest.raises(InputError):
        ItemTable(columns, title)
