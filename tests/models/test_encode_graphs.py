# SPDX-License-Identifier: Apache-2.0
"""Requests of one user by recorded graphs: the layout, on the CPU, where "recorded" work runs anew.

No CUDA graph can be recorded here; what the recording asks of torch is held against stand-ins.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.models import ModelOptions, SequenceModel, build_model
from seqrec_fast.models import encode_graphs as module
from seqrec_fast.models.encode_graphs import EncodeGraphs, capture

CPU = torch.device("cpu")
ITEMS = 30


def make(model: str, **options: Any) -> SequenceModel:
    torch.manual_seed(3)
    chosen = ModelOptions(model=model, dim=8, heads=2, max_length=11, **options)
    made = build_model(chosen, ITEMS).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def graphs(model: SequenceModel, recorded: list[Callable[[], Tensor]]) -> EncodeGraphs:
    def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recorded.append(function)
        function()
        return function

    return EncodeGraphs(model, CPU, record)


@pytest.mark.parametrize("model", ["sasrec", "gru", "lstm", "rnn"])
@pytest.mark.parametrize("options", [{}, {"interests": 2}])
def test_every_length_is_encoded_as_without_a_graph(model: str, options: dict[str, Any]) -> None:
    made = make(model, **options)
    recorded: list[Callable[[], Tensor]] = []
    one = graphs(made, recorded)
    random = np.random.default_rng(0)
    for length in [*range(1, 12), 5, 1]:
        items = random.integers(0, ITEMS, length).astype(np.int32)
        found = one.encode(items)
        assert found is not None
        exact = made.embed(JaggedBatch(items, np.array([0, length])))
        torch.testing.assert_close(found, exact)
    assert len(recorded) == 5, "1, 2, 4, 8 and 16 places"


def test_too_long_busy_or_impossible_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("gru")
    one = graphs(made, [])
    assert one.encode(np.ones(module.MOST_EVENTS + 1, np.int32)) is None
    entered, leave = threading.Event(), threading.Event()

    def slow(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        entered.set()
        assert leave.wait(10)
        return function

    shared = EncodeGraphs(made, CPU, slow)
    answers: list[Tensor | None] = []
    thread = threading.Thread(target=lambda: answers.append(shared.encode(np.ones(2, np.int32))))
    thread.start()
    assert entered.wait(10)
    assert shared.encode(np.ones(2, np.int32)) is None
    leave.set()
    thread.join()
    assert answers[0] is not None
    monkeypatch.setenv("SEQREC_FAST_BACKEND", "reference")
    recorded: list[Callable[[], Tensor]] = []
    assert graphs(made, recorded).encode(np.ones(2, np.int32)) is None
    assert not recorded, "plain torch asks for lengths, which cannot be recorded"


def test_what_cannot_be_recorded_is_told_once() -> None:
    def refuse(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    one = EncodeGraphs(make("gru"), CPU, refuse)
    with pytest.warns(UserWarning, match=r"without a CUDA graph.*stream is capturing$"):
        assert one.encode(np.ones(2, np.int32)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.encode(np.ones(2, np.int32)) is None


def test_recording_warms_up_beside_and_records_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

        def __enter__(self) -> None:
            log.append(f"on {self.name}")

        def __exit__(self, *_: object) -> None:
            log.append(f"off {self.name}")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    class Recording:
        def __init__(self, graph: Graph, stream: Stream, capture_error_mode: str) -> None:
            # torch's own is of the GPU that was current at the first recording of the process
            assert stream.name == "aside"
            assert capture_error_mode == "thread_local"

        def __enter__(self) -> None:
            log.append("record")

        def __exit__(self, *_: object) -> None:
            log.append("recorded")

    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream("aside"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("work"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: log.append(f"to {stream.name}"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    result = torch.ones(1)

    def work() -> Tensor:
        log.append("work")
        return result

    replay = capture(work)
    assert log == [
        *("aside waits for work", "on aside", "work", "work", "off aside", "work waits for aside"),
        *("record", "work", "recorded", "to work"),
    ]
    log.clear()
    assert replay() is result
    assert log == ["replay"]

    def waits() -> Tensor:
        if log[-1] == "record":
            raise RuntimeError("not permitted when stream is capturing")
        return work()

    log.clear()
    with pytest.raises(RuntimeError, match="capturing"):
        capture(waits)
    assert log[-2:] == ["recorded", "to work"], "torch would leave its own stream behind"


def test_a_request_waits_for_the_one_before_on_whatever_stream() -> None:
    """They share the memory of a graph, and no stream waits for another by itself."""
    log: list[str] = []

    class Event:
        def wait(self) -> None:
            log.append("wait")

        def record(self) -> None:
            log.append("done")

    def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def replay() -> Tensor:
            log.append("replay")
            return function()

        return replay

    one = EncodeGraphs(make("gru"), CPU, record)
    one._done = Event()  # type: ignore[assignment]
    for _ in range(2):
        assert one.encode(np.ones(2, np.int32)) is not None
    assert log == ["wait", "replay", "done"] * 2


def test_heads_too_wide_for_the_kernels_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "choose_backend", lambda *_: "triton")
    for heads, possible in ((1, False), (2, True)):
        options = ModelOptions(model="sasrec", dim=256, heads=heads, max_length=4)
        assert EncodeGraphs.possible(build_model(options, 3), CPU) == possible
