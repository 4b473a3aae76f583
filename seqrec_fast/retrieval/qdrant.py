# SPDX-License-Identifier: Apache-2.0
"""Items in a Qdrant collection behind the interface of every index.

The id of a point is the item index, its vector the item's; a removed item is a point that is not
there. The client's local mode (in memory, or in a folder) needs no server and compares all items.
Vectors of the cosine are stored at length 1 and compared by their inner product, so that a zero
vector is no special case.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.errors import InputError, MissingExtraError
from seqrec_fast.retrieval.filters import Filters, item_ids
from seqrec_fast.retrieval.index import Float, Found, Index, Metric, Rows, first_not_finite
from seqrec_fast.retrieval.options import QdrantOptions

__all__ = ["QdrantIndex"]

_POINTS_AT_ONCE = 1000


def _library() -> Any:
    try:
        import qdrant_client
    except ImportError as error:
        raise MissingExtraError(
            f"kind 'qdrant' needs qdrant-client, which can't be imported ({error}); "
            f"pip install 'seqrec-fast[qdrant]'"
        ) from error
    return qdrant_client


def _client_with_new(options: QdrantOptions, dim: int) -> Any:
    """A client, with a new collection in the place of one of that name.

    Raises:
        InputError: there is no such server, or the folder can't be used.
    """
    library = _library()
    place = options.location
    named = "url" if "://" in place else "location" if place == ":memory:" else "path"
    try:
        client = library.QdrantClient(**{named: place})
        if client.collection_exists(options.collection):
            client.delete_collection(options.collection)
        client.create_collection(
            options.collection,
            vectors_config=library.models.VectorParams(
                size=dim, distance=library.models.Distance.DOT
            ),
        )
    except Exception as error:  # of the client, of its HTTP library or of the system
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"location: Qdrant can't use {place!r} ({reason}); give the URL of a server that runs, "
            f"or a folder that no other client has open"
        ) from error
    return client


class QdrantIndex(Index):
    """A Qdrant collection as an index.

    What other processes change in the collection is found by searches, but not counted here.
    Where equal scores meet the last place, Qdrant chooses among them.
    """

    kind: ClassVar[str] = "qdrant"
    options_class = QdrantOptions

    def __init__(
        self, client: Any, dim: int, metric: Metric, rows: Rows, options: QdrantOptions
    ) -> None:
        """Takes a client and a collection that holds the items; see :meth:`attach`."""
        super().__init__(dim, metric, rows)
        self._client = client
        self._options = options
        self._models = _library().models
        self._local = "://" not in options.location
        # The local mode is plain Python over numpy arrays, which one thread may use at a time.
        lock = threading.RLock()
        self._guard: Any = lock if self._local else contextlib.nullcontext()
        self._where: list[Any] = []
        self._origin: QdrantIndex | None = None  # of a view

    @classmethod
    def attach(
        cls, client: Any, collection: str, metric: Metric = "ip", *, exact: bool = True
    ) -> QdrantIndex:
        """An index over a collection that is there already.

        Args:
            client: a ``QdrantClient``, with whatever credentials it needs.
            collection: its name; point ids are item indices, vectors are unnamed and compared by
                their inner product.
            metric: ``"cosine"`` where the vectors have length 1.
            exact: as the option of the kind.

        Raises:
            InputError: the collection is not of that form.
            MissingExtraError: qdrant-client is not installed.
        """
        models = _library().models
        found = client.get_collection(collection).config.params.vectors
        if not isinstance(found, models.VectorParams) or found.distance != models.Distance.DOT:
            raise InputError(
                f"collection: {collection!r} must have one unnamed vector a point, compared by its "
                f"dot product"
            )
        ids: list[Any] = []
        at: Any = None
        while True:
            points, at = client.scroll(
                collection, limit=10_000, offset=at, with_payload=False, with_vectors=False
            )
            ids += [point.id for point in points]
            if at is None:
                break
        if not all(isinstance(one, int) and 0 <= one < 2**31 for one in ids):
            raise InputError(f"collection: {collection!r} has point ids that are no item indices")
        size = max(ids, default=-1) + 1
        removed = np.ones(size, dtype=np.bool_)
        removed[ids] = False
        rows = Rows(size, removed if removed.any() else None, len(ids))
        where = getattr(client, "init_options", {}).get("url") or ":memory:"
        options = QdrantOptions(location=str(where), collection=collection, exact=exact)
        return cls(client, int(found.size), metric, rows, options)

    def where(self, condition: Any) -> QdrantIndex:
        """The same collection seen through a filter on its payload, for searches.

        It follows what is changed in this index, and can't be changed itself.

        Args:
            condition: a ``qdrant_client.models.Filter`` or a condition of one.
        """
        view = copy.copy(self)
        view._where = [*self._where, condition]
        view._origin = self if self._origin is None else self._origin
        return view

    def set_payload(self, ids: Sequence[int], payload: Mapping[str, Any]) -> None:
        """Sets what :meth:`where` looks at, for some items.

        Args:
            ids: item indices.
            payload: keys and values, as Qdrant takes them.

        Raises:
            InputError: an id that was never given out, or is that of a removed item.
        """
        rows = self._rows
        chosen = item_ids("ids", ids, rows.size)
        gone = chosen[rows.removed[chosen]] if rows.removed is not None else chosen[:0]
        if len(gone):
            raise InputError(f"ids: item {int(gone[0])} was removed, and Qdrant has no point of it")
        with self._guard:
            self._client.set_payload(
                self._options.collection, payload=dict(payload), points=chosen.tolist(), wait=True
            )

    @property
    def exact(self) -> bool:
        """Whether all items are compared."""
        return self._local or self._options.exact

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors, wherever Qdrant keeps them."""
        return len(self) * self.dim * 4

    def options(self) -> dict[str, Any]:
        """See :class:`QdrantOptions`."""
        return self._options.to_dict()

    # ---------------------------------------------------------------- private

    @classmethod
    def _build(cls, vectors: Float, metric: Metric, options: Mapping[str, Any]) -> QdrantIndex:
        rows = Rows(len(vectors), None, len(vectors))
        return cls._filled(vectors, metric, QdrantOptions(**options), rows)

    @classmethod
    def _restore(
        cls, meta: Mapping[str, Any], rows: Rows, tensors: Mapping[str, NDArray[Any]]
    ) -> QdrantIndex:
        items = tensors.get("items")
        if items is None or items.dtype != np.float32 or items.shape != (rows.size, meta["dim"]):
            raise InputError(f"its vectors are not float32 [{rows.size}, {meta['dim']}]")
        bad = first_not_finite(items)
        if bad is not None:
            raise InputError(f"vector {bad} is not finite")
        return cls._filled(items, meta["metric"], QdrantOptions(**meta["options"]), rows)

    @classmethod
    def _filled(
        cls, vectors: Float, metric: Metric, options: QdrantOptions, rows: Rows
    ) -> QdrantIndex:
        """A new collection, in the place of one of that name."""
        client = _client_with_new(options, vectors.shape[1])
        made = cls(client, vectors.shape[1], metric, rows, options)
        every = np.arange(rows.size)
        there = every if rows.removed is None else every[~rows.removed]
        made._upsert(there, vectors[there])
        return made

    def _upsert(self, ids: NDArray[np.int64], vectors: Float) -> None:
        for at in range(0, len(ids), _POINTS_AT_ONCE):
            part = slice(at, at + _POINTS_AT_ONCE)
            points = self._models.Batch(ids=ids[part].tolist(), vectors=vectors[part].tolist())
            with self._guard:
                self._client.upsert(self._options.collection, points=points, wait=True)

    def _tensors(self) -> dict[str, NDArray[Any]]:
        every = np.arange(self._rows.size)
        removed = self._rows.removed
        there = every if removed is None else every[~removed]
        items = np.zeros((self._rows.size, self.dim), dtype=np.float32)
        for at in range(0, len(there), _POINTS_AT_ONCE):
            part = there[at : at + _POINTS_AT_ONCE]
            items[part] = self._gather(self._rows, part)
        return {"items": items}

    def _gather(self, state: Rows, ids: NDArray[np.int64]) -> Float:
        found = np.empty((len(ids), self.dim), dtype=np.float32)
        with self._guard:
            records = self._client.retrieve(
                self._options.collection,
                ids=np.unique(ids).tolist(),
                with_vectors=True,
                with_payload=False,
            )
        vectors = {record.id: record.vector for record in records}
        for row, one in enumerate(ids.tolist()):
            if one not in vectors:
                raise InputError(f"ids: item {one} was removed, and Qdrant keeps no vector of it")
            found[row] = vectors[one]
        return found

    def _state(self) -> Rows:
        if self._origin is not None:
            self._rows = self._origin._rows
        return self._rows

    def _own(self) -> None:
        """Refuses to change a view, which does not count what the index does."""
        if self._origin is not None:
            raise InputError("where: what it gave is for searches; change the index that it is of")

    def _append(self, vectors: Float, rows: Rows) -> None:
        self._own()
        self._upsert(np.arange(rows.size - len(vectors), rows.size), vectors)
        self._rows = rows

    def _replace(self, ids: NDArray[np.int64], vectors: Float, rows: Rows) -> None:
        self._own()
        self._upsert(ids, vectors)
        self._rows = rows

    def _erase(self, ids: NDArray[np.int64], rows: Rows) -> None:
        self._own()
        points = self._models.PointIdsList(points=ids.tolist())
        with self._guard:
            self._client.delete(self._options.collection, points_selector=points, wait=True)
        self._rows = rows

    def _search(
        self, state: Rows, queries: Float, k: int, filters: Filters, threads: int | None
    ) -> Found:
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        wanted = min(k, state.live)
        asked: list[int] = []
        requests: list[Any] = []
        for row, query in enumerate(queries):
            condition, empty = self._condition(state, filters, row)
            if wanted and not empty:
                asked.append(row)
                requests.append(self._request(query, condition, wanted, self._options.exact))
        answers = self._ask(requests)
        if not self.exact:
            # A walk through the graph may end before k were found; comparing all can not.
            short = [at for at, points in enumerate(answers) if len(points) < wanted]
            again = [r.model_copy(update={"params": self._params(True)}) for r in
                     (requests[at] for at in short)]  # fmt: skip
            for at, points in zip(short, self._ask(again), strict=True):
                answers[at] = points
        for row, points in zip(asked, answers, strict=True):
            best = sorted((-point.score, point.id) for point in points)
            scores[row, : len(best)] = [-score for score, _ in best]
            ids[row, : len(best)] = [one for _, one in best]
        return Found(scores, ids)

    def _ask(self, requests: list[Any]) -> list[list[Any]]:
        if not requests:
            return []
        with self._guard:
            found = self._client.query_batch_points(self._options.collection, requests=requests)
        return [one.points for one in found]

    def _request(self, query: Float, condition: Any, limit: int, exact: bool) -> Any:
        return self._models.QueryRequest(
            query=query.tolist(), filter=condition, limit=limit, params=self._params(exact)
        )

    def _params(self, exact: bool) -> Any:
        if self._local:
            return None  # it knows no other way than to compare all, and warns of parameters
        return self._models.SearchParams(exact=exact, hnsw_ef=self._options.ef_search)

    def _condition(self, state: Rows, filters: Filters, row: int) -> tuple[Any, bool]:
        """The filter of a query, and whether it can find nothing."""
        must: list[Any] = list(self._where)
        must_not: list[Any] = []
        if filters.allowed is not None:
            listed = filters.allowed[row]
            must.append(self._has(listed))
            return self._models.Filter(must=must), not len(listed)
        if filters.blocked is not None:
            there = np.ones(state.size, np.bool_) if state.removed is None else ~state.removed
            hidden, left = there & filters.blocked, there & ~filters.blocked
            # Of the two lists the shorter is sent.
            if 2 * np.count_nonzero(hidden) <= np.count_nonzero(there):
                if hidden.any():
                    must_not.append(self._has(np.flatnonzero(hidden)))
            else:
                must.append(self._has(np.flatnonzero(left)))
                if not left.any():
                    return None, True
        if filters.excluded is not None and len(filters.excluded[row]):
            must_not.append(self._has(np.unique(filters.excluded[row])))
        if not must and not must_not:
            return None, False
        return self._models.Filter(must=must or None, must_not=must_not or None), False

    def _has(self, ids: ArrayLike) -> Any:
        return self._models.HasIdCondition(has_id=np.asarray(ids).tolist())
