# SPDX-License-Identifier: Apache-2.0
"""Which implementation is chosen: by device and type, by force, in emulation, with what reasons."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from seqrec_fast import ops
from seqrec_fast.errors import InputError
from seqrec_fast.ops import _backend, _library
from seqrec_fast.ops._backend import GPU_BACKENDS, GPU_WIDTHS, choose_backend, unavailable

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
VARIABLE = "SEQREC_FAST_BACKEND"


class Launcher(types.ModuleType):
    """Stands for ``triton._launch`` and ``cuda._module``."""

    reason: str | None = None

    def unavailable(self) -> str | None:
        return self.reason


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """All operations have kernels for GPUs, which run where the launcher gives no reason."""
    found = Launcher("launcher")
    for name in ("TRITON_INTERPRET", "SEQREC_FAST_CUDA_MODULE", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name in ("triton._launch", "cuda._module"):
        monkeypatch.setitem(sys.modules, f"seqrec_fast.ops.{name}", found)
        package = f"seqrec_fast.ops.{name.partition('.')[0]}"
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setattr(_backend, "_announced", {f"{b}.{o}" for o, b in GPU_BACKENDS.items()})
    monkeypatch.setattr(_backend, "_warned", set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _backend._reason.cache_clear()
    yield found
    _backend._reason.cache_clear()


def test_every_operation_with_a_module_is_known() -> None:
    import pathlib

    folder = pathlib.Path(ops.__file__).parent
    modules = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    assert modules == {*GPU_BACKENDS, "linear"}


def test_the_table(launcher: Launcher) -> None:
    for operation, backend in GPU_BACKENDS.items():
        assert choose_backend(operation, CPU, torch.float32) == "native"
        assert choose_backend(operation, CPU, torch.bfloat16) == "reference"
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert choose_backend(operation, CUDA, dtype) == backend
        assert choose_backend(operation, CUDA, torch.float64) == "reference"
        assert choose_backend(operation, torch.device("meta"), torch.float32) == "reference"
    assert choose_backend("linear", CUDA, torch.float32) == "reference"
    with pytest.raises(InputError, match=r"expected floating-point tensors, found torch\.int32"):
        choose_backend("linear", CUDA, torch.int32)


def test_what_cannot_run_is_warned_of_once_an_operation(launcher: Launcher) -> None:
    launcher.reason = "the driver is too old"
    with pytest.warns(UserWarning, match="attention: computed on the GPU by plain torch.*too old"):
        assert choose_backend("attention", CUDA, torch.float32) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend("attention", CUDA, torch.float32) == "reference"
        assert choose_backend("linear", CUDA, torch.float32) == "reference"
        assert choose_backend("attention", CUDA, torch.float64) == "reference"
    with pytest.warns(UserWarning, match="recurrent"):
        choose_backend("recurrent", CUDA, torch.float16)


def test_rows_too_wide_for_a_kernel_go_to_plain_torch(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert GPU_WIDTHS.keys() <= {o for o, b in GPU_BACKENDS.items() if b == "triton"}
    for operation, most in GPU_WIDTHS.items():
        assert choose_backend(operation, CUDA, torch.float16, most) == "triton"
        with pytest.warns(UserWarning, match=rf"{operation}: .* up to {most}, found {most + 1}$"):
            assert choose_backend(operation, CUDA, torch.float16, most + 1) == "reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert choose_backend(operation, CUDA, torch.float16, most + 1) == "reference"
        assert choose_backend(operation, CPU, torch.float32, most + 1) == "native"
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(InputError, match="=triton: layer_norm has Triton kernels up to a width of"):
        choose_backend("layer_norm", CUDA, torch.float32, GPU_WIDTHS["layer_norm"] + 1)


def test_reasons(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable("attention") is None
    assert unavailable("linear") == "torch's own kernels compute it on a GPU"
    assert unavailable("topk", "cpu") == "the tensors are on the cpu; move them to a GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unavailable("attention") == "torch finds no GPU"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert unavailable("attention", "cpu") is None
    assert "TRITON_INTERPRET is set" in str(unavailable("attention"))
    assert unavailable("topk") == "torch finds no GPU"
    monkeypatch.setattr(_backend, "_announced", set())
    assert unavailable("attention") == "no Triton kernel in this version"
    assert unavailable("topk") == "no CUDA kernel in this version"


def test_forced_kernels_run_or_are_refused(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    assert choose_backend("attention", CUDA, torch.float16) == "triton"
    refusals = [
        ("attention", CPU, torch.float32, "attention cannot run: the tensors are on the cpu"),
        ("attention", CUDA, torch.float64, "Triton kernels for float32, float16 and bfloat16 on"),
        ("attention", torch.device("meta"), torch.float32, "found float32 on meta"),
        ("recurrent", CUDA, torch.float32, "recurrent has no Triton kernels; name another"),
        ("linear", CUDA, torch.float32, "linear has no Triton kernels"),
    ]
    for operation, device, dtype, message in refusals:
        with pytest.raises(InputError, match=rf"SEQREC_FAST_BACKEND=triton: .*{message}"):
            choose_backend(operation, device, dtype)
    launcher.reason = "triton is not installed"
    with pytest.raises(InputError, match="attention cannot run: triton is not installed"):
        choose_backend("attention", CUDA, torch.float32)
    monkeypatch.setenv(VARIABLE, "native")
    with pytest.raises(InputError, match="native kernels for float32 on the cpu, found float32 on"):
        choose_backend("attention", CUDA, torch.float32)
    monkeypatch.setenv(VARIABLE, "reference")
    assert choose_backend("attention", CUDA, torch.float32) == "reference"
    for wrong in ("gpu", "triton,", "Triton"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(InputError, match=f"^SEQREC_FAST_BACKEND: found '{wrong}'"):
            choose_backend("attention", CUDA, torch.float32)


def test_of_several_the_first_that_has_kernels_is_taken(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SEQREC_FAST_CUDA_MODULE", "somewhere")
    monkeypatch.setenv(VARIABLE, "triton,cuda,native")
    assert choose_backend("attention", CPU, torch.float32) == "triton"
    assert choose_backend("embedding", CPU, torch.float16) == "cuda"
    assert choose_backend("linear", CPU, torch.float32) == "native"
    with pytest.raises(InputError, match="linear has native kernels for float32 on the cpu"):
        choose_backend("linear", CPU, torch.float16)
    monkeypatch.setenv(VARIABLE, "triton,cuda,reference")
    assert choose_backend("linear", CPU, torch.float16) == "reference"
    monkeypatch.setenv(VARIABLE, "triton,cuda")
    with pytest.raises(InputError, match="linear has no Triton or CUDA kernels"):
        choose_backend("linear", CPU, torch.float32)


# ------------------------------------------------------------------------------- the operator


def _probe_backward(ctx: object, gradient: Tensor) -> Tensor:
    return gradient * 10


_CALLS: list[str] = []
_PROBE = _library.register(
    "registry_probe(Tensor x) -> Tensor",
    lambda x: x + 1,
    lambda x: torch.empty_like(x),
    backward=_probe_backward,
    gpu="triton.registry_probe:run",
)


def test_forcing_runs_the_kernels_for_gpus_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3, requires_grad=True)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert "seqrec_fast.ops.triton.registry_probe" not in sys.modules, "imported when first called"
    assert _PROBE(x.detach()).tolist() == [1.0] * 3
    kernels = types.ModuleType("kernels")
    kernels.run = lambda t: t + 2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "seqrec_fast.ops.triton", types.ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "seqrec_fast.ops.triton.registry_probe", kernels)
    operator = torch.ops.seqrec_fast.registry_probe
    for forced, value in (
        ("triton", 2.0),
        ("cuda,triton,native", 2.0),
        ("native,triton", 1.0),
        ("cuda", 1.0),
        ("reference", 1.0),
    ):
        monkeypatch.setenv(VARIABLE, forced)
        for call in (_PROBE, operator):
            assert call(x.detach()).tolist() == [value] * 3, forced
            out = call(x)
            assert out.tolist() == [value] * 3
            assert torch.autograd.grad(out.sum(), x)[0].tolist() == [10.0] * 3
    monkeypatch.setenv(VARIABLE, "triton")
    torch.library.opcheck(operator.default, (torch.zeros(2, requires_grad=True),))


def test_the_device_of_the_tensors_is_made_current(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[object] = []

    class Guard:
        def __init__(self, device: object) -> None:
            entered.append(device)

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    class OnGPU(torch.Tensor):
        is_cuda = True
        device = torch.device("cuda", 1)

    tensor = torch.zeros(1).as_subclass(OnGPU)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    run = _library._on_device(lambda *a: len(a))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert run(None, tensor, 3) == 3
    assert entered == [OnGPU.device]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert run(tensor) == 1
    assert entered == [OnGPU.device]
