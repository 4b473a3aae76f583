# SPDX-License-Identifier: Apache-2.0
"""Where a model computes: natively on the CPU, or on a GPU by a plug-in that brings torch.

Serving never imports torch. The engine for other devices is therefore a plug-in, found by its name
(:data:`PLUG_IN`) when a device other than the CPU is asked for and not before. It stands in the
place of ``_C.Engine`` and answers to the same methods (:class:`ModelEngine`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError, MissingExtraError

__all__ = ["PLUG_IN", "ModelEngine", "checked_device", "device_engine"]

#: module and class of the engine for devices other than the CPU
PLUG_IN = ("seqrec_fast.models.device_engine", "DeviceEngine")

_DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?")

Ranking = tuple[NDArray[np.float32], NDArray[np.int64]]


class ModelEngine(Protocol):
    """What a served model asks of its engine; the shapes are those of ``_C.Engine``."""

    @property
    def window(self) -> int:
        """Most recent events of a history that are read; 0: all."""

    def encode(
        self, values: NDArray[np.int32], offsets: NDArray[np.int64], threads: int = 0
    ) -> NDArray[np.float32]:
        """User embeddings after the last event of each row, ``[rows, (interests,) dim]``."""

    def recommend(
        self,
        values: NDArray[np.int32],
        offsets: NDArray[np.int64],
        seen_values: NDArray[np.int32] | None,
        seen_offsets: NDArray[np.int64] | None,
        blocked: NDArray[np.uint8] | None,
        k: int,
        threads: int = 0,
    ) -> Ranking:
        """The best items after each row."""

    def recommend_lists(
        self,
        histories: Any,
        lookup: dict[Any, int],
        k: int,
        exclude_seen: bool,
        threads: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], bool] | None:
        """The same from lists of raw ids, and whether each got ``k``; ``None``: the longer way."""

    def rank(
        self,
        queries: NDArray[np.float32],
        seen_values: NDArray[np.int32] | None,
        seen_offsets: NDArray[np.int64] | None,
        blocked: NDArray[np.uint8] | None,
        k: int,
        threads: int = 0,
    ) -> Ranking:
        """The best items of each query ``[dim]``, or by the best of ``[interests, dim]``."""


def checked_device(given: object) -> str:
    """``"cpu"``, ``"cuda"`` (the current GPU) or ``"cuda:1"``.

    Raises:
        InputError: anything else.
    """
    if not isinstance(given, str) or not _DEVICE.fullmatch(given):
        raise InputError(f"device: found {given!r}; choose cpu, cuda or cuda:N (the GPU's number)")
    return given


def device_engine(
    device: str, config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]
) -> ModelEngine:
    """The engine of a model on a device that is not the CPU.

    Args:
        device: from :func:`checked_device`.
        config: a bundle's ``model.json``.
        tensors: its weights.

    Raises:
        MissingExtraError: torch is not installed.
        DeviceError: there is no such GPU, or the model does not fit into its memory.
    """
    module, name = PLUG_IN
    try:
        plug_in = importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"device: {device!r} needs torch, which can't be imported ({error}); "
            "pip install 'seqrec-fast[train]', or leave the device at cpu"
        ) from error
    made: ModelEngine = getattr(plug_in, name)(config, tensors, device)
    return made
