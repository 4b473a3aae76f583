# SPDX-License-Identifier: Apache-2.0
"""Weights in less than 32 bits: what each form stores, and the float32 numbers it stands for.

``bfloat16`` keeps the exponent of a float32 and the upper 7 bits of its fraction; ``int8`` keeps
an item vector as whole numbers from -127 to 127 and one float32 scale a row. Both are computed
with as float32: :func:`apply_weights` gives those numbers, by which a model's loss of quality is
measured, and :func:`stored_weights` what is served, whose tables of items stay in few bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from numpy.typing import NDArray

from seqrec_fast._rounding import dequantise_rows, quantise_rows, round_to_bfloat16
from seqrec_fast.errors import InputError
from seqrec_fast.native import CompactItems

__all__ = [
    "WEIGHTS",
    "Weights",
    "apply_weights",
    "checked_weights",
    "dequantise_rows",
    "quantise_rows",
    "round_to_bfloat16",
    "stored_weights",
]

Weights = Literal["float32", "bfloat16", "int8"]
WEIGHTS: tuple[Weights, ...] = ("float32", "bfloat16", "int8")

#: tensors with one vector an item, which are by far the largest of a model
_ITEM_TABLES = ("item_embedding.weight", "output.weight")


def checked_weights(given: object) -> Weights:
    """One of :data:`WEIGHTS`.

    Raises:
        InputError: another value.
    """
    for known in WEIGHTS:
        if given == known:
            return known
    raise InputError(f"weights: found {given!r}; choose one of {', '.join(WEIGHTS)}")


def apply_weights(tensors: Mapping[str, NDArray[Any]], weights: Weights) -> dict[str, NDArray[Any]]:
    """The weights of a model as a form of storage gives them back.

    Args:
        tensors: float32 weights by name, as in a bundle.
        weights: ``"float32"`` leaves all as they are; ``"bfloat16"`` rounds every matrix and keeps
            vectors (biases, norms); ``"int8"`` quantises the tables of item vectors row by row and
            keeps the rest.

    Returns:
        float32 weights by the same names; what is not changed is not copied.

    Raises:
        InputError: an unknown form, or a table with entries that are not finite.
    """
    form = checked_weights(weights)
    found = dict(tensors)
    if form == "bfloat16":
        found |= {n: round_to_bfloat16(t) for n, t in tensors.items() if t.ndim >= 2}
    elif form == "int8":
        for name in _ITEM_TABLES:
            if name in tensors:
                found[name] = dequantise_rows(*quantise_rows(tensors[name]))
    return found


def stored_weights(
    tensors: Mapping[str, NDArray[Any]], weights: Weights
) -> dict[str, NDArray[Any] | CompactItems]:
    """The same numbers, with tables of item vectors in the form itself.

    Args:
        tensors: as in :func:`apply_weights`.
        weights: as there.

    Returns:
        Weights by the same names: :class:`seqrec_fast.native.CompactItems` in the place of tables
        of item vectors, all others as :func:`apply_weights` gives them.

    Raises:
        InputError: as there.
    """
    form = checked_weights(weights)
    if form == "float32":
        return dict(tensors)
    tables = {
        name: CompactItems(tensors[name], form)
        for name in _ITEM_TABLES
        if name in tensors and tensors[name].ndim == 2
    }
    return {**apply_weights({n: t for n, t in tensors.items() if n not in tables}, form), **tables}
