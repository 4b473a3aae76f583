# SPDX-License-Identifier: Apache-2.0
"""Pointwise SiLU attention against the formula, its kernels on every instruction set, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError
from seqrec_fast.ops import hstu_attention
from seqrec_fast.ops.hstu_attention import hstu_attention_reference, time_bucket_bounds
from tests.ops.judge import ISAS

WIDTHS = [1, 3, 8, 17, 32, 64]
KEYS = 64  # that the kernels add in one chain


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def inputs(
    lengths: list[int],
    heads: int,
    width: int,
    *,
    bias: int = 0,
    time_bias: int = 0,
    spread: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Leaves of float32: q, k, v, tables of the given number of entries, and the rest."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = sum(lengths)
    q, k, v = (normal(tokens, heads, width) for _ in range(3))
    made: dict[str, Any] = {"q": q * spread, "k": k, "v": v, "offsets": offsets_of(lengths)}
    if bias:
        made["bias"] = normal(heads, bias)
    if time_bias:
        made["time_bias"] = normal(heads, time_bias)
        exponents = 12 * torch.rand(tokens, generator=generator)
        made["times"] = exponents.exp().long()
    return made


def results(
    function: Callable[..., Tensor], given_: dict[str, Any], dtype: torch.dtype, **options: Any
) -> dict[str, Tensor]:
    """The output and the gradients of all floating inputs."""
    leaves = {
        name: x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x
        for name, x in given_.items()
    }
    out = function(**leaves, normaliser=50.0, **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    out.backward(upstream.to(dtype))
    found = {"out": out.detach()}
    for name, x in leaves.items():
        if x.requires_grad:
            found[name] = torch.zeros_like(x) if x.grad is None else x.grad
    return found


def padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    normaliser: float,
    causal: bool = True,
    bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """How it is usually written: one padded dense batch, eager, with a mask."""
    lengths = (offsets[1:] - offsets[:-1]).tolist()
    longest = max(lengths)
    dense = [
        torch.nn.utils.rnn.pad_sequence(list(x.split(lengths)), batch_first=True).transpose(1, 2)
        for x in (q, k, v)
    ]
    scores = dense[0] @ dense[1].transpose(2, 3) * q.shape[2] ** -0.5
    place = torch.arange(longest)
    distance = place[:, None] - place
    if bias is not None:
        scores = scores + bias[:, distance.abs().clamp(max=bias.shape[1] - 1)]
    if time_bias is not None and times is not None:
        moment = torch.nn.utils.rnn.pad_sequence(list(times.split(lengths)), batch_first=True)
        apart = (moment[:, :, None] - moment[:, None, :]).abs().clamp(min=1)
        bucket = (apart.double().log() / 0.301).floor().long().clamp(0, time_bias.shape[1] - 1)
        scores = scores + time_bias[:, bucket].transpose(0, 1)
    weights = torch.nn.functional.silu(scores) / normaliser
    seen = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
    inside = place < torch.tensor(lengths)[:, None]
    mask = seen & inside[:, None, None, :]
    out = ((weights * mask) @ dense[2]).transpose(1, 2)
    return torch.cat([out[row, :length] for row, length in enumerate(lengths)])


def assert_as_exact_as_torch(given_: dict[str, Any], **options: Any) -> None:
    """Errors against float64: at most twice torch's, five times for gradients."""
    exact = results(padded, given_, torch.float64, **options)
    theirs = results(padded, given_, torch.float32, **options)
    mine = results(hstu_attention, given_, torch.float32, **options)
    assert mine.keys() == exact.keys()
    for name, found in mine.items():
        if not found.numel():
            continue
        error = (found.double() - exact[name]).abs().max()
        torch_error = (theirs[name].double() - exact[name]).abs().max()
        floor = 4 * 2.0**-24 * exact[name].abs().max()
        if given_["q"].shape[2] == 1:
            # a product with one column is a dot product, which torch sums in many short chains
            floor = floor + KEYS**0.5 * 2.0**-24 * exact[name].abs().max()
        allowed = (2 if name == "out" else 5) * torch_error + floor
        assert error <= allowed, (name, float(error), float(torch_error))


