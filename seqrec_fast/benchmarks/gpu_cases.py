# SPDX-License-Identifier: Apache-2.0
"""What ``bench gpu`` runs: ours and the others for each operation, each in the layout it likes.

A layout is a function of named tensors, and how its results and gradients are brought into the
layout of the judge. ``torch`` is the standard: cuDNN's recurrent layers, scaled dot-product
attention of the padded batch, and plain functions; it is the judge too, in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqrec_fast import ops
from seqrec_fast.benchmarks import shapes
from seqrec_fast.benchmarks.case import OURS, STANDARD
from seqrec_fast.benchmarks.ragged import Ragged
from seqrec_fast.ops.hstu_attention import hstu_attention_reference

__all__ = ["DTYPES", "GpuCase", "Layout", "cases"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _same(name: str, value: Tensor) -> Tensor:
    return value


def _like(value: Tensor, result: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Layout:
    """One way of computing a case.

    Attributes:
        function: takes the values of ``inputs`` in their order, returns one tensor.
        inputs: floating ones get gradients; they are converted to the type of the case.
        back: name and tensor (``y`` or an input's gradient) -> in the layout of the judge.
        forth: gradient of the result in the layout of the judge -> in that of the result.
    """

    function: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    back: Callable[[str, Tensor], Tensor] = _same
    forth: Callable[[Tensor, Tensor], Tensor] = _like


@dataclass(frozen=True)
class GpuCase:
    """One row of the table of figures.

    Attributes:
        operation: its name.
        shape: of :mod:`seqrec_fast.benchmarks.shapes`.
        dtype_name: a key of :data:`DTYPES`.
        backward: whether gradients are computed too.
        make: device -> layouts by name, :data:`OURS` and :data:`STANDARD` among them.
    """

    operation: str
    shape: Any
    dtype_name: str
    backward: bool
    make: Callable[[torch.device], dict[str, Layout]]

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors."""
        return DTYPES[self.dtype_name]

    @property
    def name(self) -> str:
        """Shape, type and direction."""
        return f"{self.shape}, {self.dtype_name}, forward{'+backward' if self.backward else ''}"

    def build(self, device: torch.device) -> dict[str, Layout]:
        """The layouts, their inputs on the device."""
        return self.make(device)

    def facts(self) -> dict[str, Any]:
        """What is known before measuring, as plain values."""
        return {
            "operation": self.operation,
            "case": self.name,
            "shape": dict(self.shape._asdict()),
            "dtype": self.dtype_name,
            "backward": self.backward,
        }


def cases(operations: tuple[str, ...] = (), match: str = "") -> list[GpuCase]:
    """All cases of these operations (of all where none is named) with this text in the name."""
    found = []
    for operation, (registry, make, trains) in _OPERATIONS.items():
        if operations and operation not in operations:
            continue
        for shape in registry:
            for dtype in DTYPES:
                for backward in (False, True) if trains else (False,):
                    made = functools.partial(make, shape)
                    found.append(GpuCase(operation, shape, dtype, backward, made))
    return [case for case in found if match in case.name]


# ------------------------------------------------------------------------------ operations


def _draw(device: torch.device, scale: float = 1.0) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    # numbers that all types hold exactly, so that each computes with the same ones
    return lambda *size: (
        (scale * torch.randn(*size, generator=generator)).to(torch.bfloat16).float().to(device)
    )


def _padded(
    ragged: Ragged,
    device: torch.device,
    jagged: dict[str, Tensor],
    function: Callable[..., Tensor],
    shared: dict[str, Tensor] | None = None,
) -> Layout:
    """The layout ``[rows, time, ...]`` of the jagged inputs; the shared ones stay as they are."""
    present = ragged.present.to(device)

    def pad(values: Tensor) -> Tensor:
        full = values.new_zeros(*present.shape, *values.shape[1:])
        full[present] = values
        return full

    inputs = {name: pad(value) for name, value in jagged.items()} | (shared or {})
    return Layout(
        function,
        inputs,
        lambda name, value: value[present] if name == "y" or name in jagged else value,
        lambda value, result: pad(value),
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
    offsets = ragged.offsets.to(device)
    call: Any = {"rnn": torch.rnn_tanh, "gru": torch.gru, "lstm": torch.lstm}[shape.cell]

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        return ops.recurrent(shape.cell, x, offsets, *weights)[0]

    def cudnn(x: Tensor, *weights: Tensor) -> Tensor:
        zero = x.new_zeros(1, x.shape[0], shape.hidden)
        state = (zero, zero) if shape.cell == "lstm" else zero
        out: Tensor = call(x, state, list(weights), True, 1, 0.0, True, False, True)[0]
        return out

    return {
        OURS: Layout(ours, {"x": x, **weights}),
        STANDARD: _padded(ragged, device, {"x": x}, cudnn, weights),
    }


def _attention(shape: shapes.AttentionShape, device: torch.device) -> dict[str, Layout]:
    ragged, draw = Ragged(shape.lengths, shape.rows, shape.time), _draw(device)
    inputs = {name: draw(ragged.tokens, shape.heads, shape.width) for name in "qkv"}
    offsets = ragged.offsets.to(device)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2)

    found = {
        OURS: Layout(lambda q, k, v: ops.attention(q, k, v, offsets), inputs),
        STANDARD: _padded(ragged, device, inputs, sdpa),
    }
    starts = offsets.to(torch.int32)
    try:
        varlen = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return found

    def torch_varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        edges = (starts, starts, shape.time, shape.time)
        try:
            out: Tensor = varlen(q, k, v, *edges, is_causal=True)
        except TypeError:  # later versions say it as a window
            out = varlen(q, k, v, *edges, window_size=(-1, 0))
        return out

    return found | {"torch varlen": Layout(torch_varlen, inputs)}


def _hstu_attention(shape: shapes.AttentionShape, device: torch.device) -> dict[str, Layout]:
    ragged, draw = Ragged(shape.lengths, shape.rows, shape.time), _draw(device)
    inputs = {name: draw(ragged.tokens, shape.heads, shape.width) for name in "qkv"}
    offsets = ragged.offsets.to(device)
    scale = shape.width**-0.5

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.hstu_attention(q, k, v, offsets, normaliser=float(shape.time), scale=scale)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return hstu_attention_reference(q, k, v, offsets, normaliser=float(shape.time), scale=scale)

    return {OURS: Layout(ours, inputs), STANDARD: Layout(plain, inputs)}


def _decode_attention(
    shape: shapes.DecodeAttentionShape, device: torch.device
) -> dict[str, Layout]:
    draw = _draw(device)
    model = (shape.heads, shape.width)
    inputs = {"q": draw(shape.rows, *model)} | {
        name: draw(shape.rows * shape.cached, *model) for name in ("keys", "values")
    }
    offsets = torch.arange(shape.rows + 1, device=device) * shape.cached

    def sdpa(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        k, v = (t.view(shape.rows, shape.cached, *model).transpose(1, 2) for t in (keys, values))
        return functional.scaled_dot_product_attention(q[:, :, None], k, v)[:, :, 0]

    return {
        OURS: Layout(lambda q, k, v: ops.decode_attention(q, k, v, offsets), inputs),
        STANDARD: Layout(sdpa, inputs),
    }


def _cross_entropy(shape: shapes.CrossEntropyShape, device: torch.device) -> dict[str, Layout]:
    draw = _draw(device)
    generator = torch.Generator().manual_seed(1)
    inputs = {"hidden": draw(shape.tokens, shape.dim), "weight": draw(shape.items, shape.dim)}
    targets = torch.randint(shape.items, (shape.tokens,), generator=generator).to(device)
    found = {
        OURS: Layout(lambda h, w: ops.linear_cross_entropy(h, w, targets), inputs),
        STANDARD: Layout(lambda h, w: functional.cross_entropy(h @ w.T, targets), inputs),
    }
    fused: Any = getattr(functional, "linear_cross_entropy", None)
    if fused is not None:
        found["torch fused"] = Layout(lambda h, w: fused(h, w, targets), inputs)
    return found


def _layer_norm(shape: shapes.LayerNormShape, device: torch.device) -> dict[str, Layout]:
    draw = _draw(device)
    inputs = {
        "x": draw(shape.tokens, shape.dim),
        "weight": draw(shape.dim),
        "bias": draw(shape.dim),
    }
    return {
        OURS: Layout(ops.layer_norm, inputs),
        STANDARD: Layout(lambda x, w, b: functional.layer_norm(x, (shape.dim,), w, b), inputs),
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

    return {OURS: Layout(ops.feed_forward, inputs), STANDARD: Layout(plain, inputs)}


def _embedding(shape: shapes.EmbeddingShape, device: torch.device) -> dict[str, Layout]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(shape.items, (shape.tokens,), generator=generator).to(device)
    inputs = {"weight": _draw(device)(shape.items, shape.dim)}
    return {
        OURS: Layout(lambda w: ops.embedding(w, ids), inputs),
        STANDARD: Layout(lambda w: functional.embedding(ids, w), inputs),
    }


def _topk(shape: shapes.TopkShape, device: torch.device) -> dict[str, Layout]:
    draw = _draw(device)
    queries, items = draw(shape.queries, shape.dim), draw(shape.items, shape.dim)
    inputs = {"queries": queries, "items": items}

    def plain(q: Tensor, items: Tensor) -> Tensor:
        return (q @ items.T).topk(shape.k).values

    found = {
        OURS: Layout(lambda q, i: ops.score_topk(q, i, k=shape.k)[0], inputs),
        STANDARD: Layout(plain, inputs),
    }
    if device.type == "cuda":
        found["faiss"] = _faiss(shape, queries, items)
    return found


def _faiss(shape: shapes.TopkShape, queries: Tensor, items: Tensor) -> Layout:
    """Faiss' flat index on the GPU; queries and results stay in torch tensors there."""

    @functools.cache
    def index() -> Any:
        faiss: Any = import_module("faiss")
        import_module("faiss.contrib.torch_utils")
        made = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), shape.dim)
        made.add(items.float().contiguous())
        return made

    def search(q: Tensor) -> Tensor:
        found: Tensor = index().search(q.float(), shape.k)[0]
        return found

    return Layout(search, {"queries": queries})


_Make = Callable[[Any, torch.device], dict[str, Layout]]
_OPERATIONS: dict[str, tuple[tuple[Any, ...], _Make, bool]] = {
    "recurrent": (shapes.RECURRENT, _recurrent, True),
    "attention": (shapes.ATTENTION, _attention, True),
    "hstu_attention": (shapes.HSTU_ATTENTION, _hstu_attention, True),
    "decode_attention": (shapes.DECODE_ATTENTION, _decode_attention, False),
    "cross_entropy": (shapes.CROSS_ENTROPY, _cross_entropy, True),
    "layer_norm": (shapes.LAYER_NORM, _layer_norm, True),
    "feed_forward": (shapes.FEED_FORWARD, _feed_forward, True),
    "embedding": (shapes.EMBEDDING, _embedding, True),
    "topk": (shapes.TOPK, _topk, False),
}


def operations() -> Iterator[str]:
    """Names of what is measured."""
    yield from _OPERATIONS
