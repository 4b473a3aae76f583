# SPDX-License-Identifier: Apache-2.0
"""Linear layer + cross-entropy over a catalogue, with gradients; the memory is measured too."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seqrec_fast.benchmarks import rivals
from seqrec_fast.benchmarks.case import OURS, STANDARD, Bar, Case, Outputs, Prepared
from seqrec_fast.benchmarks.shapes import CROSS_ENTROPY, CrossEntropyShape
from seqrec_fast.ops import linear_cross_entropy

__all__ = ["cases"]

_cross_entropy = torch.nn.functional.cross_entropy
#: logits that a chunk of the rivals or of the judge holds
_CHUNK_LOGITS = 1 << 23
#: the plain form keeps the logits and makes their gradient and a softmax beside them
_PLAIN_COPIES = 4


def cases() -> list[Case]:
    """Every catalogue: 1.6 times the best rival for small ones, 2.3 times above."""
    return [
        Case(
            "cross_entropy",
            shape,
            "forward+backward",
            flops=6.0 * shape.tokens * shape.items * shape.dim,
            # the table is read and its gradient written; the same for the tokens
            bytes=8.0 * (shape.items + shape.tokens) * shape.dim,
            prepare=functools.partial(_prepare, shape),
            bar=Bar(ratio=1.6 if shape.items < 100_000 else 2.3, extra_bytes=64 << 20),
        )
        for shape in CROSS_ENTROPY
    ]


def _prepare(shape: CrossEntropyShape, threads: int, without: tuple[str, ...]) -> Prepared:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape.tokens, shape.dim, generator=generator)
    weight = torch.randn(shape.items, shape.dim, generator=generator) / shape.dim**0.5
    targets = torch.randint(shape.items, (shape.tokens,), generator=generator)
    chunk = max(1, _CHUNK_LOGITS // shape.items)
    hidden.requires_grad_()
    weight.requires_grad_()

    def plain(h: Tensor, w: Tensor) -> Tensor:
        return _cross_entropy(torch.nn.functional.linear(h, w), targets)

    def chunked(h: Tensor, w: Tensor) -> Tensor:
        total = h.new_zeros(())
        for begin in range(0, shape.tokens, chunk):
            part = slice(begin, begin + chunk)
            total = total + checkpoint(_summed, h[part], w, targets[part], use_reentrant=False)
        return total / shape.tokens

    def fused(h: Tensor, w: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        return torch.nn.functional.linear_cross_entropy(h, w, targets, options=options)

    def offer(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        run = rivals.gradients(lambda: function(hidden, weight), [hidden, weight])
        found.offer(name, lambda: (run, _read))

    found = Prepared(lambda: _judge(hidden.detach(), weight.detach(), targets), without)
    offer(OURS, lambda h, w: linear_cross_entropy(h, w, targets))
    fits = 4.0 * _PLAIN_COPIES * shape.tokens * shape.items < rivals.free_bytes()
    offer(STANDARD, plain if fits else chunked)
    if fits:
        offer("torch, chunked", chunked)
        found.offer(
            "torch.compile",
            lambda: (
                rivals.gradients(
                    functools.partial(rivals.compiled(plain), hidden, weight), [hidden, weight]
                ),
                _read,
            ),
        )
    else:
        found.missing["torch, plain"] = "its logits do not fit into memory; torch is chunked here"
    offer("F.linear_cross_entropy", fused)
    return found


def _summed(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return _cross_entropy(torch.nn.functional.linear(h, w), y, reduction="sum")


def _read(result: tuple[Tensor, tuple[Tensor, ...]]) -> Outputs:
    loss, (d_hidden, d_weight) = result
    return {
        "loss": loss.detach().reshape(1).numpy(),
        "d_hidden": d_hidden.numpy(),
        "d_weight": d_weight.numpy(),
    }


def _judge(hidden: Tensor, weight: Tensor, targets: Tensor) -> Outputs:
    """Loss and gradients in float64, a few tokens at a time."""
    tokens = len(hidden)
    h, w = hidden.double(), weight.double()
    d_hidden, d_weight = torch.empty_like(h), torch.zeros_like(w)
    loss = h.new_zeros(1)
    step = max(1, _CHUNK_LOGITS // len(w))
    for begin in range(0, tokens, step):
        part = slice(begin, begin + step)
        logits = h[part] @ w.t()
        row = torch.arange(len(logits))
        mass = torch.logsumexp(logits, dim=1, keepdim=True)
        loss += (mass[:, 0] - logits[row, targets[part]]).sum() / tokens
        gradient = logits.sub_(mass).exp_()
        gradient[row, targets[part]] -= 1.0
        gradient /= tokens
        torch.mm(gradient, w, out=d_hidden[part])
        d_weight.addmm_(gradient.t(), h[part])
    return {"loss": loss.numpy(), "d_hidden": d_hidden.numpy(), "d_weight": d_weight.numpy()}
