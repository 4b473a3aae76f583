# SPDX-License-Identifier: Apache-2.0
"""How native kernels become operators of torch: one library, registered with their shapes.

An operator has a CPU implementation that takes and returns tensors, a *fake* one that makes empty
tensors of the right shapes (what ``torch.compile`` traces with), and, where it is differentiable,
a backward. ``torch.library.Library`` is used directly, because the decorators around it cost up to
a hundred microseconds a call.

The dispatcher itself costs some ten microseconds in each direction, as much as a small kernel. So
where nothing but the CPU implementation could come of a call (plain tensors, nothing traced, no
mode or transform active), it is called at once, by a plain ``autograd.Function`` where a gradient
is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from seqrec_fast.errors import InputError

__all__ = ["NAMESPACE", "address", "needs_gradient", "register", "runs_directly"]

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
    direct = cpu if backward is None else _function(name, cpu, backward, setup_context)

    def call(*arguments: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        if not runs_directly(*tensors):
            return operator(*arguments)
        return direct(*arguments) if needs_gradient(*tensors) else cpu(*arguments)

    return call


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def runs_directly(*tensors: torch.Tensor) -> bool:
    """Whether the dispatcher of torch could only come to the CPU implementation."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and all(type(tensor) in _PLAIN and tensor.is_cpu for tensor in tensors)
    )


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of one of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def address(tensor: torch.Tensor | None) -> int:
    """The address of a tensor for a kernel; 0 for None and where there are no elements."""
    return 0 if tensor is None else tensor.data_ptr()


def _function(
    name: str,
    cpu: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None,
) -> Callable[..., Any]:
    """The operator as an ``autograd.Function``."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = cpu(*arguments)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    def once(ctx: Any, *gradients: Any) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *gradients)
        # a graph of the gradients is made (create_graph=True): kernels have none to offer
        with torch.no_grad():
            found = backward(ctx, *gradients)
        anchor = torch.zeros((), requires_grad=True)
        found = found if isinstance(found, tuple) else (found,)
        return _Once.apply(name, anchor, *found)  # type: ignore[no-untyped-call]

    members = {"forward": staticmethod(forward), "backward": staticmethod(once)}
    function: Any = type(name, (torch.autograd.Function,), members)
    apply: Callable[..., Any] = function.apply
    return apply


class _Once(torch.autograd.Function):
    """Gradients as they are; whoever differentiates them is told that it cannot be done.

    ``once_differentiable`` of torch refuses only where a gradient that came in has a gradient
    itself; that of a plain sum has none, and what depends on the saved tensors would be lost in
    silence.
    """

    @staticmethod
    def forward(ctx: Any, name: str, anchor: torch.Tensor, *gradients: Any) -> tuple[Any, ...]:
        ctx.name = name
        return tuple(g.view_as(g) if isinstance(g, torch.Tensor) else g for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise InputError(
            f"{ctx.name}: the native kernels have no gradients of gradients; compute in float64 or "
            "set SEQREC_FAST_BACKEND=reference"
        )
