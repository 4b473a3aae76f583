# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention over jagged batches: the definition, in plain torch.

For each row and head, with ``q``, ``k``, ``v`` of the row's own tokens only (Vaswani et al. 2017):
``softmax(q k^T * scale + mask) v``, where the causal mask hides later tokens. Rows of equal length
that stand side by side are computed as one dense batch, so that nothing is padded; sort the rows of
a batch by length to keep the number of calls low.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec_fast.errors import InputError
from seqrec_fast.ops._rows import EqualRun, check_jagged, equal_runs

__all__ = ["attention"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    dropout: float = 0.0,
    runs: list[EqualRun] | None = None,
) -> Tensor:
    """Self-attention inside each row of a jagged batch.

    Args:
        q: ``[tokens, heads, width]``, rows end to end.
        k: as ``q``.
        v: as ``q``.
        offsets: int64 ``[rows + 1]``.
        causal: whether a token sees only itself and earlier tokens of its row.
        scale: factor of the scores; ``1 / sqrt(width)`` where None.
        dropout: probability of dropping an attention weight (training only).
        runs: ``equal_runs(offsets)`` if it is at hand (layers of one stack share it).

    Returns:
        ``[tokens, heads, width]`` in the order of ``q``.

    Raises:
        InputError: shapes do not fit one another or the offsets.
    """
    if q.ndim != 3 or k.shape != q.shape or v.shape != q.shape:
        raise InputError(
            "q, k, v: expected three equal shapes [tokens, heads, width], found "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    check_jagged("q", q, offsets)
    parts = []
    for run in equal_runs(offsets) if runs is None else runs:
        dense = [
            t[run.begin : run.end].view(run.rows, run.length, *t.shape[1:]).transpose(1, 2)
            for t in (q, k, v)
        ]
        out = torch.nn.functional.scaled_dot_product_attention(
            dense[0], dense[1], dense[2], is_causal=causal, scale=scale, dropout_p=dropout
        )
        parts.append(out.transpose(1, 2).reshape(run.end - run.begin, *q.shape[1:]))
    return torch.cat(parts) if parts else q.new_zeros(q.shape)
