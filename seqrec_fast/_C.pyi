# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
from numpy.typing import NDArray

def build_info() -> dict[str, Any]: ...
def cpu_features() -> list[str]: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def pool_workers() -> int: ...
def score_topk(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    seen_values: NDArray[np.int32] | None,
    seen_offsets: NDArray[np.int64] | None,
    blocked: NDArray[np.uint8] | None,
    k: int,
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
