# SPDX-License-Identifier: Apache-2.0
"""Centres of item vectors by k-means, on the native top-k kernel, and how items lie about them.

The nearest centre is the one with the highest ``x · c - |c|² / 2``: a search for the best item with
a bias, so that an iteration is one matrix product that never holds its result.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import native

__all__ = ["Clusters", "cluster", "nearest"]

_ITERATIONS = 10
_SAMPLE = 64  # training items a list
_ROWS = 2**16  # rows that a pass over all items holds
_WIDEST = 256  # dimensions up to which the covariance is kept

Float = NDArray[np.float32]


class Clusters(NamedTuple):
    """Centres and the shape of what lies about them.

    Attributes:
        centres: float32 ``[lists, dim]``.
        spread: float32 ``[lists]``: root mean square distance of the items of a list from its
            centre, over that of all items.
        covariance: float32 ``[dim, dim]`` of items about their centres; where ``dim`` is large only
            ``[1, 1]``, the mean of its diagonal.
    """

    centres: Float
    spread: Float
    covariance: Float


def cluster(
    vectors: Float, lists: int, seed: int, train_size: int | None
) -> tuple[Clusters, NDArray[np.int32]]:
    """k-means on a sample, and the list of every vector.

    Args:
        vectors: float32 ``[n, dim]``.
        lists: centres, at most one a vector; at least 1.
        seed: of the draws; the result is a function of the arguments, whatever the threads.
        train_size: vectors in the sample; ``None`` takes 64 a list.
    """
    random = np.random.default_rng(seed)
    if not len(vectors):
        dim = vectors.shape[1]
        centres = np.zeros((1, dim), np.float32)
        return _shaped(vectors, centres, np.empty(0, np.int32)), np.empty(0, np.int32)
    lists = min(lists, len(vectors))
    wanted = max(_SAMPLE * lists if train_size is None else train_size, lists)
    sample = vectors
    if wanted < len(vectors):
        sample = vectors[np.sort(random.choice(len(vectors), wanted, replace=False))]
    centres = sample[random.choice(len(sample), lists, replace=False)]
    for _ in range(_ITERATIONS):
        centres = _moved(sample, nearest(sample, centres), centres, random)
    own = nearest(vectors, centres)
    return _shaped(vectors, centres, own), own


def nearest(vectors: Float, centres: Float) -> NDArray[np.int32]:
    """int32 ``[n]``: the nearest centre of each vector, the first of equal ones."""
    wide = centres.astype(np.float64)
    bias = np.maximum(-0.5 * np.einsum("ij,ij->i", wide, wide), -3e38).astype(np.float32)
    found = native.score_topk(vectors, centres, 1, bias=bias)[1][:, 0]
    return np.maximum(found, 0).astype(np.int32)  # none only where products overflow


def _moved(
    sample: Float, own: NDArray[np.int32], centres: Float, random: np.random.Generator
) -> Float:
    """The means of the lists; an empty list begins anew at an item drawn at random."""
    counts = np.bincount(own, minlength=len(centres))
    filled = np.flatnonzero(counts)
    order = np.argsort(own, kind="stable")
    begins = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
    moved = sample[random.choice(len(sample), len(centres), replace=False)]
    sums = np.add.reduceat(sample[order], begins, axis=0, dtype=np.float64)
    moved[filled] = sums / counts[filled, None]
    return moved


def _shaped(vectors: Float, centres: Float, own: NDArray[np.int32]) -> Clusters:
    dim = vectors.shape[1]
    squares = np.zeros(len(centres))
    covariance = np.zeros((dim, dim) if dim <= _WIDEST else (1, 1))
    for begin in range(0, len(vectors), _ROWS):
        part = own[begin : begin + _ROWS]
        rest = vectors[begin : begin + _ROWS] - centres[part]
        lengths = np.einsum("ij,ij->i", rest, rest, dtype=np.float64)
        squares += np.bincount(part, weights=lengths, minlength=len(centres))
        if dim <= _WIDEST:
            covariance += rest.T @ rest
    counts = np.bincount(own, minlength=len(centres))
    total = max(len(vectors), 1)
    mean = squares.sum() / total
    # A few items say little about their list: four more of the mean are added to each.
    spread = np.sqrt((squares + 4 * mean) / (counts + 4) / max(mean, 1e-30))
    if dim > _WIDEST:
        covariance[:] = squares.sum() / dim
    return Clusters(
        np.ascontiguousarray(centres, np.float32),
        spread.astype(np.float32),
        np.minimum(covariance / total, 3e38).astype(np.float32),
    )
