# SPDX-License-Identifier: Apache-2.0
"""How native kernels become operators of torch: one library, registered with their shapes.

An operator has a CPU implementation that takes and returns tensors, a *fake* one that makes empty
tensors of the right shapes (what ``torch.compile`` traces with), and, where it is differentiable,
a backward. ``torch.library.Library`` is used directly, because the decorators around it cost up to
a hundred microseconds a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["NAMESPACE", "register"]

NAMESPACE = "seqrec_fast"

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def register(
    schema: str,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Defines ``torch.ops.seqrec_fast.NAME`` and returns it.

    Args:
        schema: in torch's notation, for instance ``"linear(Tensor x, Tensor w) -> Tensor"``. No
            output may be an input or a view of one.
        cpu: what runs for CPU tensors; shapes and dtypes are checked by the public function.
        fake: takes the same arguments, returns empty tensors shaped as ``cpu`` does.
        backward: as in ``torch.library.register_autograd``: context and gradients of the outputs
            in, gradients of the inputs out.
        setup_context: as there: saves what the backward needs.
    """
    name = schema.partition("(")[0].strip()
    qualified = f"{NAMESPACE}::{name}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, cpu, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_LIBRARY
        )
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator
