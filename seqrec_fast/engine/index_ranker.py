# SPDX-License-Identifier: Apache-2.0
"""Ranking through a bundle's index in the place of the exact native search.

An index knows inner products alone. A model with biases is given to it with one more dimension, the
bias of each item, against which a user embedding has a 1: the inner product is then the score. A
model with a temperature compares item vectors of length ``1 / temperature`` with user embeddings of
length 1, which is an inner product as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval import Index, from_tensors
from seqrec_fast.retrieval.interests import best_of_interests

__all__ = ["RETRIEVALS", "IndexRanker", "checked_retrieval", "item_rows", "query_rows"]

Float = NDArray[np.float32]

_COMPARED = 64  # vectors of an index that are compared with those of the model

#: how items are found: by the exact native search, or through the index of the bundle
RETRIEVALS = ("exact", "index")


def checked_retrieval(given: object) -> str:
    """One of :data:`RETRIEVALS`.

    Raises:
        InputError: anything else.
    """
    if given not in RETRIEVALS:
        raise InputError(f"retrieval: found {given!r}; choose one of {', '.join(RETRIEVALS)}")
    return str(given)


def item_rows(items: Float, bias: Float | None) -> Float:
    """What an index is built from: item vectors, with their biases as the last column.

    Args:
        items: float32 ``[items, dim]``.
        bias: float32 ``[items]`` or ``None``.

    Returns:
        float32 ``[items, dim]``, or ``[items, dim + 1]`` with biases.
    """
    return items if bias is None else np.concatenate([items, bias[:, None]], axis=1)


def query_rows(queries: Float, bias: Float | None) -> Float:
    """User embeddings as :func:`item_rows` needs them: with a last column of 1 for the biases."""
    if bias is None:
        return queries
    return np.concatenate([queries, np.ones((len(queries), 1), dtype=np.float32)], axis=1)


class IndexRanker:
    """Finds items through an index; its :meth:`rank` is that of the engine.

    Attributes:
        index: over :func:`item_rows` of the model.
    """

    def __init__(self, index: Index, items: Float, bias: Float | None) -> None:
        """Checks that the index is that of the model.

        Raises:
            InputError: it has another metric, or other numbers of items or dimensions.
        """
        width = items.shape[1] + (bias is not None)
        if index.metric != "ip" or (index.size, index.dim) != (len(items), width):
            raise InputError(
                f"index.safetensors: it holds {index.size} items of {index.dim} dimensions with "
                f"metric {index.metric!r}, but the model needs {len(items)} of {width} with 'ip'; "
                f"make it again with seqrec-fast index"
            )
        self.index = index
        self._bias = bias

    @classmethod
    def of(
        cls,
        stored: Mapping[str, NDArray[Any]] | None,
        items: Float,
        bias: Float | None,
        removed: NDArray[np.bool_] | None = None,
    ) -> IndexRanker:
        """The ranker of a bundle's index.

        Args:
            stored: ``Bundle.index``.
            items: float32 ``[items, dim]``.
            bias: float32 ``[items]`` or ``None``.
            removed: bool ``[items]``: never found, whatever the index says of them; or ``None``.

        Raises:
            InputError: there is no index, or it holds other vectors than the model.
            DeviceError: its kind needs a GPU that is not there.
            MissingExtraError: its kind needs a library that is not installed.
        """
        if stored is None:
            raise InputError(
                "retrieval: the bundle has no index; make one with seqrec-fast index, or search "
                "without one, which compares all items"
            )
        try:
            index = from_tensors(stored)
        except InputError as error:
            # of its own class: a GPU that is not there is no fault of the bundle
            raise type(error)(f"index.safetensors: {error}") from None
        made = cls(index, items, bias)
        if removed is not None:
            index.remove(np.flatnonzero(removed))
        made._check_some(items, removed)
        return made

    def _check_some(self, items: Float, removed: NDArray[np.bool_] | None) -> None:
        """Compares some vectors with those of the model: training moves all of them.

        Raises:
            InputError: the index was made of other vectors.
        """
        left = np.arange(len(items)) if removed is None else np.flatnonzero(~removed)
        some = left[np.linspace(0, len(left) - 1, min(len(left), _COMPARED)).astype(np.int64)]
        bias = None if self._bias is None else self._bias[some]
        wanted = item_rows(items[some], bias)
        apart = np.abs(self.index.vectors(some) - wanted).max(axis=1)
        # what bfloat16 rounds away, and what another order of sums does
        wrong = np.flatnonzero(apart > 2.0**-8 * np.abs(wanted).max(axis=1))
        if len(wrong):
            raise InputError(
                f"index.safetensors: the vector of item index {int(some[wrong[0]])} is not that of "
                f"the model, which was trained or changed since; make the index again with "
                f"seqrec-fast index"
            )

    def rank(
        self,
        queries: Float,
        seen_values: NDArray[np.int32] | None,
        seen_offsets: NDArray[np.int64] | None,
        blocked: NDArray[np.uint8] | None,
        k: int,
        threads: int = 0,
    ) -> tuple[Float, NDArray[np.int64]]:
        """The best items of each query; arguments and result are those of ``_C.Engine.rank``."""
        seen = None
        if seen_values is not None and seen_offsets is not None and len(seen_values):
            seen = JaggedBatch(seen_values, seen_offsets)
        deny = None if blocked is None else blocked.view(np.bool_)

        def search(rows: Float, hidden: JaggedBatch[Any] | None) -> tuple[Float, NDArray[np.int64]]:
            found = query_rows(rows, self._bias)
            return self.index.search(found, k, exclude=hidden, deny=deny, threads=threads or None)

        if queries.ndim == 3:  # several interests a user: each searches
            return best_of_interests(queries, k, seen, search)
        return search(queries, seen)

    def describe(self) -> dict[str, Any]:
        """Facts about the index, and what was measured of it, ready for JSON."""
        return {**self.index.describe(), "measured": self.index.measured}
