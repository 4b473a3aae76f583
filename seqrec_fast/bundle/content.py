# SPDX-License-Identifier: Apache-2.0
"""What a bundle holds, the names of its files, and the checks that reading and writing share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    from seqrec_fast.data.items import ItemTable
    from seqrec_fast.data.vocabulary import Vocabulary

__all__ = ["Bundle"]

FORMAT = "seqrec-fast-bundle"
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
MODEL = "model.json"
WEIGHTS = "weights.safetensors"
VOCABULARY = "vocabulary.safetensors"
ITEMS = "items.safetensors"
INDEX = "index.safetensors"
METRICS = "metrics.json"
CLEANING = "cleaning.json"
TRAINING = "training.json"

REQUIRED = (MODEL, WEIGHTS, VOCABULARY, METRICS, CLEANING, TRAINING)
RESERVED = frozenset((MANIFEST, ITEMS, INDEX, *REQUIRED))

MAX_ITEMS = 2**31 - 1  # items are int32 indices everywhere
MAX_EXTRA_BYTES = 64 * 2**20
MAX_FILES = 100

# Weights that have one row an item in every model; the encoder checks all other shapes.
_PER_ITEM = ("item_embedding.weight", "output.weight", "output_bias")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass
class Bundle:
    """A trained model with all that is needed to serve it and to judge it.

    Attributes:
        config: ``"model"`` (its name), ``"num_items"``, and the hyper-parameters; JSON-able.
        tensors: the weights, float32, under the names of the torch model's ``state_dict``.
        items: raw item ids by item index.
        popularity: int64 ``[num_items]``, number of training events of each item.
        item_table: titles and other columns by item index, where the log came with them.
        metrics: figures of the validation and the test, JSON-able.
        cleaning: the cleaning report, JSON-able.
        training: options, versions and the history of the training, JSON-able.
        extra_files: further small files by name, for instance ``"curve.png"``.
        removed: bool ``[num_items]``, true for items that are never recommended any more but still
            understood in histories; ``None``: none. See :mod:`seqrec_fast.bundle.catalogue`.
        index: an index over the item vectors as :func:`seqrec_fast.engine.index_ranker.item_rows`
            lays them out, in the form of :meth:`seqrec_fast.retrieval.Index.to_tensors`; or
            ``None``. Whoever changes the weights has to drop it.
    """

    config: dict[str, Any]
    tensors: dict[str, NDArray[np.float32]]
    items: Vocabulary
    popularity: NDArray[np.int64]
    item_table: ItemTable | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    cleaning: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    extra_files: dict[str, bytes] = field(default_factory=dict)
    removed: NDArray[np.bool_] | None = None
    index: dict[str, NDArray[Any]] | None = None


def name_problem(name: object) -> str | None:
    """Why a file name may not be used inside a bundle; ``None`` if it may."""
    if not isinstance(name, str):
        return f"a file name is {name!r}, which is not text"
    if not _NAME.fullmatch(name):
        return (
            f"the file name {name!r} is not allowed (letters, digits, dot, dash and underscore "
            f"only, no folders)"
        )
    return None


def config_num_items(config: Mapping[str, Any]) -> int:
    """Checks the configuration as far as every model shares it.

    Returns:
        The number of items.

    Raises:
        InputError: ``model`` or ``num_items`` is missing, or of another type.
    """
    model = config.get("model")
    if not isinstance(model, str) or not model:
        raise InputError(f"{MODEL}: 'model' must be the name of a model, found {model!r}")
    count = config.get("num_items")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_ITEMS:
        raise InputError(
            f"{MODEL}: 'num_items' must be a whole number from 1 to {MAX_ITEMS}, found {count!r}"
        )
    return count


def check_shapes(num_items: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Checks the tensors that have one row an item against ``num_items``.

    Args:
        num_items: number of items that the configuration states.
        shapes: shape of each weight by name.

    Raises:
        InputError: names the tensor.
    """
    if not shapes:
        raise InputError(f"{WEIGHTS}: there are no weights; the model was not saved")
    for name in _PER_ITEM:
        shape = shapes.get(name)
        if shape is not None and (not shape or shape[0] != num_items):
            raise InputError(
                f"{WEIGHTS}: tensor {name!r} has shape {shape}, but {MODEL} states "
                f"{num_items} items"
            )


def check_counts(num_items: int, vocabulary: int, popularity: NDArray[Any]) -> None:
    """Checks vocabulary and popularity against the configuration.

    Raises:
        InputError: says which of them disagrees.
    """
    if vocabulary != num_items:
        raise InputError(f"{VOCABULARY}: {vocabulary} ids, but {MODEL} states {num_items} items")
    if popularity.dtype != np.int64 or popularity.shape != (num_items,):
        raise InputError(
            f"{VOCABULARY}: popularity must be int64 of shape ({num_items},), found "
            f"{popularity.dtype} of shape {popularity.shape}"
        )
    if (popularity < 0).any():
        item = int(np.flatnonzero(popularity < 0)[0])
        raise InputError(f"{VOCABULARY}: the popularity of item {item} is negative")


def check_removed(num_items: int, removed: NDArray[Any]) -> None:
    """Checks the mask of removed items against the configuration.

    Raises:
        InputError: another type or shape, or no item is left.
    """
    if removed.dtype != np.bool_ or removed.shape != (num_items,):
        raise InputError(
            f"{VOCABULARY}: removed must be bool of shape ({num_items},), found {removed.dtype} "
            f"of shape {removed.shape}"
        )
    if removed.all():
        raise InputError(f"{VOCABULARY}: all {num_items} items are removed; leave at least one")


def check_index(num_items: int, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Checks that the tensors are those of an index over all items of the bundle.

    Raises:
        InputError: says what they are instead.
    """
    # The reader of indexes stands on this package, so it can't be imported above.
    from seqrec_fast.retrieval.storage import from_tensors

    try:
        size = from_tensors(tensors, verify=False).meta.get("size")
    except InputError as error:
        raise InputError(f"{INDEX}: {error}") from None
    if size != num_items:
        raise InputError(
            f"{INDEX}: an index of {size} items, but {MODEL} states {num_items}; make it again "
            f"with seqrec-fast index"
        )


def check_finite(name: str, tensor: NDArray[Any]) -> None:
    """Checks that a weight holds numbers only, in pieces of bounded size.

    Raises:
        InputError: names the tensor and the entry.
    """
    flat = tensor.reshape(-1)
    step = 2**20
    for begin in range(0, len(flat), step):
        wrong = np.flatnonzero(~np.isfinite(flat[begin : begin + step]))
        if len(wrong):
            at = begin + int(wrong[0])
            raise InputError(
                f"{WEIGHTS}: tensor {name!r} holds {flat[at]} at entry {at}; the model did not "
                f"train, or the file is damaged"
            )
