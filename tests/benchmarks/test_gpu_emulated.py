# SPDX-License-Identifier: Apache-2.0
"""The errors of ``bench gpu`` with the kernels for GPUs themselves, emulated on the CPU.

Triton's run in its interpreter, those in CUDA C++ compiled for the CPU; what they are judged by is
what a GPU would judge them by.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="the Triton kernels run in its interpreter")

from seqrec_fast.benchmarks import gpu, gpu_cases, gpu_rivals  # noqa: E402
from seqrec_fast.models import device_engine  # noqa: E402
from seqrec_fast.ops._backend import GPU_BACKENDS, unavailable  # noqa: E402
from tests.benchmarks.gpu_bytes import counted  # noqa: E402
from tests.benchmarks.gpu_small import (  # noqa: E402
    CELLS,
    SMALL,
    directions,
    recommend,
    small,
    step,
)
from tests.benchmarks.stub_device import StubDevice  # noqa: E402
from tests.ops.cuda.conftest import cuda_module  # noqa: E402, F401


@pytest.fixture(autouse=True)
def emulated(
    cuda_module: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """The operations run the kernels for GPUs on tensors of the CPU; new memory is poisoned."""
    monkeypatch.setenv("SEQREC_FAST_CUDA_MODULE", str(cuda_module))
    # the linear layer has no kernels of its own
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "triton,cuda,reference")
    monkeypatch.setattr(gpu_rivals, "compiled", lambda function: function)
    for operation in GPU_BACKENDS:
        assert unavailable(operation, "cpu") is None
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # new_empty gives NaN
    yield
    torch.use_deterministic_algorithms(before)


def judged(cases: list[Any]) -> list[dict[str, Any]]:
    plan = gpu.Plan(StubDevice, only_errors=True)
    return list(gpu.measure(cases, plan))


@pytest.mark.parametrize("operation", SMALL)
def test_kernels_pass_the_errors(operation: str) -> None:
    if operation == "hstu_attention":  # refuses to sum the gradient of its table by atomics
        torch.use_deterministic_algorithms(False)
    backward = directions(operation)[-1]
    case = small(operation, "float32", backward)
    assert case.backend(torch.device("cpu")) in ("triton", "cuda")
    (row,) = judged([case])
    assert row["verdict"] == "right", row


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_every_cell_passes(cell: str) -> None:
    (row,) = judged([gpu_cases.GpuCase("recurrent", CELLS[cell], "float32", True)])
    assert row["verdict"] == "right", row


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("operation", SMALL)
def test_types_of_16_bits_pass(operation: str, dtype: str) -> None:
    if operation == "hstu_attention":
        torch.use_deterministic_algorithms(False)
    (row,) = judged([small(operation, dtype, directions(operation)[-1])])
    assert row["verdict"] == "right", row


@pytest.mark.parametrize("operation", SMALL)
def test_bytes_are_those_of_the_tensors_of_16_bits(operation: str) -> None:
    for dtype in ("float16", "bfloat16"):
        torch.use_deterministic_algorithms(False)
        case = small(operation, dtype, directions(operation)[-1])
        assert case.cost().bytes == counted(case), case.name


@pytest.mark.parametrize("model", ["sasrec", "gru"])
def test_a_step_of_training_passes(model: str) -> None:
    (row,) = judged([step(model)])
    assert row["verdict"] == "right", row


def test_a_request_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_engine, "open_device", lambda name: torch.device("cpu"))
    (row,) = judged([recommend("gru")])
    assert row["verdict"] == "right", row


def test_a_wrong_number_inside_a_triton_kernel_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqrec_fast.ops.triton import layer_norm as module

    original = module._run
    monkeypatch.setattr(
        module, "_run", lambda *given: original(*given[:4], 1e3 * given[4], *given[5:])
    )
    (row,) = judged([small("layer_norm")])
    assert (row["verdict"], row["red"]) == ("wrong", True)


def test_a_row_that_a_cuda_kernel_leaves_out_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqrec_fast.ops.cuda import embedding as module

    real = module.kernels_for

    class OneLess:
        def __init__(self, tensor: Any) -> None:
            self.kernels = real(tensor)

        def embed(self, *given: Any) -> None:
            self.kernels.embed(*given[:5], given[5] - 1, *given[6:])

    monkeypatch.setattr(module, "kernels_for", OneLess)
    (row,) = judged([small("embedding")])
    assert (row["verdict"], row["red"]) == ("wrong", True)
    assert row["errors"]["y"]["ours"] == float("inf")