@pytest.mark.parametrize("causal", [True, False])
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    heads=st.integers(1, 3),
    width=st.integers(1, 5),
    tables=st.sampled_from([(0, 0), (4, 0), (0, 9), (12, 40)]),
)
def test_reference_equals_the_formula(
    causal: bool, lengths: list[int], heads: int, width: int, tables: tuple[int, int]
) -> None:
    made = inputs(lengths, heads, width, bias=tables[0], time_bias=tables[1])
    expected = results(padded, made, torch.float64, causal=causal)
    found = results(hstu_attention_reference, made, torch.float64, causal=causal)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-9, atol=1e-12)


def test_gradients_of_the_reference() -> None:
    made = inputs([3, 0, 1, 3], 2, 3, bias=2, time_bias=8)
    leaves = [made[n].double().requires_grad_() for n in ("q", "k", "v", "bias", "time_bias")]

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, time_bias: Tensor) -> Tensor:
        return hstu_attention(
            q,
            k,
            v,
            made["offsets"],
            normaliser=3.0,
            bias=bias,
            time_bias=time_bias,
            times=made["times"],
        )

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_kernels_are_as_exact_as_torch(isa: str, width: int, causal: bool) -> None:
    lengths = [1, 47, 0, 65, 130, 13]
    assert_as_exact_as_torch(inputs(lengths, 2, width), causal=causal)
    both = inputs(lengths, 2, width, bias=100, time_bias=60)
    assert_as_exact_as_torch(both, causal=causal)


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5).filter(any),
    heads=st.integers(1, 3),
    width=st.sampled_from(WIDTHS),
    tables=st.sampled_from([(0, 0), (1, 0), (30, 0), (200, 0), (0, 1), (0, 33), (7, 128)]),
    causal=st.booleans(),
)
def test_any_lengths(
    lengths: list[int], heads: int, width: int, tables: tuple[int, int], causal: bool
) -> None:
    made = inputs(lengths, heads, width, bias=tables[0], time_bias=tables[1])
    before = native.build_info()["isa"]
    for name in ISAS:
        _C.use_isa(name)
        assert_as_exact_as_torch(made, causal=causal)
    _C.use_isa(before)


def test_long_rows(isa: str) -> None:
    assert_as_exact_as_torch(inputs([300, 411], 1, 32, bias=411))


@pytest.mark.parametrize("scale", [1e4, 1e-38, 0.0])
def test_extreme_scores(isa: str, scale: float) -> None:
    made = inputs([20, 67], 2, 32, bias=70)
    made["bias"] *= scale
    exact = results(hstu_attention_reference, made, torch.float64, scale=scale)
    theirs = results(hstu_attention_reference, made, torch.float32, scale=scale)
    mine = results(hstu_attention, made, torch.float32, scale=scale)
    for name, x in exact.items():
        assert mine[name].isfinite().all()
        error = (mine[name].double() - x).abs().max()
        torch_error = (theirs[name].double() - x).abs().max()
        assert error <= 5 * torch_error + 4 * 2.0**-24 * x.abs().max(), name


def test_scores_far_below_zero_give_nothing(isa: str) -> None:
    q = torch.full((5, 1, 4), 100.0)
    offsets = torch.tensor([0, 5])
    out = hstu_attention(q, -q, q, offsets, normaliser=1.0)
    assert (out == 0).all()
    high = hstu_attention(q, q, q, offsets, normaliser=5.0, causal=False)
    torch.testing.assert_close(high, torch.full_like(q, 2e4 * 100))


