# SPDX-License-Identifier: Apache-2.0
"""The engine for GPUs, run on torch's CPU device: against the native one and against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import _C
from seqrec_fast.bundle import Bundle
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommender
from seqrec_fast.engine import devices as plug_in
from seqrec_fast.engine.encoders import tensor_shapes
from seqrec_fast.errors import DeviceError, InputError, MissingExtraError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models import ModelOptions
from seqrec_fast.models import device_engine as module
from tests.engine.reference import ReferenceEncoder
from tests.ops.judge import allowed, worst

ITEMS = 50
OPEN_DEVICE = module.open_device
MODELS = ["sasrec", "gru", "lstm", "rnn"]
rows = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=9), min_size=1, max_size=4)


def make(model: str = "sasrec", **options: Any) -> Bundle:
    chosen = ModelOptions(model=model, dim=8, heads=2, hidden=12, max_length=5, **options)
    config = {**chosen.to_config(), "num_items": ITEMS}
    rng = np.random.default_rng(3)
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in tensor_shapes(config).items()}
    for tensor in tensors.values():
        tensor.setflags(write=False)
    return Bundle(
        config=config,
        tensors=tensors,
        items=Vocabulary.from_ids([f"i{n}" for n in range(ITEMS)]),
        popularity=rng.integers(0, 9, ITEMS),
    )


@pytest.fixture(autouse=True)
def torch_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device is torch's CPU, on which the operations run that run away from the CPU."""
    monkeypatch.setattr(module, "open_device", lambda name: torch.device("cpu"))
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "reference")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"item_bias": True, "tied_output": False},
        {"temperature": 0.2},
        {"interests": 3, "temperature": 0.2, "item_bias": True},
    ],
)
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=5)
@given(histories=rows)
def test_embeddings_keep_the_rule_and_items_stand_by_their_scores(
    model: str, options: dict[str, Any], histories: list[list[int]]
) -> None:
    bundle = make(model, **options)
    native, device = Recommender(bundle), Recommender(bundle, device="cuda")
    assert not isinstance(device._current.encoder.engine, _C.Engine)
    raw = [[f"i{item}" for item in row] for row in histories]
    reference = ReferenceEncoder(bundle.config, bundle.tensors)
    exact = reference.encode(JaggedBatch.from_lists(histories))
    theirs, mine = (torch.tensor(r.embed(raw).reshape(exact.shape)) for r in (native, device))
    judged = torch.tensor(exact)
    plain = ReferenceEncoder(bundle.config, bundle.tensors, np.float32)
    simple = torch.tensor(plain.encode(JaggedBatch.from_lists(histories)))
    error = max(worst(theirs, judged), worst(simple, judged))
    assert worst(mine, judged) <= allowed(error, judged, 2.0)
    for k in (1, 7, ITEMS + 3):
        for user, found in enumerate(device.recommend(raw, k)):
            right, simpler = (
                torch.tensor(scores_of(judge, histories[user])) for judge in (reference, plain)
            )
            served = torch.tensor(native.score(raw[user], [f"i{n}" for n in range(ITEMS)]))
            near = allowed(max(worst(simpler, right), worst(served, right)), right, 2.0)
            items = torch.tensor([int(item[1:]) for item in found.items.tolist()])
            assert worst(torch.tensor(found.scores), right[items]) <= near
            left = sorted(set(range(ITEMS)) - set(histories[user]))
            assert len(set(items.tolist())) == min(k, len(left)) == len(items)
            assert set(items.tolist()) <= set(left)
            # scores nearer than their roundings may stand in either order
            assert worst(right[items], right[left].sort(descending=True).values[:k]) <= 2 * near


def scores_of(reference: ReferenceEncoder, history: list[int]) -> Any:
    """Of all items."""
    embedded = reference.encode(JaggedBatch.from_lists([history]))[0]
    found = reference.item_vectors @ embedded.reshape(-1, 8).T
    bias = 0.0 if reference.item_bias is None else reference.item_bias
    return found.max(axis=1) + bias


