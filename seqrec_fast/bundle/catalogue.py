# SPDX-License-Identifier: Apache-2.0
"""A bundle whose catalogue changes without training: items added, changed and removed.

Nothing but what belongs to single items is touched: their rows in the item tables of the model,
their biases, ids, event counts, titles, and the mark of what is removed. All of it changes in one
new :class:`Bundle`, which :func:`seqrec_fast.bundle.save` puts in place in one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.bundle.content import Bundle
from seqrec_fast.bundle.item_features import BOOST, ItemRegression, Quality
from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.vocabulary import Vocabulary, is_canonical_integer
from seqrec_fast.errors import DeviceError, InputError, MissingExtraError

if TYPE_CHECKING:
    from seqrec_fast.retrieval import Index

__all__ = ["Changed", "change", "index_rows", "update_index"]

Float = NDArray[np.float32]

_TABLES = ("item_embedding.weight", "output.weight")
_BIAS = "output_bias"


@dataclass(frozen=True)
class Changed:
    """A bundle after a change, and what the change was.

    Attributes:
        bundle: the new one; the old one is as it was.
        added: items that are new.
        changed: items that were known and got another vector, or another row in the item table.
        restored: items that had been removed and are recommended again.
        removed: items that are not recommended from now on.
        unknown: ids to remove that the bundle does not know.
        sources: where the new vectors came from: counts of ``given``, ``like`` and ``features``.
        quality: how far vectors from features can be relied on; ``None`` where there are none.
    """

    bundle: Bundle
    added: int
    changed: int
    restored: int
    removed: int
    unknown: tuple[Any, ...]
    sources: dict[str, int]
    quality: Quality | None


def change(
    bundle: Bundle,
    *,
    add: Sequence[Any] = (),
    vectors: Sequence[ArrayLike | None] | NDArray[Any] | None = None,
    like: Sequence[Sequence[Any] | None] | None = None,
    table: ItemTable | None = None,
    remove: Sequence[Any] = (),
    boost: float = BOOST,
) -> Changed:
    """Adds, changes and removes items.

    A new item's vector is the one given; else it lies between those of the items that it is said to
    be like, as far from the mean of all as they do; else it is predicted from its row in the item
    table (:class:`ItemRegression`). Its bias is the mean of those items', or the median of all. A
    removed item keeps its vector and its id: histories that hold it are understood, it is not
    recommended, and it comes back when it is added again.

    Args:
        bundle: what to change; it is not touched.
        add: raw ids, each once: new ones, removed ones that come back, or known ones that change.
        vectors: one an item of ``add``, float ``[dim]``, or ``None`` where there is none.
        like: one list of known raw ids an item of ``add``, or ``None`` where there is none.
        table: rows for the item table, aligned with ``add``. Cells that are not known leave what is
            there.
        remove: raw ids; unknown ones are told in the answer.
        boost: how far predicted vectors lie from the mean of all, in median distances of the
            trained ones. More brings new items into more recommendations, at the cost of others.

    Raises:
        InputError: names the argument and the item.
        DeviceError, MissingExtraError: the bundle has an index of a kind that can't be used here.
    """
    lists = {"add": add, "remove": remove, "like": like, "vectors": vectors}
    for name, listed in lists.items():
        if listed is not None and (isinstance(listed, str) or not isinstance(listed, Iterable)):
            raise InputError(f"{name}: found {listed!r}; give a list with one entry an item")
    raw = list(add)
    fresh_ids, place = _places(bundle.items, raw)
    gone, unknown = _gone(bundle, remove, place)
    for name, given in (("vectors", vectors), ("like", like), ("table", table)):
        if given is not None and len(given) != len(raw):
            raise InputError(f"{name}: {len(given)} rows for {len(raw)} items; give one an item")
    before = len(bundle.items)
    number = isinstance(boost, (int, float, np.integer, np.floating))
    if not number or not 0 < boost < 100:
        raise InputError(f"boost: expected a number above 0 and below 100, found {boost!r}")
    made = _Vectors(bundle, raw, place, vectors, like, table, boost)
    tensors = dict(bundle.tensors)
    for name in (*_TABLES, _BIAS):
        if name in tensors:
            tensors[name] = made.table(name)
    extra = len(fresh_ids)
    removed = np.zeros(before + extra, dtype=np.bool_)
    if bundle.removed is not None:
        removed[:before] = bundle.removed
    restored = int(np.count_nonzero(removed[place]))
    removed[place] = False
    newly = gone[~removed[gone]]
    removed[newly] = True
    if removed.all():
        raise InputError("remove: no item would be left to recommend; leave at least one")
    item_table = _extended(bundle.item_table, table, place, before, before + extra)
    known = place < before
    updated = made.given[known] | (table is not None and bundle.item_table is not None)
    after = replace(
        bundle,
        config={**bundle.config, "num_items": before + extra},
        tensors=tensors,
        items=bundle.items if not extra else _joined(bundle.items, fresh_ids),
        popularity=np.concatenate([bundle.popularity, np.zeros(extra, dtype=np.int64)]),
        item_table=item_table,
        removed=removed if removed.any() else None,
        index=None,
    )
    if bundle.index is not None:
        from seqrec_fast.retrieval import from_tensors

        try:
            index = from_tensors(bundle.index)
        except (DeviceError, MissingExtraError) as error:
            raise type(error)(
                f"the index of the bundle can't follow here: {error}; or take it out first, by "
                f"seqrec-fast index --remove"
            ) from None
        update_index(index, bundle, after)
        after.index = index.to_tensors()
    return Changed(
        bundle=after,
        added=extra,
        changed=int(np.count_nonzero(updated)),
        restored=restored,
        removed=len(newly),
        unknown=tuple(unknown),
        sources=made.sources,
        quality=made.quality,
    )


# ---------------------------------------------------------------------- an index in step


def index_rows(bundle: Bundle, ids: NDArray[np.int64]) -> Float:
    """Vectors of some items as an index over the bundle holds them.

    The inner product with a user embedding is the score: of length ``1 / temperature`` where the
    model has one, and with the bias as a last column where it has biases.

    Args:
        bundle: the model.
        ids: int64 ``[n]`` item indices.

    Returns:
        float32 ``[n, dim]``, or ``[n, dim + 1]`` with biases.
    """
    name = _TABLES[1] if _TABLES[1] in bundle.tensors else _TABLES[0]
    rows = bundle.tensors[name][ids]
    temperature = bundle.config.get("temperature")
    if temperature is not None:
        length = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        rows = rows / length / np.float32(temperature)
    if _BIAS in bundle.tensors:
        rows = np.concatenate([rows, bundle.tensors[_BIAS][ids][:, None]], axis=1)
    return rows.astype(np.float32, copy=False)


def update_index(index: Index, before: Bundle, after: Bundle) -> None:
    """Brings an index over the items of a bundle to those of the changed one.

    Args:
        index: over :func:`index_rows` of all items of ``before``.
        before: the bundle that was given to :func:`change`.
        after: the one that came out.

    Raises:
        InputError: the index is not that of ``before``; it is not changed then.
    """
    old, new = len(before.items), len(after.items)
    if index.size != old:
        raise InputError(f"index: it holds {index.size} items, the bundle {old}; make it again")
    was, now = (
        np.zeros(new, np.bool_) if one.removed is None else np.resize(one.removed, new)
        for one in (before, after)
    )
    was[old:] = False
    every = np.arange(old)
    moved = np.zeros(old, dtype=np.bool_)
    for name in (*_TABLES, _BIAS):
        if name in before.tensors:
            different = before.tensors[name] != after.tensors[name][:old]
            moved |= different if different.ndim == 1 else different.any(axis=1)
    fresh = every[moved | (was[:old] & ~now[:old])]
    rows = index_rows(after, np.concatenate([fresh, np.arange(old, new)]))
    if rows.shape[1] != index.dim:
        raise InputError(
            f"index: its vectors have {index.dim} columns, those of the bundle {rows.shape[1]}; "
            f"make it again"
        )
    index.update(fresh, rows[: len(fresh)])
    index.add(rows[len(fresh) :])
    index.remove(np.flatnonzero(now))


# ---------------------------------------------------------------------- ids


def _places(items: Vocabulary, raw: list[Any]) -> tuple[list[Any], NDArray[np.int64]]:
    """Ids that are new, in the type of the vocabulary, and the item index of every id."""
    place = items.encode(raw).astype(np.int64)
    fresh: list[Any] = []
    seen: set[int] = set()
    numbers: dict[Any, int] = {}
    for at, one in enumerate(raw):
        if place[at] < 0:
            plain = _plain(one, items.kind)
            if plain in numbers:
                raise InputError(f"add: item {one!r} stands twice; give each item once")
            numbers[plain] = len(items) + len(fresh)
            place[at] = numbers[plain]
            fresh.append(plain)
        if int(place[at]) in seen:
            raise InputError(f"add: item {one!r} stands twice; give each item once")
        seen.add(int(place[at]))
    return fresh, place


def _plain(raw: Any, kind: str) -> Any:
    if isinstance(raw, str) and raw:
        if kind == "str":
            return raw
        if is_canonical_integer(raw):
            return int(raw)
    elif isinstance(raw, int | np.integer) and not isinstance(raw, bool | np.bool_):
        return str(int(raw)) if kind == "str" else int(raw)
    expected = "whole numbers" if kind == "int" else "texts"
    raise InputError(f"add: item {raw!r} is no id here; the ids of this bundle are {expected}")


def _joined(items: Vocabulary, fresh: list[Any]) -> Vocabulary:
    more = np.empty(len(fresh), dtype=items.ids.dtype)
    more[:] = fresh
    return Vocabulary(np.concatenate([items.ids, more]))


def _gone(
    bundle: Bundle, remove: Sequence[Any], place: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[Any]]:
    """Item indices to remove, each once, and the ids that are not known."""
    raw = list(remove)
    found = bundle.items.encode(raw).astype(np.int64)
    both = np.intersect1d(found, place)
    if len(both):
        raise InputError(
            f"remove: item {bundle.items.ids[both[0]]!r} is to be added as well; choose one"
        )
    return np.unique(found[found >= 0]), [raw[at] for at in np.flatnonzero(found < 0).tolist()]


# ---------------------------------------------------------------------- vectors


class _Vectors:
    """New rows of the item tables and where they come from."""

    def __init__(
        self,
        bundle: Bundle,
        raw: list[Any],
        place: NDArray[np.int64],
        vectors: Sequence[ArrayLike | None] | NDArray[Any] | None,
        like: Sequence[Sequence[Any] | None] | None,
        table: ItemTable | None,
        boost: float,
    ) -> None:
        self._bundle = bundle
        self._boost = boost
        self._place = place
        self.given = np.zeros(len(raw), dtype=np.bool_)  # has a new vector
        self.sources = {"given": 0, "like": 0, "features": 0}
        self.quality: Quality | None = None
        self._plain: dict[int, Float] = {}
        self._like: dict[int, NDArray[np.int64]] = {}
        left: list[int] = []
        for at, one in enumerate(raw):
            vector = None if vectors is None else vectors[at]
            models = None if like is None else like[at]
            if vector is not None:
                self._plain[at] = self._checked(one, vector)
                self.sources["given"] += 1
            elif models is not None and len(models):
                self._like[at] = self._known(one, models)
                self.sources["like"] += 1
            else:
                if place[at] >= len(bundle.items):
                    left.append(at)
                continue
            self.given[at] = True
        self._predicted = np.array(left, dtype=np.int64)
        self._rows = None
        if left:
            if table is None or bundle.item_table is None:
                raise InputError(
                    f"add: item {raw[left[0]]!r} is new and has no vector; give vectors, similar "
                    f"items, or, where the bundle has an item table, its row there"
                )
            self._rows = table.select(self._predicted)
            self.sources["features"] = len(left)
            self.given[self._predicted] = True

    def table(self, name: str) -> Float:
        """A tensor of one row an item, with the new rows in it."""
        old = self._bundle.tensors[name]
        size = max(len(old), int(self._place.max(initial=-1)) + 1)
        found: Float = np.empty((size, *old.shape[1:]), dtype=np.float32)
        found[: len(old)] = old
        if name == _BIAS:
            there = old if self._bundle.removed is None else old[~self._bundle.removed]
            found[len(old) :] = np.median(there)
            for at, models in self._like.items():
                found[self._place[at]] = old[models].mean()
            return found
        centre = old.mean(axis=0, dtype=np.float64)
        for at, vector in self._plain.items():
            found[self._place[at]] = vector
        for at, models in self._like.items():
            found[self._place[at]] = _between(old[models], centre)
        if self._rows is not None:
            assert self._bundle.item_table is not None
            fitted = ItemRegression(self._bundle.item_table, old, self._bundle.popularity)
            self.quality = fitted.quality  # of the table that ranks, which comes last
            found[self._place[self._predicted]] = fitted.predict(self._rows, self._boost)
        return found

    def _checked(self, raw: Any, vector: ArrayLike) -> Float:
        dim = self._bundle.tensors[_TABLES[0]].shape[1]
        if _TABLES[1] in self._bundle.tensors:
            raise InputError(
                "vectors: this model reads and ranks items by two different tables, so one vector "
                "an item is not enough; give similar items instead"
            )
        try:
            with np.errstate(over="ignore"):
                found = np.asarray(vector, dtype=np.float32)
        except (TypeError, ValueError):
            raise InputError(f"vectors: that of item {raw!r} is not a row of numbers") from None
        if found.shape != (dim,):
            raise InputError(
                f"vectors: that of item {raw!r} must be {dim} finite numbers, found shape "
                f"{found.shape}"
            )
        if not np.isfinite(found).all():
            raise InputError(
                f"vectors: that of item {raw!r} must be {dim} finite numbers, found one that is "
                f"not finite in float32"
            )
        return found

    def _known(self, raw: Any, models: Sequence[Any]) -> NDArray[np.int64]:
        found = self._bundle.items.encode(models).astype(np.int64)
        if (found < 0).any():
            unknown = models[int(np.argmax(found < 0))]
            raise InputError(
                f"like: item {raw!r} is said to be like {unknown!r}, which the bundle does not know"
            )
        return found


def _between(rows: Float, centre: NDArray[np.float64]) -> Float:
    """The mean of some vectors, as far from the mean of all vectors as they are on average."""
    wide = rows.astype(np.float64) - centre
    mean = wide.mean(axis=0)
    length = np.linalg.norm(mean)
    if length > 0:
        mean *= np.linalg.norm(wide, axis=1).mean() / length
    found: Float = (centre + mean).astype(np.float32)
    return found


# ---------------------------------------------------------------------- titles


def _extended(
    old: ItemTable | None, more: ItemTable | None, place: NDArray[np.int64], before: int, size: int
) -> ItemTable | None:
    """The item table with the rows of ``more`` at ``place``; columns are those of the old one."""
    if old is None and more is None:
        return None
    if old is None:
        assert more is not None
        source = np.full(size, -1, dtype=np.int64)
        source[place] = np.arange(len(place))
        return more.select(source)
    columns: dict[str, list[str | None] | NDArray[Any]] = {}
    rows = np.concatenate([np.arange(before), np.full(size - before, -1)])
    for name, column in (old.select(rows) if size > before else old).columns.items():
        given = None if more is None else _matching(old, more, name)
        if given is None:
            columns[name] = column
        elif isinstance(column, np.ndarray):
            columns[name] = _numbers(name, column, given, place)
        else:
            texts = list(column)
            for at, value in zip(place.tolist(), given, strict=True):
                if value is not None and value == value:
                    texts[at] = str(value)
            columns[name] = texts
    return ItemTable(columns, old.title_column)


def _matching(old: ItemTable, more: ItemTable, name: str) -> list[Any] | None:
    """The column of the same name; the title stands for the title, whatever it is called."""
    column = more.columns.get(name)
    if column is None and name == old.title_column and more.title_column is not None:
        column = more.columns[more.title_column]
    if column is None:
        return None
    return column.tolist() if isinstance(column, np.ndarray) else column


def _numbers(
    name: str, column: NDArray[Any], given: list[Any], place: NDArray[np.int64]
) -> NDArray[Any]:
    values = column.astype(np.float64)
    for at, value in zip(place.tolist(), given, strict=True):
        if value is None:
            continue
        try:
            values[at] = value if float(value) == float(value) else values[at]
        except ValueError:
            raise InputError(
                f"table: column {name!r} holds numbers in this bundle, found {value!r}"
            ) from None
    whole = np.isfinite(values).all() and (np.abs(values) < 2**53).all()
    if whole and (column.dtype == np.int64 or (values == np.floor(values)).all()):
        return values.astype(np.int64) if (values == np.floor(values)).all() else values
    return values
