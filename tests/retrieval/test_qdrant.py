# SPDX-License-Identifier: Apache-2.0
"""What a Qdrant collection has beyond the contract of every index, in the client's local mode."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import retrieval
from seqrec_fast.errors import InputError, MissingExtraError

VECTORS = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'seqrec-fast\[qdrant\]'"):
        retrieval.build(VECTORS, kind="qdrant")


@pytest.fixture
def qdrant() -> Any:
    return pytest.importorskip("qdrant_client")


def test_filters_on_the_payload(qdrant: Any) -> None:
    index: Any = retrieval.build(VECTORS, kind="qdrant")
    index.set_payload(range(0, 40, 2), {"stock": 1})
    match = qdrant.models.FieldCondition(key="stock", match=qdrant.models.MatchValue(value=1))
    found = index.where(match).search(VECTORS[:3], 30, deny=[0, 1])
    mask = np.arange(40) % 2 == 0
    expected = retrieval.build(VECTORS).search(VECTORS[:3], 30, allow=mask, deny=[0, 1])
    np.testing.assert_array_equal(found.ids, expected.ids)
    assert (index.search(VECTORS[:1], 40).ids >= 0).all()  # the index itself is as it was


def test_a_view_follows_the_index(qdrant: Any) -> None:
    index: Any = retrieval.build(np.empty((0, 4)), kind="qdrant")
    match = qdrant.models.FieldCondition(key="stock", match=qdrant.models.MatchValue(value=1))
    view = index.where(match).where(qdrant.models.HasIdCondition(has_id=list(range(30))))
    assert (view.search(VECTORS[:1], 3).ids == -1).all()
    index.add(VECTORS)
    index.set_payload(range(0, 40, 2), {"stock": 1})
    index.remove([4])
    found = view.search(VECTORS[:3], 40, deny=[2])
    mask = (np.arange(40) % 2 == 0) & (np.arange(40) < 30)
    expected = retrieval.build(VECTORS).search(VECTORS[:3], 40, allow=mask, deny=[2, 4])
    np.testing.assert_array_equal(found.ids, expected.ids)
    assert (view.size, len(view)) == (40, 39)
    for change in (
        lambda: view.add(VECTORS[:1]),
        lambda: view.update([1], VECTORS[:1]),
        lambda: view.remove([1]),
    ):
        with pytest.raises(InputError, match="where: what it gave is for searches"):
            change()
    assert (index.size, len(index)) == (40, 39)


def test_a_collection_that_is_there(qdrant: Any, tmp_path: Path) -> None:
    made: Any = retrieval.build(VECTORS, kind="qdrant", location=str(tmp_path / "q"))
    made.remove([7, 9])
    again: Any = type(made).attach(made._client, "items")
    assert (again.size, len(again), again.dim) == (40, 38, 4)
    assert again.add(VECTORS[:1]).tolist() == [40]
    found = again.search(VECTORS[:2], 41)
    assert {7, 9} & set(found.ids.ravel().tolist()) == set()
    with pytest.raises(InputError, match="item 7 was removed, and Qdrant keeps no vector"):
        again.vectors([7])
    made._client.create_collection(
        "other",
        vectors_config=qdrant.models.VectorParams(size=4, distance=qdrant.models.Distance.COSINE),
    )
    with pytest.raises(InputError, match="'other' must have one unnamed vector"):
        type(made).attach(made._client, "other")
    made._client.close()


@pytest.mark.parametrize(
    ("ids", "message"),
    [([40], "ids: found item 40"), ([1, 3], "ids: item 3 was removed"), ([0.5], "ids: expected")],
)
def test_a_payload_needs_items(qdrant: Any, ids: Any, message: str) -> None:
    index: Any = retrieval.build(VECTORS, kind="qdrant")
    index.remove([3])
    with pytest.raises(InputError, match=message):
        index.set_payload(ids, {"stock": 1})


def test_a_folder_that_is_open_is_named(qdrant: Any, tmp_path: Path) -> None:
    place = str(tmp_path / "q")
    made: Any = retrieval.build(VECTORS, kind="qdrant", location=place)
    made.save(tmp_path / "index")
    for again in (
        lambda: retrieval.build(VECTORS, kind="qdrant", location=place),
        lambda: retrieval.load(tmp_path / "index"),
    ):
        with pytest.raises(InputError, match=r"location: Qdrant can't use .* no other client has"):
            again()
    made._client.close()
    assert len(retrieval.load(tmp_path / "index")) == 40


def test_a_server_is_asked_for_what_was_chosen_and_again_where_too_few_came(qdrant: Any) -> None:
    """The requests that a server would get; the answers are those of the local mode."""
    index: Any = retrieval.build(VECTORS, kind="qdrant", exact=False, ef_search=50)
    index._local = False
    asked: list[Any] = []
    ask = index._ask

    def watched(requests: list[Any]) -> Any:
        asked.extend(requests)
        plain = [one.model_copy(update={"params": None}) for one in requests]
        found = ask(plain)
        return (
            [points[:2] for points in found]
            if not requests or not requests[0].params.exact
            else found
        )

    index._ask = watched
    assert not index.exact
    found = index.search(VECTORS[:2], 5)
    assert [(one.params.exact, one.params.hnsw_ef) for one in asked] == [
        (False, 50), (False, 50), (True, 50), (True, 50),
    ]  # fmt: skip
    np.testing.assert_array_equal(found.ids, retrieval.build(VECTORS).search(VECTORS[:2], 5).ids)


def test_options_are_checked() -> None:
    for options, message in (
        ({"location": ""}, "location: expected a text"),
        ({"ef_search": 0}, "ef_search: expected a whole number"),
        ({"location": "http://127.0.0.1:1"}, "location: Qdrant can't use 'http://127.0.0.1:1'"),
        ({"location": __file__}, "location: Qdrant can't use .*; give the URL of a server"),
        ({"color": 1}, "options of kind 'qdrant': got an unexpected keyword argument 'color'"),
    ):
        with pytest.raises(InputError, match=message):
            retrieval.build(VECTORS, kind="qdrant", **options)