def test_filters_fallbacks_and_arrays_are_those_of_the_native_engine() -> None:
    bundle = make("gru", item_bias=True)
    native, device = Recommender(bundle), Recommender(bundle, device="cuda:1")
    histories = [["i1", "i2"], [], ["x"], ["i9"] * 8]
    cases: list[dict[str, Any]] = [
        {},
        {"exclude_seen": False},
        {"deny": ["i4", "i5"]},
        {"allow": ["i6", "i7", "x"]},
        {"allow": [["i1", "i3"], None, [], [f"i{n}" for n in range(40)]]},
        {"deny": [None, ["i3"], ["i2"], ["i30", "i31"]]},
    ]
    for options in cases:
        found = device.recommend(histories, 6, **options)
        wanted = native.recommend(histories, 6, **options)
        for one, other in zip(found, wanted, strict=True):
            assert one.items.tolist() == other.items.tolist()
            assert (one.fallback, one.unknown) == (other.fallback, other.unknown)
    batch = JaggedBatch.from_lists([[1, 2], [], [3]])
    blocked = np.arange(ITEMS) % 2 == 0
    found_ids = device.recommend_arrays(batch, 70, blocked=blocked)[1]
    assert (found_ids == native.recommend_arrays(batch, 70, blocked=blocked)[1]).all()
    assert device.info()["device"] == "cuda:1"
    assert native.info()["device"] == "cpu"
    assert device.score(["i1"], ["i3"]) == pytest.approx(native.score(["i1"], ["i3"]), rel=1e-4)


@given(
    scores=st.integers(1, 12).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, -torch.inf]), min_size=n, max_size=n),
            min_size=1,
            max_size=4,
        )
    ),
    data=st.data(),
)
def test_equal_scores_stand_by_ascending_id(scores: list[list[float]], data: Any) -> None:
    k = data.draw(st.integers(1, len(scores[0])))
    best, ids = module.top_items(torch.tensor(scores), k)
    for row, values, places in zip(scores, best.tolist(), ids.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        assert values == [row[i] for i in order]
        assert places == [i if row[i] > -torch.inf else -1 for i in order]


@pytest.mark.parametrize("at_once", [1, ITEMS, 3 * ITEMS])
def test_ranking_in_blocks_is_the_definition(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from seqrec_fast.ops.topk import score_topk_reference

    monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
    bundle = make(item_bias=True)
    engine = module.DeviceEngine(bundle.config, bundle.tensors, "cuda")
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (7, 8)).astype(np.float32)
    queries[3, 2] = np.nan
    seen = JaggedBatch.from_lists([[], [1, 1, 2], [], [4], list(range(ITEMS)), [0], [49]])
    blocked = (rng.random(ITEMS) < 0.3).astype(np.uint8)
    wanted = score_topk_reference(
        torch.tensor(queries),
        torch.tensor(bundle.tensors["item_embedding.weight"]),
        bias=torch.tensor(bundle.tensors["output_bias"]),
        seen=seen,
        blocked=torch.tensor(blocked != 0),
        k=ITEMS + 2,
    )
    scores, ids = engine.rank(queries, seen.values, seen.offsets, blocked, ITEMS + 2)
    assert ids.tolist() == wanted[1].tolist()
    np.testing.assert_allclose(scores, wanted[0].numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_window_is_that_of_the_native_engine(model: str) -> None:
    bundle = make(model)
    windows = {Recommender(bundle, device=d)._current.encoder.window for d in ("cpu", "cuda")}
    assert windows == {5 if model == "sasrec" else 0}


def test_a_swap_stays_on_the_device_and_global_randomness_is_left_alone() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    device = Recommender(make("gru"), device="cuda")
    device.swap(make("lstm"))
    assert torch.rand(1) == wanted
    assert device._current.device == "cuda"
    assert device.info()["model"] == "lstm"
    assert not isinstance(device._current.encoder.engine, _C.Engine)


def test_sessions_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"sessions keep the states of users on the CPU.*cpu"):
        Recommender(make("gru"), device="cuda").sessions(10)


def test_items_out_of_range_never_reach_the_device() -> None:
    engine = module.DeviceEngine(make().config, make().tensors, "cuda")
    wrong, offsets = np.array([3, ITEMS], np.int32), np.array([0, 2])
    with pytest.raises(InputError, match=f"histories: item {ITEMS} is not one of 0 to 49"):
        engine.encode(wrong, offsets)
    with pytest.raises(InputError, match="seen: item"):
        engine.rank(np.zeros((1, 8), np.float32), wrong, offsets, None, 3)
    with pytest.raises(InputError, match="k: expected at least 1, found 0"):
        engine.rank(np.zeros((1, 8), np.float32), None, None, None, 0)


# ------------------------------------------------------------------------------- refusals


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_gpu_is_refused_with_the_remedy(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_device", OPEN_DEVICE)
    with pytest.raises(DeviceError, match=rf"device: '{device}' needs a GPU.*device=\"cpu\""):
        Recommender(make(), device=device)


def test_a_gpu_of_another_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert OPEN_DEVICE("cuda") == torch.device("cuda:1")
    assert OPEN_DEVICE("cuda:0") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match="'cuda:2' is not there; torch finds 2, cuda:0 to cuda:1"):
        OPEN_DEVICE("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", "", None, 0, "cuda:1\n"])
