# SPDX-License-Identifier: Apache-2.0
"""The nearest items of a query vector: indexes over item vectors, numpy in and out, no torch."""

from __future__ import annotations

from typing import Literal, cast

from numpy.typing import ArrayLike

from seqrec_fast.errors import InputError
from seqrec_fast.retrieval.exact import METRICS, PRECISIONS, ExactIndex, Metric, Precision

__all__ = ["KINDS", "METRICS", "PRECISIONS", "ExactIndex", "Metric", "Precision", "build"]

KINDS = ("exact",)
DTYPES = ("float32",)


def build(
    vectors: ArrayLike,
    kind: Literal["exact"] | str = "exact",
    metric: Metric | str = "ip",
    dtype: Literal["float32"] | str = "float32",
    precision: Precision | str = "float32",
) -> ExactIndex:
    """Builds an index over item vectors.

    Args:
        vectors: float ``[items, dim]``, finite; row ``i`` is item ``i``. A contiguous float32
            array is used where it lies with metric ``"ip"``: do not change it afterwards.
        kind: ``"exact"``: every search compares all items.
        metric: ``"ip"``, the inner product, or ``"cosine"``.
        dtype: how vectors are stored: ``"float32"``.
        precision: what a search reads of every vector: ``"float32"``, or ``"int8"``, a table of
            bytes beside the vectors (``dim`` + 5 bytes an item more) from which the same result,
            bit for bit, is found about three times sooner where the vectors do not fit the caches:
            from about 100,000 items on, for a few queries at a time.

    Raises:
        InputError: an argument cannot be used; the message names what exists.
    """
    _known("kind", kind, KINDS)
    _known("metric", metric, METRICS)
    _known("dtype", dtype, DTYPES)
    _known("precision", precision, PRECISIONS)
    return ExactIndex(vectors, cast("Metric", metric), cast("Precision", precision))


def _known(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}: found {value!r}; choose one of {', '.join(choices)}")
