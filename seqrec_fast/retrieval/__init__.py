# SPDX-License-Identifier: Apache-2.0
"""The nearest items of a query vector: indexes over item vectors, numpy in and out, no torch."""

from __future__ import annotations

from typing import Literal, cast

from numpy.typing import ArrayLike

from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.exact import METRICS, ExactIndex, Metric

__all__ = ["KINDS", "METRICS", "ExactIndex", "Metric", "build"]

KINDS = ("exact",)
DTYPES = ("float32",)


def build(
    vectors: ArrayLike,
    kind: Literal["exact"] | str = "exact",
    metric: Metric | str = "ip",
    dtype: Literal["float32"] | str = "float32",
) -> ExactIndex:
    """Builds an index over item vectors.

    Args:
        vectors: float ``[items, dim]``, finite; row ``i`` is item ``i``. A contiguous float32
            array is used where it lies with metric ``"ip"``: do not change it afterwards.
        kind: ``"exact"``: every search compares all items.
        metric: ``"ip"``, the inner product, or ``"cosine"``.
        dtype: how vectors are stored: ``"float32"``.

    Raises:
        InputError: an argument cannot be used; the message names what exists.
    """
    _known("kind", kind, KINDS)
    _known("metric", metric, METRICS)
    _known("dtype", dtype, DTYPES)
    return ExactIndex(vectors, cast("Metric", metric))


def _known(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}: found {value!r}; choose one of {', '.join(choices)}")
