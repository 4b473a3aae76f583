# SPDX-License-Identifier: Apache-2.0
"""The head of several interests against a plain loop; its gradients; what it may not see."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqrec_fast import JaggedBatch
from seqrec_fast.errors import InputError
from seqrec_fast.nn import interests as interests_module
from seqrec_fast.nn.interests import InterestHead
from seqrec_fast.ops import _rows

DIM = 3
LENGTHS = st.lists(st.integers(0, 9), max_size=6)


def make(interests: int, *, scale: float = 1.0) -> InterestHead:
    torch.manual_seed(2)
    head = InterestHead(DIM, interests).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return head


def looped(head: InterestHead, hidden: Tensor, items: Tensor, offsets: list[int]) -> Tensor:
    """The definition: every token, interest and event on its own."""
    out = hidden.new_empty(len(hidden), head.interests, DIM)
    for begin, end in pairwise(offsets):
        for token in range(begin, end):
            for k in range(head.interests):
                weights, pooled = 0.0, torch.zeros(DIM, dtype=hidden.dtype)
                for event in items[begin : token + 1]:
                    inner = torch.tanh(head.hidden.weight @ event + head.hidden.bias)
                    logit = float(head.scores.weight[k] @ inner)
                    weight = math.exp(min(max(logit, -20.0), 20.0))
                    weights += weight
                    pooled = pooled + weight * event
                out[token, k] = hidden[token] + head.projection[k] @ (pooled / weights)
    return out


@given(lengths=LENGTHS, interests=st.integers(2, 4), scale=st.sampled_from([1.0, 30.0]))
def test_interests_are_those_of_a_plain_loop(
    lengths: list[int], interests: int, scale: float
) -> None:
    head = make(interests, scale=scale)  # large weights meet the bound of the logits
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    hidden, items = torch.randn(2, sum(lengths), DIM, dtype=torch.float64)
    with torch.no_grad():
        found = head(hidden, items, offsets)
        torch.testing.assert_close(found, looped(head, hidden, items, offsets.tolist()))


def test_gradients_are_those_of_differences() -> None:
    head = make(2)
    offsets = torch.tensor([0, 1, 1, 4])
    hidden, items = torch.randn(2, 4, DIM, dtype=torch.float64).unbind()
    inputs = [t.clone().requires_grad_() for t in (hidden, items)]
    names = [name for name, _ in head.named_parameters()]

    def run(h: Tensor, e: Tensor, *parameters: Tensor) -> Tensor:
        given_parameters = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(head, given_parameters, (h, e, offsets))

    assert torch.autograd.gradcheck(run, (*inputs, *head.parameters()))


@given(lengths=LENGTHS.filter(any))
def test_later_events_and_other_rows_change_nothing(lengths: list[int]) -> None:
    head = make(3)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    hidden, items = torch.randn(2, sum(lengths), DIM, dtype=torch.float64)
    row = max(range(len(lengths)), key=lengths.__getitem__)
    begin, place = int(offsets[row]), lengths[row] // 2
    changed = torch.full_like(items, torch.nan)
    changed[begin : begin + place + 1] = items[begin : begin + place + 1]
    with torch.no_grad():
        wanted = head(hidden, items, offsets)[begin : begin + place + 1]
        found = head(hidden, changed, offsets)[begin : begin + place + 1]
    torch.testing.assert_close(found, wanted)


def test_a_single_event_has_several_interests() -> None:
    head = InterestHead(DIM, 4)
    found = head(torch.zeros(1, DIM), torch.ones(1, DIM), torch.tensor([0, 1]))[0]
    assert torch.pdist(found).min() > 0


def test_one_interest_needs_no_head() -> None:
    with pytest.raises(InputError, match="interests: a head needs at least 2, found 1"):
        InterestHead(DIM, 1)


def test_dropout_is_of_training_alone() -> None:
    head = InterestHead(DIM, 2, dropout=0.9)
    batch = JaggedBatch.from_lists([[0] * 20])
    offsets = torch.from_numpy(batch.offsets)
    arguments = torch.zeros(20, DIM), torch.ones(20, DIM), offsets
    assert (head(*arguments) == 0).any()
    head.eval()
    assert torch.equal(head(*arguments), head(*arguments))
    assert (head(*arguments) != 0).all()


@given(lengths=LENGTHS)
def test_sums_without_lengths_on_the_host_are_the_same(lengths: list[int]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.randn(sum(lengths), 2, 3, dtype=torch.float64, requires_grad=True)
    places = _rows.token_positions(offsets, len(values))
    found = interests_module._doubled_sums(values, places)
    exact = interests_module._prefix_sums(values, offsets)
    torch.testing.assert_close(found, exact)
    upstream = torch.randn_like(values)
    if len(values):
        gradients = [torch.autograd.grad(o, values, upstream)[0] for o in (found, exact)]
        torch.testing.assert_close(gradients[0], gradients[1])
