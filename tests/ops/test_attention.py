# SPDX-License-Identifier: Apache-2.0
"""Jagged attention against the formula written out row by row, and its gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError
from seqrec_fast.ops import attention, packed_attention
from seqrec_fast.ops._rows import equal_runs, token_positions
from seqrec_fast.ops.attention import attention_reference
from tests.ops.judge import ISAS

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def offsets_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def written_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, causal: bool
) -> torch.Tensor:
    """softmax(q k^T / sqrt(width) + mask) v, one row and one head at a time."""
    out = torch.full_like(q, torch.nan)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for head in range(q.shape[1]):
            scores = q[begin:end, head] @ k[begin:end, head].T / q.shape[2] ** 0.5
            if causal:
                later = torch.ones(end - begin, end - begin).triu(1).bool()
                scores = scores.masked_fill(later, -torch.inf)
            out[begin:end, head] = scores.softmax(1) @ v[begin:end, head]
    return out


@pytest.mark.parametrize("causal", [True, False])
@given(lengths=LENGTHS, heads=st.integers(1, 3), width=st.integers(1, 5))
def test_equals_the_formula(causal: bool, lengths: list[int], heads: int, width: int) -> None:
    offsets = offsets_of(lengths)
    q, k, v = torch.randn(3, int(offsets[-1]), heads, width, dtype=torch.float64)
    got = attention(q, k, v, offsets, causal=causal)
    torch.testing.assert_close(got, written_out(q, k, v, offsets, causal), rtol=1e-9, atol=1e-12)


def test_float32_is_as_near_to_float64_as_dense_torch() -> None:
    offsets = offsets_of([40] * 8)
    q, k, v = torch.randn(3, 320, 2, 32, generator=torch.Generator().manual_seed(0))
    judge = written_out(q.double(), k.double(), v.double(), offsets, True)
    dense = [t.view(8, 40, 2, 32).transpose(1, 2) for t in (q, k, v)]
    torch_out = torch.nn.functional.scaled_dot_product_attention(*dense, is_causal=True)
    torch_error = (torch_out.transpose(1, 2).reshape(320, 2, 32).double() - judge).abs().max()
    error = (attention(q, k, v, offsets).double() - judge).abs().max()
    assert error <= 2 * torch_error


def test_gradients() -> None:
    offsets = offsets_of([3, 0, 1, 3])
    q, k, v = (torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda *t: attention(*t, offsets), (q, k, v))


def test_scale_and_no_tokens() -> None:
    q, k, v = torch.randn(3, 4, 1, 4, dtype=torch.float64)
    offsets = torch.tensor([0, 4])
    uniform = attention(q, k, v, offsets, scale=0.0, causal=False)
    torch.testing.assert_close(uniform, v.mean(0, keepdim=True).expand_as(v))
    assert attention(q[:0], k[:0], v[:0], torch.tensor([0, 0])).shape == (0, 1, 4)


def test_rows_of_one_length_side_by_side_are_one_run() -> None:
    runs = equal_runs(offsets_of([4, 4, 2, 0, 0, 2, 4]))
    assert [(r.begin, r.end, r.rows, r.length) for r in runs] == [
        (0, 8, 2, 4),
        (8, 10, 1, 2),
        (10, 12, 1, 2),
        (12, 16, 1, 4),
    ]


def test_positions_count_from_the_start_of_a_row() -> None:
    assert token_positions(offsets_of([2, 0, 3]), 5).tolist() == [0, 1, 0, 1, 2]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def worst(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).abs().max()) if exact.numel() else 0.0


def allowed(theirs: torch.Tensor, exact: torch.Tensor, factor: float, size: float) -> float:
    """A multiple of torch's own error, and a few roundings where torch happens to have none."""
    scale = max(float(exact.abs().max()), size) if exact.numel() else 0.0
    return factor * worst(theirs, exact) + 4 * 2.0**-24 * scale


Attention = Callable[..., torch.Tensor]


def value_and_gradients(
    function: Attention, tensors: torch.Tensor, dtype: torch.dtype, *args: object, **kwargs: object
) -> list[torch.Tensor]:
    """Output and the three gradients; ``tensors`` is q, k, v and the gradient of the output."""
    q, k, v = (t.to(dtype).requires_grad_() for t in tensors[:3])
    out = function(q, k, v, *args, **kwargs)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3].to(dtype))]


