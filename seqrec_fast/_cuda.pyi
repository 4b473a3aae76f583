# SPDX-License-Identifier: Apache-2.0
"""Types of the CUDA kernels; addresses, sizes and streams are integers.

``number`` is 0 for float32, 1 for float16 and 2 for bfloat16; 0 stands for a tensor that is not
there, and for the default stream.
"""

from typing import Any

def build_info() -> dict[str, Any]: ...
def why_not() -> str: ...
def use_device(device: int) -> None: ...
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

TOPK_MOST_PLACES: int

def topk_lists_size(queries: int, items: int, dim: int, number: int, k: int) -> int: ...
def topk_sort_seen(
    values: int,
    wide: bool,
    offsets: int,
    sorted: int,
    rows: int,
    tokens: int,
    num_items: int,
    stream: int,
) -> None: ...
def topk(
    queries: tuple[int, int],
    items: tuple[int, int],
    bias: int,
    blocked: int,
    seen: int,
    seen_offsets: int,
    seen_tokens: int,
    num_queries: int,
    num_items: int,
    dim: int,
    k: int,
    number: int,
    tf32: bool,
    lists: int,
    size: int,
    scores: int,
    ids: int,
    stream: int,
) -> None: ...
def decode_attention_parts_size(
    rows: int, heads: int, width: int, tokens: int, paged: bool, number: int
) -> int: ...
def decode_attention(
    q: tuple[int, int, int, int],
    keys: tuple[int, int, int, int],
    values: tuple[int, int, int, int],
    offsets: int,
    lengths: int,
    page_table: tuple[int, int, bool],
    row_pages: int,
    page_tokens: int,
    pages: int,
    rows: int,
    heads: int,
    width: int,
    tokens: int,
    scale: float,
    number: int,
    out: int,
    parts: int,
    size: int,
    stream: int,
) -> None: ...
def recurrent_plan(
    cell: int, math: int, hidden: int, rows: int, backward: bool, single: bool, form: int
) -> tuple[int, int, int, int, int, int]: ...
def recurrent_forward(
    cell: int,
    math: int,
    hidden: int,
    rows: int,
    single: bool,
    form: int,
    activation: int,
    tokens: int,
    offsets: int,
    workspace: int,
    workspace_size: int,
    projected: int,
    w_hh: int,
    b_ih: int,
    b_hh: int,
    h0: int,
    c0: int,
    output: int,
    h_end: int,
    c_end: int,
    gates: int,
    cells: int,
    hn: int,
    stream: int,
) -> None: ...
def recurrent_backward(
    cell: int,
    math: int,
    hidden: int,
    rows: int,
    single: bool,
    form: int,
    activation: int,
    tokens: int,
    offsets: int,
    workspace: int,
    workspace_size: int,
    w_hh_t: int,
    h0: int,
    c0: int,
    output: int,
    gates: int,
    cells: int,
    hn: int,
    d_output: int,
    d_h_end: int,
    d_c_end: int,
    d_gates: int,
    h_prev: int,
    dh0: int,
    dc0: int,
    stream: int,
) -> None: ...
