# SPDX-License-Identifier: Apache-2.0
"""Wrong and odd arguments of every operation: the right answer or one line that names the argument.

What follows from shapes alone is tested beside each operation; here is what goes wrong in the same
way everywhere: types, devices, offsets, numbers of items, sizes of zero.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec_fast import JaggedBatch, nn, ops
from seqrec_fast.errors import InputError
from seqrec_fast.ops.hstu_attention import hstu_attention_reference
from tests.ops.judge import allowed, worst
from tests.ops.test_transforms import ALL, OFFSETS, tensors

IDS = torch.tensor([1, 2, 6, 0, 0])

#: operations of values and the offsets of their rows
JAGGED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sequence_embedding": lambda x, o: ops.sequence_embedding(x[:, 0], IDS % 5, x[:, 0], o),
    "recurrent": lambda x, o: ops.recurrent("rnn", x[:, 0], o, x[:4, 0], x[:4, 0]),
    "attention": lambda x, o: ops.attention(x, x, x, o),
    "packed_attention": lambda x, o: ops.packed_attention(torch.stack([x, x, x], 1), o),
    "hstu_attention": lambda x, o: ops.hstu_attention(x, x, x, o, normaliser=2.0),
    "decode_attention": lambda x, o: ops.decode_attention(x[: max(len(o) - 1, 0)], x, x, o),
}
VALUES = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64])
def test_types_that_are_not_floating(name: str, dtype: torch.dtype) -> None:
    function, shapes = ALL[name]
    with pytest.raises(InputError, match=r": expected (floating-point tensors|a? ?floating)"):
        function(*(t.to(dtype) for t in tensors(shapes)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_run_the_reference(name: str, dtype: torch.dtype) -> None:
    function, shapes = ALL[name]
    inputs = tensors(shapes)
    found = function(*(t.to(dtype) for t in inputs))
    # a loss is a sum over all tokens, for which a half type has too few digits
    assert found.dtype == (torch.float32 if name.endswith("cross_entropy") else dtype)
    exact = function(*(t.to(dtype).double() for t in inputs))
    limit = 16 * torch.finfo(dtype).eps * float(exact.abs().max())
    assert worst(found, exact) <= limit


@pytest.mark.parametrize("name", JAGGED)
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3, 2, 5], "must not decrease, found 3 before 2 at row 1"),
        ([0, 6, 5], "must not decrease, found 6 before 5"),
        ([0, -1, 5], "must not decrease, found 0 before -1"),
        ([0, 2**62, 5], "must not decrease"),
        ([0, -(2**63), 5], "must not decrease"),
        ([1, 2, 5], "must run from 0 to the 5 tokens of .*, found 1 to 5"),
        ([0, 2, 4], "must run from 0 to the 5 tokens of .*, found 0 to 4"),
        ([0, 2, 6], "must run from 0 to the 5 tokens of .*, found 0 to 6"),
        ([0], "must run from 0 to the 5 tokens of .*, found 0 to 0"),
    ],
)
def test_offsets(name: str, offsets: list[int], message: str) -> None:
    with pytest.raises(InputError, match=f"^offsets: {message}"):
        JAGGED[name](VALUES, torch.tensor(offsets))


@pytest.mark.parametrize("name", JAGGED)
def test_types_and_devices_of_offsets(name: str) -> None:
    for wrong in (OFFSETS.int(), OFFSETS.double(), OFFSETS[None], OFFSETS[:0]):
        with pytest.raises(InputError, match=r"^offsets: expected int64 \[rows \+ 1\]"):
            JAGGED[name](VALUES, wrong)
    with pytest.raises(InputError, match=r"^offsets: expected.* on cpu like .*found.* on meta"):
        JAGGED[name](VALUES, OFFSETS.to("meta"))
    strided = torch.stack([OFFSETS, OFFSETS * 9], 1)[:, 0]
    got, want = JAGGED[name](VALUES, strided), JAGGED[name](VALUES, OFFSETS)
    first = (got[0], want[0]) if isinstance(got, tuple) else (got, want)
    assert torch.equal(*first)


@pytest.mark.parametrize("name", [n for n in JAGGED if "attention" in n])
def test_offsets_are_checked_in_a_trace_too(name: str) -> None:
    compiled = torch.compile(JAGGED[name], backend="aot_eager")
    with pytest.raises(InputError, match="offsets: must not decrease"):
        compiled(VALUES, torch.tensor([0, 3, 2, 5]))
    with pytest.raises(Exception, match=r"offsets: expected int64"):
        compiled(VALUES, OFFSETS.int())


def test_integers_on_another_device() -> None:
    """Beside data on the CPU they would have been taken for a question after the shape alone."""
    weight, hidden = torch.randn(7, 4), torch.randn(2, 4)
    known, unknown = IDS[:2], IDS[:2].to("meta")
    calls: dict[str, Callable[[], Any]] = {
        "ids": lambda: ops.embedding(weight, unknown),
        "targets": lambda: ops.linear_cross_entropy(hidden, weight, unknown),
        "token_weights": lambda: ops.linear_cross_entropy(
            hidden, weight, known, token_weights=torch.ones(2, device="meta")
        ),
        "negatives": lambda: ops.sampled_cross_entropy(hidden, weight, known, unknown),
        "log_q_negatives": lambda: ops.sampled_cross_entropy(
            hidden, weight, known, known, log_q_negatives=torch.ones(2, device="meta")
        ),
        "lengths": lambda: ops.decode_attention(
            VALUES[:2], VALUES, VALUES, OFFSETS, lengths=unknown
        ),
        "seed": lambda: ops.dropout(hidden, 0.5, seed=torch.tensor([1], device="meta")),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"^{name}: .* on meta"):
            call()


def test_tensors_without_values() -> None:
    """The reference needs the values of some; of others the shape can be told."""
    meta = {"device": "meta"}
    x = torch.randn(5, 4, **meta)  # type: ignore[call-overload]
    assert ops.linear(x, torch.randn(3, 4, **meta)).shape == (5, 3)  # type: ignore[call-overload]
    assert ops.layer_norm(x).is_meta
    with pytest.raises(InputError, match=r"^ids: a tensor on meta has no values"):
        ops.embedding(x, IDS.to("meta"))
    with pytest.raises(InputError, match=r"^targets: a tensor on meta has no values"):
        ops.linear_cross_entropy(x, x, IDS.to("meta"))
    heads = VALUES.to("meta")
    with pytest.raises(InputError, match=r"^offsets: a tensor on meta has no values"):
        ops.attention(heads, heads, heads, OFFSETS.to("meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [-1, 7, 2**62, 2**63 - 1, -(2**63)])
def test_numbers_of_no_item(dtype: torch.dtype, wrong: int) -> None:
    weight, hidden = torch.randn(7, 4).to(dtype), torch.randn(1, 4).to(dtype)
    good, bad = torch.tensor([1]), torch.tensor([wrong])
    with pytest.raises(InputError, match=f"^ids: found {wrong}.*but the rows of weight are 0 to 6"):
        ops.embedding(weight, bad)
    with pytest.raises(InputError, match=f"^targets: must be items 0 to 6, found {wrong}"):
        ops.linear_cross_entropy(hidden, weight, bad)
    with pytest.raises(InputError, match=f"^targets: must be items 0 to 6, found {wrong}"):
        ops.sampled_cross_entropy(hidden, weight, bad, good)
    with pytest.raises(InputError, match=f"^negatives: must be items 0 to 6, found {wrong}"):
        ops.sampled_cross_entropy(hidden, weight, good, bad)
    seen = JaggedBatch(bad, torch.tensor([0, 1]))
    with pytest.raises(InputError, match=f"^seen: found item {wrong}, but the items are 0 to 6"):
        ops.score_topk(hidden, weight, seen=seen, k=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_over_nothing(dtype: torch.dtype) -> None:
    """No tokens, no items, no columns; with 0 columns all items are equally likely."""
    none, weight = torch.zeros(0, dtype=torch.int64), torch.randn(3, 4).to(dtype)
    for rows, items in ((0, 3), (0, 0)):
        hidden = torch.randn(rows, 4).to(dtype).requires_grad_()
        loss = ops.linear_cross_entropy(hidden, weight[:items], none)
        assert float(loss) == 0.0
        loss.backward()
    with pytest.raises(InputError, match=r"^targets: must be items 0 to -1"):
        ops.linear_cross_entropy(torch.randn(1, 4).to(dtype), weight[:0], torch.tensor([0]))
    hidden, table = (torch.zeros(n, 0, dtype=dtype).requires_grad_() for n in (2, 3))
    bias = torch.zeros(3, dtype=dtype).requires_grad_()
    loss = ops.linear_cross_entropy(hidden, table, torch.tensor([0, 1]), bias)
    loss.backward()
    torch.testing.assert_close(loss.double(), torch.tensor(3.0).double().log(), check_dtype=False)
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad, torch.tensor([-1.0, -1.0, 2.0]).to(dtype) / 6)
    sampled = ops.sampled_cross_entropy(hidden, table, torch.tensor([0, 1]), torch.tensor([2]))
    torch.testing.assert_close(
        sampled.double(), torch.tensor(2.0).double().log(), check_dtype=False
    )


def test_gradients_that_nobody_computes() -> None:
    hidden, weight, one = torch.randn(2, 4), torch.randn(7, 4), torch.tensor([1])
    wanted = torch.ones(2, requires_grad=True)
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(InputError, match=r"^token_weights: no gradient is computed for it"):
            ops.linear_cross_entropy(
                hidden.to(dtype), weight.to(dtype), IDS[:2], token_weights=wanted
            )
    with pytest.raises(InputError, match=r"^log_q_negatives: no gradient is computed for it"):
        ops.sampled_cross_entropy(hidden, weight, IDS[:2], one, log_q_negatives=wanted[:1])
    with torch.no_grad():
        ops.linear_cross_entropy(hidden, weight, IDS[:2], token_weights=wanted)


def test_heads_without_width_and_times_far_apart() -> None:
    nothing = torch.zeros(5, 2, 0)
    assert ops.hstu_attention(nothing, nothing, nothing, OFFSETS, normaliser=1.0).shape == (5, 2, 0)
    times = torch.tensor([-(2**63), 0, 2**63 - 1, 1, -5])
    table = torch.arange(1.0, 201.0).view(2, 100)
    for causal in (True, False):
        options: dict[str, Any] = {"normaliser": 2.0, "times": times, "causal": causal}
        exact, theirs = (
            hstu_attention_reference(
                *(VALUES.to(d) for _ in range(3)),
                OFFSETS,
                time_bias=table.to(d),
                **options,
            )
            for d in (torch.float64, torch.float32)
        )
        found = ops.hstu_attention(VALUES, VALUES, VALUES, OFFSETS, time_bias=table, **options)
        assert worst(found, exact) <= allowed(worst(theirs, exact), exact, 2.0)


@pytest.mark.parametrize("seed", [1.5, "a", 2**63, -(2**63) - 1, [1]])
def test_seeds(seed: Any) -> None:
    with pytest.raises(InputError, match=r"^seed: "):
        ops.dropout(torch.ones(2, 2), 0.5, seed=seed)


@pytest.mark.parametrize("p", [1.0, -0.1, float("nan"), "a", None])
def test_probabilities(p: Any) -> None:
    for call in (
        lambda: ops.dropout(torch.ones(2, 2), p),
        lambda: nn.FeedForward(4, 4, dropout=p),
        lambda: nn.SelfAttention(4, 2, dropout=p),
        lambda: nn.HSTULayer(4, 2, 3, dropout=p),
    ):
        with pytest.raises(InputError, match=r"^dropout: must be at least 0 and below 1"):
            call()
    with pytest.raises(InputError, match=r"^x: expected"):
        ops.dropout(torch.ones(()), 0.5)


def test_an_unknown_instruction_set_is_one_clear_error() -> None:
    """The choice is made at the first use of a kernel, wherever that is."""
    code = (
        "import torch\n"
        "from seqrec_fast import ops, errors\n"
        "for call in (lambda: ops.linear(torch.ones(2, 2), torch.ones(2, 2)),\n"
        "             lambda: ops.dropout(torch.ones(2, 2), 0.5),\n"
        "             lambda: ops.layer_norm(torch.ones(2, 2))):\n"
        "    try:\n"
        "        call()\n"
        "    except errors.InputError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"SEQREC_FAST_ISA": "sse9", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("SEQREC_FAST_ISA: found 'sse9'; set it to baseline") == 3, done.stderr
