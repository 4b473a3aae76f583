# SPDX-License-Identifier: Apache-2.0
"""How ``bench gpu`` calls the other libraries, where nothing here can run them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from seqrec_fast.benchmarks import gpu_rivals, shapes  # noqa: E402

SHAPE = shapes.AttentionShape(2, 3, 1, 16)
OFFSETS = torch.tensor([0, 3, 6])


def first_form(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
) -> Any:
    assert is_causal
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (max_q, max_k) == (3, 3)
    return query + 1


def later_form(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
) -> Any:
    assert window_size == (-1, 0)
    return query + 2


@pytest.mark.parametrize(("function", "added"), [(first_form, 1), (later_form, 2)])
def test_varlen_is_causal_in_every_version(
    function: Any, added: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(varlen_attn=function)
    monkeypatch.setattr(gpu_rivals, "import_module", lambda name: module)
    q = torch.zeros(6, 1, 16)
    assert torch.equal(gpu_rivals.varlen(SHAPE, OFFSETS)(q, q, q), q + added)


def test_a_torch_without_varlen_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_rivals, "import_module", lambda name: SimpleNamespace())
    with pytest.raises(ImportError, match="varlen_attn"):
        gpu_rivals.varlen(SHAPE, OFFSETS)


@pytest.mark.parametrize(
    ("dtype", "half"), [(torch.float32, False), (torch.float16, True), (torch.bfloat16, True)]
)
def test_faiss_gets_the_type_of_the_case(
    dtype: Any, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Index:
        def __init__(self, resources: Any, dim: int, config: Any) -> None:
            made.append((resources, dim, config))

        def add(self, table: Any) -> None:
            assert table.dtype == torch.float32
            self.table = table

        def search(self, queries: Any, k: int) -> Any:
            assert queries.dtype == torch.float32
            return (queries @ self.table.T).topk(k)

    class Config(SimpleNamespace):
        useFloat16 = False
        device = -1

    faiss = SimpleNamespace(
        StandardGpuResources=object, GpuIndexFlatConfig=Config, GpuIndexFlatIP=Index
    )
    asked: list[str] = []
    monkeypatch.setattr(gpu_rivals, "import_module", lambda name: asked.append(name) or faiss)
    queries, items = torch.eye(3, 4), torch.eye(5, 4)
    layout = gpu_rivals.faiss_flat(shapes.TopkShape(3, 5, 4, 1), queries, items)
    for _ in range(2):
        scores, ids = layout.function(queries.to(dtype))
    assert ids[:, 0].tolist() == [0, 1, 2]
    assert scores.dtype == torch.float32
    assert asked == ["faiss", "faiss.contrib.torch_utils"]
    ((_, dim, config),) = made
    assert (dim, config.useFloat16, config.device) == (4, half, 0)
    assert not layout.replays


def test_each_function_is_compiled_once_after_others_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: said.append("reset"))
    monkeypatch.setattr(torch, "compile", lambda f, **options: said.append("compile") or f)
    run = gpu_rivals.compiled(lambda x: x + 1)
    assert said == []
    assert (run(1), run(2)) == (2, 3)
    assert said == ["reset", "compile"]


def test_cudnn_takes_the_weights_as_they_are_given() -> None:
    """The CPU has no such function; its arguments are looked at before."""
    shape = shapes.RecurrentShape("lstm", 2, 3, 8, inputs=4)
    weights = [torch.zeros(32, 4), torch.zeros(32, 8), torch.zeros(32), torch.zeros(32)]
    with pytest.raises((NotImplementedError, RuntimeError), match=r"CPU|cudnn|CUDA"):
        torch._cudnn_rnn_flatten_weight(weights, 4, 4, 2, 8, 0, 1, True, False)
    given = dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True))
    before = dict(given)
    gpu_rivals.flattened(shape)(given)
    assert all(given[name] is before[name] for name in before)
