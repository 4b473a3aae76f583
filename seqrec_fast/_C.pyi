# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
from numpy.typing import NDArray

_View = tuple[int, int, int]

def build_info() -> dict[str, Any]: ...
def cpu_features() -> list[str]: ...
def use_isa(name: str) -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def pool_workers() -> int: ...
def cross_entropy(
    hidden: int,
    weight: int,
    bias: int,
    targets: int,
    token_weights: int,
    tokens: int,
    items: int,
    dim: int,
    samples: int,
    num_samples: int,
    log_q_samples: int,
    log_q_targets: int,
    d_hidden: int,
    d_weight: int,
    d_bias: int,
    threads: int = 0,
) -> float: ...
def dropout(x: int, out: int, rows: int, columns: int, seed: int, p: float, /) -> None: ...
def embed(
    weight: int,
    ids: int,
    position_weight: int,
    offsets: int,
    out: int,
    tokens: int,
    items: int,
    rows: int,
    positions: int,
    dim: int,
    seed: int,
    p: float,
    /,
) -> None: ...
def embed_backward(
    gradient: int,
    ids: int,
    offsets: int,
    d_weight: int,
    d_positions: int,
    tokens: int,
    items: int,
    rows: int,
    positions: int,
    dim: int,
    seed: int,
    p: float,
    /,
) -> None: ...
def feed_forward(
    x: int,
    up_weight: int,
    up_bias: int,
    down_weight: int,
    down_bias: int,
    z: int,
    y: int,
    rows: int,
    inputs: int,
    inner: int,
    outputs: int,
    activation: int,
    seed: int,
    p: float,
    /,
) -> None: ...
def feed_forward_backward(
    x: int,
    up_weight: int,
    down_weight: int,
    z: int,
    dy: int,
    dx: int,
    d_up_weight: int,
    d_up_bias: int,
    d_down_weight: int,
    d_down_bias: int,
    rows: int,
    inputs: int,
    inner: int,
    outputs: int,
    activation: int,
    seed: int,
    p: float,
    /,
) -> None: ...
def layer_norm(
    x: int,
    residual: int,
    weight: int,
    bias: int,
    sum: int,
    out: int,
    mean: int,
    rstd: int,
    rows: int,
    dim: int,
    eps: float,
    seed: int,
    p: float,
    /,
) -> None: ...
def layer_norm_backward(
    d_out: int,
    d_sum: int,
    sum: int,
    mean: int,
    rstd: int,
    weight: int,
    d_residual: int,
    dx: int,
    d_weight: int,
    d_bias: int,
    rows: int,
    dim: int,
    seed: int,
    p: float,
    /,
) -> None: ...
def hstu_attention(
    q: tuple[int, int, int],
    k: tuple[int, int, int],
    v: tuple[int, int, int],
    sizes: tuple[int, int, int, int, int, int],
    tables: tuple[int, int, int, int, int],
    causal: bool,
    scale: float,
    normaliser: float,
    out: int,
    threads: int = 0,
) -> None: ...
def hstu_attention_backward(
    d_out: tuple[int, int, int],
    q: tuple[int, int, int],
    k: tuple[int, int, int],
    v: tuple[int, int, int],
    sizes: tuple[int, int, int, int, int, int],
    tables: tuple[int, int, int, int, int],
    causal: bool,
    scale: float,
    normaliser: float,
    outputs: tuple[int, int, int, int, int],
    threads: int = 0,
) -> None: ...
def linear(
    x: int,
    x_stride: int,
    rows: int,
    weight: int,
    output_stride: int,
    input_stride: int,
    outputs: int,
    inputs: int,
    bias: int,
    activation: int,
    y: int,
    y_stride: int,
    threads: int = 0,
) -> None: ...
def weight_gradient(
    a: int,
    b: int,
    tokens: int,
    outputs: int,
    inputs: int,
    sum: int,
    columns: int,
    threads: int = 0,
) -> None: ...

