# SPDX-License-Identifier: Apache-2.0
"""``bench gpu`` with a device that computes on the CPU and tells invented times."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from seqrec_fast import ops  # noqa: E402
from seqrec_fast.benchmarks import (  # noqa: E402
    gpu,
    gpu_cases,
    gpu_layouts,
    gpu_model,
    gpu_operations,
    gpu_report,
    gpu_rivals,
    shapes,
)
from seqrec_fast.benchmarks.case import OURS, STANDARD  # noqa: E402
from seqrec_fast.benchmarks.gpu_workers import Lost  # noqa: E402
from seqrec_fast.errors import InputError  # noqa: E402
from seqrec_fast.models import device_engine  # noqa: E402
from tests.benchmarks.gpu_small import (  # noqa: E402
    CELLS,
    SMALL,
    directions,
    recommend,
    small,
    step,
)
from tests.benchmarks.stub_device import StubDevice  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes seconds a case and has nothing of ours in it."""
    monkeypatch.setattr(gpu_rivals, "compiled", lambda function: function)


def plan(**options: Any) -> gpu.Plan:
    return gpu.Plan(**{"open_device": StubDevice, "budget": 0.0, **options})


def final(cases: list[Any], **options: Any) -> list[dict[str, Any]]:
    """The last row of each case."""
    found = {(row["operation"], row["case"]): row for row in gpu.measure(cases, plan(**options))}
    return list(found.values())


def test_the_small_shapes_cover_every_operation() -> None:
    assert set(SMALL) == set(gpu_cases.operations()) == set(gpu_model.FORMULAS)
    assert set(gpu_model.EXPECTED) == set(SMALL)


@pytest.mark.parametrize("operation", SMALL)
def test_every_operation_is_judged_and_timed(operation: str) -> None:
    cases = [small(operation, "float32", backward) for backward in directions(operation)]
    rows = list(gpu.measure(cases, plan()))
    assert ["contenders" in row for row in rows] == [False] * len(cases) + [True] * len(cases)
    for case, row in zip(cases, rows[len(cases) :], strict=True):
        assert (row["verdict"], row["red"]) == ("right", False), row
        assert ("d_" in "".join(row["errors"])) == case.backward
        mine = row["contenders"][OURS]
        assert mine["warm_ms"] == pytest.approx(1e-3)
        assert mine["cold_ms"] == pytest.approx(3e-3)
        assert mine["called_ms"] == pytest.approx(1e-2)
        assert mine["recorded"]
        assert mine["extra_bytes"] == 4096
        assert row["best_rival"] in row["contenders"]
        assert row["ratio"] == pytest.approx(1.0)
        cost = gpu_model.work(operation, case.shape, "float32", case.backward)
        assert row["gigabytes"] == pytest.approx(cost.bytes / 3e-6 / 1e9)
        assert row["gflops"] == pytest.approx(cost.flops / 1e-6 / 1e9)
        assert row["share_of_copy"] == pytest.approx(row["gigabytes"] / 1000.0)
        assert row["share_of_product"] == pytest.approx(row["gflops"] / 1e4)
        assert len(gpu.cells(row)) == len(gpu.HEADER)
        assert json.loads(json.dumps(row)) == row
        # what can be left out on the CPU, and nothing else
        assert set(row["missing"]) <= {"torch varlen", "torch nested"}, row["missing"]
        assert not any(reason.startswith("TypeError") for reason in row["missing"].values())


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_stands_beside_packed_sequences(cell: str) -> None:
    (row,) = final([gpu_cases.GpuCase("recurrent", CELLS[cell], "float32", True)])
    assert row["verdict"] == "right", row
    assert set(row["contenders"]) == {OURS, STANDARD, "torch packed"}


@pytest.mark.parametrize("dtype", ["tf32", "float16", "bfloat16"])
def test_other_types_are_judged_by_torch_in_the_same(dtype: str) -> None:
    """On the CPU these run by the reference."""
    cases = [small(name, dtype, True) for name in ("attention", "layer_norm", "feed_forward")]
    for row in final(cases, only_errors=True):
        assert row["verdict"] == "right", row


@pytest.mark.parametrize("model", ["sasrec", "gru"])
def test_whole_models_are_judged_and_timed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_engine, "open_device", lambda name: torch.device("cpu"))
    training, request = final([step(model), recommend(model)])
    for row in (training, request):
        assert row["verdict"] == "right", row
        assert row["ratio"] == pytest.approx(1.0)
        assert row["gflops"] is None
        assert len(gpu.cells(row)) == len(gpu.HEADER)
    assert {"loss", "item_embedding.weight"} <= set(training["errors"])
    tokens = sum(shapes.row_lengths("beauty", 3, 50))
    assert training["each_second"] == {"tokens": pytest.approx(tokens / 1e-5)}
    assert set(request["errors"]) == {"scores", "chosen"}
    assert request["each_second"] == {"users": pytest.approx(3 / 1e-5)}
    assert any("CPU" in name for name in request["contenders"])
    assert not request["contenders"][OURS]["recorded"]


