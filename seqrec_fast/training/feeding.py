# SPDX-License-Identifier: Apache-2.0
"""The way of batches to the device that trains: copied ahead of time, beside its work.

For a GPU a pass is gathered into pinned memory and copied on a stream of its own while the GPU
computes the pass before, so that neither waits for the other. On the CPU there is nothing to copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.training.batches import Pass

__all__ = ["Carrier", "PinnedCarrier", "feed", "to_device"]


class Carrier(Protocol):
    """Copies the tensors of a pass, and says when they have arrived."""

    def send(self, tensor: Tensor) -> Tensor:
        """Begins to copy a tensor; nobody waits."""

    def mark(self) -> object:
        """The moment at which everything sent so far will have arrived."""

    def await_mark(self, mark: object, tensors: list[Tensor]) -> None:
        """Lets the work that is queued from now on wait for the mark; it reads these tensors."""


class PinnedCarrier:
    """Through pinned memory, on a stream of its own.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tensor: Tensor) -> Tensor:
        """Begins to copy a tensor of the CPU."""
        with torch.cuda.stream(self._stream):
            return tensor.pin_memory().to(self._device, non_blocking=True)

    def mark(self) -> object:
        """An event on the stream of the copies."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def await_mark(self, mark: object, tensors: list[Tensor]) -> None:
        """Makes the current stream wait for the event, and the tensors its own."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(mark)  # type: ignore[arg-type]
        for tensor in tensors:
            # their memory was taken on the other stream, and must not be given away before this
            # one is done with it
            tensor.record_stream(current)


def feed(passes: Iterable[Pass], carrier: Carrier | None) -> Iterator[Pass]:
    """The passes, on the device.

    Args:
        passes: on the CPU.
        carrier: brings them there, one ahead of the one that is being computed; None where they
            are there already.
    """
    if carrier is None:
        yield from passes
        return
    ahead: tuple[Pass, object] | None = None
    for one in passes:
        sent = _send(one, carrier), carrier.mark()
        if ahead is not None:
            yield _arrived(*ahead, carrier)
        ahead = sent
    if ahead is not None:
        yield _arrived(*ahead, carrier)


def _send(one: Pass, carrier: Carrier) -> Pass:
    return replace(
        one,
        inputs=JaggedBatch(carrier.send(one.inputs.values), carrier.send(one.inputs.offsets)),
        targets=carrier.send(one.targets),
        weights=None if one.weights is None else carrier.send(one.weights),
    )


def _arrived(one: Pass, mark: object, carrier: Carrier) -> Pass:
    tensors = [one.inputs.values, one.inputs.offsets, one.targets]
    carrier.await_mark(mark, tensors if one.weights is None else [*tensors, one.weights])
    return one


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without the host waiting for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
