# SPDX-License-Identifier: Apache-2.0
"""The Recommender: raw ids in, ranked raw ids out.

Answers come from one engine, which encodes and ranks (:mod:`seqrec_fast.engine.encoders`,
:mod:`seqrec_fast.engine.devices`). A request reads the model in place once, and models never
change, so that any number of threads may share one Recommender.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import native
from seqrec_fast._arguments import MOST_PLACES
from seqrec_fast.bundle import Bundle
from seqrec_fast.engine.followers import Followers
from seqrec_fast.engine.precision import Weights
from seqrec_fast.engine.ranking import rank_users
from seqrec_fast.engine.recommendation import Recommendation, answers, told
from seqrec_fast.engine.requests import (
    Filter,
    Histories,
    blocked_items,
    checked_indices,
    checked_threads,
    is_list,
    parse_filter,
    parse_histories,
    parse_ids,
    read_diversity,
    shown,
    whole_number,
)
from seqrec_fast.engine.rules import rank_limited, read_limit, with_where
from seqrec_fast.engine.selection import best_scores, most_similar
from seqrec_fast.engine.served import ServedModel, Source, checked_form, open_model
from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

if TYPE_CHECKING:
    from seqrec_fast.engine.sessions import Sessions
    from seqrec_fast.retrieval.limits import Limits

__all__ = ["Recommendation", "Recommender"]

_USERS_AT_ONCE = 8192  # bounds the memory of a large request; each part is one native call

_NO_FILTER = Filter(None, None, [])


class Recommender:
    """Recommends from a bundle, without torch (but on a GPU).

    Thread-safe: all methods may be called from any number of threads at once, also while
    :meth:`swap` puts another model in place.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        weights: Weights | str = "float32",
        device: str = "cpu",
        retrieval: str = "exact",
    ) -> None:
        """Serves a bundle that is in memory.

        Args:
            bundle: the model.
            threads: cores that one call may use; ``None`` takes the default of the native pool.
            weights: ``"float32"``; ``"bfloat16"``, which rounds all matrices and holds item vectors
                in half the memory; or ``"int8"``, which holds them in a quarter.
                ``seqrec-fast evaluate`` measures what it costs.
            device: ``"cpu"``, the native engine; or a GPU, ``"cuda"`` or ``"cuda:1"``, by torch.
            retrieval: ``"exact"`` compares all items; ``"index"`` goes through the bundle's index.

        Raises:
            InputError: weights that do not fit the configuration, an impossible ``threads``, an
                unknown form of ``weights``, no such GPU, or no index in the bundle.
            MissingExtraError: a GPU is asked for and torch is not installed.
        """
        self._keep(bundle, threads, checked_form(weights, device, retrieval), verify=True)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        weights: Weights | str = "float32",
        device: str = "cpu",
        retrieval: str = "exact",
        verify: bool = True,
        mmap: bool = True,
    ) -> Recommender:
        """Loads a bundle from disk.

        Args:
            path: the folder.
            threads: as in the constructor.
            weights: as in the constructor.
            device: as in the constructor.
            retrieval: as in the constructor.
            verify: compare the files with their checksums; ``False`` starts faster.
            mmap: map large weights into memory, shared by all processes that serve the bundle;
                ``False`` reads them. See :func:`seqrec_fast.bundle.load`.

        Raises:
            BundleError: a bundle that is missing, damaged, newer or not to be trusted.
            InputError, MissingExtraError: as the constructor.
        """
        made = cls.__new__(cls)
        form = checked_form(weights, device, retrieval, mmap=mmap)
        made._keep(path, threads, form, verify=verify)
        return made

    # ---------------------------------------------------------------- recommendations

    def recommend(
        self,
        histories: Iterable[Sequence[Any]],
        k: int = 10,
        exclude_seen: bool = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        where: Any = None,
        limit: Mapping[str, int] | None = None,
        diversity: float = 0.0,
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
            where: a rule over the item table for all users, or a list of one (or ``None``) a user.
            limit: column → how many items of each of its categories a user may get.
            diversity: for models of several interests: what an item's score gains by being found
                by an interest that the list has little of. See the guide to retrieval.

        Returns:
            One :class:`Recommendation` a user, in the order of ``histories``. Equal scores stand
            in the order of the vocabulary.

        Raises:
            InputError: arguments of another form; the message says which is expected.
        """
        model = self._current
        count = min(whole_number("k", k), len(model.items))
        spread = read_diversity(diversity, model.encoder.interests)
        plainly = where is None and limit is None and not spread
        if allow is None and deny is None and plainly:
            plain = self._plain(model, histories, count, bool(exclude_seen))
            if plain is not None:
                return plain
        parsed = parse_histories(histories, model.items)
        users = len(parsed.known)
        allowed = with_where(model, parse_filter("allow", allow, users, model.items), where, users)
        limits = read_limit(model, limit, spread)
        denied = parse_filter("deny", deny, users, model.items)
        answers: list[Recommendation] = []
        for begin in range(0, users, _USERS_AT_ONCE):
            rows = np.arange(begin, min(begin + _USERS_AT_ONCE, users))
            asked = parsed, count, bool(exclude_seen), allowed, denied, limits, spread
            answers += self._answer(model, rows, *asked)
        return answers

    def recommend_arrays(
        self,
        histories: JaggedBatch[Any],
        k: int = 10,
        exclude_seen: bool = True,
        *,
        blocked: NDArray[Any] | None = None,
        limit: Mapping[str, int] | None = None,
        diversity: float = 0.0,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best items for each user, by item index: no raw ids, no objects, one array each.

        Args:
            histories: int32 item indices (places in :attr:`item_ids`), oldest first. A row without
                items gets the most popular ones, with their event counts as scores.
            k: how many items; may exceed the number of items.
            exclude_seen: as in :meth:`recommend`.
            blocked: bool ``[num_items]``, true for the items that nobody may get.
            limit: as in :meth:`recommend`.
            diversity: as there.

        Returns:
            Scores float32 ``[users, k]``, descending, and indices int64 ``[users, k]``; minus
            infinity and -1 where fewer are left. Equal scores stand by ascending index.

        Raises:
            InputError: another type or shape, or an index that is no item.
        """
        wanted = whole_number("k", k)
        model = self._current
        items = len(model.items)
        known = checked_indices(histories, items)
        if wanted * max(len(known), 1) > MOST_PLACES:
            raise InputError(
                f"k: {len(known)} users with {shown(wanted)} places each fit no memory; ask for "
                f"fewer"
            )
        spread = read_diversity(diversity, model.encoder.interests)
        limits = read_limit(model, limit, spread)
        denied = _NO_FILTER if blocked is None else blocked_items(blocked, items)
        scores = np.full((len(known), wanted), -np.inf, dtype=np.float32)
        ids = np.full((len(known), wanted), -1, dtype=np.int64)
        count = min(wanted, items)
        for begin in range(0, len(known), _USERS_AT_ONCE):
            rows = np.arange(begin, min(begin + _USERS_AT_ONCE, len(known)))
            part = known.select(rows)
            asked = model, part, count, bool(exclude_seen), _NO_FILTER, denied, rows
            scores[rows, :count], ids[rows, :count] = self._ranked(*asked, limits, spread)
        return scores, ids

    def similar_items(self, item: Any, k: int = 10) -> Recommendation:
        """The items whose vectors point most nearly the same way (cosine).

        Args:
            item: a raw id. Where it is unknown the answer is empty and names it.
            k: how many; the item itself is never among them.

        Raises:
            InputError: ``item`` is a list, or ``k`` is not a whole number of at least 1.
        """
        model = self._current
        count = whole_number("k", k)
        if is_list(item):
            raise InputError("item: found a list; give one id, and call once for each")
        index = int(model.items.encode([item])[0])
        if index < 0:
            nothing = np.empty(0, np.int64), np.empty(0, np.float32)
            return Recommendation.of(model, *nothing, unknown=(item,))
        cosine, found = most_similar(model, index, count)
        return Recommendation.of(model, found, cosine)

    # ---------------------------------------------------------------- vectors and scores

    def embed(self, histories: Iterable[Sequence[Any]]) -> NDArray[np.float32]:
        """User interest embeddings, to be multiplied with the item vectors.

        Args:
            histories: as in :meth:`recommend`.

        Returns:
            float32 ``[users, interests, dim]``, of most models one interest; zeros for a user
            without a known id.

        Raises:
            InputError: histories of another form.
        """
        model = self._current
        parsed = parse_histories(histories, model.items)
        encoder = model.encoder
        shape = (len(parsed.known), encoder.interests, model.scorer.items.shape[1])
        found = np.zeros(shape, dtype=np.float32)
        users = np.flatnonzero(parsed.known.lengths)
        for begin in range(0, len(users), _USERS_AT_ONCE):
            rows = users[begin : begin + _USERS_AT_ONCE]
            vectors = encoder.encode(parsed.known.select(rows), threads=self._threads)
            found[rows] = vectors.reshape(-1, *shape[1:])
        return found

    def score(self, history: Sequence[Any], items: Iterable[Any]) -> NDArray[np.float32]:
        """Scores of chosen items for one user: the numbers that :meth:`recommend` ranks by.

        Args:
            history: raw ids of one user, oldest first.
            items: raw ids, in any order, repeats allowed; seen items are scored as well.

        Returns:
            float32 ``[len(items)]``, aligned with ``items``; NaN for an unknown item, minus
            infinity for one that was removed from the catalogue. Where the history holds no known
            id these are the event counts (popularity).

        Raises:
            InputError: a text or a nested list where a flat list is expected.
        """
        model = self._current
        if isinstance(history, Set):
            raise InputError(
                f"history: found a {type(history).__name__}, which has no order; give the ids as "
                f"a list, oldest first"
            )
        known, _ = parse_ids("history", history, model.items)
        wanted, _ = parse_ids("items", items, model.items)
        known = known[known >= 0]
        scorer, queries = model.popular, np.zeros((1, 1), dtype=np.float32)
        if len(known):
            scorer = model.scorer
            queries = model.encoder.encode(JaggedBatch.from_lengths(known, [len(known)]), threads=1)
        there = wanted >= 0
        found = np.full(len(wanted), np.nan, dtype=np.float32)
        found[there] = best_scores(scorer, queries[0], wanted[there])
        return found

    # ---------------------------------------------------------------- live users

    def sessions(
        self,
        capacity: int,
        ttl: float | None = None,
        *,
        memory: int | None = None,
        hop: int = 1,
        remember: int = 50,
    ) -> Sessions:
        """Keeps the states of live users, so that an event costs one step of the model.

        Args:
            capacity: users at most; who was used longest ago makes room for a new one.
            ttl: seconds from the last event or request until a user is dropped; ``None``: never.
            memory: bytes at most for everything that is kept; ``None``: no bound but ``capacity``.
            hop: attention models: events by which a full window moves on at a time. With 1 the
                answers are those of :meth:`recommend` for the whole history. See the guide.
            remember: last items kept of each user, 4 bytes each: what ``exclude_seen`` leaves out,
                and what states are computed from after :meth:`swap`. Attention models keep at least
                their window.

        Raises:
            InputError: an impossible argument, or a ``memory`` that cannot hold one user.
        """
        from seqrec_fast.engine.sessions import Sessions

        return Sessions(self, capacity, ttl, memory=memory, hop=hop, remember=remember)

    def load_sessions(
        self,
        path: str | os.PathLike[str],
        capacity: int,
        ttl: float | None = None,
        *,
        memory: int | None = None,
        hop: int = 1,
        remember: int = 50,
    ) -> Sessions:
        """Sessions from a snapshot that :meth:`Sessions.save` wrote with the same model.

        The time since then counts against ``ttl``. Where there is no room for all, those used last
        are kept.

        Args:
            path: the file.
            capacity: as in :meth:`sessions`, and so are all others.
            ttl: as there.
            memory: as there.
            hop: as there.
            remember: as there.

        Raises:
            InputError: a file that is missing, damaged, cut off, of another model or of a newer
                version.
        """
        from seqrec_fast.engine.sessions import Sessions

        return Sessions.load(self, path, capacity, ttl, memory=memory, hop=hop, remember=remember)

    # ---------------------------------------------------------------- another model

    def swap(self, bundle: Bundle | str | os.PathLike[str], *, verify: bool = True) -> None:
        """Puts another model in place while requests run.

        The new model is loaded and packed first; then one assignment makes it the one that serves.
        A request runs to its end on the model that it began with, so that none is lost and none
        mixes two models.

        Args:
            bundle: the model, in memory or as a folder.
            verify: as in :meth:`load`.

        Raises:
            BundleError, InputError: as :meth:`load` and the constructor, or there are sessions
                whose ``memory`` cannot hold one user of the model; the model in place stays.
        """
        model = open_model(bundle, verify=verify, **self._form)
        with self._followers.lock:
            self._followers.check(model)
            self._current = model

    # ---------------------------------------------------------------- facts

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self._current.items)

    @property
    def item_ids(self) -> NDArray[Any]:
        """Raw ids of the catalogue by item index (a copy)."""
        return self._current.items.ids.copy()

    @property
    def version(self) -> str:
        """Names the model that serves: equal for models of equal weights, options and items."""
        return self._current.version

    def info(self) -> dict[str, Any]:
        """What serves: ``model, version, num_items, dim, parameters, titles, threads, weights``.

        And ``removed`` (items that are not recommended any more), ``device``, ``retrieval``,
        ``index``, and ``config`` and ``metrics`` of the bundle.
        """
        threads = self._threads or native.get_num_threads()
        return self._current.describe() | {"threads": threads, "weights": self._form["weights"]}

    def __repr__(self) -> str:
        model = self._current
        return f"Recommender({model.config['model']}, {len(model.items)} items)"

    # ---------------------------------------------------------------- private

    def _keep(self, source: Source, threads: Any, form: dict[str, Any], *, verify: bool) -> None:
        self._threads = checked_threads(threads)
        self._form = form
        self._current = open_model(source, verify=verify, **form)
        self._followers: Followers = Followers()

    def _plain(
        self, model: ServedModel, histories: Any, k: int, exclude_seen: bool
    ) -> list[Recommendation] | None:
        """Answers to lists of known ids, in one native call; ``None`` where there is more to it."""
        if type(histories) not in (list, tuple) or len(histories) > _USERS_AT_ONCE:
            return None
        if model.lookup is None or model.ranker is not None:
            return None
        found = model.encoder.engine.recommend_lists(
            histories, model.lookup, k, exclude_seen, self._threads or 0
        )
        if found is None:
            return None
        scores, ids, complete = found
        if complete and len(ids) == 1:  # what a live request is; a few microseconds less
            row = ids[0]
            return [Recommendation(model, row, scores[0], model.items.ids.take(row))]
        return answers(model, ids, scores, complete)

    def _answer(
        self,
        model: ServedModel,
        rows: NDArray[np.int64],
        histories: Histories,
        k: int,
        exclude_seen: bool,
        allowed: Filter,
        denied: Filter,
        limits: Limits | None,
        diversity: float,
    ) -> list[Recommendation]:
        """Recommendations of some users of a request."""
        known = histories.known.select(rows)
        asked = model, known, k, exclude_seen, allowed, denied, rows
        scores, ids = self._ranked(*asked, limits, diversity)
        return told(model, histories, rows, scores, ids, (allowed, denied))

    def _ranked(
        self,
        model: ServedModel,
        known: JaggedBatch[Any],
        k: int,
        exclude_seen: bool,
        allowed: Filter,
        denied: Filter,
        rows: NDArray[np.int64],
        limits: Limits | None,
        diversity: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The ranking of the users, or under limits the walk down it."""
        asked = model, known, k, exclude_seen, allowed, denied, rows
        if limits is None:
            return rank_users(*asked, self._threads, diversity)
        return rank_limited(partial(rank_users, threads=self._threads), *asked, limits)
