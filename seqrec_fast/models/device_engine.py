# SPDX-License-Identifier: Apache-2.0
"""A trained model on a device of torch, with the methods of the native engine.

The serving chain loads :class:`DeviceEngine` by name when a device other than the CPU is asked for
(``seqrec_fast/engine/devices.py``); nothing else refers to it. Users are encoded by the modules of
``seqrec_fast.models``, whose operations run by kernels for the GPU where these can run and by plain
torch otherwise, a single one by a CUDA graph. Items are scored and chosen on the device, by the
kernels of ``seqrec_fast.ops.score_topk`` or, for several interests or where these cannot run, by a
matrix product for a block of users, of bounded size; only the ``k`` best come back. Nothing runs
on the CPU instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec_fast.errors import DeviceError, InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models import SequenceModel, model_from_config
from seqrec_fast.models.encode_graphs import EncodeGraphs
from seqrec_fast.ops._backend import choose_backend
from seqrec_fast.ops.topk import score_topk

__all__ = ["DeviceEngine", "open_device", "top_items"]

#: entries of one block of the score matrix; a few arrays of this size live at a time
SCORES_AT_ONCE = 1 << 25

Ranking = tuple[NDArray[np.float32], NDArray[np.int64]]
Values = NDArray[np.int32]
Offsets = NDArray[np.int64]


def open_device(name: str) -> torch.device:
    """The device, after a look whether it is there.

    Args:
        name: ``"cuda"`` or ``"cuda:N"``.

    Raises:
        DeviceError: torch was built without CUDA, finds no GPU, or none of this number.
    """
    if not torch.cuda.is_available():
        built = getattr(torch.version, "cuda", None) or getattr(torch.version, "hip", None)
        why = "finds no GPU here" if built else "was built without CUDA"
        raise DeviceError(
            f"device: {name!r} needs a GPU, but torch {torch.__version__} {why}; "
            'use device="cpu", which needs none'
        )
    count = torch.cuda.device_count()
    _, _, stated = name.partition(":")
    number = int(stated) if stated else torch.cuda.current_device()
    if number >= count:
        raise DeviceError(
            f"device: {name!r} is not there; torch finds {count}, cuda:0 to cuda:{count - 1}"
        )
    return torch.device("cuda", number)


class DeviceEngine:
    """A model on a GPU; stands in the place of the native engine.

    Never changes after it is made, so that any number of threads may share it.

    Args:
        config: a bundle's ``model.json``.
        tensors: float32 weights by their names in the trained model.
        device: ``"cuda"`` or ``"cuda:N"``.

    Attributes:
        device: the device.
        window: most recent events of a history that are read; 0: all of them.

    Raises:
        DeviceError: there is no such device, or the weights do not fit into its memory.
        InputError: the configuration does not describe a model.
    """

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]], device: str
    ) -> None:
        self.device = open_device(device)
        with torch.device("meta"):  # no memory and no random numbers for what is replaced at once
            model = model_from_config(dict(config))
        try:
            # copied one by one: the arrays may be read-only, which torch does not know
            weights = {n: torch.tensor(t, device=self.device) for n, t in tensors.items()}
            model.load_state_dict(weights, assign=True)
            self._items = model.output_table.detach()
        except torch.OutOfMemoryError:
            size = sum(tensor.nbytes for tensor in tensors.values())
            raise DeviceError(
                f"device: the {size:,} bytes of weights do not fit into the free memory of "
                f'{self.device}; free some, or use device="cpu"'
            ) from None
        self._model: SequenceModel = model.requires_grad_(False).eval()
        self._bias = None if model.output_bias is None else model.output_bias.detach()
        self.window = _window(model)
        self._graphs = EncodeGraphs(self._model, self.device)

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return int(self._items.shape[0])

    def encode(self, values: Values, offsets: Offsets, threads: int = 0) -> NDArray[np.float32]:
        """User embeddings after the last event of each row.

        Args:
            values: int32 items, oldest first.
            offsets: int64 ``[rows + 1]``, no row empty.
            threads: has no effect here.

        Returns:
            float32 ``[rows, dim]``; ``[rows, interests, dim]`` where there are several.
        """
        return self._embed(values, offsets).cpu().numpy()

    def _embed(self, values: Values, offsets: Offsets) -> Tensor:
        self._check_items("histories", values)
        histories: JaggedBatch[Any] = JaggedBatch(values, offsets)
        found = None
        if len(histories) == 1 and len(values):
            found = self._graphs.encode(self._model.window(histories).values)
        return self._model.embed(histories) if found is None else found

    def recommend(
        self,
        values: Values,
        offsets: Offsets,
        seen_values: Values | None,
        seen_offsets: Offsets | None,
        blocked: NDArray[np.uint8] | None,
        k: int,
        threads: int = 0,
    ) -> Ranking:
        """The best items after each row: :meth:`encode`, then :meth:`rank`."""
        queries = self._embed(values, offsets)
        return self._rank(queries, seen_values, seen_offsets, blocked, k)

    def recommend_lists(
        self, histories: Any, lookup: dict[Any, int], k: int, exclude_seen: bool, threads: int = 0
    ) -> None:
        """``None``: lists of raw ids become arrays first."""

    def rank(
        self,
        queries: NDArray[np.float32],
        seen_values: Values | None,
        seen_offsets: Offsets | None,
        blocked: NDArray[np.uint8] | None,
        k: int,
        threads: int = 0,
    ) -> Ranking:
        """The best items of each query.

        Args:
            queries: float32 ``[rows, dim]``, or ``[rows, interests, dim]``: an item's score is then
                the best of them.
            seen_values: int32 items that are left out, one row a query, or ``None``.
            seen_offsets: int64 ``[rows + 1]`` of them.
            blocked: uint8 ``[items]``, not 0 where nobody may get the item, or ``None``.
            k: how many; may exceed the number of items.
            threads: has no effect here.

        Returns:
            Scores float32 ``[rows, k]`` descending and ids int64 ``[rows, k]``, minus infinity and
            -1 where fewer are left. Equal scores stand by ascending id.
        """
        given = torch.tensor(queries, device=self.device)
        return self._rank(given, seen_values, seen_offsets, blocked, k)

    @torch.no_grad()
    def _rank(
        self,
        queries: Tensor,
        seen_values: Values | None,
        seen_offsets: Offsets | None,
        blocked: NDArray[np.uint8] | None,
        k: int,
    ) -> Ranking:
        if k < 1:
            raise InputError(f"k: expected at least 1, found {k}")
        if seen_values is not None:
            self._check_items("seen", seen_values)
        hidden = None if blocked is None else torch.tensor(blocked != 0, device=self.device)
        if queries.ndim == 2 and choose_backend("topk", self.device, queries.dtype) == "cuda":
            seen: JaggedBatch[Any] | None = None
            if seen_values is not None and seen_offsets is not None:
                seen = JaggedBatch(torch.tensor(seen_values), torch.tensor(seen_offsets))
            best, order = score_topk(
                queries, self._items, bias=self._bias, seen=seen, blocked=hidden, k=k
            )
            return best.cpu().numpy(), order.cpu().numpy()
        return self._rank_in_blocks(queries, seen_values, seen_offsets, hidden, k)

    def _rank_in_blocks(
        self,
        queries: Tensor,
        seen_values: Values | None,
        seen_offsets: Offsets | None,
        hidden: Tensor | None,
        k: int,
    ) -> Ranking:
        """The ranking by plain torch."""
        items, rows = self.num_items, len(queries)
        kept = min(k, items)
        scores = np.full((rows, k), -np.inf, dtype=np.float32)
        ids = np.full((rows, k), -1, dtype=np.int64)
        interests = queries.shape[1] if queries.ndim == 3 else 1
        step = max(1, SCORES_AT_ONCE // (items * interests))
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            block = queries[begin:end] @ self._items.T
            if queries.ndim == 3:
                block = block.amax(dim=1)
            if self._bias is not None:
                block += self._bias
            block.masked_fill_(block.isnan(), -torch.inf)
            if hidden is not None:
                block.masked_fill_(hidden, -torch.inf)
            if seen_values is not None and seen_offsets is not None:
                _leave_out(block, seen_values, seen_offsets[begin : end + 1])
            best, order = top_items(block, kept)
            scores[begin:end, :kept] = best.cpu().numpy()
            ids[begin:end, :kept] = order.cpu().numpy()
        return scores, ids

    def _check_items(self, name: str, values: Values) -> None:
        # An index out of range stops a GPU for the whole process: it is found out before.
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.num_items:
            wrong = values[(values < 0) | (values >= self.num_items)][0]
            raise InputError(f"{name}: item {wrong} is not one of 0 to {self.num_items - 1}")


def top_items(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of each row, equal ones by ascending id, which ``topk`` alone does not give.

    Args:
        scores: ``[rows, items]`` without NaN.
        k: at most the number of items.

    Returns:
        Scores ``[rows, k]`` descending and ids int64 ``[rows, k]``, -1 where a score is minus
        infinity.
    """
    values, ids = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if values.shape[1] > k:
        # Where the last one in equals the first one out, topk has chosen among equals as it liked.
        last = values[:, k - 1]
        rows = ((last == values[:, k]) & (last > -torch.inf)).nonzero().squeeze(1)
        ids = ids[:, :k]
        if len(rows):
            ids[rows] = _first_of_equals(scores[rows], last[rows].unsqueeze(1), k)
    ids = ids.sort(dim=1).values
    best, order = scores.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return best, ids.gather(1, order).where(best > -torch.inf, -1)


def _first_of_equals(scores: Tensor, least: Tensor, k: int) -> Tensor:
    """Ids ``[rows, k]``: all above ``least [rows, 1]``, and the first ones that equal it."""
    above, equal = scores > least, scores == least
    room = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(-1, k)


def _leave_out(block: Tensor, values: Values, offsets: Offsets) -> None:
    """Minus infinity for the items of each row; ``offsets`` are those of the rows of the block."""
    columns = torch.tensor(values[offsets[0] : offsets[-1]], dtype=torch.int64)
    rows = torch.from_numpy(np.repeat(np.arange(len(block)), np.diff(offsets)))
    block[rows.to(block.device), columns.to(block.device)] = -torch.inf


def _window(model: SequenceModel) -> int:
    longer = model.options.max_length + 1
    probe = JaggedBatch.from_lengths(np.zeros(longer, dtype=np.int32), [longer])
    read = model.window(probe).tokens
    return 0 if read == longer else read
