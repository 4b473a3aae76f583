# SPDX-License-Identifier: Apache-2.0
"""Every combination of filters equals the filtered brute force, whatever way the search takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import _C, native, retrieval
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.filters import Filters, read_filters

SIZE, DIM = 3000, 8
RNG = np.random.default_rng(0)
# small whole numbers: exact in float32, many ties
VECTORS = RNG.integers(-3, 4, (SIZE, DIM)).astype(np.float32)
INDEXES = {dtype: retrieval.build(VECTORS, dtype=dtype) for dtype in ("float32", "int8")}
SHARES = st.sampled_from([0.0, 0.002, 0.01, 0.1, 0.3, 0.6, 0.9, 1.0])


def brute(queries: Any, hidden: Any, k: int) -> Any:
    masked = np.where(hidden, -np.inf, queries @ VECTORS.T)
    order = np.argsort(-masked, axis=1, kind="stable")[:, :k]
    order[np.take_along_axis(masked, order, axis=1) == -np.inf] = -1
    return order


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_all_filters(data: st.DataObject) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.sampled_from([1, 3, 17, 40]))
    queries = rng.integers(-3, 4, (count, DIM)).astype(np.float32)
    hidden = np.zeros((count, SIZE), bool)
    index = INDEXES[draw(st.sampled_from(["float32", "int8"]))]
    arguments: dict[str, Any] = {}

    def rows(share: float) -> tuple[JaggedBatch[Any], Any]:
        lists = [rng.integers(0, SIZE, rng.integers(0, int(SIZE * share) + 2)) for _ in queries]
        if draw(st.booleans()):
            lists = [np.sort(ids) for ids in lists]
        mask = np.zeros((count, SIZE), bool)
        for at, ids in enumerate(lists):
            mask[at, ids] = True
        return JaggedBatch.from_lists(lists, dtype=draw(st.sampled_from(["i4", "i8"]))), mask

    def common(mask: Any) -> Any:
        form = draw(st.sampled_from(["ids", "mask", "filter"]))
        if form == "filter":
            return index.filter(allow=mask)
        return mask if form == "mask" else rng.permutation(np.flatnonzero(mask))

    if draw(st.booleans()):
        arguments["exclude"], mask = rows(draw(SHARES))
        hidden |= mask
    for name in ("allow", "deny"):
        kind = draw(st.sampled_from(["none", "common", "each"]))
        if kind == "common":
            mask = rng.random(SIZE) < draw(SHARES)
            arguments[name] = common(mask)
        elif kind == "each":
            arguments[name], mask = rows(draw(SHARES))
        if kind != "none":
            hidden |= mask if name == "deny" else ~mask
    k = draw(st.sampled_from([1, 10, 100, SIZE]))
    found = index.search(queries, k, threads=draw(st.sampled_from([1, 2])), **arguments)
    expected = brute(queries, hidden, k)
    np.testing.assert_array_equal(found.ids, expected)
    scores = np.take_along_axis(queries @ VECTORS.T, np.maximum(expected, 0), axis=1)
    np.testing.assert_array_equal(found.scores, np.where(expected < 0, -np.inf, scores))


def test_every_instruction_set() -> None:
    used = native.build_info()["isa"]
    queries = VECTORS[:20]
    mask = RNG.random(SIZE)
    try:
        for isa in native.build_info()["isa_supported"]:
            _C.use_isa(isa)
            for dtype, index in INDEXES.items():
                for share in (0.01, 0.4, 0.95):
                    for count in (1, 20):
                        allow = mask < share
                        hidden = np.broadcast_to(~allow, (count, SIZE))
                        found = index.search(queries[:count], 50, allow=allow)
                        expected = brute(queries[:count], hidden, 50)
                        np.testing.assert_array_equal(found.ids, expected, f"{isa} {dtype} {share}")
    finally:
        _C.use_isa(used)


def test_a_filter_is_used_again_and_survives_removals() -> None:
    index = retrieval.build(VECTORS)
    ours = index.filter(allow=range(100), deny=[3, 4])
    assert (len(ours), ours.size) == (98, SIZE)
    assert np.flatnonzero(ours.mask()).tolist() == [0, 1, 2, *range(5, 100)]
    index.remove([7])
    found = index.search(VECTORS[:2], 200, allow=ours).ids
    assert sorted(found[0][found[0] >= 0].tolist()) == [0, 1, 2, 5, 6, *range(8, 100)]
    both = ours & index.filter(deny=range(10))
    assert len(both) == 90
    index.add(VECTORS[:1])
    with pytest.raises(InputError, match="allow: the filter was made when the index had 3000 ids"):
        index.search(VECTORS[:2], 3, allow=ours)
    with pytest.raises(InputError, match="filters of 3000 and of 3001 ids"):
        ours & index.filter()
    with pytest.raises(InputError, match="deny: lists of single queries belong to the search"):
        index.filter(deny=JaggedBatch.from_lists([[1]]))


def test_both_forms_of_filters_agree() -> None:
    """What other kinds read is the same as what the native search reads."""
    removed = RNG.random(50) < 0.1
    seen = JaggedBatch.from_lists([[3, 1], [], [2]])
    own = JaggedBatch.from_lists([[9, 3, 9, 5], [1], []])
    found = read_filters(3, 50, removed, seen, range(40), own)
    assert found.blocked is not None
    np.testing.assert_array_equal(found.blocked, removed | (np.arange(50) >= 40))
    assert found.excluded is not None
    assert [row.tolist() for row in found.excluded] == [[1, 3, 3, 5, 9, 9], [1], [2]]
    again = Filters(found.blocked, found.excluded, None)
    assert again.open is not None
    np.testing.assert_array_equal(again.open.flags(), ~found.blocked)
    assert again.hidden == (found.excluded,)
