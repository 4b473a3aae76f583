# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast.data import Vocabulary
from seqrec_fast.data.vocabulary import is_canonical_integer
from seqrec_fast.errors import InputError

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@given(st.lists(INT64, unique=True))
def test_integers_travel_there_and_back(ids: list[int]) -> None:
    vocabulary = Vocabulary.from_ids(ids)
    assert vocabulary.kind == "int"
    assert vocabulary.encode(ids).tolist() == list(range(len(ids)))
    assert vocabulary.encode([str(raw) for raw in ids]).tolist() == list(range(len(ids)))
    assert vocabulary.decode(np.arange(len(ids))).tolist() == ids
    assert Vocabulary.from_tensors(vocabulary.to_tensors()) == vocabulary


@given(st.lists(TEXT, unique=True, min_size=1))
def test_text_travels_there_and_back(ids: list[str]) -> None:
    vocabulary = Vocabulary.from_ids(ids)
    assert vocabulary.kind == "str"
    assert vocabulary.encode(ids).tolist() == list(range(len(ids)))
    assert vocabulary.encode(np.array(ids, dtype=object)).tolist() == list(range(len(ids)))
    assert vocabulary.decode(list(range(len(ids)))).tolist() == ids
    assert Vocabulary.from_tensors(vocabulary.to_tensors()) == vocabulary


@given(st.lists(INT64, unique=True), st.lists(st.one_of(INT64, TEXT, st.floats(), st.none())))
def test_what_is_not_known_is_minus_one_and_never_an_error(ids: list[int], asked: list) -> None:
    expected = []
    for raw in asked:
        if isinstance(raw, str):
            raw = int(raw) if is_canonical_integer(raw) else None
        elif isinstance(raw, float):
            raw = int(raw) if raw.is_integer() else None
        expected.append(ids.index(raw) if raw in ids else -1)
    assert Vocabulary.from_ids(ids).encode(asked).tolist() == expected


def test_one_id_in_several_guises() -> None:
    numbers = Vocabulary.from_ids([5, 1])
    asked = [1, "1", 1.0, np.int64(1), np.int8(1), "01", "+1", " 1", "1.0", True, None, 1.5, b"1"]
    assert numbers.encode(asked).tolist() == [1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1]
    texts = Vocabulary.from_ids(["5", "1", "01"])
    assert texts.encode(asked).tolist() == [1, 1, 1, 1, 1, 2, -1, -1, -1, -1, -1, -1, -1]
    assert numbers.encode(np.array([1.0, np.nan, 5.0])).tolist() == [1, -1, 0]
    assert numbers.encode(np.array([2**63 + 5], dtype=np.uint64)).tolist() == [-1]
    assert 1 in numbers
    assert "5" in numbers
    assert 2 not in numbers


def test_mixed_ids_become_text() -> None:
    vocabulary = Vocabulary.from_ids([1, "b", np.int32(7), 3.0])
    assert vocabulary.ids.tolist() == ["1", "b", "7", "3"]
    assert Vocabulary.from_ids(["1", "2"]).kind == "str"
    assert Vocabulary.from_ids([2**63]).ids.tolist() == [str(2**63)]
    assert Vocabulary.from_ids(np.array([3, 1], dtype=np.uint8)).ids.dtype == np.int64
    assert Vocabulary.from_ids(np.array(["x", "y"])).ids.tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, 1], "twice"),
        (["a", "a"], "twice"),
        ([1, "1", "x"], "twice"),
        ([True, False], "entry 0"),
        ([None], "entry 0"),
        ([1.5], "entry 0"),
        ("abc", "give a list"),
        (np.zeros((2, 2)), "shape"),
    ],
)
def test_ids_that_cannot_be(ids: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Vocabulary.from_ids(ids)  # type: ignore[arg-type]


def test_misuse_is_named() -> None:
    vocabulary = Vocabulary.from_ids(["a", "b"])
    with pytest.raises(InputError, match="instead of a list"):
        vocabulary.encode("ab")
    with pytest.raises(InputError, match="outside"):
        vocabulary.decode([-1])
    with pytest.raises(InputError, match="outside"):
        vocabulary.decode([2])
    with pytest.raises(InputError, match="integers"):
        vocabulary.decode([0.5])
    assert len(vocabulary.decode([])) == 0
    assert len(Vocabulary.from_ids([]).encode([1, 2])) == 2


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"ids": np.zeros(2, dtype=np.int64)},
        {"ids": np.zeros(2, dtype=np.float32)},
        {"ids": np.zeros((1, 1), dtype=np.int64)},
        {"text": np.zeros(0, dtype=np.uint8)},
        {"text": np.array([255], dtype=np.uint8), "offsets": np.array([0, 1])},
        {"text": np.array([65], dtype=np.uint8), "offsets": np.array([0, 2])},
        {"text": np.array([65], dtype=np.uint8), "offsets": np.array([0, 5, 1])},
        {"text": np.array([65], dtype=np.int8), "offsets": np.array([0, 1])},
        {"text": np.array([65], dtype=np.uint8), "offsets": np.array([0.0, 1.0])},
        {"text": np.array([65, 65], dtype=np.uint8), "offsets": np.array([0, 1, 2])},
    ],
)
def test_damaged_tensors_are_refused(tensors: dict) -> None:
    with pytest.raises(InputError):
        Vocabulary.from_tensors(tensors)


def test_text_that_cannot_be_stored() -> None:
    with pytest.raises(InputError, match="Unicode"):
        Vocabulary.from_ids(["\ud800"]).to_tensors()


def test_subset_copies_and_pickles() -> None:
    vocabulary = Vocabulary.from_ids(["a", "b", "c"])
    assert vocabulary.subset([2, 0]).ids.tolist() == ["c", "a"]
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    assert copy.deepcopy(vocabulary).encode(["c"]).tolist() == [2]
    assert "3 str ids" in repr(vocabulary)