def judge(lengths: list[int], heads: int, width: int, causal: bool, scale: float) -> None:
    offsets = offsets_of(lengths)
    tensors = random(4, sum(lengths), heads, width)
    tensors[0] *= scale
    if not sum(lengths):
        mine = value_and_gradients(attention, tensors, torch.float32, offsets, causal=causal)
        assert all(t.shape == tensors[0].shape for t in mine)
        return
    exact = value_and_gradients(attention_reference, tensors, torch.float64, offsets, causal=causal)
    theirs = value_and_gradients(
        attention_reference, tensors, torch.float32, offsets, causal=causal
    )
    mine = value_and_gradients(attention, tensors, torch.float32, offsets, causal=causal)
    # sums may cancel, to 0 in a row of one token: roundings are of the size of what is summed, the
    # values in the output, and products of d_out and v times k or q in the gradients of q and k
    largest = [float(t.abs().max()) for t in tensors]
    slope = largest[3] * largest[2]
    sizes = [largest[2], slope * largest[1], slope * largest[0], largest[3]]
    if scale > 1.0:
        # roundings of a score, of its size, change a weight by as much of itself
        sizes = [size * largest[0] * largest[1] for size in sizes]
    for m, t, e, factor, size in zip(mine, theirs, exact, (2.0, 5.0, 5.0, 5.0), sizes, strict=True):
        assert worst(m, e) <= allowed(t, e, factor, size), (lengths, heads, width, causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [1, 3, 8, 17, 32, 64, 80])
def test_native_is_as_exact_as_torch(isa: str, width: int, causal: bool) -> None:
    judge([1, 0, 5, 31, 32, 33, 48, 130], 2, width, causal, 1.0)
    judge([300], 1, width, causal, 1.0)


@pytest.mark.parametrize("causal", [True, False])
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    heads=st.integers(1, 3),
    width=st.integers(1, 40),
    scale=st.sampled_from([0.1, 1.0, 8.0]),
)
def test_native_at_any_size(
    causal: bool, lengths: list[int], heads: int, width: int, scale: float
) -> None:
    before = native.build_info()["isa"]
    for name in ISAS:
        _C.use_isa(name)
        judge(lengths, heads, width, causal, scale)
    _C.use_isa(before)


@pytest.mark.parametrize("causal", [True, False])
def test_extremes(isa: str, causal: bool) -> None:
    offsets = offsets_of([40, 0, 1, 200])
    tensors = random(4, 241, 2, 8)
    tensors[0] *= 1e4  # scores of about 1e4 in size, of both signs
    results = [
        value_and_gradients(f, tensors, dtype, offsets, causal=causal)
        for f, dtype in ((attention, torch.float32), (attention_reference, torch.float64))
    ]
    assert all(bool(t.isfinite().all()) for t in results[0])
    # float32 scores of 1e4 have errors of 1e-3, so that only the picture can agree
    agree = (results[0][0].double() - results[1][0]).abs().amax((1, 2)) < 0.01
    assert float(agree.double().mean()) > 0.99
    tiny = value_and_gradients(attention, tensors * 1e-39, torch.float32, offsets, causal=causal)
    assert all(bool(t.isfinite().all()) for t in tiny)
    tensors[2, 7] = torch.nan
    out = attention(*tensors[:3], offsets, causal=causal)
    assert out[7].isnan().all()
    assert not out[40:].isnan().any()


def test_tokens_outside_change_nothing(isa: str) -> None:
    """Every number is written, and a row is the same alone and among others."""
    offsets = offsets_of([3, 50, 0, 77])
    q, k, v = random(3, 130, 2, 20)
    out = attention(q, k, v, offsets)
    assert not out.isnan().any()
    part = [t[3:53] for t in (q, k, v)]
    assert torch.equal(attention(*part, offsets_of([50])), out[3:53])
    earlier = attention(*(t[:20] for t in part), offsets_of([20]))
    torch.testing.assert_close(earlier, out[3:23], rtol=1e-5, atol=1e-6)


def test_outputs_start_as_nan() -> None:
    offsets = np.array([0, 3, 3, 60])
    q, k, v = (t.numpy() for t in random(3, 60, 2, 12))
    out = np.full_like(q, np.nan)
    statistics = np.full((2, 2, 60), np.nan, np.float32)
    gradients = np.full((60, 3, 2, 12), np.nan, np.float32)

    def view(a: np.ndarray) -> tuple[int, int, int]:
        return a.ctypes.data, a.strides[0] // 4, a.strides[1] // 4

    sizes = (offsets.ctypes.data, 60, 3, 2, 12, 0.3, True)
    _C.attention(view(q), view(k), view(v), *sizes, view(out), statistics.ctypes.data)
    _C.attention_backward(
        *(view(a) for a in (q, k, v)),
        *sizes,
        view(out),
        view(q),
        statistics.ctypes.data,
        *(view(gradients[:, i]) for i in range(3)),
    )
    for written in (out, statistics, gradients):
        assert np.isfinite(written).all()


@pytest.mark.parametrize("causal", [True, False])
def test_packed_equals_three_tensors(causal: bool) -> None:
    offsets = offsets_of([9, 0, 40, 1])
    qkv = random(50, 3, 2, 16).requires_grad_()
    upstream = random(50, 2, 16, seed=1)
    out = packed_attention(qkv, offsets, causal=causal)
    (gradient,) = torch.autograd.grad(out, qkv, upstream)
    views = [t.detach().requires_grad_() for t in qkv.unbind(1)]
    other = attention(*views, offsets, causal=causal)
    assert torch.equal(out, other)
    assert torch.equal(gradient, torch.stack(torch.autograd.grad(other, views, upstream), 1))


