# SPDX-License-Identifier: Apache-2.0
"""Linear + cross-entropy in plain torch, a chunk of the tokens at a time, loss and gradients.

The gradients are known up to one factor, that of the loss, when the loss is; so they are computed
with it and kept. In float16 both the sum of the exponentials and the gradients of the logits leave
the range of the type (of 100,000 items alike, the one is 100,000 and the others are 1e-5 over the
number of tokens): there they are float32, and rounded after the factor, made large by a loss
scaler, is multiplied in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec_fast.ops._library import refuse_second

__all__ = ["REMEDY", "ChunkedCrossEntropy"]

#: what to do where gradients of gradients are wanted
REMEDY = "use torch.nn.functional.cross_entropy on the logits"


class ChunkedCrossEntropy(torch.autograd.Function):
    """The reference of the loss; see ``seqrec_fast.ops.linear_cross_entropy_reference``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        token_weights: Tensor,
        chunk: int,
    ) -> Tensor:
        """Of ``token_weights [tokens]`` that sum to 1, and ``chunk`` tokens at a time."""
        needs = [bool(n) for n in ctx.needs_input_grad[:3]]
        dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        table = weight.to(dtype) if any(needs) else weight
        d_hidden = torch.empty_like(hidden, dtype=dtype) if needs[0] else None
        d_weight = torch.zeros_like(weight, dtype=dtype) if needs[1] else None
        d_bias = torch.zeros_like(bias, dtype=dtype) if needs[2] and bias is not None else None
        total = hidden.new_zeros((), dtype=token_weights.dtype)
        for begin in range(0, hidden.shape[0], chunk):
            part = slice(begin, begin + chunk)
            h, y, a = hidden[part], targets[part, None], token_weights[part, None]
            z = h @ weight.t() if bias is None else torch.addmm(bias, h, weight.t())
            z = z.to(dtype)
            chosen = z.gather(1, y)
            top = z.amax(dim=1, keepdim=True)
            z.sub_(top).exp_()
            mass = z.sum(dim=1, keepdim=True)
            total += ((mass.log() + top - chosen) * a).sum()
            if any(needs):
                # gradient of the logits: weight * (softmax - one-hot of the target)
                z.mul_(a / mass)
                z.scatter_add_(1, y, -a.to(dtype))
                if d_hidden is not None:
                    torch.mm(z, table, out=d_hidden[part])
                if d_weight is not None:
                    d_weight.addmm_(z.t(), h.to(dtype))
                if d_bias is not None:
                    d_bias += z.sum(dim=0)
        ctx.gradients = (d_hidden, d_weight, d_bias)
        ctx.save_for_backward(hidden, weight, bias)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """What was kept, times the gradient of the loss."""
        sources = (gradient, *ctx.saved_tensors)
        with torch.no_grad():
            scaled = [
                None if g is None else (g * gradient).to(ctx.saved_tensors[0].dtype)
                for g in ctx.gradients
            ]
        return (*refuse_second("linear_cross_entropy", REMEDY, sources, scaled), None, None, None)
