# SPDX-License-Identifier: Apache-2.0
"""Exact search: every query against every item, by the fused native kernel."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast import native
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval.filters import Filter, allowed_mask, merge_rows, read_filter

__all__ = ["METRICS", "PRECISIONS", "ExactIndex", "Metric", "Precision"]

Metric = Literal["ip", "cosine"]
METRICS: tuple[str, ...] = ("ip", "cosine")
Precision = Literal["float32", "int8"]
PRECISIONS: tuple[str, ...] = ("float32", "int8")

# An allow list of one query that is shorter than this share of the items is searched by copying
# its vectors together; a longer one in place, behind a mask.
_COPY_SHARE = 8


class ExactIndex:
    """Item vectors and how they are compared; safe to search from many threads at once."""

    def __init__(
        self, vectors: ArrayLike, metric: Metric = "ip", precision: Precision = "float32"
    ) -> None:
        """Takes the vectors; see :func:`seqrec_fast.retrieval.build`."""
        array = _rows("vectors", vectors)
        if array.shape[1] < 1:
            raise InputError(f"vectors: expected at least 1 column, found shape {array.shape}")
        self.metric = metric
        self._vectors = _unit_rows(array) if metric == "cosine" else array
        self.precision = precision
        self._table = native.QuantizedItems(self._vectors) if precision == "int8" else None

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    @property
    def _searched(self) -> NDArray[np.float32] | native.QuantizedItems:
        return self._vectors if self._table is None else self._table

    def describe(self) -> dict[str, Any]:
        """Kind, metric, dtype, precision, items, dim, bytes held, and whether it is exact."""
        table = 0 if self._table is None else self._table.nbytes
        return {
            "kind": "exact",
            "metric": self.metric,
            "dtype": "float32",
            "precision": self.precision,
            "items": len(self),
            "dim": self.dim,
            "bytes": int(self._vectors.nbytes) + table,
            "exact": True,
        }

    def search(
        self,
        queries: ArrayLike,
        k: int,
        exclude: JaggedBatch[Any] | None = None,
        allow: ArrayLike | JaggedBatch[Any] | None = None,
        deny: ArrayLike | JaggedBatch[Any] | None = None,
        threads: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The ``k`` best items of every query.

        Args:
            queries: float ``[queries, dim]``, finite. With metric ``"cosine"`` they need not be
                normalised; a zero vector, query or item, has the similarity 0 to everything.
            k: how many items a query gets, at least 1; may exceed the number of items.
            exclude: item indices to leave out, one row a query.
            allow: item indices that alone may be found: one list for all queries, or a
                :class:`JaggedBatch` of one row a query. An empty list allows nothing.
            deny: item indices that may not be found, in the same two forms.
            threads: cores to use at most; ``None`` takes those of the library.

        Returns:
            Scores float32 ``[queries, k]`` descending, equal ones by ascending index, and item
            indices int64 ``[queries, k]``; ``-inf`` and ``-1`` where fewer items can be found.

        Raises:
            InputError: an argument has the wrong type, shape or range; the message names it.
        """
        rows = _rows("queries", queries)
        if rows.shape[1] != self.dim:
            raise InputError(
                f"queries: expected {self.dim} columns like the index, found {rows.shape[1]}"
            )
        if self.metric == "cosine":
            rows = _unit_rows(rows)
        allowed = read_filter("allow", allow, len(rows), len(self))
        denied = read_filter("deny", deny, len(rows), len(self))
        excluded = read_filter("exclude", exclude, len(rows), len(self))
        if excluded.common is not None:
            raise InputError("exclude: expected a JaggedBatch of one row a query; see deny")
        seen = merge_rows(excluded.rows, denied.rows)
        blocked = allowed_mask(allowed.common, len(self))
        if denied.common is not None and len(denied.common):
            if blocked is None:
                blocked = np.zeros(len(self), dtype=np.bool_)
            blocked[denied.common] = True
        if allowed.rows is None:
            return native.score_topk(
                rows, self._searched, k, seen=seen, blocked=blocked, threads=threads
            )
        return self._search_each(rows, k, allowed, seen, blocked, threads)

    def _search_each(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: Filter,
        seen: JaggedBatch[Any] | None,
        blocked: NDArray[np.bool_] | None,
        threads: int | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Each query among the items allowed to it alone."""
        # One search of no queries checks k and threads even if no query follows.
        native.score_topk(queries[:0], self._vectors[:0], k, threads=threads)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        assert allowed.rows is not None
        for row, listed in enumerate(allowed.rows):
            open_items = np.unique(listed)
            if blocked is not None:
                open_items = open_items[~blocked[open_items]]
            if seen is not None:
                open_items = np.setdiff1d(open_items, seen[row], assume_unique=False)
            if not len(open_items):
                continue
            query = queries[row : row + 1]
            if len(open_items) * _COPY_SHARE < len(self):
                # Ascending order keeps the rule for equal scores.
                found, place = native.score_topk(
                    query, self._vectors[open_items], min(k, len(open_items)), threads=threads
                )
                ids[row, : place.shape[1]] = np.where(place >= 0, open_items[place], -1)[0]
                scores[row, : place.shape[1]] = found[0]
            else:
                mask = allowed_mask(open_items, len(self))
                scores[row : row + 1], ids[row : row + 1] = native.score_topk(
                    query, self._vectors, k, blocked=mask, threads=threads
                )
        return scores, ids


def _rows(name: str, value: ArrayLike) -> NDArray[np.float32]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected an array of numbers, found uneven rows") from None
    if array.ndim != 2:
        raise InputError(f"{name}: expected two dimensions [rows, dim], found shape {array.shape}")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: expected floating-point numbers, found {array.dtype}")
    with np.errstate(over="ignore"):  # what does not fit into float32 is refused below
        rows = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise InputError(f"{name}: row {bad} is not finite in float32; remove or repair it")
    return rows


def _unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays. In float64, so that nothing over- or underflows."""
    wide = rows.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    wide /= np.where(norms > 0, norms, 1.0)[:, None]
    return np.ascontiguousarray(wide, dtype=np.float32)
