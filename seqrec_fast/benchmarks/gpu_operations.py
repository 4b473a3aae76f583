# SPDX-License-Identifier: Apache-2.0
"""What ``bench gpu`` runs: ours and the others for each operation, each in the layout it likes.

``torch`` is the standard, by whose error ours is judged: cuDNN's recurrent layers, scaled
dot-product attention of the padded batch, and plain functions. In float64 it is the judge too,
unless :data:`JUDGE` names another form, where the plain one would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from seqrec_fast import ops
from seqrec_fast.benchmarks import gpu_rivals, shapes
from seqrec_fast.benchmarks.case import OURS, STANDARD
from seqrec_fast.benchmarks.gpu_layouts import Layout
from seqrec_fast.benchmarks.ragged import Ragged
from seqrec_fast.ops.dropout import dropout_reference

__all__ = ["JUDGE", "OPERATIONS", "Operation"]

#: name of the layout that computes in float64, where it is not the standard
JUDGE = "judge"
_COMPILED = "torch.compile"
_DROPPED = 0.2
#: logits of the judge at a time
_LOGITS_AT_ONCE = 1 << 27


def _draw(device: torch.device, scale: float = 1.0, seed: int = 0) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # numbers that all types hold exactly, so that each computes with the same ones
    return lambda *size: (
        (scale * torch.randn(*size, generator=generator)).to(torch.bfloat16).float().to(device)
    )


def _numbers(device: torch.device, below: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(below, (count,), generator=generator).to(device)


def _padded(
    ragged: Ragged,
    device: torch.device,
    jagged: Mapping[str, Tensor],
    function: Callable[..., Any],
    shared: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Layout:
    """The layout ``[rows, time, ...]`` of the jagged inputs; the shared ones stay as they are."""
    present = ragged.present.to(device)

    def pad(values: Tensor) -> Tensor:
        full = values.new_zeros(*present.shape, *values.shape[1:])
        full[present] = values
        return full

    inputs = {name: pad(value) for name, value in jagged.items()} | dict(shared or {})
    return Layout(
        function,
        inputs,
        lambda name, value: value[present] if name == "y" or name in jagged else value,
        lambda value, result: pad(value),
        **options,
    )


def _recurrent(shape: shapes.RecurrentShape, device: torch.device) -> dict[str, Layout]:
    ragged, draw = Ragged(shape.lengths, shape.rows, shape.time), _draw(device, 0.2)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[shape.cell]
    x = _draw(device)(ragged.tokens, shape.inputs)
    weights = {
        "weight_ih": draw(gates * shape.hidden, shape.inputs),
        "weight_hh": draw(gates * shape.hidden, shape.hidden),
        "bias_ih": draw(gates * shape.hidden),
        "bias_hh": draw(gates * shape.hidden),
    }
    inputs = {"x": x, **weights}
    offsets = ragged.offsets.to(device)
    call: Any = {"rnn": torch.rnn_tanh, "gru": torch.gru, "lstm": torch.lstm}[shape.cell]

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        return ops.recurrent(shape.cell, x, offsets, *weights)[0]

    def cudnn(x: Tensor, *weights: Tensor) -> Tensor:
        zero = x.new_zeros(1, x.shape[0], shape.hidden)
        state = (zero, zero) if shape.cell == "lstm" else zero
        train = torch.is_grad_enabled()
        out: Tensor = call(x, state, list(weights), True, 1, 0.0, train, False, True)[0]
        return out

    flat = gpu_rivals.flattened(shape)
    found = {
        OURS: Layout(ours, inputs),
        STANDARD: _padded(ragged, device, {"x": x}, cudnn, weights, prepare=flat),
    }
    if shape.lengths != "equal":
        found["torch packed"] = gpu_rivals.packed(ragged, shape, inputs, device)
    return found


def _attention(shape: shapes.AttentionShape, device: torch.device) -> dict[str, Layout]:
    ragged, draw = Ragged(shape.lengths, shape.rows, shape.time), _draw(device)
    inputs = {name: draw(ragged.tokens, shape.heads, shape.width) for name in "qkv"}
    offsets = ragged.offsets.to(device)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2)

    def judged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # the fused kernels of float32 round less than tf32 does, the plain form as it does
        plain = torch.get_float32_matmul_precision() != "highest"
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            return sdpa(q, k, v)

    found = {
        OURS: Layout(lambda q, k, v: ops.attention(q, k, v, offsets), inputs),
        STANDARD: _padded(ragged, device, inputs, sdpa, judged=judged),
        "torch nested": Layout(gpu_rivals.nested(ragged, offsets), inputs),
    }
    with suppress(ImportError):
        found["torch varlen"] = Layout(gpu_rivals.varlen(shape, offsets), inputs)
    return found


def _hstu_attention(shape: shapes.AttentionShape, device: torch.device) -> dict[str, Layout]:
    ragged, draw = Ragged(shape.lengths, shape.rows, shape.time), _draw(device)
    inputs = {name: draw(ragged.tokens, shape.heads, shape.width) for name in "qkv"}
    table = {"bias": draw(shape.heads, shape.time)}
    offsets = ragged.offsets.to(device)
    time, scale = float(shape.time), shape.width**-0.5
    place = torch.arange(shape.time, device=device)
    distance = (place[:, None] - place).abs()
    later = place[:, None] < place

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return ops.hstu_attention(q, k, v, offsets, normaliser=time, scale=scale, bias=bias)

    def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        weights = functional.silu(scale * (q @ k.transpose(2, 3)) + bias[:, distance])
        return ((weights.masked_fill(later, 0.0) / time) @ v).transpose(1, 2)

    dense = _padded(ragged, device, inputs, plain, table)
    return {
        OURS: Layout(ours, inputs | table),
        STANDARD: dense,
        _COMPILED: _padded(ragged, device, inputs, gpu_rivals.compiled(plain), table),
    }


def _decode_attention(
    shape: shapes.DecodeAttentionShape, device: torch.device
) -> dict[str, Layout]:
    draw = _draw(device)
    model = (shape.heads, shape.width)
    inputs = {"q": draw(shape.rows, *model)} | {
        name: draw(shape.rows * shape.cached, *model) for name in ("keys", "values")
    }
    offsets = torch.arange(shape.rows + 1, device=device) * shape.cached
    return {
        OURS: Layout(lambda q, k, v: ops.decode_attention(q, k, v, offsets), inputs),
        STANDARD: Layout(lambda q, k, v: _sdpa_of_one(shape, q, k, v), inputs),
    }


def _sdpa_of_one(
    shape: shapes.DecodeAttentionShape, q: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    size = (shape.rows, -1, shape.heads, shape.width)
    k, v = (t.view(size)[:, : shape.cached].transpose(1, 2) for t in (keys, values))
    return functional.scaled_dot_product_attention(q[:, :, None], k, v)[:, :, 0]


def _paged_decode_attention(
    shape: shapes.DecodeAttentionShape, device: torch.device
) -> dict[str, Layout]:
    draw = _draw(device)
    each = -(-shape.cached // shapes.PAGE_TOKENS)
    size = (shape.rows * each, shapes.PAGE_TOKENS, shape.heads, shape.width)
    inputs = {"q": draw(shape.rows, shape.heads, shape.width)} | {
        name: draw(*size) for name in ("key_pages", "value_pages")
    }
    shuffled = torch.randperm(shape.rows * each, generator=torch.Generator().manual_seed(2))
    pages = shuffled.view(shape.rows, each).to(device)
    lengths = torch.full((shape.rows,), shape.cached, device=device)

    def gathered(q: Tensor, key_pages: Tensor, value_pages: Tensor) -> Tensor:
        return _sdpa_of_one(shape, q, key_pages[pages], value_pages[pages])

    return {
        OURS: Layout(lambda q, k, v: ops.paged_decode_attention(q, k, v, pages, lengths), inputs),
        STANDARD: Layout(gathered, inputs),
    }


def _cross_entropy(shape: shapes.CrossEntropyShape, device: torch.device) -> dict[str, Layout]:
    draw = _draw(device)
    inputs = {"hidden": draw(shape.tokens, shape.dim), "weight": draw(shape.items, shape.dim)}
    targets = _numbers(device, shape.items, shape.tokens)

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.cross_entropy(hidden @ weight.T, targets)

    def part(hidden: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        return functional.cross_entropy(hidden @ weight.T, chosen, reduction="sum")

    def judge(hidden: Tensor, weight: Tensor) -> Tensor:
        step = max(1, _LOGITS_AT_ONCE // shape.items)
        total = hidden.new_zeros(())
        for begin in range(0, shape.tokens, step):
            here = slice(begin, begin + step)
            sums = checkpoint(part, hidden[here], weight, targets[here], use_reentrant=False)
            total = total + sums
        return total / shape.tokens

    found = {
        OURS: Layout(lambda h, w: ops.linear_cross_entropy(h, w, targets), inputs),
        STANDARD: Layout(plain, inputs),
        JUDGE: Layout(judge, inputs),
        _COMPILED: Layout(gpu_rivals.compiled(plain), inputs),
    }
    fused: Any = getattr(functional, "linear_cross_entropy", None)
    if fused is not None:
        found["torch fused"] = Layout(lambda h, w: fused(h, w, targets), inputs)
    return found


def _sampled_cross_entropy(
    shape: shapes.SampledCrossEntropyShape, device: torch.device
) -> dict[str, Layout]:
    draw = _draw(device)
    inputs = {"hidden": draw(shape.tokens, shape.dim), "weight": draw(shape.items, shape.dim)}
    # one draw, so that some samples are targets as well
    drawn = _numbers(device, shape.items, shape.tokens + shape.samples)
    targets, negatives = drawn[: shape.tokens], drawn[shape.tokens :].clone()
    same = negatives == targets[:, None]

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        right = (hidden * weight[targets]).sum(1, keepdim=True)
        wrong = (hidden @ weight[negatives].T).masked_fill(same, -torch.inf)
        logits = torch.cat((right, wrong), 1)
        return functional.cross_entropy(logits, torch.zeros_like(targets))

    return {
        OURS: Layout(lambda h, w: ops.sampled_cross_entropy(h, w, targets, negatives), inputs),
        STANDARD: Layout(plain, inputs),
        _COMPILED: Layout(gpu_rivals.compiled(plain), inputs),
    }


def _layer_norm(shape: shapes.LayerNormShape, device: torch.device) -> dict[str, Layout]:
    draw = _draw(device)
    inputs = {
        "x": draw(shape.tokens, shape.dim),
        "weight": draw(shape.dim),
        "bias": draw(shape.dim),
    }

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.layer_norm(x, (shape.dim,), weight, bias)

    return {
        OURS: Layout(ops.layer_norm, inputs),
        STANDARD: Layout(plain, inputs),
        _COMPILED: Layout(gpu_rivals.compiled(plain), inputs),
    }


def _add_layer_norm(shape: shapes.LayerNormShape, device: torch.device) -> dict[str, Layout]:
    draw = _draw(device)
    inputs = {
        "x": draw(shape.tokens, shape.dim),
        "residual": draw(shape.tokens, shape.dim),
        "weight": draw(shape.dim),
        "bias": draw(shape.dim),
    }

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return total, functional.layer_norm(total, (shape.dim,), weight, bias)

    named: dict[str, Any] = {"results": ("sum", "y")}
    return {
        OURS: Layout(ops.add_layer_norm, inputs, **named),
        STANDARD: Layout(plain, inputs, **named),
        _COMPILED: Layout(gpu_rivals.compiled(plain), inputs, **named),
    }


def _feed_forward(shape: shapes.FeedForwardShape, device: torch.device) -> dict[str, Layout]:
    draw = _draw(device, 0.2)
    inputs = {
        "x": _draw(device)(shape.tokens, shape.dim),
        "up_weight": draw(shape.inner, shape.dim),
        "up_bias": draw(shape.inner),
        "down_weight": draw(shape.dim, shape.inner),
        "down_bias": draw(shape.dim),
    }

    def plain(x: Tensor, u: Tensor, a: Tensor, d: Tensor, b: Tensor) -> Tensor:
        inner = functional.gelu(functional.linear(x, u, a), approximate="tanh")
        return functional.linear(inner, d, b)

    return {
        OURS: Layout(ops.feed_forward, inputs),
        STANDARD: Layout(plain, inputs),
        _COMPILED: Layout(gpu_rivals.compiled(plain), inputs),
    }


def _embedding(shape: shapes.EmbeddingShape, device: torch.device) -> dict[str, Layout]:
    ids = _numbers(device, shape.items, shape.tokens)
    inputs = {"weight": _draw(device)(shape.items, shape.dim)}
    return {
        OURS: Layout(lambda w: ops.embedding(w, ids), inputs),
        STANDARD: Layout(lambda w: functional.embedding(ids, w), inputs),
    }


def _dropout(shape: shapes.LayerNormShape, device: torch.device) -> dict[str, Layout]:
    inputs = {"x": _draw(device)(shape.tokens, shape.dim)}
    # on the device already, so that no call has to bring it there
    seed = torch.full((1,), 7, dtype=torch.int64, device=device)
    return {
        OURS: Layout(lambda x: ops.dropout(x, _DROPPED, seed=seed), inputs),
        STANDARD: Layout(lambda x: dropout_reference(x, _DROPPED, seed=seed), inputs),
        # drops others, and so cannot be judged
        "torch, its own mask": Layout(
            lambda x: functional.dropout(x, _DROPPED), inputs, compared=False
        ),
    }


def _topk(shape: shapes.TopkShape, device: torch.device) -> dict[str, Layout]:
    draw = _draw(device)
    queries, items = draw(shape.queries, shape.dim), draw(shape.items, shape.dim)
    inputs = {"queries": queries, "items": items}

    def back(name: str, value: Tensor) -> Tensor:
        """For items, their exact scores: infinite where one is no item, or chosen twice."""
        if name != "ids":
            return value
        known = (value >= 0) & (value < shape.items)
        vectors = items.double()[value.clamp(0, shape.items - 1)]
        exact = (vectors * queries.double()[:, None]).sum(2)
        twice = (value.sort(1).values.diff(dim=1) == 0).any(1, keepdim=True)
        return exact.masked_fill(~known | twice, torch.inf)

    def plain(q: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        found = (q @ items.T).topk(shape.k)
        return found.values, found.indices

    named: dict[str, Any] = {"back": back, "results": ("y", "ids")}
    found = {
        OURS: Layout(lambda q, i: ops.score_topk(q, i, k=shape.k), inputs, **named),
        STANDARD: Layout(plain, inputs, **named),
    }
    if device.type == "cuda":
        found["faiss"] = replace(gpu_rivals.faiss_flat(shape, queries, items), back=back)
    return found


class Operation(NamedTuple):
    """What is measured of an operation.

    Attributes:
        shapes: of :mod:`seqrec_fast.benchmarks.shapes`.
        make: shape and device -> layouts by name.
        trains: whether it has gradients.
        products: whether it multiplies matrices, so that tf32 is another case.
        kernel: module of :mod:`seqrec_fast.ops` that chooses its kernels.
    """

    shapes: tuple[Any, ...]
    make: Callable[[Any, torch.device], dict[str, Layout]]
    trains: bool
    products: bool
    kernel: str


OPERATIONS: dict[str, Operation] = {
    "recurrent": Operation(shapes.GPU_RECURRENT, _recurrent, True, True, "recurrent"),
    "attention": Operation(shapes.ATTENTION, _attention, True, True, "attention"),
    "hstu_attention": Operation(
        shapes.HSTU_ATTENTION, _hstu_attention, True, True, "hstu_attention"
    ),
    "decode_attention": Operation(
        shapes.DECODE_ATTENTION, _decode_attention, False, False, "decode_attention"
    ),
    "paged_decode_attention": Operation(
        shapes.DECODE_ATTENTION, _paged_decode_attention, False, False, "decode_attention"
    ),
    "cross_entropy": Operation(shapes.CROSS_ENTROPY, _cross_entropy, True, True, "cross_entropy"),
    "sampled_cross_entropy": Operation(
        shapes.SAMPLED_CROSS_ENTROPY, _sampled_cross_entropy, True, True, "cross_entropy"
    ),
    "layer_norm": Operation(shapes.LAYER_NORM, _layer_norm, True, False, "layer_norm"),
    "add_layer_norm": Operation(shapes.LAYER_NORM, _add_layer_norm, True, False, "layer_norm"),
    "feed_forward": Operation(shapes.FEED_FORWARD, _feed_forward, True, True, "feed_forward"),
    "embedding": Operation(shapes.EMBEDDING, _embedding, True, False, "embedding"),
    "dropout": Operation(shapes.LAYER_NORM, _dropout, True, False, "dropout"),
    "topk": Operation(shapes.TOPK, _topk, False, True, "topk"),
}
