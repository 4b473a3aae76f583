# SPDX-License-Identifier: Apache-2.0
"""Arrow columns of raw ids to item indices.

Every distinct id of a column is looked up once, by the one rule of the vocabulary; the rest is
gathering.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from seqrec_fast.data.vocabulary import Vocabulary

__all__ = ["Kind", "encode_ids", "id_kind", "is_list_type"]

Kind = Literal["int", "str"]


def is_list_type(kind: pa.DataType) -> bool:
    """Whether each value of a column is a list."""
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def id_kind(kind: pa.DataType, column: str, role: str, source: str) -> Kind | None:
    """What the ids of a column are; ``None`` for a column that holds nothing.

    Raises:
        InputError: a type that holds no ids, such as fractions.
    """
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_integer(value):
        return "int"
    if any(
        test(value)
        for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    ):
        return "str"
    if types.is_null(value):
        return None
    raise InputError(
        f"{source}: the column {column!r} ({role}) holds {value} values; ids are integers or text"
    )


def encode_ids(values: pa.Array, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Item indices of raw ids, -1 where unknown.

    Args:
        values: ids of a type that :func:`id_kind` knows, none of them null.
        vocabulary: the items of the model.

    Returns:
        int32 ``[len(values)]``, as ``vocabulary.encode`` would give them one by one.
    """
    import pyarrow as pa

    if not len(values):
        return np.empty(0, dtype=np.int32)
    coded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    places = np.asarray(coded.indices.to_numpy(zero_copy_only=False))
    # A dictionary of a file may hold far more ids than these rows: look up those that occur.
    occurs = np.zeros(len(coded.dictionary), dtype=np.bool_)
    occurs[places] = True
    used = np.flatnonzero(occurs)
    codes = np.full(len(occurs), -1, dtype=np.int32)
    codes[used] = vocabulary.encode(_plain(coded.dictionary.take(pa.array(used))))
    found: NDArray[np.int32] = codes[places]
    return found


def _plain(distinct: pa.Array) -> Any:
    """Ids as the vocabulary takes them: an int64 array where there are integers, else texts."""
    import pyarrow as pa

    kind = distinct.type
    if pa.types.is_integer(kind):
        return distinct.to_numpy(zero_copy_only=False)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        # bytes that are no text are an id that nobody can know
        return [value.decode("utf-8", errors="replace") for value in distinct.to_pylist()]
    return distinct.to_pylist()