def test_every_element_is_written(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = inputs([5, 0, 64, 1, 50], 2, 17, bias=64, time_bias=20)
    clean = results(hstu_attention, made, torch.float32)
    empty = torch.empty
    poisoned = lambda *a, **k: empty(*a, **k).fill_(torch.nan)  # noqa: E731
    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(
        Tensor, "new_empty", lambda self, shape: empty(shape, dtype=self.dtype).fill_(torch.nan)
    )
    for name, x in results(hstu_attention, made, torch.float32).items():
        assert torch.equal(x, clean[name]), name


def test_parts_of_one_projection_are_read_in_place(isa: str) -> None:
    tokens, heads, width = 70, 2, 17
    wide = torch.randn(tokens, heads, 4, width)
    offsets = offsets_of([30, 40])
    q, k, v = wide[:, :, 1], wide[:, :, 2], wide[:, :, 3]
    dense = hstu_attention(*(t.contiguous() for t in (q, k, v)), offsets, normaliser=9.0)
    assert torch.equal(hstu_attention(q, k, v, offsets, normaliser=9.0), dense)
    turned = [t.contiguous().permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in (q, k, v)]
    assert torch.equal(hstu_attention(*turned, offsets, normaliser=9.0), dense)
    leaf = wide.clone().requires_grad_()
    hstu_attention(
        leaf[:, :, 1], leaf[:, :, 2], leaf[:, :, 3], offsets, normaliser=9.0
    ).sum().backward()
    apart = [t.contiguous().requires_grad_() for t in (q, k, v)]
    hstu_attention_reference(*apart, offsets, normaliser=9.0).sum().backward()
    assert leaf.grad is not None
    for place, t in enumerate(apart, 1):
        torch.testing.assert_close(leaf.grad[:, :, place], t.grad)


def test_a_prefix_does_not_see_what_follows(isa: str) -> None:
    made = inputs([100], 2, 32, bias=100)
    out = hstu_attention(**made, normaliser=100.0)
    for length in (1, 37, 64, 99):
        cut = {n: made[n][:length] for n in ("q", "k", "v")}
        prefix = hstu_attention(
            **cut, offsets=offsets_of([length]), bias=made["bias"], normaliser=100.0
        )
        assert torch.equal(prefix, out[:length])


def test_results_do_not_depend_on_the_threads() -> None:
    made = inputs([300, 0, 200, *range(60)], 3, 32, bias=300, time_bias=64)
    before = native.get_num_threads()
    try:
        native.set_num_threads(1)
        one = results(hstu_attention, made, torch.float32)
        for threads in (2, 5):
            native.set_num_threads(threads)
            for name, x in results(hstu_attention, made, torch.float32).items():
                assert torch.equal(x, one[name]), name
    finally:
        native.set_num_threads(before)


@pytest.mark.parametrize("buckets", [1, 2, 3, 64, 200])
def test_time_buckets_are_those_of_the_formula(isa: str, buckets: int) -> None:
    bounds = time_bucket_bounds(buckets)
    assert len(bounds) == buckets
    for bucket, least in enumerate(bounds[1:], 1):
        if least < 2**53:
            assert math.floor(math.log(least) / 0.301) >= bucket
            assert least == 1 or math.floor(math.log(least - 1) / 0.301) < bucket
    # around every bound, through the kernel: the weight of the one other key tells the bucket
    moments = {0, 1, 2**40, 2**62}
    for least in bounds[1:]:
        if least < 2**62:
            moments |= {least - 1, least, least + 1}
    apart = torch.tensor(sorted(moments))
    count = len(apart)
    times = torch.stack([torch.zeros_like(apart), apart], 1).flatten() - 5
    table = torch.arange(1.0, buckets + 1)[None]
    zeros = torch.zeros(2 * count, 1, 1)
    v = torch.tensor([1.0, 0.0]).repeat(count)[:, None, None]
    offsets = torch.arange(count + 1) * 2
    for function in (hstu_attention, hstu_attention_reference):
        out = function(
            zeros, zeros, v, offsets, normaliser=1.0, time_bias=table, times=times
        ).flatten()[1::2]
        expected = torch.bucketize(apart, torch.tensor(bounds[1:], dtype=torch.int64), right=True)
        torch.testing.assert_close(out, torch.nn.functional.silu(table[0, expected]))


def test_tables_longer_and_shorter_than_rows() -> None:
    made = inputs([40, 3], 2, 8, bias=10)
    longer = dict(made, bias=torch.cat([made["bias"], made["bias"][:, -1:].expand(2, 60)], 1))
    torch.testing.assert_close(
        hstu_attention(**made, normaliser=9.0), hstu_attention(**longer, normaliser=9.0)
    )


def test_no_tokens_and_no_rows() -> None:
    for lengths in ([], [0], [0, 0]):
        made = inputs(lengths, 2, 4, bias=3, time_bias=3)
        found = results(hstu_attention, made, torch.float32)
        assert found["out"].shape == (0, 2, 4)
        assert (found["bias"] == 0).all()
        assert (found["time_bias"] == 0).all()


def test_registered_operators() -> None:
    made = inputs([5, 0, 9], 2, 6, bias=9, time_bias=5)
    q, k, v, bias, time_bias = (
        made[n].requires_grad_() for n in ("q", "k", "v", "bias", "time_bias")
    )
    operator = torch.ops.seqrec_fast.hstu_attention.default
    for tables in ((bias, time_bias, made["times"]), (bias.detach(), None, None), (None,) * 3):
        torch.library.opcheck(operator, (q, k, v, made["offsets"], *tables, True, 0.5, 9.0))

    def call(q: Tensor) -> Tensor:
        return hstu_attention(
            q,
            k,
            v,
            made["offsets"],
            normaliser=9.0,
            bias=bias,
            time_bias=time_bias,
            times=made["times"],
        )

    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(compiled(q), call(q))
    upstream = torch.randn(q.shape)
    (expected,) = torch.autograd.grad(call(q), q, upstream)
    (found,) = torch.autograd.grad(compiled(q), q, upstream)
    torch.testing.assert_close(found, expected)


def test_backend_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    made = inputs([5, 9], 2, 6)
    fast = hstu_attention(**made, normaliser=9.0)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "reference")
    torch.testing.assert_close(hstu_attention(**made, normaliser=9.0), fast)
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "native")
    wide = {n: x.double() if x.is_floating_point() else x for n, x in made.items()}
    with pytest.raises(InputError, match="hstu_attention has native kernels for float32"):
        hstu_attention(**wide, normaliser=9.0)


