# SPDX-License-Identifier: Apache-2.0
"""What the operators of a case of ``bench gpu`` take and return, in bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seqrec_fast.benchmarks import gpu_cases
from seqrec_fast.benchmarks.case import OURS
from seqrec_fast.benchmarks.gpu_layouts import call

#: what multiplies the loss's own gradient into those that the forward pass has made
SCALING = ("aten::mul_", "aten::_to_copy")


class Counter(TorchDispatchMode):  # type: ignore[misc]
    """Bytes of all tensors that the project's operators take and return, single numbers left out.

    Of a table from which rows are gathered, the rows count.
    """

    def __init__(self, gathered: tuple[int, int]) -> None:
        super().__init__()
        self.bytes = 0
        self._table, self._rows = gathered

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        name = function._schema.name
        if name.startswith("seqrec_fast::") or name in SCALING:
            returned = found if isinstance(found, tuple | list) else (found,)
            gathers = "backward" not in name and name not in SCALING
            self.bytes += sum(self._size(t, gathers) for t in args)
            self.bytes += sum(self._size(t, False) for t in returned)
        return found

    def _size(self, tensor: Any, gathers: bool) -> int:
        if not isinstance(tensor, torch.Tensor) or tensor.numel() <= 1:
            return 0
        if gathers and self._rows and tensor.ndim == 2 and len(tensor) == self._table:
            return self._rows * tensor.shape[1] * tensor.element_size()
        return tensor.numel() * tensor.element_size()


def counted(case: gpu_cases.GpuCase) -> int:
    """Bytes of a call of ours."""
    gathered = (0, 0)
    if case.operation == "embedding":
        gathered = case.shape.items, case.shape.tokens
    if case.operation == "sampled_cross_entropy":
        gathered = case.shape.items, case.shape.tokens + case.shape.samples
    run = call(case.build(torch.device("cpu"))[OURS], case.dtype, case.backward)
    run()  # the gradient of the result is drawn in the first call
    with Counter(gathered) as counter:
        run()
    return counter.bytes
