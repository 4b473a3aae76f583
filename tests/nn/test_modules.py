# SPDX-License-Identifier: Apache-2.0
"""The modules are drop-in: names, layout and results of torch's, on jagged and padded input."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from seqrec_fast import JaggedBatch, nn
from seqrec_fast.errors import InputError

PAIRS = [(nn.RNN, torch.nn.RNN), (nn.LSTM, torch.nn.LSTM), (nn.GRU, torch.nn.GRU)]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_padded_input_equals_torch(mine: Any, theirs: Any, batch_first: bool) -> None:
    a = mine(4, 6, 2, batch_first=batch_first).double()
    b = theirs(4, 6, 2, batch_first=batch_first).double()
    b.load_state_dict(a.state_dict())
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    rows = 3 if batch_first else 5
    state: Any = torch.randn(2, rows, 6, dtype=torch.float64)
    if mine is nn.LSTM:
        state = (state, torch.randn(2, rows, 6, dtype=torch.float64))
    for given in (None, state):
        got, got_state = a(x, given)
        want, want_state = b(x, given)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(got_state, want_state)


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_jagged_input_equals_torch_row_by_row(mine: Any, theirs: Any) -> None:
    a, b = mine(4, 6, 2, bias=False).double(), theirs(4, 6, 2, bias=False).double()
    a.load_state_dict(b.state_dict())
    offsets = torch.tensor([0, 3, 3, 8])
    x = torch.randn(8, 4, dtype=torch.float64)
    got, _ = a(JaggedBatch(x, offsets))
    for begin, end in ((0, 3), (3, 8)):
        torch.testing.assert_close(got.values[begin:end], b(x[begin:end, None])[0][:, 0])


def test_dropout_acts_between_layers_in_training_only() -> None:
    layer = nn.GRU(4, 6, 2, dropout=0.5)
    x = torch.randn(7, 3, 4)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_attention_module_is_causal_and_keeps_rows_apart() -> None:
    module = nn.CausalSelfAttention(8, heads=2).double().eval()
    offsets = torch.tensor([0, 4, 7])
    x = torch.randn(7, 8, dtype=torch.float64)
    before = module(x, offsets)
    changed = x.clone()
    changed[3] += 1.0
    after = module(changed, offsets)
    same = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(after[same], before[same], rtol=0, atol=0)
    assert not torch.allclose(after[3], before[3])


def test_clear_errors() -> None:
    with pytest.raises(InputError, match="hidden_size: must be at least 1"):
        nn.GRU(4, 0)
    with pytest.raises(InputError, match="dropout: must be in"):
        nn.GRU(4, 4, dropout=1.0)
    with pytest.raises(InputError, match="x: expected a JaggedBatch or three dimensions"):
        nn.GRU(4, 4)(torch.zeros(2, 4))
    with pytest.raises(InputError, match="heads: 3 heads do not divide dim 8"):
        nn.CausalSelfAttention(8, heads=3)


def test_a_parameter_of_another_size_is_refused() -> None:
    """The kernels read as many numbers as the module has units."""
    for name, shape in (
        ("weight_ih_l0", (3, 3)),
        ("weight_hh_l0", (3, 3)),
        ("bias_ih_l0", (3,)),
        ("bias_hh_l0", (3,)),
    ):
        module = nn.GRU(4, 300)
        setattr(module, name, torch.nn.Parameter(torch.zeros(shape)))
        for grad in (False, True):
            with (
                torch.set_grad_enabled(grad),
                pytest.raises(InputError, match=rf"^{name}: expected \[900.*\], found \(3"),
            ):
                module(torch.zeros(2, 1, 4))


def test_wrong_kinds_of_input_are_named() -> None:
    module = nn.GRU(4, 3)
    with pytest.raises(InputError, match=r"^x: holds numpy arrays; call its to_torch"):
        module(JaggedBatch.from_lengths(np.zeros((2, 4), np.float32), [2]))
    with pytest.raises(InputError, match=r"^x: expected values \[tokens, input_size\]"):
        module(JaggedBatch(torch.zeros(2), torch.tensor([0, 2])))
    with pytest.raises(InputError, match=r"^x: expected a JaggedBatch or three dimensions.*list"):
        module([[1.0]])
    with pytest.raises(InputError, match=r"^state: expected one tensor h, found"):
        module(torch.zeros(2, 1, 4), (torch.zeros(1, 1, 3),))
    offsets = torch.tensor([0, 5])
    for layer in (nn.SelfAttention(4, 2), nn.HSTULayer(4, 2, 5)):
        for wrong in (torch.zeros(1, 5, 4), torch.zeros(5, 6)):
            with pytest.raises(InputError, match=r"^values: expected \[tokens, 4\]"):
                layer(wrong, offsets)
    with pytest.raises(InputError, match=r"^activation: unknown 'tanh'"):
        nn.FeedForward(4, 4, activation="tanh")


def test_jagged_batches_compile_in_one_graph() -> None:
    module = nn.LSTM(4, 3, 2)
    compiled = torch.compile(
        lambda batch: module(batch)[0].values * 2, fullgraph=True, backend="aot_eager", dynamic=True
    )
    for offsets in ([0, 2, 5], [0, 0, 1, 7], [0, 1]):
        batch = JaggedBatch(torch.randn(offsets[-1], 4), torch.tensor(offsets))
        torch.testing.assert_close(compiled(batch), module(batch)[0].values * 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.GRU(8, 8),
        lambda: nn.SelfAttention(8, 2),
        lambda: nn.HSTULayer(8, 2, 5, time_buckets=3),
        lambda: nn.FeedForward(8, 8),
        lambda: nn.LayerNorm(8),
    ],
)
def test_copies_and_autocast(make: Any) -> None:
    module, offsets, times = make(), torch.tensor([0, 2, 5]), torch.arange(5)
    x = torch.randn(5, 8)

    def run(layer: torch.nn.Module) -> torch.Tensor:
        if isinstance(layer, nn.GRU):
            values: torch.Tensor = layer(JaggedBatch(x, offsets))[0].values
            return values
        rest = (offsets,) if isinstance(layer, nn.SelfAttention) else ()
        rest = (offsets, times) if isinstance(layer, nn.HSTULayer) else rest
        result: torch.Tensor = layer(x, *rest)
        return result

    want = run(module)
    assert torch.equal(run(copy.deepcopy(module)), want)
    assert torch.equal(run(pickle.loads(pickle.dumps(module))), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = run(module)
    # of bfloat16 there are 8 bits, in a handful of operations one after the other
    torch.testing.assert_close(narrow.float(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("mine", [nn.RNN, nn.LSTM, nn.GRU])
def test_inference_sees_every_change_of_the_weights(mine: Any) -> None:
    """Packed weights are kept between calls; no way of changing the parameters goes unnoticed."""
    torch.manual_seed(0)
    module, x = mine(5, 7, 2).eval(), torch.randn(4, 3, 5)

    def found() -> torch.Tensor:
        with torch.inference_mode():
            output: torch.Tensor = module(x)[0]
        return output

    def expected() -> torch.Tensor:
        fresh = mine(5, 7, 2).eval()
        fresh.load_state_dict(module.state_dict())
        output: torch.Tensor = fresh(x)[0].detach()
        return output

    before = found()
    torch.testing.assert_close(found(), before, rtol=0, atol=0)
    with torch.no_grad():
        module.weight_hh_l0.mul_(2.0)
    changes = [
        lambda: module.weight_ih_l1.data.neg_(),
        lambda: module.bias_hh_l0.detach().numpy().__setitem__(3, 1.5),
        lambda: setattr(module.weight_hh_l1, "data", torch.randn_like(module.weight_hh_l1)),
        lambda: setattr(
            module, "bias_ih_l0", torch.nn.Parameter(torch.ones_like(module.bias_ih_l0))
        ),
    ]
    for change in (lambda: None, *changes):
        change()
        after = found()
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, expected())
        before = after


def test_copies_and_pickles_of_a_module_that_has_run() -> None:
    module, x = nn.GRU(4, 6).eval(), torch.randn(3, 2, 4)
    with torch.inference_mode():
        want = module(x)[0]
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.testing.assert_close(other(x)[0], want, rtol=0, atol=0)
            other.weight_hh_l0.zero_()
            assert not torch.equal(other(x)[0], want)
        torch.testing.assert_close(module(x)[0], want, rtol=0, atol=0)