def test_clear_errors() -> None:
    made = inputs([2, 3], 2, 4)
    call = lambda **changed: hstu_attention(**{"normaliser": 1.0, **made, **changed})  # noqa: E731
    with pytest.raises(InputError, match="q, k, v: expected three equal shapes"):
        call(k=made["k"][:4])
    with pytest.raises(InputError, match="offsets: must run from 0 to the 5 tokens"):
        call(offsets=torch.tensor([0, 4]))
    with pytest.raises(InputError, match="offsets: must not decrease"):
        call(offsets=torch.tensor([0, 4, 3, 5]))
    with pytest.raises(InputError, match="offsets: expected int64"):
        call(offsets=torch.tensor([0, 5], dtype=torch.int32))
    with pytest.raises(InputError, match="normaliser: expected a finite number"):
        call(normaliser=0.0)
    with pytest.raises(InputError, match=r"bias: expected \[2, distances\]"):
        call(bias=torch.zeros(3, 4))
    with pytest.raises(InputError, match="time_bias, times: are needed together"):
        call(times=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(InputError, match=r"times: expected int64 \[5\]"):
        call(time_bias=torch.zeros(2, 4), times=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"v: expected torch\.float32"):
        call(v=made["v"].double())


def test_the_least_number_as_a_mask_of_distances(isa: str) -> None:
    """A window of attention: whatever is further away counts nothing and takes no gradient."""
    q, k, v = (torch.randn(9, 2, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    offsets = torch.tensor([0, 2, 9])
    least = torch.finfo(torch.float32).min
    bias = torch.tensor([[0.3, -0.2, least], [0.1, 0.4, least]])
    inputs = [t.requires_grad_() for t in (q, k, v, bias)]
    found = hstu_attention(q, k, v, offsets, normaliser=3.0, bias=bias)
    wanted = hstu_attention_reference(q, k, v, offsets, normaliser=3.0, bias=bias)
    torch.testing.assert_close(found, wanted)
    got = torch.autograd.grad(found.square().sum(), inputs)
    want = torch.autograd.grad(wanted.square().sum(), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    assert not got[3][:, 2].any()
