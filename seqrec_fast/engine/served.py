# SPDX-License-Identifier: Apache-2.0
"""One version of a model, ready to serve: what a request holds on to from beginning to end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import bundle as bundles
from seqrec_fast.bundle import Bundle
from seqrec_fast.engine.devices import checked_device
from seqrec_fast.engine.encoders import build_encoder
from seqrec_fast.engine.index_ranker import IndexRanker, checked_retrieval
from seqrec_fast.engine.precision import Weights, apply_weights, checked_weights, stored_weights
from seqrec_fast.engine.selection import Scorer, row_blocks
from seqrec_fast.errors import BundleError, DeviceError, InputError
from seqrec_fast.native import CompactItems

__all__ = ["ServedModel", "Source", "checked_form", "open_model"]

Source = Bundle | str | os.PathLike[str]

# A dictionary from integer ids to indices costs about 100 bytes an item; from here on requests
# search the sorted ids instead.
_MOST_IN_DICTIONARY = 1_000_000


_T = TypeVar("_T")


class _Once(Generic[_T]):
    """A property that is computed at its first use, without a lock.

    ``functools.cached_property`` takes one before Python 3.12: a child forked while another thread
    held it would wait for ever.
    """

    def __init__(self, compute: Callable[[Any], _T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, owner: None, kind: type) -> _Once[_T]: ...
    @overload
    def __get__(self, owner: object, kind: type) -> _T: ...
    def __get__(self, owner: Any, kind: type) -> Any:
        if owner is None:
            return self
        value = self._compute(owner)
        owner.__dict__[self._name] = value  # found before this from now on
        return value


class ServedModel:
    """A bundle's encoder, items and popularity. Never changes after it is made.

    Attributes:
        items: raw ids by item index.
        removed: bool ``[items]``, true for those that are never recommended, or ``None``.
        table: titles and other columns, or ``None``.
        encoder: the user encoder; ``encoder.engine`` also ranks.
        device: where they compute.
        ranker: the index that finds items, or ``None`` where the engine does.
        scorer: item vectors and bias.
        popular: the same for users without a known event: scores are event counts.
        config: the bundle's ``model.json``.
        metrics: the bundle's ``metrics.json``.
        parameters: number of weights.
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: Weights = "float32",
        device: str = "cpu",
        retrieval: str = "exact",
    ) -> None:
        self.items = bundle.items
        self.table = bundle.item_table
        self.device = device
        removed = self.removed = bundle.removed
        form = stored_weights if device == "cpu" else apply_weights
        tensors = form(bundle.tensors, weights)
        self.encoder = build_encoder(bundle.config, tensors, device, removed)
        vectors, bias = self.encoder.item_vectors, self.encoder.ranking_bias
        if len(vectors) != len(bundle.items):
            raise InputError(
                f"weights.safetensors: {len(vectors)} item vectors, but the vocabulary has "
                f"{len(bundle.items)} ids"
            )
        self.ranker: IndexRanker | None = None
        if retrieval != "exact":
            if isinstance(vectors, CompactItems) or weights != "float32":
                raise InputError(
                    f"retrieval: the index holds the vectors of weights='float32', not of "
                    f"{weights!r}; take one or the other"
                )
            # an index leaves out by itself what is removed
            bias_column = self.encoder.item_bias
            self.ranker = IndexRanker.of(bundle.index, vectors, bias_column, removed)
        rank = self.encoder.engine.rank if self.ranker is None else self.ranker.rank
        self.scorer = Scorer(vectors, bias, rank)
        counts = bundle.popularity.astype(np.float32)
        if removed is not None:
            counts[removed] = -np.inf
        self.popular = Scorer(np.zeros((len(vectors), 1), dtype=np.float32), counts)
        self.config: dict[str, Any] = dict(bundle.config)
        self.metrics: dict[str, Any] = dict(bundle.metrics)
        self.parameters = sum(int(tensor.size) for tensor in bundle.tensors.values())
        self._tensors = bundle.tensors
        if weights != "float32":
            # The name of the model is all that is still asked of its float32 weights.
            _ = self.version
            self._tensors = {}

    # Two threads may both compute what follows; they store the same values.

    @_Once
    def lookup(self) -> dict[Any, int] | None:
        """Raw id to index, for requests by lists; ``None`` where it would take too much memory."""
        if self.items.kind == "int" and len(self.items) > _MOST_IN_DICTIONARY:
            return None
        return self.items.lookup()

    @_Once
    def version(self) -> str:
        """16 hexadecimal digits: equal for models of equal weights, options and items."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        parts: dict[str, NDArray[Any]] = {**self._tensors, **self.items.to_tensors()}
        if self.removed is not None:
            parts["removed"] = self.removed
        for name in sorted(parts):
            digest.update(f"{name} {parts[name].shape}".encode())
            raw: Any = np.ascontiguousarray(parts[name]).reshape(-1).view(np.uint8)
            digest.update(raw)
        return digest.hexdigest()[:16]

    @_Once
    def norms(self) -> NDArray[np.float32]:
        """float32 ``[items]``: length of each item vector."""
        lengths = np.empty(len(self.scorer.items), dtype=np.float32)
        for part, vectors in row_blocks(self.scorer.items):
            lengths[part] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        return lengths

    def describe(self) -> dict[str, Any]:
        """Facts about the model, ready for JSON."""
        return {
            "model": self.config["model"],
            "version": self.version,
            "num_items": len(self.items),
            "removed": 0 if self.removed is None else int(np.count_nonzero(self.removed)),
            "dim": int(self.scorer.items.shape[1]),
            "parameters": self.parameters,
            "titles": self.table is not None and self.table.title_column is not None,
            "device": self.device,
            "retrieval": "exact" if self.ranker is None else "index",
            "index": None if self.ranker is None else self.ranker.describe(),
            "config": dict(self.config),
            "metrics": dict(self.metrics),
        }

    def titles(self, indices: NDArray[np.int64]) -> tuple[str | None, ...]:
        """Title of each item, ``None`` where there is none."""
        if self.table is None:
            return (None,) * len(indices)
        return tuple(self.table.title(index) for index in indices.tolist())


def checked_form(
    weights: object, device: object, retrieval: object, *, mmap: bool = True
) -> dict[str, Any]:
    """How every model of a Recommender is opened: arguments of :func:`open_model`.

    Raises:
        InputError: names the argument and its choices.
    """
    return {
        "weights": checked_weights(weights),
        "device": checked_device(device),
        "retrieval": checked_retrieval(retrieval),
        "mmap": bool(mmap),
    }


def open_model(
    source: Source,
    *,
    weights: Weights,
    device: str,
    retrieval: str = "exact",
    verify: bool = True,
    mmap: bool = True,
) -> ServedModel:
    """A bundle, in memory or as a folder, ready to serve.

    Args:
        source: the bundle.
        weights: the form of the weights.
        device: where the model computes.
        retrieval: from :func:`seqrec_fast.engine.index_ranker.checked_retrieval`.
        verify: as in :func:`seqrec_fast.bundle.load`.
        mmap: as there.

    Raises:
        BundleError: the folder holds no bundle that can be served.
        InputError, MissingExtraError: the same of one in memory; or the device is not there.
    """
    if isinstance(source, Bundle):
        return ServedModel(source, weights, device, retrieval)
    content = bundles.load(source, verify=verify, mmap=mmap, index=retrieval == "index")
    try:
        return ServedModel(content, weights, device, retrieval)
    except DeviceError:
        raise  # not the fault of the bundle
    except InputError as error:
        raise BundleError(f"{os.fspath(source)}: {error}") from None