class PackedLinear:
    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None: ...
    def __call__(
        self, x: NDArray[np.float32], activation: int, threads: int
    ) -> NDArray[np.float32]: ...

class RecurrentPacking:
    def __init__(self) -> None: ...

def recurrent_forward(
    cell: int,
    activation: int,
    tokens: int,
    rows: int,
    inputs: int,
    hidden: int,
    x: int,
    offsets: int,
    w_ih: int,
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
    threads: int = 0,
    *,
    packing: RecurrentPacking | None = None,
) -> None: ...
def recurrent_backward(
    cell: int,
    activation: int,
    tokens: int,
    rows: int,
    inputs: int,
    hidden: int,
    x: int,
    offsets: int,
    w_ih: int,
    w_hh: int,
    h0: int,
    c0: int,
    output: int,
    gates: int,
    cells: int,
    hn: int,
    d_output: int,
    d_h_end: int,
    d_c_end: int,
    dx: int,
    dw_ih: int,
    dw_hh: int,
    db_ih: int,
    db_hh: int,
    dh0: int,
    dc0: int,
    threads: int = 0,
) -> None: ...
def measure_peak(threads: int, bytes: int) -> tuple[float, float]: ...

class Int8Table:
    def __init__(
        self,
        items: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        threads: int = 0,
    ) -> None: ...
    @staticmethod
    def stored(
        blocks: NDArray[np.uint8],
        bounds: NDArray[np.float32],
        items: int,
        dim: int,
        has_bias: bool,
    ) -> Int8Table: ...
    @property
    def blocks(self) -> NDArray[np.uint8]: ...
    @property
    def bounds(self) -> NDArray[np.float32]: ...
    @property
    def nbytes(self) -> int: ...

class ItemTable:
    def __init__(
        self,
        values: NDArray[Any],
        scales: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        threads: int = 0,
    ) -> None: ...
    @property
    def bounds_bytes(self) -> int: ...
    def rows(self, indices: NDArray[np.int32]) -> NDArray[np.float32]: ...