def test_views_of_any_strides() -> None:
    offsets = offsets_of([30, 12])
    base = random(2, 42, 16, 3)
    q, k, v = base.permute(3, 1, 0, 2)  # heads before tokens, width not dense
    torch.testing.assert_close(attention(q, k, v, offsets), attention_reference(q, k, v, offsets))
    heads_first = random(3, 2, 42, 16).transpose(1, 2)
    torch.testing.assert_close(
        attention(*heads_first, offsets), attention_reference(*heads_first, offsets)
    )
    one = random(3, 42, 1, 16).requires_grad_()
    attention(*one, offsets).sum().backward()  # an expanded gradient
    assert one.grad is not None
    assert one.grad[:2].abs().max() > 0


def test_results_do_not_depend_on_the_threads() -> None:
    offsets = np.array([0, 300, 300, 310, 700, 900])
    q, k, v = (t.numpy() for t in random(3, 900, 4, 32))
    one = native.attention(q, k, v, offsets, threads=1)
    for threads in (2, 3, 8):
        assert np.array_equal(native.attention(q, k, v, offsets, threads=threads), one)
    before = native.get_num_threads()
    tensors = random(4, 900, 4, 32)
    results = []
    for threads in (1, 3):
        native.set_num_threads(threads)
        results.append(
            value_and_gradients(attention, tensors, torch.float32, torch.from_numpy(offsets))
        )
    native.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_registered_operators() -> None:
    offsets = offsets_of([4, 0, 7])
    q, k, v = (random(11, 2, 5, seed=i).requires_grad_() for i in range(3))
    operators = torch.ops.seqrec_fast
    torch.library.opcheck(operators.attention.default, (q, k, v, offsets, True, 0.4))
    qkv = random(11, 3, 2, 5).requires_grad_()
    torch.library.opcheck(operators.packed_attention.default, (qkv, offsets, False, 0.4))


def test_compiles_without_a_break() -> None:
    offsets = offsets_of([4, 0, 7])
    qkv = random(11, 3, 2, 5).requires_grad_()
    compiled = torch.compile(lambda t: packed_attention(t, offsets) * 2.0, fullgraph=True)
    out = compiled(qkv)
    plain = packed_attention(qkv, offsets) * 2.0
    torch.testing.assert_close(out, plain)
    upstream = random(*out.shape, seed=1)
    torch.testing.assert_close(
        torch.autograd.grad(out, qkv, upstream), torch.autograd.grad(plain, qkv, upstream)
    )


def test_dropout_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = offsets_of([20])
    q, k, v = random(3, 20, 1, 4)
    assert not torch.equal(
        attention(q, k, v, offsets, dropout=0.5), attention(q, k, v, offsets, dropout=0.5)
    )
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "native")
    with pytest.raises(InputError, match=r"kernels of attention have no dropout, found 0\.5"):
        attention(q, k, v, offsets, dropout=0.5)
    with pytest.raises(InputError, match="attention has native kernels for float32"):
        attention(q.double(), k.double(), v.double(), offsets)


def test_numpy() -> None:
    offsets = [0, 5, 5, 12]
    q, k, v = random(3, 12, 2, 6)
    out = native.attention(q.numpy(), k.numpy(), v.numpy(), offsets, causal=False)
    torch.testing.assert_close(
        torch.from_numpy(out), attention(q, k, v, torch.tensor(offsets), causal=False)
    )
    with pytest.raises(InputError, match=r"k: expected the shape \(12, 2, 6\) of q"):
        native.attention(q, k[:3], v, offsets)
    with pytest.raises(InputError, match="offsets: must not decrease"):
        native.attention(q, k, v, [0, 7, 5, 12])
    with pytest.raises(InputError, match="offsets: must run from 0 to the 12 tokens"):
        native.attention(q, k, v, [0, 7])


def test_clear_errors() -> None:
    q = torch.zeros(2, 1, 3)
    with pytest.raises(InputError, match="expected three equal shapes"):
        attention(q, q, q[:1], torch.tensor([0, 2]))
    with pytest.raises(InputError, match="offsets: must run from 0 to the 2 tokens of q"):
        attention(q, q, q, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="offsets: must not decrease"):
        attention(q, q, q, torch.tensor([0, 3, 2]))
    with pytest.raises(InputError, match="q, k, v: expected one dtype and device"):
        attention(q, q.double(), q, torch.tensor([0, 2]))
    with pytest.raises(InputError, match=r"qkv: expected \[tokens, 3, heads, width\]"):
        packed_attention(q, torch.tensor([0, 2]))
