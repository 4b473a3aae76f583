# SPDX-License-Identifier: Apache-2.0
"""The rank of each held-out item among all items, in bounded memory.

Scores are the inner products that serving uses. They are computed for a chunk of users against all
items, counted, and thrown away, so that users x items is never held.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast.errors import InputError
from seqrec_fast.jagged import JaggedBatch

__all__ = ["checked_mask", "checked_scorer", "rank_targets"]

Float = NDArray[np.float32]
Int = NDArray[np.int64]

MEMORY_BYTES = 64 * 2**20  # scores (4 bytes) and the comparison mask (1 byte) of a chunk together
_SORT_FROM = 12  # targets of one user from which one sort beats one pass for each target


def rank_targets(
    queries: ArrayLike,
    items: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    targets: JaggedBatch[Any],
    seen: JaggedBatch[Any] | None = None,
    blocked: ArrayLike | None = None,
    threads: int | None = None,
) -> Int:
    """Ranks every target among all items by ``queries @ items.T + bias``.

    The rank of a target is 1 + the number of other items whose score is at least the target's: an
    item that ties with the target counts as ranked before it, and so does an item whose score is
    not a number. Seen and blocked items get the score minus infinity. A target that is one of them
    therefore has the last rank, ``items``. Other targets of the same user stay in the ranking.

    Args:
        queries: float32 ``[users, dim]``, one vector a user; or ``[users, interests, dim]``: the
            score of an item is then the best of a user's interests.
        items: float32 ``[items, dim]``.
        bias: float32 ``[items]``, added to the scores.
        targets: item indices to be ranked, one row a user (a row may hold several, or none).
        seen: item indices to be masked, one row a user; ``None`` masks nothing.
        blocked: bool ``[items]``, true for the items to be masked for all users.
        threads: workers for the counting; ``None`` takes the cores this process may use. The
            matrix product itself runs on the threads of numpy's BLAS.

    Returns:
        int64 ``[targets.tokens]``, aligned with ``targets.values``; 1 is the best rank.

    Raises:
        InputError: shapes that do not fit, an index outside the catalogue, or a vector, bias or
            target score that is not a number.
    """
    q, x, b = checked_scorer(queries, items, bias)
    target_values, target_offsets = _checked_rows("targets", targets, len(q), len(x))
    if seen is None:
        seen_values, seen_offsets = np.empty(0, np.int64), np.zeros(len(q) + 1, np.int64)
    else:
        seen_values, seen_offsets = _checked_rows("seen", seen, len(q), len(x))
    hidden = checked_mask(blocked, len(x))
    workers = _workers(threads)
    ranks = np.empty(len(target_values), dtype=np.int64)
    # A chunk holds whole users; only a catalogue too large for one user's row is cut as well.
    cells = max(MEMORY_BYTES // 5, 1)
    interests = q.shape[1] if q.ndim == 3 else 1
    width = max(1, min(len(x), cells // interests))
    rows = max(1, min(len(q), cells // (width * interests)))
    buffer = np.empty(rows * interests * width, dtype=np.float32)
    with ThreadPoolExecutor(workers) as pool:
        for begin in range(0, len(q), rows):
            end = min(begin + rows, len(q))
            chunk = _Chunk(
                q[begin:end],
                x,
                b,
                target_values[target_offsets[begin] : target_offsets[end]],
                target_offsets[begin : end + 1] - target_offsets[begin],
                seen_values[seen_offsets[begin] : seen_offsets[end]],
                seen_offsets[begin : end + 1] - seen_offsets[begin],
                width,
                buffer,
                hidden,
            )
            ranks[target_offsets[begin] : target_offsets[end]] = chunk.ranks(pool, workers, begin)
    return ranks


class _Chunk:
    """Some users against all items, in one block of items, or several if one row is too large."""

    def __init__(
        self,
        queries: Float,
        items: Float,
        bias: Float | None,
        targets: Int,
        target_offsets: Int,
        seen: Int,
        seen_offsets: Int,
        width: int,
        buffer: Float,
        blocked: NDArray[np.bool_] | None,
    ) -> None:
        self.queries, self.items, self.bias = queries, items, bias
        self.targets, self.target_offsets = targets, target_offsets
        self.target_rows = np.repeat(np.arange(len(queries)), np.diff(target_offsets))
        self.seen = seen
        self.seen_rows = np.repeat(np.arange(len(queries)), np.diff(seen_offsets))
        self.width, self.buffer, self.blocked = width, buffer, blocked

    def ranks(self, pool: ThreadPoolExecutor, workers: int, first_user: int) -> Int:
        """int64, aligned with the targets of this chunk."""
        goal = np.empty(len(self.targets), dtype=np.float32)
        below = np.zeros(len(self.targets), dtype=np.int64)
        blocks = -(-len(self.items) // self.width)
        for begin, scores in self._blocks():
            here = (self.targets >= begin) & (self.targets < begin + self.width)
            goal[here] = scores[self.target_rows[here], self.targets[here] - begin]
            if blocks == 1:
                self._count(scores, self._checked(goal, first_user), below, pool, workers)
        if blocks > 1:  # a second pass, because a target's score is known only after the first
            self._checked(goal, first_user)
            for _, scores in self._blocks():
                self._count(scores, goal, below, pool, workers)
        return len(self.items) - below

    def _blocks(self) -> Iterator[tuple[int, Float]]:
        """Yields (first item, scores ``[users, block]``), masked items at minus infinity."""
        for begin in range(0, len(self.items), self.width):
            end = min(begin + self.width, len(self.items))
            queries = self.queries.reshape(-1, self.queries.shape[-1])
            scores = self.buffer[: len(queries) * (end - begin)].reshape(-1, end - begin)
            with np.errstate(over="ignore", invalid="ignore"):  # judged by _checked and _count
                np.matmul(queries, self.items[begin:end].T, out=scores)
                if self.queries.ndim == 3:
                    each = scores.reshape(*self.queries.shape[:2], end - begin)
                    scores = each[:, 0]  # the best of all, in memory that is there already
                    for other in range(1, each.shape[1]):
                        np.maximum(scores, each[:, other], out=scores)
                if self.bias is not None:
                    scores += self.bias[begin:end]
            here = (self.seen >= begin) & (self.seen < end)
            scores[self.seen_rows[here], self.seen[here] - begin] = -np.inf
            if self.blocked is not None:
                scores[:, self.blocked[begin:end]] = -np.inf
            yield begin, scores

    def _checked(self, goal: Float, first_user: int) -> Float:
        broken = np.flatnonzero(np.isnan(goal))
        if len(broken):
            at = int(broken[0])
            raise InputError(
                f"the model's score of item {int(self.targets[at])} for user row "
                f"{first_user + int(self.target_rows[at])} is not a number (NaN); its vectors "
                f"overflow, train again with a lower learning rate"
            )
        return goal

    def _count(
        self, scores: Float, goal: Float, below: Int, pool: ThreadPoolExecutor, workers: int
    ) -> None:
        """Adds to ``below`` the number of items in the block that score less than the target.

        Counting what is strictly below puts ties, and scores that are no number, before us.
        """
        users = len(scores)
        step = max(1, -(-users // workers))
        parts = [(begin, min(begin + step, users)) for begin in range(0, users, step)]

        def work(part: tuple[int, int]) -> None:
            mask = np.empty(scores.shape[1], dtype=np.bool_)
            ends = self.target_offsets[part[0] : part[1] + 1].tolist()
            for user, first, last in zip(range(*part), ends, ends[1:], strict=False):
                row = scores[user]
                if last - first < _SORT_FROM:
                    for at in range(first, last):
                        np.less(row, goal[at], out=mask)
                        below[at] += np.count_nonzero(mask)
                else:
                    below[first:last] += np.searchsorted(np.sort(row), goal[first:last], "left")

        list(pool.map(work, parts))


def checked_scorer(
    queries: ArrayLike, items: ArrayLike, bias: ArrayLike | None
) -> tuple[Float, Float, Float | None]:
    """Checks that the three parts of a scorer fit together and hold finite numbers.

    Args:
        queries: ``[users, dim]`` or ``[users, interests, dim]``.
        items: ``[items, dim]``.
        bias: ``[items]`` or ``None``.

    Returns:
        The same as contiguous float32 arrays.

    Raises:
        InputError: names the argument, and the first row that is not finite.
    """
    given = np.ascontiguousarray(queries, dtype=np.float32)
    several = given.ndim == 3
    if several and not given.shape[1]:
        raise InputError(f"queries: expected at least one interest a user, found {given.shape}")
    q = _matrix("queries", given.reshape(-1, given.shape[-1]) if several else given)
    x = _matrix("items", items)
    if q.shape[1] != x.shape[1]:
        raise InputError(
            f"queries: {q.shape[1]} columns, but items have {x.shape[1]}; both must come from the "
            f"same model"
        )
    if len(x) == 0:
        raise InputError("items: the catalogue is empty; give at least one item vector")
    q = q.reshape(given.shape)
    if bias is None:
        return q, x, None
    b = np.ascontiguousarray(bias, dtype=np.float32)
    if b.shape != (len(x),):
        raise InputError(f"bias: expected shape ({len(x)},), found {b.shape}; one number an item")
    if not np.isfinite(b).all():
        at = int(np.flatnonzero(~np.isfinite(b))[0])
        raise InputError(f"bias: the entry of item {at} is {b[at]}; the model did not train")
    return q, x, b


def checked_mask(blocked: ArrayLike | None, items: int) -> NDArray[np.bool_] | None:
    """Checks a mask of the items that nobody may get.

    Raises:
        InputError: another type or shape, or it leaves nothing.
    """
    if blocked is None:
        return None
    mask = np.asarray(blocked)
    if mask.dtype != np.bool_ or mask.shape != (items,):
        raise InputError(
            f"blocked: expected bool of shape ({items},), found {mask.dtype} of shape {mask.shape}"
        )
    if mask.all():
        raise InputError("blocked: leaves no item to be ranked; allow one at least")
    return mask


def _matrix(name: str, given: ArrayLike) -> Float:
    array = np.ascontiguousarray(given, dtype=np.float32)
    if array.ndim != 2:
        raise InputError(f"{name}: expected two dimensions, found shape {array.shape}")
    # The sum of a row is finite only if every entry is, unless it overflows: look closer then.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(array.sum(axis=1)))
    for row in suspects.tolist():
        if not np.isfinite(array[row]).all():
            raise InputError(
                f"{name}: row {row} holds NaN or infinity, the model produced no number; train "
                f"again with a lower learning rate"
            )
    return array


def _checked_rows(name: str, batch: JaggedBatch[Any], users: int, items: int) -> tuple[Int, Int]:
    """Values and offsets as int64, checked against the number of users and items."""
    arrays = batch.to_numpy()
    if len(arrays) != users:
        raise InputError(f"{name}: {len(arrays)} rows, but there are {users} queries; one row each")
    values = np.asarray(arrays.values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(
            f"{name}: expected item indices (integers), found {values.dtype} of shape "
            f"{values.shape}"
        )
    wrong = np.flatnonzero((values < 0) | (values >= items))
    if len(wrong):
        at = int(wrong[0])
        row = int(np.searchsorted(arrays.offsets, at, "right")) - 1
        raise InputError(
            f"{name}: row {row} holds item {int(values[at])}, but items run from 0 to {items - 1}"
        )
    return values.astype(np.int64, copy=False), np.asarray(arrays.offsets, dtype=np.int64)


def _workers(threads: int | None) -> int:
    if threads is None:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else (os.cpu_count() or 1)
        )
    given: Any = threads
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 1:
        raise InputError(f"threads: must be a whole number of at least 1, found {threads!r}")
    return int(threads)
