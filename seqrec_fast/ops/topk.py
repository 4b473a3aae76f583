# SPDX-License-Identifier: Apache-2.0
"""Score + bias + exclude + top-k: the best items of every query under an inner product.

``score[q, i] = queries[q] · items[i] + bias[i]``; blocked and seen items are left out, and the
``k`` best of the rest are returned. :func:`score_topk_reference` is the definition, in plain torch
and any floating dtype; on the CPU in float32 :func:`score_topk` runs the native kernel, which never
holds a queries × items matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec_fast import native
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops._library import register, runs_directly

__all__ = ["score_topk", "score_topk_reference"]

_SCORES_AT_ONCE = 1 << 25  # elements of one block of the score matrix in the reference


def score_topk(
    queries: Tensor,
    items: Tensor | native.QuantizedItems,
    *,
    bias: Tensor | None = None,
    seen: JaggedBatch[Any] | None = None,
    blocked: Tensor | None = None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The ``k`` best items of every query.

    Items come by descending score, at equal scores the lower index first. Scores that are NaN or
    -inf are never chosen. No gradient flows through this operation.

    Args:
        queries: floating ``[queries, dim]``.
        items: ``[items, dim]``, of the dtype and on the device of ``queries``; or
            :class:`seqrec_fast.native.QuantizedItems` for float32 queries on the CPU, which hold
            their biases and give the same result sooner where the items do not fit the caches.
        bias: ``[items]``, added to the scores, of the same dtype.
        seen: one row a query: item indices hidden from that query (numpy or torch).
        blocked: bool ``[items]``: where true, hidden from all queries.
        k: how many items a query gets, at least 1; may exceed the number of items.

    Returns:
        Scores ``[queries, k]`` in the dtype of ``queries`` and item indices int64 ``[queries, k]``,
        filled up with ``-inf`` and ``-1`` where fewer items can be chosen.

    Raises:
        InputError: shapes, dtypes or devices do not fit, an index is out of range, or
            ``SEQREC_FAST_BACKEND`` forces a backend that cannot run.
    """
    if isinstance(items, native.QuantizedItems):
        return _search_bytes(queries, items, bias, seen, blocked, k)
    _check(queries, items, bias, seen, blocked, k)
    backend = choose_backend("topk", queries.device, queries.dtype)
    if backend == "native" and runs_directly(
        queries, items, *(t for t in (bias, blocked) if t is not None)
    ):
        return _search(queries, _array(items), bias, seen, blocked, k)
    with torch.no_grad():
        if backend == "reference":
            return score_topk_reference(queries, items, bias=bias, seen=seen, blocked=blocked, k=k)
        rows: list[Tensor | None] = [None, None]
        if seen is not None:
            rows = [torch.as_tensor(t).to(queries.device) for t in (seen.values, seen.offsets)]
        scores: Tensor
        ids: Tensor
        scores, ids = _TOPK(queries, items, bias, *rows, blocked, k)
        return scores, ids


