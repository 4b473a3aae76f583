# SPDX-License-Identifier: Apache-2.0
"""The way of batches to a GPU: order, what waits for what, and that the next one is under way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.training.batches import Pass
from seqrec_fast.training.feeding import PinnedCarrier, feed, to_device


def passes(count: int, log: list[str], weights: bool = False) -> Iterator[Pass]:
    for number in range(count):
        log.append(f"gather {number}")
        yield Pass(
            inputs=JaggedBatch.from_lists([[number]], "int64").to_torch(),
            targets=torch.tensor([number]),
            weights=torch.tensor([1.0]) if weights else None,
            share=1.0,
            last=True,
        )


class Carrier:
    """Copies at once and keeps a record."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.sent = 0
        self.marks = 0

    def send(self, tensor: Tensor) -> Tensor:
        self.sent += 1
        return tensor.clone()

    def mark(self) -> object:
        self.log.append(f"sent {self.marks}")
        self.marks += 1
        return self.marks - 1

    def await_mark(self, mark: object, tensors: list[Tensor]) -> None:
        assert all(isinstance(t, Tensor) for t in tensors)
        self.log.append(f"await {mark} of {len(tensors)}")


def test_the_next_pass_is_on_its_way_while_one_is_computed() -> None:
    log: list[str] = []
    carrier = Carrier(log)
    for number, one in enumerate(feed(passes(3, log), carrier)):
        assert one.targets.tolist() == one.inputs.values.tolist() == [number]
        log.append(f"compute {number}")
    assert log == [
        *("gather 0", "sent 0", "gather 1", "sent 1", "await 0 of 3", "compute 0"),
        *("gather 2", "sent 2", "await 1 of 3", "compute 1", "await 2 of 3", "compute 2"),
    ]
    assert carrier.sent == 9


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_pass_arrives_once(count: int) -> None:
    log: list[str] = []
    found = [one.targets.item() for one in feed(passes(count, log, True), Carrier(log))]
    assert found == list(range(count))
    assert [line for line in log if line.startswith("await")] == [
        f"await {n} of 4" for n in range(count)
    ]


def test_without_a_carrier_nothing_is_copied() -> None:
    given = list(passes(2, []))
    assert all(a is b for a, b in zip(feed(given, None), given, strict=True))
    tensor = torch.ones(1)
    assert to_device(tensor, torch.device("cpu")) is tensor


def test_streams_events_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls to torch, with streams and events that only keep a record."""
    log: list[str] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = name

        def wait_event(self, event: Event) -> None:
            log.append(f"{self.name} waits for {event.after}")

        def __enter__(self) -> None:
            log.append(f"on {self.name}")

        def __exit__(self, *_: object) -> None: ...

    class Event:
        after = ""

        def record(self, stream: Stream) -> None:
            self.after = str(stream.name)

    def pin(tensor: Tensor) -> Tensor:
        log.append("pin")
        return tensor

    def to(tensor: Tensor, device: object, non_blocking: bool = False) -> Tensor:
        log.append(f"to {device} {'at once' if non_blocking else 'and wait'}")
        return tensor

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("work"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", lambda t, s: log.append(f"kept for {s.name}"))
    device = torch.device("cuda", 0)
    carrier = PinnedCarrier(device)
    sent = carrier.send(torch.ones(1))
    carrier.await_mark(carrier.mark(), [sent, sent])
    assert log == [
        *("on copies", "pin", "to cuda:0 at once", "work waits for copies"),
        *("kept for work", "kept for work"),
    ]
    log.clear()
    to_device(sent, device)
    assert log == ["pin", "to cuda:0 at once"]
