# SPDX-License-Identifier: Apache-2.0
"""The Recommender: raw ids in, ranked raw ids out.

Answers come from the torch-free encoder (:mod:`seqrec_fast.engine.encoders`) and the native
score-and-select kernel. Nothing is changed after loading, so that any number of threads may share
one Recommender.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import bundle as bundles
from seqrec_fast import native
from seqrec_fast.bundle import Bundle
from seqrec_fast.engine.encoders import build_encoder
from seqrec_fast.engine.precision import Weights, apply_weights, checked_weights
from seqrec_fast.engine.requests import (
    Filter,
    Histories,
    is_list,
    parse_filter,
    parse_histories,
    parse_ids,
    whole_number,
)
from seqrec_fast.engine.selection import Scorer, best, select
from seqrec_fast.errors import BundleError, InputError
from seqrec_fast.jagged import JaggedBatch

__all__ = ["Recommendation", "Recommender"]

_USERS_AT_ONCE = 8192  # bounds the memory of a large request; each part is one native call
_NO_FILTER = Filter(None, None, [])


@dataclass(frozen=True)
class Recommendation:
    """The answer for one user, best item first.

    Attributes:
        items: raw ids ``[n]`` (int64, or object array of ``str``); ``n`` is ``k``, or less where
            fewer items are left.
        scores: float32 ``[n]``, descending. Logits of the model (event counts where ``fallback``
            is ``"popularity"``, cosines from ``similar_items``).
        unknown: ids of the history that the model does not know; they were ignored.
        fallback: ``"popularity"`` where the history holds no known id, so that the most popular
            items were ranked instead; otherwise ``None``.
        titles: title of each item, ``None`` where there is none.
        unknown_filters: ids of the allow and deny lists that the model does not know; ignored.
    """

    items: NDArray[Any]
    scores: NDArray[np.float32]
    unknown: tuple[Any, ...]
    fallback: str | None
    titles: tuple[str | None, ...]
    unknown_filters: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.items)


class Recommender:
    """Recommends from a bundle, without torch.

    Thread-safe: all methods may be called from any number of threads at once.
    """

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, weights: Weights | str = "float32"
    ) -> None:
        """Serves a bundle that is in memory.

        Args:
            bundle: the model.
            threads: cores that one call may use; ``None`` takes the default of the native pool.
            weights: ``"float32"``; ``"bfloat16"``, which rounds all matrices; or ``"int8"``, which
                quantises the item vectors. ``seqrec-fast evaluate`` measures what it costs.

        Raises:
            InputError: weights that do not fit the configuration, an impossible ``threads`` or an
                unknown form of ``weights``.
        """
        self._threads = _checked_threads(threads)
        self._weights = checked_weights(weights)
        self._items = bundle.items
        self._table = bundle.item_table
        self._encoder = build_encoder(bundle.config, apply_weights(bundle.tensors, self._weights))
        vectors, bias = self._encoder.item_vectors, self._encoder.item_bias
        if len(vectors) != len(bundle.items):
            raise InputError(
                f"weights.safetensors: {len(vectors)} item vectors, but the vocabulary has "
                f"{len(bundle.items)} ids"
            )
        self._scorer = Scorer(vectors, bias)
        self._popular = Scorer(
            np.zeros((len(vectors), 1), dtype=np.float32), bundle.popularity.astype(np.float32)
        )
        self._norms: NDArray[np.float32] | None = None
        self._config = dict(bundle.config)
        self._metrics = dict(bundle.metrics)
        self._parameters = sum(int(tensor.size) for tensor in bundle.tensors.values())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        weights: Weights | str = "float32",
        verify: bool = True,
    ) -> Recommender:
        """Loads a bundle from disk.

        Args:
            path: the folder.
            threads: as in the constructor.
            weights: as in the constructor.
            verify: compare the files with their checksums; ``False`` starts faster.

        Raises:
            BundleError: a bundle that is missing, damaged, newer or not to be trusted.
        """
        _checked_threads(threads)
        checked_weights(weights)
        content = bundles.load(path, verify=verify)
        try:
            return cls(content, threads=threads, weights=weights)
        except InputError as error:
            raise BundleError(f"{os.fspath(path)}: {error}") from None

    # ---------------------------------------------------------------- recommendations

    def recommend(
        self,
        histories: Iterable[Sequence[Any]],
        k: int = 10,
        exclude_seen: bool = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
    ) -> list[Recommendation]:
        """The best items for each user.

        Args:
            histories: raw ids, oldest first, one sequence a user. Unknown ids are ignored and
                reported. Where none is known (or none given) the most popular items are ranked.
            k: how many items; fewer come back where fewer are left.
            exclude_seen: leave out every item of the whole history, also of the part that is
                older than what the model looks at.
            allow: rank these items only; ids for all users, or a list of one iterable of ids (or
                ``None``) a user. An empty list allows nothing.
            deny: never these; in the same two forms. ``deny`` wins over ``allow``.

        Returns:
            One :class:`Recommendation` a user, in the order of ``histories``. Equal scores stand
            in the order of the vocabulary.

        Raises:
            InputError: arguments of another form; the message says which is expected.
        """
        count = min(whole_number("k", k), self.num_items)
        parsed = parse_histories(histories, self._items)
        users = len(parsed.known)
        allowed = parse_filter("allow", allow, users, self._items)
        denied = parse_filter("deny", deny, users, self._items)
        answers: list[Recommendation] = []
        for begin in range(0, users, _USERS_AT_ONCE):
            rows = np.arange(begin, min(begin + _USERS_AT_ONCE, users))
            answers += self._answer(rows, parsed, count, bool(exclude_seen), allowed, denied)
        return answers

    def recommend_arrays(
        self,
        histories: JaggedBatch[Any],
        k: int = 10,
        exclude_seen: bool = True,
        *,
        blocked: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best items for each user, by item index: no raw ids, no objects, one array each.

        Args:
            histories: int32 item indices (places in :attr:`item_ids`), oldest first. A row without
                items gets the most popular ones, with their event counts as scores.
            k: how many items; may exceed the number of items.
            exclude_seen: as in :meth:`recommend`.
            blocked: bool ``[num_items]``, true for the items that nobody may get.

        Returns:
            Scores float32 ``[users, k]``, descending, and indices int64 ``[users, k]``; minus
            infinity and -1 where fewer are left. Equal scores stand by ascending index.

        Raises:
            InputError: another type or shape, or an index that is no item.
        """
        wanted = whole_number("k", k)
        known = _checked_indices(histories, self.num_items)
        denied = _NO_FILTER
        if blocked is not None:
            mask = np.asarray(blocked)
            if mask.shape != (self.num_items,) or mask.dtype != np.bool_:
                raise InputError(
                    f"blocked: expected bool of shape ({self.num_items},), found {mask.dtype} of "
                    f"shape {mask.shape}"
                )
            denied = Filter(np.flatnonzero(mask).astype(np.int32), None, [])
        scores = np.full((len(known), wanted), -np.inf, dtype=np.float32)
        ids = np.full((len(known), wanted), -1, dtype=np.int64)
        count = min(wanted, self.num_items)
        for begin in range(0, len(known), _USERS_AT_ONCE):
            rows = np.arange(begin, min(begin + _USERS_AT_ONCE, len(known)))
            part = known.select(rows)
            scores[rows, :count], ids[rows, :count] = self._rank(
                part, count, bool(exclude_seen), _NO_FILTER, denied, rows
            )
        return scores, ids

    def similar_items(self, item: Any, k: int = 10) -> Recommendation:
        """The items whose vectors point most nearly the same way (cosine).

        Args:
            item: a raw id. Where it is unknown the answer is empty and names it.
            k: how many; the item itself is never among them.

        Raises:
            InputError: ``item`` is a list, or ``k`` is not a whole number of at least 1.
        """
        count = whole_number("k", k)
        if is_list(item):
            raise InputError("item: found a list; give one id, and call once for each")
        index = int(self._items.encode([item])[0])
        if index < 0:
            return self._made(np.empty(0, np.int64), np.empty(0, np.float32), (item,))
        vectors = self._scorer.items
        if self._norms is None:
            # Two threads may both compute this; they store the same numbers.
            self._norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        scale = self._norms * self._norms[index]
        # A vector of length 0 points nowhere: its cosine is 0.
        cosine = np.divide(
            vectors @ vectors[index], scale, out=np.zeros_like(scale), where=scale > 0
        )
        np.clip(cosine, -1.0, 1.0, out=cosine)
        cosine[index] = -np.inf
        found = best(cosine, min(count, self.num_items - 1))
        return self._made(found, cosine[found], ())

    # ---------------------------------------------------------------- vectors and scores

    def embed(self, histories: Iterable[Sequence[Any]]) -> NDArray[np.float32]:
        """User interest embeddings, to be multiplied with the item vectors.

        Args:
            histories: as in :meth:`recommend`.

        Returns:
            float32 ``[users, 1, dim]``; zeros for a user without a known id.

        Raises:
            InputError: histories of another form.
        """
        parsed = parse_histories(histories, self._items)
        found = np.zeros((len(parsed.known), 1, self._scorer.items.shape[1]), dtype=np.float32)
        users = np.flatnonzero(parsed.known.lengths)
        for begin in range(0, len(users), _USERS_AT_ONCE):
            rows = users[begin : begin + _USERS_AT_ONCE]
            found[rows, 0] = self._encoder.encode(parsed.known.select(rows))
        return found

    def score(self, history: Sequence[Any], items: Iterable[Any]) -> NDArray[np.float32]:
        """Scores of chosen items for one user: the numbers that :meth:`recommend` ranks by.

        Args:
            history: raw ids of one user, oldest first.
            items: raw ids, in any order, repeats allowed; seen items are scored as well.

        Returns:
            float32 ``[len(items)]``, aligned with ``items``; NaN for an unknown item. Where the
            history holds no known id these are the event counts (popularity).

        Raises:
            InputError: a text or a nested list where a flat list is expected.
        """
        known, _ = parse_ids("history", history, self._items)
        wanted, _ = parse_ids("items", items, self._items)
        known = known[known >= 0]
        scorer, queries = self._popular, np.zeros((1, 1), dtype=np.float32)
        if len(known):
            scorer = self._scorer
            queries = self._encoder.encode(JaggedBatch.from_lengths(known, [len(known)]))
        there = wanted >= 0
        found = np.full(len(wanted), np.nan, dtype=np.float32)
        found[there] = scorer.items[wanted[there]] @ queries[0]
        if scorer.bias is not None:
            found[there] += scorer.bias[wanted[there]]
        return found

    # ---------------------------------------------------------------- facts

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self._items)

    @property
    def item_ids(self) -> NDArray[Any]:
        """Raw ids of the catalogue by item index (a copy)."""
        return self._items.ids.copy()

    def info(self) -> dict[str, Any]:
        """``model, num_items, dim, parameters, titles, threads, weights, config, metrics``."""
        return {
            "model": self._config["model"],
            "num_items": self.num_items,
            "dim": int(self._scorer.items.shape[1]),
            "parameters": self._parameters,
            "titles": self._table is not None and self._table.title_column is not None,
            "threads": self._threads or native.get_num_threads(),
            "weights": self._weights,
            "config": dict(self._config),
            "metrics": dict(self._metrics),
        }

    def __repr__(self) -> str:
        return f"Recommender({self._config['model']}, {self.num_items} items)"

    # ---------------------------------------------------------------- private

    def _answer(
        self,
        rows: NDArray[np.int64],
        histories: Histories,
        k: int,
        exclude_seen: bool,
        allowed: Filter,
        denied: Filter,
    ) -> list[Recommendation]:
        """Recommendations of some users of a request."""
        known = histories.known.select(rows)
        scores, ids = self._rank(known, k, exclude_seen, allowed, denied, rows)
        has_history = known.lengths > 0
        return [
            self._made(
                ids[at][ids[at] >= 0],
                scores[at][ids[at] >= 0],
                histories.unknown[row],
                None if has_history[at] else "popularity",
                allowed.unknown[row] + denied.unknown[row],
            )
            for at, row in enumerate(rows.tolist())
        ]

    def _rank(
        self,
        known: JaggedBatch[Any],
        k: int,
        exclude_seen: bool,
        allowed: Filter,
        denied: Filter,
        rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and item indices ``[users, k]``; ``rows`` are the users' places in the request."""
        ids = np.empty((len(rows), k), dtype=np.int64)
        scores = np.empty((len(rows), k), dtype=np.float32)
        has_history = known.lengths > 0
        for scorer, part in (
            (self._scorer, np.flatnonzero(has_history)),
            (self._popular, np.flatnonzero(~has_history)),
        ):
            if not len(part):
                continue
            history = known.select(part)
            if scorer is self._scorer:
                queries = self._encoder.encode(history)
            else:
                queries = np.zeros((len(part), 1), dtype=np.float32)
            seen = history if exclude_seen else None
            scores[part], ids[part] = select(
                scorer, queries, k, seen, allowed, denied, rows[part], self._threads
            )
        return scores, ids

    def _made(
        self,
        indices: NDArray[np.int64],
        scores: NDArray[np.float32],
        unknown: tuple[Any, ...],
        fallback: str | None = None,
        unknown_filters: tuple[Any, ...] = (),
    ) -> Recommendation:
        titles: tuple[str | None, ...] = (None,) * len(indices)
        if self._table is not None:
            titles = tuple(self._table.title(index) for index in indices.tolist())
        return Recommendation(
            self._items.decode(indices), scores, unknown, fallback, titles, unknown_filters
        )


def _checked_threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    count = whole_number("threads", threads)
    if count > native.MAX_THREADS:
        raise InputError(f"threads: at most {native.MAX_THREADS}, found {count}")
    return count


def _checked_indices(histories: JaggedBatch[Any], items: int) -> JaggedBatch[Any]:
    given: object = histories
    if not isinstance(given, JaggedBatch) or given.is_torch:
        raise InputError(
            "histories: expected a JaggedBatch of numpy item indices; raw ids go to recommend"
        )
    values = histories.values
    if values.dtype != np.int32 or values.ndim != 1:
        raise InputError(
            f"histories: expected int32 item indices, found {values.dtype} of shape {values.shape}"
        )
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < items:
        at = int(np.flatnonzero((values < 0) | (values >= items))[0])
        row = int(np.searchsorted(histories.offsets, at, side="right")) - 1
        raise InputError(
            f"histories: row {row} holds item {int(values[at])}, but the items are 0 to {items - 1}"
        )
    return histories
