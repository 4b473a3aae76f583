# SPDX-License-Identifier: Apache-2.0
"""The asyncio front: right answers, grouping, the bounded queue, deadlines, cancelling, closing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import pytest

from seqrec_fast.engine import Recommender
from seqrec_fast.errors import InputError
from seqrec_fast.serving import AsyncRecommender, Closed, DeadlineExceeded, Overloaded
from tests.serving.conftest import Found

T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        return await asyncio.wait_for(main(), timeout=20)

    return asyncio.run(limited())


class Gate:
    """A recommender that answers ``[0 .. k)`` when it is let, and notes what it was asked."""

    def __init__(self, *, shut: bool = True, version: str = "1") -> None:
        self.version = version
        self.calls: list[dict[str, Any]] = []
        self.open = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.shut = shut

    def recommend(
        self, histories: Any, k: int, exclude_seen: bool, allow: Any, deny: Any
    ) -> list[Found]:
        self.calls.append(
            {"histories": list(histories), "k": k, "seen": exclude_seen, "allow": allow,
             "deny": deny}
        )  # fmt: skip
        self.entered.release()
        if self.shut:
            assert self.open.acquire(timeout=10)
        if any(history == ["bad"] for history in histories):
            raise InputError("histories: bad")
        return [
            Found(np.arange(k), np.zeros(k, np.float32), tuple(history), None, (None,) * k)
            for history in histories
        ]

    def similar_items(self, item: Any, k: int) -> str:
        return f"like {item}, {k}"

    async def wait_entered(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


def front(gate: Gate, **options: Any) -> AsyncRecommender:
    return AsyncRecommender(gate, **options)  # type: ignore[arg-type]


def rows(gate: Gate) -> list[list[Any]]:
    return [call["histories"] for call in gate.calls]


# --------------------------------------------------------------------------- answers


def test_answers_are_those_of_the_recommender(recommender: Recommender) -> None:
    rng = np.random.default_rng(0)
    asked: list[dict[str, Any]] = []
    for number in range(120):
        history = [f"i{n}" for n in rng.integers(0, 230, rng.integers(0, 30))]
        some = [f"i{n}" for n in rng.integers(0, 220, 40)]
        asked.append(
            {
                "history": history,
                "k": int(rng.choice([3, 10])),
                "exclude_seen": bool(rng.integers(2)),
                "allow": some if number % 3 == 0 else None,
                "deny": some[:5] if number % 4 == 0 else None,
            }
        )

    async def main() -> list[Found]:
        async with AsyncRecommender(recommender, max_batch=16, workers=2) as engine:
            answers = await asyncio.gather(*(engine.recommend(**one) for one in asked))
            assert engine.counters.calls < len(asked)  # they were grouped
            return answers

    for one, answer in zip(asked, run(main), strict=True):
        history = one.pop("history")
        expected = recommender.recommend([history], **one)[0]
        assert answer.items.tolist() == expected.items.tolist()
        np.testing.assert_allclose(answer.scores, expected.scores, rtol=1e-5, atol=1e-5)
        assert answer.unknown == expected.unknown
        assert answer.unknown_filters == expected.unknown_filters
        assert answer.fallback == expected.fallback


def test_several_histories_are_one_request(recommender: Recommender) -> None:
    histories = [["i1", "i2"], [], ["i9"]]

    async def main() -> None:
        async with AsyncRecommender(recommender) as engine:
            answer = await engine.ask(histories, 4)
            assert answer.users == 3
            assert answer.engine > 0
            assert answer.waited >= 0
            expected = recommender.recommend(histories, 4)
            assert [a.items.tolist() for a in answer.results] == [
                e.items.tolist() for e in expected
            ]

    run(main)


def test_other_calls_go_through_the_same_threads() -> None:
    async def main() -> None:
        async with front(Gate(shut=False)) as engine:
            assert await engine.similar_items("a", 3) == "like a, 3"  # type: ignore[comparison-overlap]
            name = await engine.run(lambda: threading.current_thread().name)
            assert name.startswith("seqrec-serving")

    run(main)


# --------------------------------------------------------------------------- grouping


def test_a_lone_request_does_not_wait_for_company() -> None:
    async def main() -> None:
        async with front(Gate(shut=False), window=5.0) as engine:
            begin = time.perf_counter()
            await engine.recommend(["a"])
            assert time.perf_counter() - begin < 2.5

    run(main)


def test_what_arrives_together_goes_together() -> None:
    gate = Gate(shut=False)

    async def main() -> None:
        async with front(gate, max_batch=3) as engine:
            await asyncio.gather(*(engine.recommend([str(n)]) for n in range(5)))

    run(main)
    assert rows(gate) == [[["0"], ["1"], ["2"]], [["3"], ["4"]]]


def test_requests_gather_while_all_threads_are_at_work() -> None:
    gate = Gate()

    async def main() -> None:
        async with front(gate, workers=1, window=0.0) as engine:
            first = asyncio.ensure_future(engine.recommend(["first"]))
            await gate.wait_entered()
            rest = [asyncio.ensure_future(engine.recommend([str(n)])) for n in range(4)]
            await asyncio.sleep(0.02)
            assert rows(gate) == [[["first"]]]
            assert engine.stats()["queued"] == 4
            gate.open.release(2)
            await asyncio.gather(first, *rest)

    run(main)
    assert rows(gate) == [[["first"]], [["0"], ["1"], ["2"], ["3"]]]


def test_an_idle_thread_takes_over_after_the_window_or_when_a_batch_is_full() -> None:
    gate = Gate()

    async def main() -> None:
        async with front(gate, workers=3, window=0.05, max_batch=2) as engine:
            first = asyncio.ensure_future(engine.recommend(["first"]))
            await gate.wait_entered()
            full = [asyncio.ensure_future(engine.recommend([str(n)])) for n in range(2)]
            await gate.wait_entered()  # full: at once, though the first one still runs
            begin = time.perf_counter()
            late = asyncio.ensure_future(engine.recommend(["late"]))
            await gate.wait_entered()
            assert 0.04 < time.perf_counter() - begin
            gate.open.release(3)
            await asyncio.gather(first, late, *full)

    run(main)
    assert rows(gate) == [[["first"]], [["0"], ["1"]], [["late"]]]


def test_only_requests_with_the_same_options_share_a_call() -> None:
    gate = Gate(shut=False)

    async def main() -> None:
        async with front(gate) as engine:
            await asyncio.gather(
                engine.recommend(["a"], 5),
                engine.recommend(["b"], 7),
                engine.recommend(["c"], 5, exclude_seen=False),
                engine.recommend(["d"], 5, deny=["x"]),
                engine.recommend(["e"], 5, allow=["y"]),
                engine.recommend(["f"], 5),
            )
            assert engine.counters.batches == 1
            assert engine.counters.calls == 4

    run(main)
    found = {
        (c["k"], c["seen"], str(c["allow"]), str(c["deny"])): c["histories"] for c in gate.calls
    }
    assert found == {
        (5, True, "None", "None"): [["a"], ["f"]],
        (7, True, "None", "None"): [["b"]],
        (5, False, "None", "None"): [["c"]],
        (5, True, "[None, ['y']]", "[['x'], None]"): [["d"], ["e"]],
    }


def test_a_large_request_forms_a_batch_alone() -> None:
    gate = Gate(shut=False)

    async def main() -> None:
        async with front(gate, max_batch=2) as engine:
            many: Any = [["x"], ["y"], ["z"]]
            answer, _ = await asyncio.gather(engine.ask(many), engine.recommend(["a"]))
            assert [one.unknown for one in answer.results] == [("x",), ("y",), ("z",)]

    run(main)
    assert rows(gate) == [[["x"], ["y"], ["z"]], [["a"]]]


# --------------------------------------------------------------------------- refusals


def test_one_mistake_harms_no_other_request() -> None:
    gate = Gate(shut=False)

    async def main() -> list[Any]:
        async with front(gate) as engine:
            return await asyncio.gather(
                *(engine.recommend([one]) for one in ("a", "bad", "b")), return_exceptions=True
            )

    first, wrong, second = run(main)
    assert first.unknown == ("a",)
    assert second.unknown == ("b",)
    assert isinstance(wrong, InputError)


def test_a_full_queue_turns_requests_away() -> None:
    gate = Gate()

    async def main() -> None:
        async with front(gate, workers=1, max_queue=2) as engine:
            running = asyncio.ensure_future(engine.recommend(["run"]))
            await gate.wait_entered()
            waiting = [asyncio.ensure_future(engine.recommend([str(n)])) for n in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="2 users wait and at most 2 may") as refused:
                await engine.recommend(["c"])
            assert refused.value.retry_after > 0
            gate.open.release(10)
            await asyncio.gather(running, *waiting)
            await engine.recommend(["c"])  # there is room again
            assert engine.counters.overloaded == 1
            assert engine.counters.queued == 0

    run(main)
    assert len(gate.calls) == 3


def test_a_request_past_its_deadline_is_dropped_before_work_and_told_at_once() -> None:
    gate = Gate()

    async def main() -> None:
        async with front(gate, workers=1) as engine:
            running = asyncio.ensure_future(engine.recommend(["run"], deadline=0.02))
            await gate.wait_entered()
            begin = time.perf_counter()
            with pytest.raises(DeadlineExceeded, match="the deadline passed after"):
                await engine.recommend(["late"], deadline=0.03)
            assert 0.025 < time.perf_counter() - begin < 5
            patient = asyncio.ensure_future(engine.recommend(["patient"], deadline=15))
            gate.open.release(2)
            await running  # work that has begun is finished
            await patient
            assert engine.counters.expired == 1
            assert engine.counters.queued == 0
            with pytest.raises(DeadlineExceeded):
                await engine.recommend(["never"], deadline=0.0)

    run(main)
    assert [["late"]] not in rows(gate)
    assert [["never"]] not in rows(gate)


def test_nobody_works_for_a_cancelled_request() -> None:
    gate = Gate()

    async def main() -> None:
        async with front(gate, workers=1) as engine:
            running = asyncio.ensure_future(engine.recommend(["run"]))
            await gate.wait_entered()
            gone = asyncio.ensure_future(engine.recommend(["gone"]))
            kept = asyncio.ensure_future(engine.recommend(["kept"]))
            await asyncio.sleep(0)
            gone.cancel()
            running.cancel()  # at work already: its result is let go
            gate.open.release(2)
            assert (await kept).unknown == ("kept",)
            assert gone.cancelled()
            assert engine.counters.cancelled == 1
            assert engine.counters.running == 0

    run(main)
    assert rows(gate) == [[["run"]], [["kept"]]]


def test_closing_answers_what_waits_and_takes_nothing_more() -> None:
    gate = Gate()

    async def main() -> None:
        engine = front(gate, workers=1)
        asked = [asyncio.ensure_future(engine.recommend([str(n)])) for n in range(3)]
        await gate.wait_entered()
        asked.append(asyncio.ensure_future(engine.recommend(["waits"])))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(engine.close())
        await asyncio.sleep(0.01)
        with pytest.raises(Closed):
            await engine.recommend(["too late"])
        assert not closing.done()
        gate.open.release(2)
        await closing
        answers = await asyncio.wait_for(asyncio.gather(*asked), timeout=1)
        assert [one.unknown for one in answers] == [("0",), ("1",), ("2",), ("waits",)]
        await engine.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("seqrec-serving")]

    run(main)


def test_a_replaced_recommender_finishes_what_it_began() -> None:
    old, new = Gate(version="old"), Gate(version="new", shut=False)

    async def main() -> None:
        async with front(old, workers=2, window=0.0) as engine:
            first = engine.ask([["a"]])
            await old.wait_entered()
            engine.replace(new)  # type: ignore[arg-type]
            assert (await engine.ask([["b"]])).version == "new"
            old.open.release()
            assert (await first).version == "old"

    run(main)


def test_it_belongs_to_one_loop() -> None:
    engine = front(Gate(shut=False))

    async def ask() -> None:
        await engine.recommend(["a"])

    run(ask)
    with pytest.raises(InputError, match="one for each"):
        run(ask)


@pytest.mark.parametrize(
    "options", [{"window": -1.0}, {"max_batch": 0}, {"max_queue": 0}, {"workers": 0}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(options))}: "):
        front(Gate(), **options)