def test_unknown_devices_are_refused(device: Any) -> None:
    with pytest.raises(InputError, match=r"device: found .*; choose cpu, cuda or cuda:N"):
        Recommender(make(), device=device)


def test_missing_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plug_in, "PLUG_IN", ("a_module_that_is_not_there", "DeviceEngine"))
    with pytest.raises(MissingExtraError, match=r"'cuda' needs torch.*pip install 'seqrec-fast"):
        Recommender(make(), device="cuda")


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "tensor", full)
    with pytest.raises(DeviceError, match=r"bytes of weights do not fit into the free memory"):
        Recommender(make(), device="cuda")


# ------------------------------------------------------------------------------- kernels


def test_items_are_chosen_by_the_kernels_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native kernels stand for those of a GPU."""
    monkeypatch.delenv("SEQREC_FAST_BACKEND")
    bundle = make("gru", item_bias=True)
    engine = module.DeviceEngine(bundle.config, bundle.tensors, "cuda")
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    seen = JaggedBatch.from_lists([[], [1, 1, 2], [], [4], list(range(ITEMS))])
    blocked = (rng.random(ITEMS) < 0.3).astype(np.uint8)
    arguments = (queries, seen.values, seen.offsets, blocked, ITEMS + 2)
    wanted = engine.rank(*arguments)
    monkeypatch.setattr(module, "choose_backend", lambda *_: "cuda")
    monkeypatch.setattr(engine, "_rank_in_blocks", None)
    scores, ids = engine.rank(*arguments)
    assert ids.tolist() == wanted[1].tolist()
    np.testing.assert_allclose(scores, wanted[0], rtol=1e-5, atol=1e-5)
    assert engine.rank(queries, None, None, None, 3)[1].shape == (5, 3)


def test_single_users_run_by_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEQREC_FAST_BACKEND")
    bundle = make("sasrec")
    engine = module.DeviceEngine(bundle.config, bundle.tensors, "cuda")
    calls: list[int] = []

    def encode(items: Any) -> torch.Tensor:
        calls.append(len(items))
        return torch.full((1, 8), 7.0)

    monkeypatch.setattr(engine._graphs, "encode", encode)
    one = np.arange(9, dtype=np.int32)
    assert engine.encode(one, np.array([0, 9])).tolist() == [[7.0] * 8]
    assert calls == [5], "the window of the model"
    assert engine.encode(one, np.array([0, 4, 9])).tolist() != [[7.0] * 8] * 2
    assert calls == [5]
    monkeypatch.setattr(engine._graphs, "encode", lambda items: None)
    exact = engine._model.encode(JaggedBatch(one, np.array([0, 9])))
    assert np.array_equal(engine.encode(one, np.array([0, 9])), exact)
