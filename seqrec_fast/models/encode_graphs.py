# SPDX-License-Identifier: Apache-2.0
"""One user at a time on a GPU: the encoder recorded as CUDA graphs and replayed.

A request of one user is some twenty small kernels, and starting them one by one from Python takes
longer than they run. A CUDA graph starts all of them at once, but its shapes are fixed. So a
history of ``n`` events is laid in a batch of the next power of two, ``size``, as two rows: its own
and one of the ``size - n`` places that are left, whose result nobody reads. Where the rows begin
is a number in the memory of the GPU, which the kernels read there.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models.base import SequenceModel
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops.attention import GPU_WIDTH

__all__ = ["EncodeGraphs", "capture"]

#: the longest history that has a graph; each power of two below has one of its own
MOST_EVENTS = 1024
_PLACES = 4  # what a buffer holds behind the items: offsets of two rows, place of the last event

# torch records one graph at a time in a process
_RECORDING = threading.Lock()

#: runs again what was recorded, and returns what it returned
Replay = Callable[[], Tensor]


def capture(function: Callable[[], Tensor]) -> Replay:
    """Records the work that a function gives to the current GPU; its tensors stay where they are.

    Raises:
        RuntimeError: the function waits for the GPU, or does what cannot be recorded.
    """
    work = torch.cuda.current_stream()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(work)
    with torch.cuda.stream(aside):
        for _ in range(2):  # kernels are compiled and chosen at their first calls
            function()
    work.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may use the GPU meanwhile. The stream that torch would take by itself is of
        # the GPU that was current when the process first recorded something.
        with (
            _RECORDING,
            torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"),
        ):
            result = function()
    finally:
        # torch leaves its stream the current one where recording fails
        torch.cuda.set_stream(work)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class _Recorded:
    """A graph of one size and the memory that it reads."""

    def __init__(
        self, model: SequenceModel, size: int, device: torch.device, record: Callable[..., Replay]
    ) -> None:
        self._size = size
        self._buffer = torch.zeros(size + _PLACES, dtype=torch.int64, device=device)
        items, offsets, last = (
            self._buffer.narrow(0, begin, length)
            for begin, length in ((0, size), (size, 3), (size + 3, 1))
        )
        # neither row may be longer than the model allows: more than half of the places are used
        self._buffer.copy_(self._packed(np.zeros(size - size // 2, dtype=np.int64)))

        def encode() -> Tensor:
            batch: JaggedBatch[Any] = JaggedBatch(items, offsets)
            hidden: Tensor = model(batch)
            return hidden.index_select(0, last)

        self._replay = record(encode)

    def encode(self, items: NDArray[Any]) -> Tensor:
        """Embedding ``[1, ...]`` of a history."""
        self._buffer.copy_(self._packed(items))
        return self._replay().clone()

    def _packed(self, items: NDArray[Any]) -> Tensor:
        packed = np.zeros(self._size + _PLACES, dtype=np.int64)
        packed[: len(items)] = items
        packed[self._size :] = 0, len(items), self._size, len(items) - 1
        return torch.from_numpy(packed)


class EncodeGraphs:
    """The graphs of a model, recorded when first needed; any number of threads may share them.

    Args:
        model: in evaluation mode, its weights never change.
        device: where it is.
        record: makes a function that can be called again of one that is called now.
    """

    def __init__(
        self,
        model: SequenceModel,
        device: torch.device,
        record: Callable[[Callable[[], Tensor]], Replay] = capture,
    ) -> None:
        self._model = model
        self._device = device
        self._record = record
        self._recorded: dict[int, _Recorded] = {}
        self._busy = threading.Lock()
        # A graph has one memory for all who replay it. Whoever asks next, perhaps on another
        # stream, waits there for the work of the one before.
        self._done: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._broken = not self.possible(model, device)

    @staticmethod
    def possible(model: SequenceModel, device: torch.device) -> bool:
        """Whether the encoder never waits for the GPU, as plain torch must on jagged batches."""
        options = model.options
        if options.model != "sasrec":
            return choose_backend("recurrent", device, torch.float32) != "reference"
        chosen = choose_backend("attention", device, torch.float32)
        wide = options.dim // options.heads > GPU_WIDTH
        return chosen != "reference" and not (chosen == "triton" and wide)

    @torch.no_grad()
    def encode(self, items: NDArray[Any]) -> Tensor | None:
        """The embedding ``[1, ...]`` of one history.

        Args:
            items: its events, oldest first, at least one, cut to the window of the model.

        Returns:
            None where it has to be encoded without a graph: it is too long, another thread is at
            work here, or nothing can be recorded.
        """
        if self._broken or len(items) > MOST_EVENTS or not self._busy.acquire(blocking=False):
            return None
        try:
            with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
                return self._encoded(items)
        finally:
            self._busy.release()

    def _encoded(self, items: NDArray[Any]) -> Tensor | None:
        if self._done is None:
            return self._of_size(items)
        self._done.wait()
        try:
            return self._of_size(items)
        finally:
            self._done.record()

    def _of_size(self, items: NDArray[Any]) -> Tensor | None:
        size = 1 << (len(items) - 1).bit_length()
        if size not in self._recorded:
            try:
                made = _Recorded(self._model, size, self._device, self._record)
            except RuntimeError as error:
                self._broken = True
                warnings.warn(
                    f"requests of one user run without a CUDA graph, as none can be recorded: "
                    f"{str(error).splitlines()[0]}",
                    stacklevel=4,
                )
                return None
            self._recorded[size] = made
        return self._recorded[size].encode(items)
