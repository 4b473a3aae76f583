# SPDX-License-Identifier: Apache-2.0
"""Optimisers and the course of their learning rate."""

from __future__ import annotations

import math

import torch

from seqrec_fast.training.options import TrainingOptions

__all__ = ["learning_rate_factor", "make_optimizer"]

_BETAS = (0.9, 0.98)


def make_optimizer(model: torch.nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or SGD with momentum over all parameters.

    Weight decay acts on matrices only, not on biases and norms.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.rate, betas=_BETAS, fused=True)
    # where a GPU scales gradients, a fused step need not ask whether they are finite
    fused = any(p.is_cuda for p in matrices)
    return torch.optim.SGD(groups, lr=options.rate, momentum=options.momentum, fused=fused)


def learning_rate_factor(step: int, total_steps: int, options: TrainingOptions) -> float:
    """Factor of the learning rate at a step (counted from 0).

    It rises linearly from ``1 / (warmup_steps + 1)``, then stays, or falls along half a cosine to 0
    at ``total_steps`` (Loshchilov and Hutter 2017).
    """
    if step < options.warmup_steps:
        return (step + 1) / (options.warmup_steps + 1)
    if options.schedule == "constant":
        return 1.0
    rest = max(1, total_steps - options.warmup_steps)
    done = min(1.0, (step - options.warmup_steps) / rest)
    return 0.5 * (1.0 + math.cos(math.pi * done))