# --------------------------------------------------------------------------------- faults

Function = Callable[..., Any]


def _late(original: Function) -> Function:
    """The last token of the batch sees all of its row but itself."""

    def wrong(q: Any, k: Any, v: Any, offsets: Any, **options: Any) -> Any:
        return original(q, k.roll(1, 0), v, offsets, **options)

    return wrong


def _uncausal(original: Function) -> Function:
    return lambda *given, **options: original(*given, **{**options, "causal": False})


def _nearly(original: Function) -> Function:
    def wrong(*given: Any, **options: Any) -> Any:
        found = original(*given, **options)
        return tuple(t * 1.001 for t in found) if isinstance(found, tuple) else found * 1.001

    return wrong


def _one_element(original: Function) -> Function:
    """A single element is off, as at the edge of a tile."""

    def wrong(*given: Any, **options: Any) -> Any:
        found = original(*given, **options)
        first = found[0] if isinstance(found, tuple) else found
        change = torch.zeros_like(first)
        change.view(-1)[-1] = 0.05
        return (first + change, *found[1:]) if isinstance(found, tuple) else first + change

    return wrong


def _wrong_gradient(original: Function) -> Function:
    """Right results, and gradients that miss one row."""

    def wrong(first: Any, *given: Any, **options: Any) -> Any:
        keep = torch.ones_like(first)
        keep[-1] = 0
        masked = first * keep + (first * (1 - keep)).detach()
        return original(masked, *given, **options)

    return wrong


def _swapped(original: Function) -> Function:
    """The right scores beside items that do not have them."""

    def wrong(*given: Any, **options: Any) -> Any:
        scores, ids = original(*given, **options)
        return scores, ids.flip(1)

    return wrong


def _twice(original: Function) -> Function:
    """The best item stands in two places, its score in the first alone."""

    def wrong(*given: Any, **options: Any) -> Any:
        scores, ids = original(*given, **options)
        return scores, ids.scatter(1, torch.ones_like(ids[:, :1]), ids[:, :1])

    return wrong


def _other_row(original: Function) -> Function:
    def wrong(cell: Any, x: Any, offsets: Any, *given: Any, **options: Any) -> Any:
        joined = offsets.clone()
        joined[1] = joined[0]
        return original(cell, x, joined, *given, **options)

    return wrong


def _not_finite(original: Function) -> Function:
    return lambda *given, **options: original(*given, **options) * float("nan")


FAULTS = [
    ("attention", "attention", _uncausal, False),
    ("attention", "attention", _late, True),
    ("hstu_attention", "hstu_attention", _uncausal, False),
    ("recurrent", "recurrent", _other_row, False),
    ("decode_attention", "decode_attention", _one_element, False),
    ("paged_decode_attention", "paged_decode_attention", _one_element, False),
    ("cross_entropy", "linear_cross_entropy", _nearly, False),
    ("cross_entropy", "linear_cross_entropy", _wrong_gradient, True),
    ("sampled_cross_entropy", "sampled_cross_entropy", _not_finite, True),
    ("layer_norm", "layer_norm", _nearly, True),
    ("add_layer_norm", "add_layer_norm", _one_element, False),
    ("feed_forward", "feed_forward", _wrong_gradient, True),
    ("embedding", "embedding", _wrong_gradient, True),
    ("dropout", "dropout", _nearly, False),
    ("topk", "score_topk", _swapped, False),
    ("topk", "score_topk", _twice, False),
]


