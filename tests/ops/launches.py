# SPDX-License-Identifier: Apache-2.0
"""What a call would start on a GPU: its own kernels, and those of torch between them.

The calls run on the CPU, by the code that runs on a GPU. Own kernels are counted where they are
started, torch's operations by its profiler, down to those that are a kernel each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

#: make memory or views of it; ``item`` looks at offsets on the CPU alone (test_gpu_operators.py)
NOTHING = {
    "item",
    *("alias", "as_strided", "detach", "expand", "narrow", "permute", "select", "slice", "split"),
    *("squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
    *("empty", "empty_like", "empty_strided", "new_empty", "resolve_conj", "resolve_neg"),
}
#: start what they are made of, which may be nothing
COMPOSITE = {
    *("_to_copy", "clone", "constant_pad_nd", "contiguous", "flatten", "full", "linear", "matmul"),
    *("new_full", "new_zeros", "pad", "reshape", "to", "view_as", "zeros"),
}


def torch_launches(call: Callable[[], Any]) -> list[str]:
    """Torch's operations in a call, each a kernel on a GPU, a product with its bias too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    found: list[str] = []
    for event in profile.events() or []:
        if event.cpu_parent is None:
            found += _within(event)
    return found


def _within(event: Any) -> Iterator[str]:
    space, _, name = event.name.partition("::")
    if space == "aten" and name not in COMPOSITE:
        if name not in NOTHING:
            yield name
        return
    for part in event.cpu_children:
        yield from _within(part)
