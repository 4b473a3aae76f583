# SPDX-License-Identifier: Apache-2.0
"""Properties that every user encoder has, and its agreement with the encoder that serves it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import JaggedBatch
from seqrec_fast.engine.encoders import build_encoder, tensor_shapes
from seqrec_fast.errors import BundleError, InputError
from seqrec_fast.models import MODELS, ModelOptions, SequenceModel, build_model, model_from_config

ITEMS = 30
HISTORIES = st.lists(
    st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=15), min_size=1, max_size=6
)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"layers": 3, "heads": 4, "feed_forward": 2, "hidden": 12},
    {"temperature": 0.1, "item_bias": True},
    {"tied_output": False, "cell_activation": "sigmoid"},
    {"interests": 2},
    {"interests": 3, "temperature": 0.1, "item_bias": True, "tied_output": False},
]


def make(model: str, **options: Any) -> SequenceModel:
    """A model with weights large enough that every part of it matters."""
    torch.manual_seed(3)
    built = build_model(ModelOptions(model=model, dim=8, max_length=10, **options), ITEMS)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return built.eval()


@pytest.mark.parametrize("model", MODELS)
@given(rows=HISTORIES)
def test_the_future_does_not_change_the_past(model: str, rows: list[list[int]]) -> None:
    """forward(prefix) equals the first tokens of forward(prefix + more)."""
    encoder = make(model)
    rows = [row[:10] for row in rows]
    batch = JaggedBatch.from_lists(rows, np.int64)
    whole = encoder(batch.to_torch())
    prefixes = [row[: max(1, len(row) // 2)] for row in rows]
    part = encoder(JaggedBatch.from_lists(prefixes, np.int64).to_torch())
    begin = 0
    for row, prefix in enumerate(prefixes):
        at = int(batch.offsets[row])
        torch.testing.assert_close(
            part[begin : begin + len(prefix)], whole[at : at + len(prefix)], rtol=1e-4, atol=1e-5
        )
        begin += len(prefix)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("model", MODELS)
def test_native_encoder_equals_the_model(model: str, options: dict[str, Any], isa: str) -> None:
    trained = make(model, **options)
    tensors = {n: t.numpy() for n, t in trained.state_dict().items()}
    assert {n: t.shape for n, t in tensors.items()} == tensor_shapes(trained.config())
    served = build_encoder(trained.config(), tensors)
    random = np.random.default_rng(0)
    rows = [random.integers(0, ITEMS, random.integers(1, 18)) for _ in range(40)]
    histories = JaggedBatch.from_lists(rows)
    want = trained.encode(histories)
    exact = np.stack(
        [
            trained.double()(trained.window(JaggedBatch.from_lists([row], np.int64)).to_torch())[-1]
            .detach()
            .numpy()
            for row in rows
        ]
    )
    error, allowed = np.abs(served.encode(histories) - exact).max(), np.abs(want - exact).max()
    # a few roundings of the largest value, where torch happened to round well
    floor = 4 * 2**-23 * np.abs(exact).max()
    assert error <= max(2 * allowed, floor)
    # threads and the rows beside it change a row by roundings at most
    alone = served.encode(histories.select([7]), threads=2)[0]
    assert np.abs(alone - exact[7]).max() <= max(2 * allowed, floor)
    items, bias = make(model, **options).scorer()
    np.testing.assert_allclose(served.item_vectors, items, rtol=1e-5)
    assert (served.item_bias is None) == (bias is None)
    if bias is not None:
        np.testing.assert_array_equal(served.item_bias, bias)


@pytest.mark.parametrize("model", MODELS)
def test_encode_takes_rows_in_any_order_and_in_pieces(model: str) -> None:
    encoder = make(model)
    encoder.train()
    rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [1, 2, 3], [2] * 25]
    histories = JaggedBatch.from_lists(rows)
    whole = encoder.encode(histories)
    assert encoder.training, "the mode before is restored"
    pieces = encoder.encode(histories, tokens_per_batch=4)
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole[0], whole[3], rtol=1e-4, atol=1e-5)
    backwards = encoder.encode(histories.select([4, 3, 2, 1, 0]))[::-1]
    np.testing.assert_allclose(backwards, whole, rtol=1e-4, atol=1e-5)
    cut = encoder.encode(histories.last(10))
    if model == "sasrec":  # only the last max_length events count
        np.testing.assert_allclose(cut, whole, rtol=1e-4, atol=1e-5)
    else:  # a recurrent state runs on
        np.testing.assert_allclose(cut[:4], whole[:4], rtol=1e-4, atol=1e-5)
        assert np.abs(cut[4] - whole[4]).max() > 1e-6


def test_empty_history_is_refused() -> None:
    with pytest.raises(InputError, match="histories: row 1 is empty"):
        make("gru").encode(JaggedBatch.from_lists([[1], []]))


def test_sasrec_refuses_rows_longer_than_its_positions() -> None:
    batch = JaggedBatch.from_lists([[1] * 11], np.int64).to_torch()
    with pytest.raises(InputError, match="a row has 11 events, the model was made for 10"):
        make("sasrec")(batch)


@pytest.mark.parametrize("model", MODELS)
def test_configuration_makes_the_same_model_again(model: str) -> None:
    first = make(model, temperature=0.2, tied_output=False)
    again = model_from_config(first.config())
    again.load_state_dict(first.state_dict())
    histories = JaggedBatch.from_lists([[1, 2, 3]])
    np.testing.assert_array_equal(again.encode(histories), first.encode(histories))


def test_temperature_scores_by_cosine() -> None:
    model = make("sasrec", temperature=0.25)
    items, _ = model.scorer()
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 4.0, rtol=1e-5)
    users = model.encode(JaggedBatch.from_lists([[1, 2], [3]]))
    np.testing.assert_allclose(np.linalg.norm(users, axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "bert"}, "model: unknown model 'bert'; choose sasrec"),
        ({"dim": 0}, "dim: must be a whole number of at least 1"),
        ({"dim": 10, "heads": 4}, "heads: 4 heads do not divide dim 10"),
        ({"dropout": 1.0}, "dropout: must be at least 0 and below 1"),
        ({"temperature": 0.0}, "temperature: must be a number above 0"),
        ({"cell_activation": "relu"}, "cell_activation: unknown activation 'relu'"),
        ({"max_length": True}, "max_length: must be a whole number"),
        ({"tied_output": 1}, "tied_output: must be true or false"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelOptions(**options)


def test_encoder_refuses_weights_that_do_not_fit() -> None:
    model = make("gru")
    tensors = {n: t.numpy() for n, t in model.state_dict().items()}
    with pytest.raises(BundleError, match=r"tensor 'projection\.bias' is missing"):
        build_encoder(model.config(), {n: t for n, t in tensors.items() if n != "projection.bias"})
    with pytest.raises(BundleError, match=r"'projection\.bias' has shape"):
        build_encoder(model.config(), {**tensors, "projection.bias": np.zeros(3, np.float32)})
    with pytest.raises(BundleError, match="unknown model 'bert'"):
        build_encoder({**model.config(), "model": "bert"}, tensors)
