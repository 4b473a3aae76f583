# SPDX-License-Identifier: Apache-2.0
"""Indexes by the name of their kind: built from vectors, or loaded from a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec_fast._files import checked_path
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.index import METRICS, Index, Metric, Rows, unit_rows, vector_rows
from seqrec_fast.retrieval.options import choice, option_problem
from seqrec_fast.retrieval.storage import Stored, read_index
from seqrec_fast.retrieval.storage import from_tensors as stored_from

__all__ = ["KINDS", "build", "from_tensors", "load"]

# Where the class of each kind is; imported only when it is asked for, as it may need faiss.
_CLASSES = {
    "exact": ("seqrec_fast.retrieval.exact", "ExactIndex"),
    "ivf-native": ("seqrec_fast.retrieval.ivf_native", "IvfNativeIndex"),
    "sharded": ("seqrec_fast.retrieval.sharded", "ShardedIndex"),
    "qdrant": ("seqrec_fast.retrieval.qdrant", "QdrantIndex"),
    "flat": ("seqrec_fast.retrieval.faiss_kinds", "FlatIndex"),
    "ivf": ("seqrec_fast.retrieval.faiss_kinds", "IvfIndex"),
    "ivfpq": ("seqrec_fast.retrieval.faiss_kinds", "IvfPqIndex"),
    "hnsw": ("seqrec_fast.retrieval.faiss_kinds", "HnswIndex"),
    "gpu-flat": ("seqrec_fast.retrieval.faiss_gpu", "GpuFlatIndex"),
    "gpu-ivf": ("seqrec_fast.retrieval.faiss_gpu", "GpuIvfIndex"),
    "gpu-ivfpq": ("seqrec_fast.retrieval.faiss_gpu", "GpuIvfPqIndex"),
    "gpu-cagra": ("seqrec_fast.retrieval.faiss_gpu", "GpuCagraIndex"),
}
KINDS: tuple[str, ...] = tuple(_CLASSES)


def build(
    vectors: ArrayLike, kind: str = "exact", metric: Metric | str = "ip", **options: Any
) -> Index:
    """Builds an index over item vectors.

    Args:
        vectors: float ``[items, dim]``, finite; row ``i`` is item ``i``. ``kind="exact"`` uses a
            contiguous float32 array where it lies with metric ``"ip"``: do not change it
            afterwards.
        kind: one of :data:`KINDS`.
        metric: ``"ip"``, the inner product, or ``"cosine"``.
        options: those of the kind, see :mod:`seqrec_fast.retrieval.options`.

    Raises:
        InputError: an argument cannot be used; the message names what exists.
        MissingExtraError: the kind needs a library that is not installed.
    """
    found = index_class(kind)
    choice("metric", metric, METRICS)
    rows = vector_rows("vectors", vectors)
    if rows.shape[1] < 1:
        raise InputError(f"vectors: expected at least 1 column, found shape {rows.shape}")
    if metric == "cosine":
        rows = unit_rows(rows)
    try:
        return found._build(rows, cast("Metric", metric), options)
    except TypeError as error:
        raise option_problem(kind, found.options_class, error) from None


def load(path: str | os.PathLike[str], *, verify: bool = True, mmap: bool = True) -> Index:
    """Loads an index that :meth:`Index.save` wrote.

    Args:
        path: the file.
        verify: compare its contents with their checksums; ``False`` starts faster.
        mmap: use large tables where the file is mapped into memory, shared by all processes that
            load it and read from the disk as they are needed; ``False`` reads them.

    Raises:
        InputError: a file that is missing, damaged, of another kind or a newer version.
        DeviceError: the kind needs a GPU that is not there.
        MissingExtraError: the kind needs a library that is not installed.
    """
    stored = read_index(checked_path(path, "index"), verify=verify, mmap=mmap)
    try:
        return restored(stored)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from None


def from_tensors(tensors: Mapping[str, NDArray[Any]]) -> Index:
    """The index whose :meth:`Index.to_tensors` these are; their checksums are not compared.

    Args:
        tensors: arrays by name, used where they lie.

    Raises:
        InputError: they are no index, or one of a newer version.
        MissingExtraError: the kind needs a library that is not installed.
    """
    return restored(stored_from(tensors, verify=False))


def index_class(kind: str) -> type[Index]:
    """The class of a kind.

    Raises:
        InputError: there is no such kind.
        MissingExtraError: it needs a library that is not installed.
    """
    choice("kind", kind, KINDS)
    module, name = _CLASSES[kind]
    return cast("type[Index]", getattr(import_module(module), name))


def restored(stored: Stored) -> Index:
    """The index that a file holds, after its facts are checked."""
    meta, tensors = stored
    try:
        found = index_class(meta.get("kind", ""))
        choice("metric", meta.get("metric"), METRICS)
        size, dim = (_natural(meta, name) for name in ("size", "dim"))
        if dim < 1 or not isinstance(meta.get("options"), Mapping):
            raise InputError("it has no dimension or no options; it was altered")
        removed = tensors.pop("removed", None)
        made = found._restore(meta, _rows(size, removed), tensors)
    except (KeyError, TypeError) as error:
        raise InputError(f"it lacks or misuses {error}") from None
    measured = meta.get("measured")
    if measured is not None and not isinstance(measured, dict):
        raise InputError("its 'measured' is not an object; it was altered")
    made.measured = measured
    return made


def _rows(size: int, removed: NDArray[Any] | None) -> Rows:
    if removed is None:
        return Rows(size, None, size)
    if removed.dtype != np.bool_ or removed.shape != (size,):
        raise InputError(f"'removed' is not bool [{size}]; it was altered")
    return Rows(size, removed, size - int(np.count_nonzero(removed)))


def _natural(meta: Mapping[str, Any], name: str) -> int:
    value = meta.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise InputError(f"{name!r} must be a whole number below 2^31, found {value!r}")
    return value
