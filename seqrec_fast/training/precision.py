# SPDX-License-Identifier: Apache-2.0
"""In which numbers a step is computed: float32, or mixed precision with scaled gradients.

In mixed precision (Micikevicius et al. 2018) the weights stay in float32, products are computed in
a half type by ``torch.autocast``, and sums and norms in float32. The gradients of float16 lose what
is below its range, so the loss is multiplied by a factor that grows until gradients overflow, and
such a step is left out. bfloat16 has the range of float32 and needs no factor.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from seqrec_fast.errors import InputError

__all__ = ["PRECISIONS", "Precision"]

PRECISIONS = ("float32", "bfloat16", "float16")


class Precision:
    """How losses are computed and turned into a step.

    Args:
        name: one of :data:`PRECISIONS`.
        device: where the model is.

    Raises:
        InputError: the GPU does not know bfloat16.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "bfloat16" and device.type == "cuda" and not _computes_bfloat16():
            raise InputError(
                "precision: this GPU does not compute bfloat16; choose float16 or float32"
            )
        self._device = device
        self._dtype = None if name == "float32" else getattr(torch, name)
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def context(self) -> AbstractContextManager[object]:
        """What the forward pass runs in."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, scaled, to those of the parameters."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], clip_norm: float
    ) -> None:
        """One step of the optimiser, left out where a scaled gradient is not finite.

        Args:
            optimizer: of the parameters.
            parameters: whose gradients are clipped.
            clip_norm: largest norm of all gradients; 0 does not clip.
        """
        if clip_norm:
            self._scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """The factor and its history, as plain values; empty without one."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state`.

        Raises:
            InputError: it is not the state of this precision.
        """
        if not state and not self._scaler.is_enabled():
            return
        try:
            self._scaler.load_state_dict(state)
        except (RuntimeError, KeyError, TypeError) as error:
            raise InputError(
                f"checkpoint: holds no state of scaled gradients ({error}); start without resume"
            ) from error


def _computes_bfloat16() -> bool:
    """Whether the GPU does so by itself: older ones are said to support it, and convert instead."""
    found: bool = torch.cuda.is_bf16_supported(including_emulation=False)
    return found