@pytest.mark.parametrize(
    ("operation", "function", "fault", "backward"),
    FAULTS,
    ids=[f"{operation}-{fault.__name__}" for operation, _, fault, _ in FAULTS],
)
def test_what_is_wrong_is_red_and_gets_no_times(
    operation: str,
    function: str,
    fault: Callable[[Function], Function],
    backward: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, function, fault(getattr(ops, function)))
    (row,) = final([small(operation, "float32", backward)])
    assert (row["verdict"], row["red"], "contenders" in row) == ("wrong", True, False), row
    assert gpu.cells(row)[-1] == "wrong"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_one_wrong_element_is_seen_in_16_bits(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though all others are rounded by nearly as much."""
    monkeypatch.setattr(ops, "layer_norm", _one_element(ops.layer_norm))
    (row,) = final([small("layer_norm", dtype)])
    assert row["verdict"] == "wrong", row


def test_where_torch_is_exact_a_rounding_is_allowed() -> None:
    assert gpu_layouts.rounding("float32") == 4 * 2.0**-23
    assert gpu_layouts.rounding("tf32") == gpu_layouts.rounding("float16") == 2.0**-10
    assert gpu_layouts.rounding("bfloat16") == 2.0**-7


@pytest.mark.parametrize("operation", ["train_step", "recommend"])
def test_wrong_models_are_red(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_engine, "open_device", lambda name: torch.device("cpu"))
    if operation == "train_step":
        from seqrec_fast.nn import attention as module

        original = module.packed_attention
        # plain torch, which judges, comes by here too
        monkeypatch.setattr(
            module,
            "packed_attention",
            lambda qkv, offsets, **o: original(
                qkv, offsets, **{**o, "causal": not gpu_models_are_ours(qkv)}
            ),
        )
        case: Any = step("sasrec")
    else:
        recommend_ = device_engine.DeviceEngine.recommend
        monkeypatch.setattr(
            device_engine.DeviceEngine,
            "recommend",
            lambda self, *given: tuple(
                array if number or not gpu_models_are_ours(torch.zeros(1)) else array + 1e-3
                for number, array in enumerate(recommend_(self, *given))
            ),
        )
        case = recommend("gru")
    (row,) = final([case])
    assert (row["verdict"], row["red"]) == ("wrong", True), row


def gpu_models_are_ours(values: Any) -> bool:
    """Whether what runs is ours, and neither plain torch nor the judge."""
    import os

    return values.dtype == torch.float32 and "SEQREC_FAST_BACKEND" not in os.environ


def _broken(failure: Exception) -> Function:
    def fail(*_: Any, **__: Any) -> Any:
        raise failure

    return fail


def test_ours_that_raises_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    for failure in (RuntimeError("no such kernel"), KeyError("a bug"), AssertionError("a tile")):
        monkeypatch.setattr(ops, "layer_norm", _broken(failure))
        (row,) = final([small("layer_norm")])
        assert (row["verdict"], row["red"]) == ("failed", True)
        assert row["reason"].startswith(type(failure).__name__)
        assert gpu.cells(row)[-1].startswith("failed: ")


def test_what_does_not_fit_into_memory_is_neither_wrong_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
    monkeypatch.setattr(ops, "layer_norm", _broken(full))
    monkeypatch.setattr(gpu_operations.functional, "embedding", _broken(full))
    lacking, unjudged, fine = final([small("layer_norm"), small("embedding"), small("dropout")])
    for row in (lacking, unjudged):
        assert (row["verdict"], row["red"]) == ("unjudged", False)
        assert "out of memory" in row["reason"]
    assert fine["verdict"] == "right"


def test_a_rival_that_fails_or_computes_something_else_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = gpu_operations.OPERATIONS["embedding"]

    def make(shape: Any, device: Any) -> dict[str, gpu_layouts.Layout]:
        found = made.make(shape, device)
        inputs = found[OURS].inputs
        return {
            **found,
            "other": gpu_layouts.Layout(_broken(RuntimeError("no such kernel")), inputs),
            "unwanted": found[STANDARD],
            "else": gpu_layouts.Layout(lambda w: found[OURS].function(w) + 1, inputs),
        }

    changed = made._replace(make=make)
    monkeypatch.setitem(gpu_operations.OPERATIONS, "embedding", changed)
    (row,) = final([small("embedding")], without=["unw"])
    assert row["verdict"] == "right"
    assert row["missing"] == {
        "other": "RuntimeError: no such kernel",
        "unwanted": "not wanted",
        "else": "computes something else, 1.0e+00 from torch",
    }


def test_what_cannot_be_recorded_is_timed_as_it_is_called() -> None:
    class Unrecorded(StubDevice):
        def recorded(self, run: Function, calls: int) -> Function:
            raise RuntimeError("operation not permitted when stream is capturing")

    (row,) = final([small("dropout")], open_device=Unrecorded)
    mine = row["contenders"][OURS]
    assert mine["warm_ms"] == mine["called_ms"] == pytest.approx(1e-2)
    assert not mine["recorded"]
    assert "capturing" in row["not_recorded"][OURS]


def test_a_graph_that_gives_other_results_is_wrong() -> None:
    class Stale(StubDevice):
        """Its graphs leave what was there, as where a kernel runs on another stream."""

        def recorded(self, run: Function, calls: int) -> Function:
            found = run()
            return lambda: found

    for case in (small("dropout"), small("topk"), small("layer_norm", "float32", True)):
        (row,) = final([case], open_device=Stale)
        assert (row["verdict"], row["red"]) == ("wrong", True), row
        assert gpu.cells(row)[-1] == "wrong: its CUDA graph gives other results"


def test_a_rival_that_fails_in_the_end_does_not_take_ours_with_it() -> None:
    class Full(StubDevice):
        """Has no memory for the second contender."""

        asked = 0

        def extra_bytes(self, run: Function) -> int:
            self.asked += 1
            if self.asked == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().extra_bytes(run)

    class Late(StubDevice):
        """Ends the second contender in its third sample with the cache emptied."""

        flushes = 0

        def flush(self) -> None:
            self.flushes += 1
            if self.flushes == 6:
                raise RuntimeError("an error")
            super().flush()

    for device in (Full, Late):
        (row,) = final([small("embedding")], open_device=device)
        assert row["verdict"] == "right", row
        assert set(row["contenders"]) == {OURS}
        assert set(row["missing"]) == {STANDARD}
        assert row["ratio"] is None
        assert len(gpu.cells(row)) == len(gpu.HEADER)


def test_without_kernels_plain_torch_is_not_measured_in_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_cases.GpuCase, "lacks", lambda self, device: "no kernels: no nvcc")
    (row,) = final([small("dropout")])
    assert (row["verdict"], row["red"]) == ("missing", False)
    assert gpu.cells(row)[-1] == "missing: no kernels: no nvcc"


def test_lacks_asks_for_the_kernels_of_the_device() -> None:
    assert small("topk").lacks(torch.device("cpu")) is None
    reason = small("topk").lacks(torch.device("cuda"))
    assert reason is not None
    assert reason.startswith("no kernels: ")


def test_lost_processes_are_told_and_timed_once_more_without_rivals() -> None:
    asked = []

    def answers(start: Any, jobs: Any) -> Iterator[Any]:
        answer = start()
        for job in jobs:
            asked.append(job)
            lost = job[0] == "times" and "dropout" in job[1].operation and job[-1] != ("",)
            lost |= job[0] == "errors" and job[1].operation == "embedding"
            yield Lost("its process ended with SIGSEGV") if lost else answer(job)

    cases = [small("dropout"), small("embedding"), small("layer_norm")]
    found = {row["operation"]: row for row in gpu.measure(cases, plan(answers=answers))}
    assert found["embedding"]["verdict"] == "failed"
    assert "SIGSEGV" in gpu.cells(found["embedding"])[-1]
    assert "torch" in found["layer_norm"]["contenders"]
    assert set(found["dropout"]["contenders"]) == {OURS}
    assert found["dropout"]["missing"]["torch"].endswith("its process ended with SIGSEGV")
    assert [job[0] for job in asked].count("times") == 3


def test_cases_come_from_the_registry_of_shapes() -> None:
    found = gpu_cases.cases(("attention",), "bfloat16, forward+backward")
    assert [case.shape for case in found] == list(shapes.ATTENTION)
    everything = gpu_cases.cases()
    assert len({(c.operation, c.name) for c in everything}) == len(everything)
    assert {c.dtype_name for c in everything if c.operation == "layer_norm"} == {
        *("float32", "float16", "bfloat16")
    }
    assert {c.dtype_name for c in gpu_cases.cases(dtypes=["tf32"])} == {"tf32"}


def test_settings_of_tf32_are_those_of_the_case_and_left_as_they_were() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with gpu_layouts.math_of("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    with gpu_layouts.math_of("float32"):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


# --------------------------------------------------------------------------------- report


def test_results_are_one_strict_file_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = final([small("cross_entropy", "float32", True), small("embedding"), small("topk")])
    rows[1]["errors"]["y"]["ours"] = float("inf")
    results = {"machine": {"device": {"gpu": "a stub"}}, "rows": rows}

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    path = gpu_report.write(tmp_path, results)
    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read["rows"][1]["errors"]["y"]["ours"] is None
    assert read["rows"][0] == rows[0]
    written = gpu_report.draw(tmp_path, results)
    names = [f"gpu-{name}.svg" for name in ("cross_entropy", "embedding", "topk", "roofline")]
    assert [picture.name for picture in written] == names
    for picture in written:
        assert ET.parse(picture).getroot().tag.endswith("svg")
    assert gpu_report.draw(tmp_path, {**results, "rows": []}) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["gpu.json", *names])


def test_pictures_that_cannot_be_drawn_are_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_report, "import_module", _broken(ImportError("matplotlib")))
    with pytest.raises(InputError, match="matplotlib"):
        gpu_report.check_plots()
