# SPDX-License-Identifier: Apache-2.0
"""Operations on tensors of a GPU that is not there: fake ones, which have a device but no values.

Whatever needs a value on the host, and would wait for the GPU, is an error of a fake tensor. Fakes
on a device that torch was not built for know no autograd, so the backward operators are replayed
with the arguments that they get on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from seqrec_fast import nn, ops
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models import ModelOptions, build_model
from seqrec_fast.ops import _backend
from seqrec_fast.training.losses import make_objective
from seqrec_fast.training.options import TrainingOptions

Case = tuple[Callable[..., Any], dict[str, tuple[int, ...]]]

#: operation -> what is called with floating tensors of these shapes, and offsets and ids
CASES: dict[str, Case] = {
    "attention": (
        lambda t, o, i: ops.attention(t["q"], t["k"], t["v"], o),
        dict.fromkeys("qkv", (5, 2, 4)),
    ),
    "packed_attention": (lambda t, o, i: ops.packed_attention(t["x"], o), {"x": (5, 3, 2, 4)}),
    "hstu_attention": (
        lambda t, o, i: ops.hstu_attention(
            t["q"], t["k"], t["v"], o, normaliser=3.0, bias=t["b"], time_bias=t["b"], times=i
        ),
        {**dict.fromkeys("qkv", (5, 2, 4)), "b": (2, 3)},
    ),
    "linear_cross_entropy": (
        lambda t, o, i: ops.linear_cross_entropy(
            t["h"], t["w"], i, t["b"], token_weights=t["a"].detach()
        ),
        {"h": (5, 4), "w": (7, 4), "b": (7,), "a": (5,)},
    ),
    "sampled_cross_entropy": (
        lambda t, o, i: ops.sampled_cross_entropy(
            t["h"],
            t["w"],
            i,
            i.narrow(0, 0, 2),
            t["b"],
            log_q_negatives=t["a"].detach().narrow(0, 0, 2),
        ),
        {"h": (5, 4), "w": (7, 4), "b": (7,), "a": (5,)},
    ),
    "layer_norm": (
        lambda t, o, i: ops.layer_norm(t["x"], t["w"], t["w"]),
        {"x": (5, 4), "w": (4,)},
    ),
    "add_layer_norm": (
        lambda t, o, i: ops.add_layer_norm(t["x"], t["r"], t["w"], t["w"], dropout=0.5)[1],
        {"x": (5, 4), "r": (5, 4), "w": (4,)},
    ),
    "feed_forward": (
        lambda t, o, i: ops.feed_forward(t["x"], t["u"], t["a"], t["d"], t["b"], dropout=0.5),
        {"x": (5, 4), "u": (6, 4), "a": (6,), "d": (3, 6), "b": (3,)},
    ),
    "dropout": (lambda t, o, i: ops.dropout(t["x"], 0.5, seed=3), {"x": (5, 4)}),
    "embedding": (lambda t, o, i: ops.embedding(t["w"], i), {"w": (7, 4)}),
    "sequence_embedding": (
        lambda t, o, i: ops.sequence_embedding(t["w"], i, t["p"], o, dropout=0.5),
        {"w": (7, 4), "p": (5, 4)},
    ),
    "rnn": (
        lambda t, o, i: ops.recurrent("rnn", t["x"], o, t["w"], t["u"])[0],
        {"x": (5, 4), "w": (3, 4), "u": (3, 3)},
    ),
    "lstm": (
        lambda t, o, i: ops.recurrent("lstm", t["x"], o, t["w"], t["u"], t["b"], t["b"])[0],
        {"x": (5, 4), "w": (12, 4), "u": (12, 3), "b": (12,)},
    ),
    "gru": (
        lambda t, o, i: ops.recurrent("gru", t["x"], o, t["w"], t["u"], t["b"], t["b"])[0],
        {"x": (5, 4), "w": (9, 4), "u": (9, 3), "b": (9,)},
    ),
    "recurrent_step": (
        lambda t, o, i: ops.recurrent_step(
            "lstm",
            t["x"].detach(),
            t["w"].detach(),
            t["u"].detach(),
            t["b"].detach(),
            t["b"].detach(),
            state=(t["h"].detach(), t["h"].detach()),
        )[0],
        {"x": (5, 4), "w": (12, 4), "u": (12, 3), "b": (12,), "h": (5, 3)},
    ),
    "decode_attention": (
        lambda t, o, i: ops.decode_attention(
            t["q"].detach(), t["k"].detach(), t["v"].detach(), o, lengths=o.diff()
        ),
        {"q": (2, 2, 4), "k": (5, 2, 4), "v": (5, 2, 4)},
    ),
    "score_topk": (
        lambda t, o, i: ops.score_topk(t["q"], t["v"], seen=JaggedBatch(i, o), k=3)[0],
        {"q": (2, 4), "v": (7, 4)},
    ),
}

#: arguments that stay float32 (or wider) whatever the type of the others
WIDE_ARGUMENTS = {
    "statistics",
    "mean",
    "rstd",
    "token_weights",
    "log_q_negatives",
    "log_q_targets",
    "cells",
}
#: results that are float32 whatever the type of the arguments
WIDE_RESULTS = {
    "attention": {1},
    "packed_attention": {1},
    "layer_norm": {1, 2},
    "add_layer_norm": {2, 3},
    "cross_entropy": {0},
    "recurrent_forward": {4},
}


@pytest.fixture(autouse=True)
def kernels_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "_reason", lambda operation: None)


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeTensorMode():
        yield


def arguments(
    shapes: dict[str, tuple[int, ...]], device: str, dtype: torch.dtype, gradient: bool = False
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    tensors = {
        name: torch.rand(shape, device=device, dtype=dtype).requires_grad_(gradient)
        for name, shape in shapes.items()
    }
    offsets = torch.tensor([0, 2, 5], device=device)
    return tensors, offsets, torch.tensor([1, 2, 6, 0, 0], device=device)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_lie_on_the_gpu_and_nobody_waits(name: str, dtype: torch.dtype) -> None:
    function, shapes = CASES[name]
    with torch.no_grad():
        found = function(*arguments(shapes, "cuda", dtype))
    assert found.device.type == "cuda"
    assert found.dtype == (torch.float32 if name.endswith("cross_entropy") else dtype)


#: rows wider than a kernel holds, and the module of the operation
WIDE: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "linear_cross_entropy": ("cross_entropy", {"h": (5, 257), "w": (7, 257)}),
    "sampled_cross_entropy": ("cross_entropy", {"h": (5, 257), "w": (7, 257)}),
    "layer_norm": ("layer_norm", {"x": (5, 4097), "w": (4097,)}),
    "add_layer_norm": ("layer_norm", {"x": (5, 4097), "r": (5, 4097), "w": (4097,)}),
    "feed_forward": ("feed_forward", {"x": (5, 129), "u": (6, 129), "d": (129, 6), "b": (129,)}),
}


@pytest.mark.filterwarnings("ignore:.*computed on the GPU by plain torch:UserWarning")
@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", WIDE)
def test_rows_too_wide_for_a_kernel_go_to_plain_torch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, shapes = WIDE[name]
    called: list[str] = []

    def reference(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        called.append(name)
        return x, x

    monkeypatch.setattr(sys.modules[f"seqrec_fast.ops.{module}"], f"{name}_reference", reference)
    for sizes in (CASES[name][1], CASES[name][1] | shapes):
        assert not called, "narrow rows come first"
        with torch.no_grad():
            CASES[name][0](*arguments(sizes, "cuda", torch.bfloat16))
    assert called == [name]


@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11),
    reason="torch 2.8 compiles no function of tensors that are fake already; 2.11 does",
)
@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_as_one_graph(name: str, dtype: torch.dtype) -> None:
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[list[str]] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    function, shapes = CASES[name]
    torch.compiler.reset()
    compiled = torch.compile(
        lambda *a: function(*a), fullgraph=True, backend=aot_autograd(fw_compiler=keep)
    )
    with torch.no_grad():
        found = compiled(*arguments(shapes, "cuda", dtype))
    assert found.device.type == "cuda"
    (graph,) = graphs
    assert [target for target in graph if target.startswith("seqrec_fast.")], graph


class Recorder(TorchDispatchMode):
    """Keeps every call of an operator of this library, and its results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function.namespace == "seqrec_fast":
            self.calls.append((function, args, found))
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_every_operator_is_right_of_device_shape_and_type(name: str, dtype: torch.dtype) -> None:
    """Backward operators too."""
    function, shapes = CASES[name]
    recorder = Recorder()
    with recorder:
        out = function(*arguments(shapes, "cpu", torch.float32, gradient=True))
        if out.requires_grad:
            out.square().sum().backward()
    assert recorder.calls
    for operator, args, results in recorder.calls:
        with FakeTensorMode() as mode:

            def move(argument: str, given: Any, mode: FakeTensorMode = mode) -> Any:
                if not isinstance(given, Tensor):
                    return given
                narrow = given.is_floating_point() and argument not in WIDE_ARGUMENTS
                made = torch.empty_strided(
                    given.shape,
                    given.stride(),
                    dtype=dtype if narrow else given.dtype,
                    device="cuda",
                )
                return made

            names = [argument.name for argument in operator._schema.arguments]
            moved = [move(*pair) for pair in zip(names, args, strict=False)]
            found = operator(*moved)
        short = operator._schema.name.partition("::")[2]
        flat = found if isinstance(found, tuple) else (found,)
        wanted = results if isinstance(results, tuple) else (results,)
        for place, (one, real) in enumerate(zip(flat, wanted, strict=True)):
            assert one.device.type == "cuda", short
            assert one.shape == real.shape, short
            kept = not real.is_floating_point() or place in WIDE_RESULTS.get(short, ())
            assert one.dtype == (real.dtype if kept else dtype), (short, place)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("model", ["sasrec", "gru", "lstm", "rnn"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax"])
def test_models_and_losses_never_wait(
    model: str, training: bool, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # fakes know no pinned memory
    options = ModelOptions(model=model, dim=8, heads=2, layers=2, max_length=6, dropout=0.2)
    with torch.device("meta"):
        made = build_model(options, 9).train(training)
    on_the_gpu(made)
    batch = JaggedBatch(*(torch.tensor(t, device="cuda") for t in ([1, 2, 3], [0, 2, 3])))
    objective = make_objective(TrainingOptions(loss=loss, negatives=4), np.ones(9, np.int64))
    with torch.no_grad():
        hidden = made(batch)
        assert hidden.shape == (3, 8)
        # what is drawn comes from numpy: its values are on the host
        value = objective(made, hidden, batch.values, None, np.random.default_rng(0))
    assert value.device.type == "cuda"
    assert value.dtype == torch.float32


#: what starts no kernel: views and memory
NO_LAUNCH = ("device", "view", "unsqueeze", "unbind", "select", "t", "detach", "empty", "new_empty")


class Launches(TorchDispatchMode):
    """Names what starts work on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.partition("::")[2]
        if name.removeprefix("_unsafe_") not in NO_LAUNCH:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def on_the_gpu(module: torch.nn.Module) -> Any:
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                there = torch.empty(tensor.shape, device="cuda")
                part._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
    return module


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("training", [False, True])
def test_a_sasrec_block_is_six_operations(training: bool) -> None:
    options = ModelOptions(model="sasrec", dim=8, heads=2, layers=1, max_length=6, dropout=0.2)
    with torch.device("meta"):
        made = build_model(options, 9).train(training)
    on_the_gpu(made)
    batch = JaggedBatch(*(torch.tensor(t, device="cuda") for t in ([1, 2, 3], [0, 2, 3])))
    counts = []
    for layers in (1, 2):
        made.blocks.extend([made.blocks[0]] * (layers - 1))
        with torch.no_grad(), Launches() as launches:
            made(batch)
        counts.append(len(launches.names))
    assert counts[1] - counts[0] <= 6, launches.names
    # seeds for all dropouts at once, embedding, first norm
    assert counts[0] <= 6 + 2 + training, launches.names


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_recurrent_layer_is_one_operation(cell: str) -> None:
    shapes = CASES[cell][1]
    inputs = arguments(shapes, "cuda", torch.float32)
    with torch.no_grad(), Launches() as launches:
        CASES[cell][0](*inputs)
    assert launches.names == ["recurrent_forward"]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("made", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_step_is_one_operation_a_layer(made: type[Any]) -> None:
    with torch.device("meta"):
        module = made(4, 3, 2)
    on_the_gpu(module)
    x = torch.rand(5, 4, device="cuda")
    with torch.no_grad(), Launches() as launches:
        module.step(x)  # of a state, which is indexed, fakes know nothing without a GPU
    assert [name for name in launches.names if name != "stack"] == ["recurrent_step"] * 2
