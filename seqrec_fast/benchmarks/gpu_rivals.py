# SPDX-License-Identifier: Apache-2.0
"""The other libraries of ``bench gpu`` that need more than a call of a function.

Everything here is offered and never needed: what raises is left out, with its reason.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqrec_fast.benchmarks.gpu_layouts import Layout
from seqrec_fast.benchmarks.ragged import Ragged
from seqrec_fast.benchmarks.shapes import AttentionShape, RecurrentShape, TopkShape

__all__ = ["compiled", "faiss_flat", "flattened", "nested", "packed", "varlen"]

_MODES = {"rnn": 1, "lstm": 2, "gru": 3}
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def flattened(shape: RecurrentShape) -> Callable[[dict[str, Tensor]], None]:
    """Lays the weights of a layer into one piece of memory, as cuDNN wants them.

    ``torch.nn.LSTM`` does the same when it is moved to a GPU; without, cuDNN copies them at every
    call. ``torch.nn`` leaves bfloat16 out.
    """

    def prepare(given: dict[str, Tensor]) -> None:
        weights = [given[name] for name in _WEIGHTS]
        cudnn: Any = torch.backends.cudnn
        if not weights[0].is_cuda or not cudnn.is_available():
            return
        # (what was detached cannot be given other memory)
        weights = [weight.clone() for weight in weights]
        flatten: Any = torch._cudnn_rnn_flatten_weight
        mode = _MODES[shape.cell]
        with torch.no_grad():
            flatten(weights, 4, shape.inputs, mode, shape.hidden, 0, 1, True, False)
        given.update(zip(_WEIGHTS, weights, strict=True))

    return prepare


def packed(
    ragged: Ragged, shape: RecurrentShape, inputs: dict[str, Tensor], device: torch.device
) -> Layout:
    """Packed sequences of torch, which cuDNN computes without padding."""
    numbers = ragged.packed(torch.arange(ragged.tokens)[:, None])
    order = numbers.data[:, 0].to(device)
    back = torch.empty_like(order)
    back[order] = torch.arange(ragged.tokens, device=device)
    cell: Any = {"rnn": torch.rnn_tanh, "gru": torch.gru, "lstm": torch.lstm}[shape.cell]
    rows = int(numbers.batch_sizes[0])

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        zero = x.new_zeros(1, rows, shape.hidden)
        state = (zero, zero) if shape.cell == "lstm" else zero
        train = torch.is_grad_enabled()
        out: Tensor = cell(
            x, numbers.batch_sizes, state, list(weights), True, 1, 0.0, train, False
        )[0]
        return out

    return Layout(
        run,
        {**inputs, "x": inputs["x"][order]},
        lambda name, value: value[back] if name in ("y", "x") else value,
        lambda value, result: value[order],
        prepare=flattened(shape),
    )


def varlen(shape: AttentionShape, offsets: Tensor) -> Callable[..., Tensor]:
    """``torch.nn.attention.varlen`` (since torch 2.10), which takes 16 bits only.

    Raises:
        ImportError: this torch has none.
    """
    try:
        function = import_module("torch.nn.attention.varlen").varlen_attn
    except AttributeError as error:
        raise ImportError(str(error)) from error
    starts = offsets.to(torch.int32)
    edges = (starts, starts, shape.time, shape.time)
    # at first a flag, later a window of what is seen before and behind
    first = "is_causal" in inspect.signature(function).parameters
    causal: dict[str, Any] = {"is_causal": True} if first else {"window_size": (-1, 0)}

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = function(q, k, v, *edges, **causal)
        return out

    return run


def nested(ragged: Ragged, offsets: Tensor) -> Callable[..., Tensor]:
    """Scaled dot-product attention of torch's jagged nested tensors."""
    longest, shortest = int(ragged.lengths.max()), int(ragged.lengths.min())

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [
            torch.nested.nested_tensor_from_jagged(
                t, offsets, min_seqlen=shortest, max_seqlen=longest
            ).transpose(1, 2)
            for t in (q, k, v)
        ]
        out: Any = functional.scaled_dot_product_attention(
            parts[0], parts[1], parts[2], is_causal=True
        )
        found: Tensor = out.transpose(1, 2).values()
        return found

    return run


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` of a function for its one shape, compiled at the first call.

    torch counts how often the same source is compiled, and in the end no longer does: what other
    cases have compiled is forgotten before.
    """
    made: list[Callable[..., Any]] = []

    def run(*given: Any) -> Any:
        if not made:
            torch.compiler.reset()
            made.append(torch.compile(function, dynamic=False, fullgraph=True))
        return made[0](*given)

    return run


def faiss_flat(shape: TopkShape, queries: Tensor, items: Tensor) -> Layout:
    """Faiss' flat index on the GPU; queries and results stay in tensors there.

    Its table is of the type of the case (float16 for both types of 16 bits), its queries and
    scores are float32.
    """

    @functools.cache
    def index(half: bool) -> Any:
        faiss: Any = import_module("faiss")
        import_module("faiss.contrib.torch_utils")
        resources, config = faiss.StandardGpuResources(), faiss.GpuIndexFlatConfig()
        config.useFloat16 = half
        config.device = queries.device.index or 0
        made = faiss.GpuIndexFlatIP(resources, shape.dim, config)
        made.add(items.float().contiguous())
        return made, resources  # which must live as long

    def search(q: Tensor) -> tuple[Tensor, Tensor]:
        found = index(q.dtype != torch.float32)[0].search(q.float().contiguous(), shape.k)
        return found[0], found[1]

    # it waits for the device
    return Layout(search, {"queries": queries}, results=("y", "ids"), replays=False)
