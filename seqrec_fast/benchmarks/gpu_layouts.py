# SPDX-License-Identifier: Apache-2.0
"""One way of computing a case of ``bench gpu``, and how it is called and compared.

A layout is a function of named tensors in the order and shape that it likes; it says how its
results and gradients are brought into the layout of the judge, which computes in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["DTYPES", "TF32", "Layout", "call", "compare", "math_of", "outputs", "rounding"]

#: float32 whose products may round their factors to ten bits
TF32 = "tf32"
DTYPES = {
    "float32": torch.float32,
    TF32: torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

Outputs = dict[str, Tensor]


def _same(name: str, value: Tensor) -> Tensor:
    return value


def _like(value: Tensor, result: Tensor) -> Tensor:
    return value


def _as_they_are(given: dict[str, Tensor]) -> None:
    pass


@dataclass(frozen=True)
class Layout:
    """One way of computing a case.

    Attributes:
        function: takes the values of ``inputs`` in their order, returns a tensor or several.
        inputs: floating ones get gradients; they are converted to the type of the case.
        back: name and tensor (a result or an input's gradient) -> in the layout of the judge.
        forth: gradient of a result in the layout of the judge, and that result -> in its layout.
        results: names of what the function returns; only the floating ones get a gradient.
        prepare: changes the converted inputs before the first call, in place.
        judged: stands for ``function`` where errors are measured, of another algorithm than the
            one whose time counts.
        replays: whether its work can be recorded into a CUDA graph.
        compared: whether it computes the same, so that its results can be compared.
    """

    function: Callable[..., Any]
    inputs: dict[str, Tensor]
    back: Callable[[str, Tensor], Tensor] = _same
    forth: Callable[[Tensor, Tensor], Tensor] = _like
    results: tuple[str, ...] = ("y",)
    prepare: Callable[[dict[str, Tensor]], None] = _as_they_are
    judged: Callable[..., Any] | None = None
    replays: bool = True
    compared: bool = True


def rounding(dtype_name: str) -> float:
    """What is allowed where torch is all but exact, for a largest value of 1.

    Four units in the last place of float32, one of the others: of tf32, which torch does not take
    for every product, too.
    """
    if dtype_name == TF32:
        return 2.0**-10
    unit = float(torch.finfo(DTYPES[dtype_name]).eps)
    return 4 * unit if dtype_name == "float32" else unit


@contextmanager
def math_of(dtype_name: str) -> Iterator[None]:
    """Whether products and cuDNN may compute in tf32: in the type of that name, and in no other."""
    cudnn: Any = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype_name == TF32 else "highest")
    # torch's own default is to let cuDNN, and so its recurrent layers, round
    cudnn.allow_tf32 = dtype_name == TF32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


def call(
    layout: Layout, dtype: torch.dtype, backward: bool, *, judged: bool = False
) -> Callable[[], Any]:
    """The call that is timed: results, and with ``backward`` the gradients of all inputs.

    Args:
        layout: how.
        dtype: of all floating tensors.
        backward: whether gradients are computed too.
        judged: whether to take ``layout.judged``.

    Returns:
        Without arguments; returns a tuple of results, then one of gradients.
    """
    function = (layout.judged if judged else None) or layout.function
    given = {
        name: t.detach().to(dtype) if t.is_floating_point() else t
        for name, t in layout.inputs.items()
    }
    layout.prepare(given)

    def results() -> tuple[Tensor, ...]:
        found = function(*given.values())
        return found if isinstance(found, tuple) else (found,)

    if not backward:

        def infer() -> Any:
            with torch.no_grad():
                return results(), ()

        return infer
    leaves = [t.requires_grad_() for t in given.values() if t.is_floating_point()]
    upstream: list[Tensor] = []

    def train() -> Any:
        found = [t for t in results() if t.is_floating_point()]
        if not upstream:
            upstream.extend(_upstream(layout, found, dtype))
        return tuple(found), torch.autograd.grad(found, leaves, upstream)

    return train


def _upstream(layout: Layout, found: list[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Gradients of the results, of numbers that every type holds exactly."""
    generator = torch.Generator().manual_seed(1)
    for name, result in zip(layout.results, found, strict=False):
        drawn = torch.randn(layout.back(name, result).shape, generator=generator)
        rounded = drawn.to(torch.bfloat16).to(result.device, dtype)
        # a loss may be wider than what it is computed of
        yield layout.forth(rounded, result).to(result.dtype)


def outputs(layout: Layout, dtype: torch.dtype, backward: bool, *, judged: bool = False) -> Outputs:
    """Results and gradients by name, in float64 and the layout of the judge."""
    results, gradients = call(layout, dtype, backward, judged=judged)()
    found = {
        name: layout.back(name, value.detach()).double()
        for name, value in zip(layout.results, results, strict=False)
    }
    names = [name for name, t in layout.inputs.items() if t.is_floating_point()]
    for name, gradient in zip(names, gradients, strict=False):
        found[f"d_{name}"] = layout.back(name, gradient).double()
    return found


def compare(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest error of every output; infinite where it is of another shape or not finite."""
    worst = {}
    for name, exact in truth.items():
        if name not in found or found[name].shape != exact.shape:
            worst[name] = float("inf")
            continue
        error = float((found[name] - exact).abs().max()) if exact.numel() else 0.0
        worst[name] = error if error == error else float("inf")
    return worst
