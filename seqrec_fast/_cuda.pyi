# SPDX-License-Identifier: Apache-2.0
"""Types of the CUDA kernels; addresses, sizes and streams are integers.

``number`` is 0 for float32, 1 for float16 and 2 for bfloat16; 0 stands for a tensor that is not
there, and for the default stream.
"""

from typing import Any

def build_info() -> dict[str, Any]: ...
def why_not() -> str: ...
def embed(
    table: int,
    ids: int,
    position_table: int,
    offsets: int,
    out: int,
    tokens: int,
    items: int,
    rows: int,
    positions: int,
    dim: int,
    seed: int,
    p: float,
    number: int,
    stream: int,
) -> None: ...
def embed_scratch_size(tokens: int, dim: int, rows: int, positions: int, ordered: bool) -> int: ...
def embed_backward(
    gradient: int,
    ids: int,
    sorted_ids: int,
    sorted_tokens: int,
    offsets: int,
    d_table: int,
    d_positions: int,
    scratch: int,
    size: int,
    tokens: int,
    items: int,
    rows: int,
    positions: int,
    dim: int,
    seed: int,
    p: float,
    number: int,
    stream: int,
) -> None: ...
