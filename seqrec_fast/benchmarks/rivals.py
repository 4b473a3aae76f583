# SPDX-License-Identifier: Apache-2.0
"""The other libraries: how each runs a graph or a function, on so many threads, as fast as it can.

A rival gets its weights as constants, its input in the layout it likes, and its output buffers
beforehand, so that a timed call is the computation alone. float32 throughout: where a library would
take bfloat16 by itself, that is switched off. None of them is needed; what is not installed is left
out by :meth:`seqrec_fast.benchmarks.case.Prepared.offer`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "attention_graph",
    "cell_graph",
    "compiled",
    "free_bytes",
    "gradients",
    "matmul_graph",
    "onnxruntime_call",
    "openvino_call",
    "openvino_model_call",
]

#: newest format that all versions of the rivals in use read
_OPSET, _IR_VERSION = 21, 10

Floats = NDArray[np.float32]


# ----------------------------------------------------------------------------------- graphs


def matmul_graph(weight: Floats, rows: int) -> bytes:
    """``y [rows, n] = x [rows, k] @ weight [k, n]``, the weight a constant."""
    onnx = import_module("onnx")
    inner, columns = weight.shape
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    return _graph([node], {"w": weight}, {"x": (rows, inner)}, {"y": (rows, columns)})


def cell_graph(cell: str, weights: Mapping[str, Floats], rows: int, time: int) -> bytes:
    """A recurrent layer over ``x [time, rows, inputs]``; all hidden states come out.

    Args:
        cell: ``"rnn"``, ``"lstm"`` or ``"gru"``.
        weights: ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` in torch's layout.
        rows: sequences in the batch.
        time: steps.
    """
    onnx = import_module("onnx")
    # torch's gates in the order of ONNX: i o f c for the LSTM, z r h for the GRU
    order = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}[cell]
    sorted_weights = {
        name: np.concatenate([np.split(w, len(order))[gate] for gate in order])
        for name, w in weights.items()
    }
    hidden, inputs = weights["weight_hh"].shape[1], weights["weight_ih"].shape[1]
    constants = {
        "w": sorted_weights["weight_ih"][None],
        "r": sorted_weights["weight_hh"][None],
        "b": np.concatenate([sorted_weights["bias_ih"], sorted_weights["bias_hh"]])[None],
    }
    options: dict[str, int] = {"hidden_size": hidden}
    if cell == "gru":
        options["linear_before_reset"] = 1
    node = onnx.helper.make_node(cell.upper(), ["x", "w", "r", "b"], ["y"], **options)
    shapes = {"x": (time, rows, inputs)}, {"y": (time, 1, rows, hidden)}
    return _graph([node], constants, *shapes)


def attention_graph(shape: Sequence[int]) -> bytes:
    """Causal attention of ``q``, ``k``, ``v``, each ``[rows, heads, time, width]``."""
    onnx = import_module("onnx")
    node = onnx.helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=1)
    return _graph([node], {}, dict.fromkeys("qkv", shape), {"y": shape}, opset=23)


def _graph(
    nodes: Sequence[Any],
    constants: Mapping[str, Floats],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
    opset: int = _OPSET,
) -> bytes:
    onnx = import_module("onnx")
    kind = onnx.TensorProto.FLOAT

    def values(shapes: Mapping[str, Sequence[int]]) -> list[Any]:
        return [onnx.helper.make_tensor_value_info(n, kind, list(s)) for n, s in shapes.items()]

    graph = onnx.helper.make_graph(
        list(nodes),
        "rival",
        values(inputs),
        values(outputs),
        [onnx.numpy_helper.from_array(np.ascontiguousarray(c), n) for n, c in constants.items()],
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


# ------------------------------------------------------------------------------------- runs


def onnxruntime_call(
    model: bytes, feeds: Mapping[str, Floats], output: Sequence[int], threads: int
) -> Callable[[], Floats]:
    """A call of ONNX Runtime that writes its one output ``y`` into the array that it returns."""
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    result = np.empty(tuple(output), np.float32)
    binding = session.io_binding()
    kept = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
    for name, value in kept.items():
        binding.bind_input(name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, result.shape, result.ctypes.data)

    def call() -> Floats:
        assert kept  # the arrays that are bound live as long as the call
        session.run_with_iobinding(binding)
        return result

    return call


def openvino_call(
    model: bytes, feeds: Mapping[str, Floats], output: Sequence[int], threads: int
) -> Callable[[], Floats]:
    """A call of OpenVINO for a graph of ONNX; see :func:`onnxruntime_call`."""
    core = import_module("openvino").Core()
    return openvino_model_call(core.read_model(io.BytesIO(model)), feeds, output, threads)


def openvino_model_call(
    model: Any, feeds: Mapping[str, Floats], output: Sequence[int], threads: int
) -> Callable[[], Floats]:
    """A call of OpenVINO for a model of its own with one output; see :func:`onnxruntime_call`."""
    ov = import_module("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
        "ENABLE_HYPER_THREADING": False,
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    result = np.empty(tuple(output), np.float32)
    kept = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
    for name, value in kept.items():
        request.set_tensor(name, ov.Tensor(value, shared_memory=True))
    request.set_output_tensor(0, ov.Tensor(result, shared_memory=True))

    def call() -> Floats:
        assert kept
        request.start_async()
        request.wait()
        return result

    return call


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` of a whole function, for these shapes alone."""
    torch = import_module("torch")
    made: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return made


def gradients(
    function: Callable[[], Any], inputs: Sequence[Any], given: Any = None
) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    """A call that returns what ``function`` does and the gradients of ``inputs``.

    Args:
        function: returns one tensor.
        inputs: tensors that need gradients.
        given: gradient of the result; None for a scalar.
    """
    torch = import_module("torch")

    def call() -> tuple[Any, tuple[Any, ...]]:
        result = function()
        return result, torch.autograd.grad(result, inputs, given)

    return call


def free_bytes() -> int:
    """Memory that a rival may take: what the system has available now; without limit if unknown."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62
