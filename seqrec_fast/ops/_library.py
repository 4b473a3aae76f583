# SPDX-License-Identifier: Apache-2.0
"""How native kernels become operators of torch: one library, registered with their shapes.

An operator has a CPU implementation that takes and returns tensors, perhaps one for GPUs, a *fake*
one that makes empty tensors of the right shapes (what ``torch.compile`` traces with), and, where it
is differentiable, a backward. ``torch.library.Library`` is used directly, because the decorators
around it cost up to a hundred microseconds a call.

The dispatcher itself costs some ten microseconds in each direction, as much as a small kernel. So
where nothing but one implementation could come of a call (plain tensors, nothing traced, no mode or
transform active), it is called at once, by a plain ``autograd.Function`` where a gradient is
wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any, cast

import torch

from seqrec_fast.errors import InputError
from seqrec_fast.ops._backend import Backend, announce, emulates

__all__ = [
    "NAMESPACE",
    "SECOND_REMEDY",
    "address",
    "needs_gradient",
    "refuse_second",
    "register",
    "runs_directly",
]

NAMESPACE = "seqrec_fast"

#: what to do where gradients of gradients are wanted, of operations whose reference has them
SECOND_REMEDY = "compute in float64 or set SEQREC_FAST_BACKEND=reference"

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def register(
    schema: str,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    remedy: str = SECOND_REMEDY,
    gpu: str | None = None,
) -> Callable[..., Any]:
    """Defines ``torch.ops.seqrec_fast.NAME`` and returns it.

    Args:
        schema: in torch's notation, for instance ``"linear(Tensor x, Tensor w) -> Tensor"``. No
            output may be an input or a view of one.
        cpu: what runs for CPU tensors; shapes and dtypes are checked by the public function.
        fake: takes the same arguments, returns empty tensors shaped as ``cpu`` does.
        backward: as in ``torch.library.register_autograd``: context and gradients of the outputs
            in, gradients of the inputs out. Without one a gradient is refused.
        setup_context: as there: saves what the backward needs, and with it every input that the
            gradients depend on.
        remedy: what to do where gradients of the gradients are wanted.
        gpu: module below ``seqrec_fast.ops`` and function, ``"triton.attention:attention"``, that
            runs for tensors of a GPU; imported when it is first called. It takes and returns what
            ``cpu`` does, on the stream and the device that are current when it is called (the
            device is that of its tensors), and never waits for the GPU. Where the variable
            ``SEQREC_FAST_BACKEND`` names its kind, it runs for tensors of the CPU too.
    """
    name = schema.partition("(")[0].strip()
    qualified = f"{NAMESPACE}::{name}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    on_gpu: Callable[..., Any] | None = None
    if gpu is not None:
        kernels = _imported(gpu)
        cpu = _emulated(gpu.partition(".")[0], kernels, cpu)
        on_gpu = _on_device(kernels)
        _LIBRARY.impl(name, on_gpu, "CUDA")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, cpu, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    def refuse(*_: Any) -> Any:
        of = name.removesuffix("_backward")
        raise InputError(
            _refusal(of, remedy)
            if of != name
            else f"{name}: the native kernels have no gradient; {remedy}"
        )

    torch.library.register_autograd(
        qualified, backward or refuse, setup_context=setup_context, lib=_LIBRARY
    )
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    direct = {"cpu": cpu} if on_gpu is None else {"cpu": cpu, "cuda": on_gpu}
    differentiable = {
        device: operator
        if backward is None
        else _function(name, implementation, backward, setup_context, remedy)
        for device, implementation in direct.items()
    }

    def call(*arguments: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        device = _direct_device(tensors)
        if device not in direct:
            return operator(*arguments)
        return (differentiable if needs_gradient(*tensors) else direct)[device](*arguments)

    return call


def _imported(target: str) -> Callable[..., Any]:
    """The function ``MODULE:NAME`` below ``seqrec_fast.ops``, imported when first called."""
    module, _, function = target.partition(":")
    announce(module)

    @cache
    def found() -> Callable[..., Any]:
        return cast("Callable[..., Any]", getattr(import_module(f"{_OPS}.{module}"), function))

    def call(*arguments: Any) -> Any:
        return found()(*arguments)

    return call


_OPS = "seqrec_fast.ops"


def _emulated(
    backend: str, kernels: Callable[..., Any], cpu: Callable[..., Any]
) -> Callable[..., Any]:
    """``cpu``, or the kernels for a GPU where these are chosen for tensors of the CPU."""

    def call(*arguments: Any) -> Any:
        return (kernels if emulates(cast("Backend", backend)) else cpu)(*arguments)

    return call


def _on_device(kernels: Callable[..., Any]) -> Callable[..., Any]:
    """``kernels`` with the device of their tensors as the current one."""

    def call(*arguments: Any) -> Any:
        for a in arguments:
            if isinstance(a, torch.Tensor) and a.is_cuda:
                if a.device.index == torch.cuda.current_device():
                    break
                with torch.cuda.device(a.device):
                    return kernels(*arguments)
        return kernels(*arguments)

    return call


_PLAIN = (torch.Tensor, torch.nn.Parameter)
_compiling = torch.compiler.is_compiling
_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def runs_directly(*tensors: torch.Tensor) -> bool:
    """Whether the dispatcher of torch could only come to the CPU implementation.

    Transforms of ``torch.func`` have been refused by ``choose_backend``.
    """
    return _direct_device(tensors) == "cpu"


def _direct_device(tensors: Iterable[torch.Tensor]) -> str:
    """``cpu`` or ``cuda`` where the dispatcher could only come to that implementation, else empty.

    A tensor of the CPU (a seed) may stand among those of a GPU, as for the dispatcher.
    """
    if _compiling() or _modes() or _tracing() is not None:
        return ""
    device = "cpu"
    for tensor in tensors:
        # the memory of a lazily negated tensor holds the opposite numbers
        if type(tensor) not in _PLAIN or tensor.is_neg():
            return ""
        if not tensor.is_cpu:
            if not tensor.is_cuda:
                return ""
            device = "cuda"
    return device


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of one of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def address(tensor: torch.Tensor | None) -> int:
    """The address of a tensor for a kernel; 0 for None and where there are no elements."""
    return 0 if tensor is None else tensor.data_ptr()


def refuse_second(
    name: str, remedy: str, sources: Iterable[Any], gradients: Iterable[Any]
) -> tuple[Any, ...]:
    """``gradients`` as they are; whoever differentiates them is told that it cannot be done.

    Args:
        name: the operation, for the message.
        remedy: what to do instead.
        sources: all that the gradients depend on. ``once_differentiable`` of torch refuses only
            where the gradients that came in have gradients themselves; what depends on the inputs
            of the operation would be lost in silence.
        gradients: made outside of autograd.
    """
    found = tuple(gradients)
    if not torch.is_grad_enabled():
        return found
    known = [t for t in sources if isinstance(t, torch.Tensor) and t.requires_grad]
    if not known:
        return found
    made: tuple[Any, ...] = _Once.apply(  # type: ignore[no-untyped-call]
        _refusal(name, remedy), len(known), *known, *found
    )
    return made


def _refusal(name: str, remedy: str) -> str:
    return f"{name}: the native kernels have no gradients of gradients; {remedy}"


def _function(
    name: str,
    implementation: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None,
    remedy: str,
) -> Callable[..., Any]:
    """The operator as an ``autograd.Function``."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = implementation(*arguments)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    def once(ctx: Any, *gradients: Any) -> Any:
        if any(g is not None and _is_batched(g) for g in gradients):
            raise InputError(
                f"{name}: the native kernels take one gradient at a time, found a batch of them; "
                "call torch.autograd.grad without is_grads_batched and vectorize"
            )
        if not torch.is_grad_enabled():
            return backward(ctx, *gradients)
        # a graph of the gradients is made (create_graph=True)
        sources = (*gradients, *ctx.saved_tensors)
        with torch.no_grad():
            found = backward(ctx, *gradients)
        found = found if isinstance(found, tuple) else (found,)
        return refuse_second(name, remedy, sources, found)

    members = {"forward": staticmethod(forward), "backward": staticmethod(once)}
    function: Any = type(name, (torch.autograd.Function,), members)
    apply: Callable[..., Any] = function.apply
    return apply


class _Once(torch.autograd.Function):
    """Gradients that refuse to be differentiated."""

    @staticmethod
    def forward(ctx: Any, refusal: str, sources: int, *tensors: Any) -> tuple[Any, ...]:
        ctx.refusal = refusal
        gradients = tensors[sources:]
        return tuple(g.view_as(g) if isinstance(g, torch.Tensor) else g for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise InputError(ctx.refusal)
