# SPDX-License-Identifier: Apache-2.0
"""Linear layer + cross-entropy over a catalogue, never holding tokens x items.

``loss_i = logsumexp_j(h_i . w_j + b_j) - (h_i . w_y + b_y)``. The logits of a few tokens at a time
are made, turned into the loss and at once into the gradients of that chunk, and dropped: the peak
is one chunk of logits, whatever the number of tokens. As the loss is a weighted sum of the token
losses, its gradients are known up to one factor in the forward pass, so that nothing is computed
twice (the scheme of Hsu et al. 2024, "Liger Kernel", section 3).

The sampled form scores a token's target against ``negatives`` shared by the whole call. The logQ
correction (Bengio and Senecal 2008) takes from each negative's logit the log of how often its item
is expected among the samples, which makes the sum over the samples an unbiased estimate of the sum
over all other items. The target is there for certain, so its own logit needs no correction; the
classical form, which corrects it too, is had by giving ``log_q_targets``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec_fast import _C
from seqrec_fast.errors import InputError
from seqrec_fast.ops._autocast import narrow
from seqrec_fast.ops._backend import Backend, choose_backend
from seqrec_fast.ops._checks import (
    check_device,
    check_like,
    check_values,
    check_without_gradient,
)
from seqrec_fast.ops._cross_entropy_chunks import REMEDY, ChunkedCrossEntropy
from seqrec_fast.ops._library import address, needs_gradient, refuse_second, register

__all__ = [
    "CHUNK_LOGITS",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "sampled_cross_entropy",
    "sampled_cross_entropy_reference",
]

#: logits held at once (16 MiB of float32): small enough for the last-level cache of most servers
CHUNK_LOGITS = 4 * 1024 * 1024


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    token_weights: Tensor | None = None,
) -> Tensor:
    """Weighted mean of the cross-entropy of every token over all items.

    Native for float32 on the CPU, otherwise :func:`linear_cross_entropy_reference`.

    Args:
        hidden: ``[tokens, dim]``.
        weight: ``[items, dim]``, the output table.
        targets: int64 ``[tokens]``, the right item of each token.
        bias: ``[items]`` or None.
        token_weights: non-negative ``[tokens]``; every token counts the same where None.

    Returns:
        A scalar: ``sum(weights * loss) / sum(weights)``, 0 without tokens; float32 where
        ``hidden`` is of a half type. Differentiable once in ``hidden``, ``weight`` and ``bias``.

    Raises:
        InputError: shapes or dtypes do not fit or a target is not an item.
    """
    hidden, weight, bias = narrow(hidden, weight, bias)
    if _backend_of(hidden) == "reference":
        return linear_cross_entropy_reference(
            hidden, weight, targets, bias, token_weights=token_weights
        )
    _check(hidden, weight, targets, bias)
    return _native(hidden, weight, targets, bias, token_weights, None, None, None)


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    token_weights: Tensor | None = None,
    chunk_logits: int = CHUNK_LOGITS,
) -> Tensor:
    """The definition of :func:`linear_cross_entropy` in plain torch, any dtype and device.

    Args:
        hidden: as there, like all others.
        weight: as there.
        targets: as there.
        bias: as there.
        token_weights: as there.
        chunk_logits: logits held at once; at least one token's.
    """
    _check(hidden, weight, targets, bias)
    _check_items(weight, targets=targets)
    check_without_gradient(token_weights=token_weights)
    if chunk_logits < 1:
        raise InputError(f"chunk_logits: must be at least 1, found {chunk_logits}")
    weights = _normalised(hidden, token_weights)
    chunk = max(1, min(hidden.shape[0], chunk_logits // max(weight.shape[0], 1)))
    loss: Tensor = ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, weights, chunk
    )
    return loss


def sampled_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    bias: Tensor | None = None,
    *,
    log_q_negatives: Tensor | None = None,
    log_q_targets: Tensor | None = None,
    token_weights: Tensor | None = None,
) -> Tensor:
    """Weighted mean of the cross-entropy of every token over its target and shared negatives.

    Native for float32 on the CPU, otherwise :func:`sampled_cross_entropy_reference`.

    A negative that happens to be the target of a token is left out for that token.

    Args:
        hidden: ``[tokens, dim]``.
        weight: ``[items, dim]``, the output table.
        targets: int64 ``[tokens]``.
        negatives: int64 ``[samples]``, drawn once for the whole call.
        bias: ``[items]`` or None.
        log_q_negatives: ``[samples]``, log of the expected count of each negative among the
            samples; None leaves the correction out.
        log_q_targets: ``[tokens]``, the same for the targets; None leaves their logits as they are.
        token_weights: as in :func:`linear_cross_entropy`.

    Returns:
        A scalar, differentiable once in ``hidden``, ``weight`` and ``bias``.

    Raises:
        InputError: shapes or dtypes do not fit, only the targets are corrected, or a target or
            negative is not an item.
    """
    hidden, weight, bias = narrow(hidden, weight, bias)
    if _backend_of(hidden) == "reference":
        return sampled_cross_entropy_reference(
            hidden,
            weight,
            targets,
            negatives,
            bias,
            log_q_negatives=log_q_negatives,
            log_q_targets=log_q_targets,
            token_weights=token_weights,
        )
    _check(hidden, weight, targets, bias)
    _check_sampled(targets, negatives, log_q_negatives, log_q_targets)
    return _native(
        hidden, weight, targets, bias, token_weights, negatives, log_q_negatives, log_q_targets
    )


def sampled_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    bias: Tensor | None = None,
    *,
    log_q_negatives: Tensor | None = None,
    log_q_targets: Tensor | None = None,
    token_weights: Tensor | None = None,
    chunk_logits: int = CHUNK_LOGITS,
) -> Tensor:
    """The definition of :func:`sampled_cross_entropy` in plain torch, any dtype and device.

    Args:
        hidden: as there, like all others.
        weight: as there.
        targets: as there.
        negatives: as there.
        bias: as there.
        log_q_negatives: as there.
        log_q_targets: as there.
        token_weights: as there.
        chunk_logits: logits held at once.
    """
    _check(hidden, weight, targets, bias)
    _check_sampled(targets, negatives, log_q_negatives, log_q_targets)
    _check_items(weight, targets=targets, negatives=negatives)
    weights = _normalised(hidden, token_weights)
    candidates = weight.index_select(0, negatives)
    shift = None if bias is None else bias.index_select(0, negatives)
    if log_q_negatives is not None:
        shift = -log_q_negatives if shift is None else shift - log_q_negatives
    chunk = max(1, chunk_logits // negatives.shape[0])
    total = hidden.new_zeros((), dtype=weights.dtype)
    for begin in range(0, hidden.shape[0], chunk):
        part = slice(begin, begin + chunk)
        h, y = hidden[part], targets[part]
        right = (h * weight.index_select(0, y)).sum(dim=1)
        if bias is not None:
            right = right + bias.index_select(0, y)
        if log_q_targets is not None:
            right = right - log_q_targets[part]
        wrong = h @ candidates.t()
        if shift is not None:
            wrong = wrong + shift
        wrong = wrong.masked_fill(negatives[None, :] == y[:, None], -torch.inf)
        rest = torch.logsumexp(wrong, dim=1)
        total = total + ((torch.logaddexp(right, rest) - right) * weights[part]).sum()
    return total


def _backend_of(hidden: Tensor) -> Backend:
    width = hidden.shape[-1] if hidden.ndim else 0
    return choose_backend("cross_entropy", hidden.device, hidden.dtype, width)


def _normalised(hidden: Tensor, token_weights: Tensor | None) -> Tensor:
    tokens = hidden.shape[0]
    dtype = _wide(hidden)
    if token_weights is None:
        return hidden.new_full((tokens,), 1.0 / max(tokens, 1), dtype=dtype)
    if token_weights.shape != (tokens,):
        raise InputError(f"token_weights: expected [{tokens}], found {tuple(token_weights.shape)}")
    check_device("hidden", hidden, token_weights=token_weights)
    total = token_weights.sum(dtype=torch.promote_types(dtype, token_weights.dtype))
    return (token_weights / torch.where(total > 0, total, torch.ones_like(total))).to(dtype)


def _wide(hidden: Tensor) -> torch.dtype:
    """The type of the loss and of the weights: a half type has too few digits for sums of them."""
    return torch.promote_types(hidden.dtype, torch.float32)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise InputError(
            "hidden, weight: expected [tokens, dim] and [items, dim], found "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise InputError(
            f"targets: expected int64 [{hidden.shape[0]}], found {targets.dtype} "
            f"{tuple(targets.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias: expected [{weight.shape[0]}], found {tuple(bias.shape)}")
    check_like("hidden", hidden, weight=weight, bias=bias)
    check_device("hidden", hidden, targets=targets)


def _check_items(weight: Tensor, **numbers: Tensor) -> None:
    check_values(**numbers)
    # on a GPU torch itself refuses what is no item; a look here would wait for it
    if weight.is_cuda:
        return
    for name, tensor in numbers.items():
        if tensor.numel() and not (0 <= int(tensor.min()) and int(tensor.max()) < weight.shape[0]):
            raise InputError(
                f"{name}: must be items 0 to {weight.shape[0] - 1}, found "
                f"{int(tensor.min())} to {int(tensor.max())}"
            )


def _check_sampled(
    targets: Tensor,
    negatives: Tensor,
    log_q_negatives: Tensor | None,
    log_q_targets: Tensor | None,
) -> None:
    if log_q_targets is not None and log_q_negatives is None:
        raise InputError("log_q_targets: corrects nothing without log_q_negatives; give both")
    if negatives.ndim != 1 or negatives.shape[0] < 1 or negatives.dtype != torch.int64:
        raise InputError(
            f"negatives: expected int64 [samples] with at least one, found {negatives.dtype} "
            f"{tuple(negatives.shape)}"
        )
    for name, tensor, like in (
        ("log_q_negatives", log_q_negatives, negatives),
        ("log_q_targets", log_q_targets, targets),
    ):
        if tensor is not None and tensor.shape != like.shape:
            raise InputError(f"{name}: expected {list(like.shape)}, found {tuple(tensor.shape)}")
    check_device(
        "targets",
        targets,
        negatives=negatives,
        log_q_negatives=log_q_negatives,
        log_q_targets=log_q_targets,
    )


# ------------------------------------------------------------------------------- native


def _native(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    token_weights: Tensor | None,
    negatives: Tensor | None,
    log_q_negatives: Tensor | None,
    log_q_targets: Tensor | None,
) -> Tensor:
    check_without_gradient(
        token_weights=token_weights, log_q_negatives=log_q_negatives, log_q_targets=log_q_targets
    )
    wanted = [needs_gradient(t) for t in (hidden, weight, bias)]
    loss: Tensor = _CROSS_ENTROPY(
        hidden,
        weight,
        bias,
        targets,
        _normalised(hidden, token_weights),
        negatives,
        None if log_q_negatives is None else log_q_negatives.to(_wide(hidden)),
        None if log_q_targets is None else log_q_targets.to(_wide(hidden)),
        *wanted,
    )[0]
    return loss


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor,
    negatives: Tensor | None,
    log_q_negatives: Tensor | None,
    log_q_targets: Tensor | None,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted = (want_hidden, want_weight, want_bias)
    made = _outputs(hidden, weight, *wanted)
    given = (hidden, weight, bias, targets, token_weights, negatives)
    shifts = (log_q_negatives, log_q_targets)
    arrays = [None if t is None else t.detach().contiguous() for t in (*given, *shifts)]
    h, w, b, y, a, n, q_n, q_y = arrays
    items, dim = weight.shape
    d_hidden, d_weight, d_bias = (
        g.data_ptr() if want else 0 for g, want in zip(made[1:], wanted, strict=True)
    )
    value = _C.cross_entropy(
        address(h),
        address(w),
        address(b),
        address(y),
        address(a),
        hidden.shape[0],
        items,
        dim,
        address(n),
        0 if n is None else n.shape[0],
        address(q_n),
        address(q_y),
        d_hidden,
        d_weight,
        d_bias,
    )
    made[0].fill_(value)
    return made


def _fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor,
    negatives: Tensor | None,
    log_q_negatives: Tensor | None,
    log_q_targets: Tensor | None,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(hidden, weight, want_hidden, want_weight, want_bias)


def _outputs(
    hidden: Tensor, weight: Tensor, want_hidden: bool, want_weight: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory of the loss and of the gradients; empty for those that are not wanted.

    Those of float16 are float32 until that of the loss, made large by scaling, is multiplied in.
    """
    dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
    return (
        hidden.new_empty((), dtype=_wide(hidden)),
        hidden.new_empty(hidden.shape if want_hidden else 0, dtype=dtype),
        weight.new_empty(weight.shape if want_weight else 0, dtype=dtype),
        weight.new_empty(weight.shape[0] if want_bias else 0, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # the inputs are not read again; they tell what the gradients depend on
    ctx.save_for_backward(*output[1:], *inputs[:3])
    ctx.wanted = inputs[-3:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_loss: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_loss is None:
        return (None,) * 11
    if type(d_loss) is not Tensor:  # a tracer
        # (autograd rounds them to the types of the inputs)
        made = ctx.saved_tensors[:3]
        scaled = [g * d_loss if want else None for g, want in zip(made, ctx.wanted, strict=True)]
        return (*scaled, *[None] * 8)
    # Handed out as they are: they may be as large as the table. A second pass would hand out the
    # same memory, which may have been changed meanwhile.
    if getattr(ctx, "spent", False):
        raise InputError(
            "linear_cross_entropy: its gradients were handed out by an earlier backward pass; "
            "compute the loss again"
        )
    ctx.spent = True
    saved = ctx.saved_tensors
    with torch.no_grad():
        # the value of a tensor of a GPU is not asked for, the host would have to wait for it
        unchanged = not d_loss.is_cuda and float(d_loss) == 1.0
        given = [
            (g if unchanged else g.mul_(d_loss)).to(saved[3].dtype) if want else None
            for g, want in zip(saved[:3], ctx.wanted, strict=True)
        ]
    sources = (d_loss, *saved[3:])
    return (*refuse_second("linear_cross_entropy", REMEDY, sources, given), *[None] * 8)


_CROSS_ENTROPY = register(
    "cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets,"
    " Tensor token_weights, Tensor? negatives, Tensor? log_q_negatives, Tensor? log_q_targets,"
    " bool want_hidden, bool want_weight, bool want_bias) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    backward=_backward,
    setup_context=_save,
    remedy=REMEDY,
    gpu="triton.cross_entropy:cross_entropy",
)