def score_topk_table(
    queries: NDArray[np.float32],
    items: ItemTable,
    seen_values: NDArray[np.int32] | None,
    seen_offsets: NDArray[np.int64] | None,
    blocked: NDArray[np.uint8] | None,
    k: int,
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
def score_topk(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    seen_values: NDArray[np.int32] | None,
    seen_offsets: NDArray[np.int64] | None,
    blocked: NDArray[np.uint8] | None,
    k: int,
    threads: int = 0,
    table: Int8Table | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...

class ItemSet:
    def __init__(self, size: int) -> None: ...
    def copy(self) -> ItemSet: ...
    def apply_ids(self, name: str, ids: NDArray[Any], keep: bool) -> None: ...
    def apply_flags(self, name: str, flags: NDArray[np.bool_], keep: bool) -> None: ...
    def intersect(self, other: ItemSet) -> None: ...
    def flags(self) -> NDArray[np.bool_]: ...
    def ids(self) -> NDArray[np.int32]: ...
    @property
    def size(self) -> int: ...
    @property
    def count(self) -> int: ...

def score_topk_filtered(
    queries: NDArray[np.float32],
    items: NDArray[np.float32] | ItemTable,
    bias: NDArray[np.float32] | None,
    table: Int8Table | None,
    open: ItemSet | None,
    hidden: list[tuple[NDArray[np.int32], NDArray[np.int64]]],
    allowed: tuple[NDArray[np.int32], NDArray[np.int64]] | None,
    k: int,
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...

class NamedItems:
    def __init__(
        self, items: NDArray[np.float32], names: NDArray[np.int32], threads: int = 0
    ) -> None: ...
    def renamed(self, names: NDArray[np.int32]) -> NamedItems: ...
    @property
    def nbytes(self) -> int: ...

class Lists:
    def __init__(
        self,
        starts: NDArray[np.int64],
        centres: NDArray[np.float32],
        spread: NDArray[np.float32],
        covariance: NDArray[np.float32] | None,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...

def score_topk_lists(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    lists: Lists,
    table: NamedItems,
    tail: NamedItems | None,
    seen_values: NDArray[np.int32] | None,
    seen_offsets: NDArray[np.int64] | None,
    blocked: NDArray[np.uint8] | None,
    k: int,
    most: int,
    reach: float,
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
def attention(
    q: _View,
    k: _View,
    v: _View,
    offsets: int,
    tokens: int,
    rows: int,
    heads: int,
    width: int,
    scale: float,
    causal: bool,
    out: _View,
    statistics: int,
    threads: int = 0,
) -> None: ...
def attention_backward(
    q: _View,
    k: _View,
    v: _View,
    offsets: int,
    tokens: int,
    rows: int,
    heads: int,
    width: int,
    scale: float,
    causal: bool,
    out: _View,
    d_out: _View,
    statistics: int,
    d_q: _View,
    d_k: _View,
    d_v: _View,
    threads: int = 0,
) -> None: ...
def decode_attention(
    q: _View,
    keys: _View,
    values: _View,
    offsets: int,
    lengths: int,
    cached: int,
    rows: int,
    heads: int,
    width: int,
    scale: float,
    out: _View,
    threads: int = 0,
) -> None: ...

class Engine:
    def __init__(
        self,
        config: dict[str, Any],
        tensors: dict[str, NDArray[np.float32] | ItemTable],
        items: NDArray[np.float32] | ItemTable,
        bias: NDArray[np.float32] | None,
        threads: int = 0,
    ) -> None: ...
    @property
    def window(self) -> int: ...
    @property
    def interests(self) -> int: ...
    @property
    def state_size(self) -> int: ...
    @property
    def token_size(self) -> int: ...
    @property
    def table_bytes(self) -> int: ...
    def encode(
        self, values: NDArray[np.int32], offsets: NDArray[np.int64], threads: int = 0
    ) -> NDArray[np.float32]: ...
    def recommend(
        self,
        values: NDArray[np.int32],
        offsets: NDArray[np.int64],
        seen_values: NDArray[np.int32] | None,
        seen_offsets: NDArray[np.int64] | None,
        blocked: NDArray[np.uint8] | None,
        k: int,
        threads: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
    def recommend_lists(
        self,
        histories: Any,
        lookup: dict[Any, int],
        k: int,
        exclude_seen: bool,
        threads: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], bool] | None: ...
    def rank(
        self,
        queries: NDArray[np.float32],
        seen_values: NDArray[np.int32] | None,
        seen_offsets: NDArray[np.int64] | None,
        blocked: NDArray[np.uint8] | None,
        k: int,
        threads: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...

class SessionsReplaced(RuntimeError): ...

class Sessions:
    def __init__(
        self, engine: Engine, capacity: int, memory: int, ttl: int, hop: int, remember: int
    ) -> None: ...
    def observe(self, user: Any, item: int) -> None: ...
    def observe_many(
        self, users: Any, items: NDArray[np.int32], begin: int = 0, threads: int = 0
    ) -> int: ...
    def embed(
        self, users: Any, seen: bool, threads: int = 0
    ) -> tuple[
        NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32] | None, NDArray[np.int64] | None
    ]: ...
    def recommend(
        self, user: Any, k: int, exclude_seen: bool, threads: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None: ...
    def forget(self, user: Any) -> bool: ...
    def contains(self, user: Any) -> bool: ...
    def history(self, user: Any) -> tuple[int, NDArray[np.int32]]: ...
    def clear(self) -> None: ...
    def statistics(self) -> dict[str, int]: ...
    def save(self, file: int, identity: bytes, wall: int) -> None: ...
    def load(self, file: int, identity: bytes, wall: int) -> None: ...
    def take_from(self, old: Sessions, table: NDArray[np.int32]) -> None: ...
    def set_clock(self, nanoseconds: int) -> None: ...