def score_topk_reference(
    queries: Tensor,
    items: Tensor,
    *,
    bias: Tensor | None = None,
    seen: JaggedBatch[Any] | None = None,
    blocked: Tensor | None = None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The definition of :func:`score_topk`, in plain torch, any floating dtype and device.

    The arguments, the result and the errors are those of :func:`score_topk`.
    """
    _check(queries, items, bias, seen, blocked, k)
    count, kept = items.shape[0], min(k, items.shape[0])
    scores = queries.new_full((len(queries), k), -torch.inf)
    ids = torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)
    hidden = None if seen is None else seen.to_torch(queries.device)
    step = max(1, _SCORES_AT_ONCE // max(1, count))
    for begin in range(0, len(queries), step):
        end = min(begin + step, len(queries))
        block = queries[begin:end] @ items.T
        if bias is not None:
            block = block + bias
        mask = block.isnan()
        if blocked is not None:
            mask = mask | blocked
        if hidden is not None:
            first, last = int(hidden.offsets[begin]), int(hidden.offsets[end])
            lengths = hidden.offsets[begin + 1 : end + 1] - hidden.offsets[begin:end]
            rows = torch.arange(end - begin, device=block.device).repeat_interleave(lengths)
            mask[rows, hidden.values[first:last].long()] = True
        block = block.masked_fill(mask, -torch.inf)
        ordered, order = block.sort(dim=1, descending=True, stable=True)
        scores[begin:end, :kept] = ordered[:, :kept]
        ids[begin:end, :kept] = order[:, :kept].where(ordered[:, :kept] > -torch.inf, -1)
    return scores, ids


def _check(
    queries: Tensor,
    items: Tensor,
    bias: Tensor | None,
    seen: JaggedBatch[Any] | None,
    blocked: Tensor | None,
    k: int,
) -> None:
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise InputError(
            f"queries, items: expected [queries, dim] and [items, dim], found "
            f"{tuple(queries.shape)} and {tuple(items.shape)}"
        )
    if items.shape[1] < 1:
        raise InputError("items: expected at least 1 column, found 0")
    if not queries.is_floating_point():
        raise InputError(f"queries: expected a floating dtype, found {queries.dtype}")
    for name, tensor in (("items", items), ("bias", bias)):
        if tensor is not None and tensor.dtype != queries.dtype:
            raise InputError(
                f"{name}: expected {queries.dtype} like queries, found {tensor.dtype}; convert it"
            )
    for name, tensor in (("items", items), ("bias", bias), ("blocked", blocked)):
        if tensor is not None and tensor.device != queries.device:
            raise InputError(
                f"{name}: expected on {queries.device} like queries, found on {tensor.device}"
            )
    for name, tensor in (("bias", bias), ("blocked", blocked)):
        if tensor is not None and tuple(tensor.shape) != (items.shape[0],):
            raise InputError(
                f"{name}: expected one number an item ({items.shape[0]}), found shape "
                f"{tuple(tensor.shape)}"
            )
    if blocked is not None and blocked.dtype != torch.bool:
        raise InputError(f"blocked: expected bool, found {blocked.dtype}; convert it")
    if type(k) is not int or k < 1:
        raise InputError(f"k: expected a whole number of at least 1, found {k!r}")
    if seen is not None:
        _check_seen(seen, queries.shape[0], items.shape[0])


def _check_seen(seen: JaggedBatch[Any], queries: int, items: int) -> None:
    if len(seen) != queries:
        raise InputError(f"seen: expected one row a query ({queries}), found {len(seen)} rows")
    if not seen.tokens:
        return
    if str(seen.values.dtype).removeprefix("torch.") not in ("int32", "int64"):
        raise InputError(f"seen: expected int32 or int64 item indices, found {seen.values.dtype}")
    # Under torch.compile the values are not known yet, and the host must not wait for those of a
    # GPU; the kernels check them again.
    if torch.compiler.is_compiling() or getattr(seen.values, "is_cuda", False):
        return
    low, high = int(seen.values.min()), int(seen.values.max())
    if low < 0 or high >= items:
        raise InputError(
            f"seen: found item {low if low < 0 else high}, but the items are 0 to {items - 1}; "
            "encode the ids first"
        )


# ------------------------------------------------------------------------------- the kernels


def _array(tensor: Tensor | None) -> Any:
    """The numbers of a tensor where they lie, whether or not it wants a gradient."""
    if tensor is None:
        return None
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


def _search(
    queries: Tensor,
    items: Any,
    bias: Tensor | None,
    seen: JaggedBatch[Any] | None,
    blocked: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The native search, of items that are a numpy array or a table of bytes."""
    scores, ids = native.score_topk(
        _array(queries),
        items,
        k,
        bias=_array(bias),
        seen=None if seen is None else seen.to_numpy(),
        blocked=_array(blocked),
    )
    return torch.from_numpy(scores), torch.from_numpy(ids)


def _search_bytes(
    queries: Tensor,
    items: native.QuantizedItems,
    bias: Tensor | None,
    seen: JaggedBatch[Any] | None,
    blocked: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The search through a table of bytes, which is no tensor and so no operator of torch."""
    if bias is not None:
        raise InputError("bias: give it to QuantizedItems, whose table holds it")
    # stands for the items, whose memory may be read-only, which torch does not know
    _check(queries, torch.empty(1).expand(items.items.shape), None, seen, blocked, k)
    with torch.no_grad():
        if choose_backend("topk", queries.device, queries.dtype) == "native":
            return _search(queries.resolve_neg(), items, None, seen, blocked, k)
        table, shift = (None if a is None else torch.tensor(a) for a in (items.items, items.bias))
        assert table is not None
        return score_topk_reference(queries, table, bias=shift, seen=seen, blocked=blocked, k=k)


def _cpu(
    queries: Tensor,
    items: Tensor,
    bias: Tensor | None,
    seen_values: Tensor | None,
    seen_offsets: Tensor | None,
    blocked: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    seen: JaggedBatch[Any] | None = None
    if seen_values is not None and seen_offsets is not None:
        seen = JaggedBatch(seen_values, seen_offsets)
    return _search(queries, _array(items), bias, seen, blocked, k)


def _fake(
    queries: Tensor,
    items: Tensor,
    bias: Tensor | None,
    seen_values: Tensor | None,
    seen_offsets: Tensor | None,
    blocked: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


_TOPK = register(
    "score_topk(Tensor queries, Tensor items, Tensor? bias, Tensor? seen_values,"
    " Tensor? seen_offsets, Tensor? blocked, SymInt k) -> (Tensor, Tensor)",
    _cpu,
    _fake,
    gpu="cuda.topk:score_topk",
)
