# SPDX-License-Identifier: Apache-2.0
"""The app under a recommender that is slow, fails, keeps sessions or is not there yet."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast.errors import InputError
from seqrec_fast.serving import Limits
from tests.serving.conftest import Found

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")


def made(items: list[str]) -> Found:
    ids = np.array(items, dtype=object)
    return Found(ids, np.zeros(len(ids), np.float32), (), None, (None,) * len(ids))


class Slow:
    """Answers when it is let; keeps users in a dict."""

    version = "7"
    num_items = 3

    def __init__(self) -> None:
        self.open = threading.Event()
        self.calls = 0
        self.made_sessions: Any = None

    def info(self) -> dict[str, Any]:
        return {"model": "slow"}

    def recommend(
        self, histories: Any, k: int, exclude_seen: bool, allow: Any, deny: Any
    ) -> list[Found]:
        self.calls += 1
        if histories[0] == ["bug"]:
            raise RuntimeError("a secret of the server")
        assert self.open.wait(10)
        return [made(list(history)) for history in histories]

    def sessions(self, capacity: int, ttl: float | None) -> Any:
        self.made_sessions = Sessions(capacity, ttl)
        return self.made_sessions


class Sessions:
    def __init__(self, capacity: int, ttl: float | None) -> None:
        self.options = capacity, ttl
        self.users: dict[str, list[Any]] = {}

    def observe(self, user: str, item: Any) -> bool:
        if item == "unknown":
            return False
        self.users.setdefault(user, []).append(item)
        return True

    def observe_many(self, users: list[str], items: list[Any]) -> int:
        return sum(self.observe(*one) for one in zip(users, items, strict=True))

    def recommend(
        self, user: str, k: int = 10, exclude_seen: bool = True, *, where: Any, limit: Any
    ) -> Found:
        return made([*map(str, self.users.get(user, [])), str(exclude_seen)][:k])

    def forget(self, user: str) -> bool:
        return self.users.pop(user, None) is not None

    def stats(self) -> dict[str, int]:
        return {"users": len(self.users), "hits": 4}


@contextmanager
def served(recommender: Any, **options: Any) -> Iterator[Any]:
    """A client of a real server in a thread."""
    from seqrec_fast.serving import create_app

    app = create_app(recommender, **options)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=15) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(15)
    assert not thread.is_alive()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_overload_is_503_and_says_when_to_come_back() -> None:
    slow = Slow()
    options = {"workers": 1, "max_queue": 2}
    with served(slow, **options) as client, ThreadPoolExecutor(8) as pool:

        def ask(item: str) -> Any:
            return httpx.post(client.base_url.join("/recommend"), json={"history": [item]})

        first = pool.submit(ask, "run")
        until(lambda: slow.calls == 1)
        waiting = [pool.submit(ask, str(n)) for n in range(2)]
        until(lambda: "seqrec_queue_waiting_users 2.0" in client.get("/metrics").text)
        refused = client.post("/recommend", json={"history": ["x"]})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "2 users wait" in refused.json()["error"]
        assert client.get("/healthz").status_code == 200
        slow.open.set()
        for one, item in zip([first, *waiting], ["run", "0", "1"], strict=True):
            assert one.result().json()["items"] == [item]
            assert one.result().json()["version"] == "7"
        assert client.post("/recommend", json={"history": ["x"]}).status_code == 200


@pytest.mark.parametrize("by", ["request", "server"])
def test_a_deadline_in_the_queue_is_504_and_no_work(by: str) -> None:
    slow = Slow()
    default = {"deadline": 0.05} if by == "server" else {}
    body: dict[str, Any] = {"deadline_ms": 50} if by == "request" else {}
    with served(slow, workers=1, **default) as client, ThreadPoolExecutor(1) as pool:
        url = client.base_url.join("/recommend")
        first = pool.submit(httpx.post, url, json={"history": ["run"], "deadline_ms": 10_000})
        until(lambda: slow.calls == 1)
        late = client.post("/recommend", json={"history": ["late"], **body})
        assert late.status_code == 504
        assert "the deadline passed after" in late.json()["error"]
        slow.open.set()
        assert first.result().status_code == 200
    assert slow.calls == 1


def test_a_fault_of_the_server_is_500_and_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    slow.open.set()
    with served(slow) as client:
        response = client.post("/recommend", json={"history": ["bug"]})
        assert response.status_code == 500
        assert "secret" not in response.text
        assert client.post("/recommend", json={"history": ["fine"]}).status_code == 200
    assert "a secret of the server" in caplog.text


def test_stopping_answers_what_is_under_way() -> None:
    slow = Slow()
    with ThreadPoolExecutor(2) as pool:
        with served(slow, workers=1) as client:
            url = client.base_url.join("/recommend")
            asked = [pool.submit(httpx.post, url, json={"history": ["a"]})]
            until(lambda: slow.calls == 1)
            asked.append(pool.submit(httpx.post, url, json={"history": ["b"]}))
            until(lambda: "seqrec_queue_waiting_users 1.0" in client.get("/metrics").text)
            threading.Timer(0.3, slow.open.set).start()
        for one, item in zip(asked, "ab", strict=True):
            assert one.result().status_code == 200
            assert one.result().json()["items"] == [item]


def test_live_users() -> None:
    slow = Slow()
    with served(slow, sessions=100, ttl=60.0, limits=Limits(k=20)) as client:
        assert slow.made_sessions.options == (100, 60.0)
        one = client.post("/users/ann%20b/events", json={"item": "i1"})
        assert one.json() == {"events": 1, "known": 1}
        items = ["i2", "unknown", 3]
        two = client.post("/users/ann%20b/events", json={"items": items})
        assert two.json() == {"events": 3, "known": 2}
        assert slow.made_sessions.users == {"ann b": ["i1", "i2", 3]}
        answer = client.get("/users/ann%20b/recommendations?k=4&exclude_seen=false")
        assert answer.json()["items"] == ["i1", "i2", "3", "False"]
        assert answer.json()["version"] == "7"
        assert "engine;dur=" in answer.headers["server-timing"]
        text = client.get("/metrics").text
        assert "seqrec_sessions_users 1.0" in text
        assert "seqrec_sessions_hits_total 4.0" in text
        assert client.delete("/users/ann%20b").json() == {"forgotten": True}
        assert client.delete("/users/ann%20b").json() == {"forgotten": False}
        assert slow.made_sessions.users == {}
        for path, message in (
            ("?k=21", "k: found 21; give a whole number from 1 to 20"),
            ("?k=x", "k: found 'x'; give a whole number"),
            ("?exclude_seen=1", "exclude_seen: found 1; give true or false"),
            ("?kk=1", "unknown parameter 'kk'; known are k, exclude_seen"),
        ):
            wrong = client.get(f"/users/u/recommendations{path}")
            assert wrong.status_code == 422
            assert message in wrong.json()["error"]
        for body, message in (
            ({}, "give either item"),
            ({"item": None}, "item: found null"),
            ({"items": "ab"}, "items: found a text"),
        ):
            wrong = client.post("/users/u/events", json=body)
            assert wrong.status_code == 422
            assert message in wrong.json()["error"]
        assert client.delete(f"/users/{'x' * 300}").status_code == 422
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/users/{user}", "/users/{user}/events"} < set(paths)


def test_a_folder_is_loaded_after_the_start(folder: Path, tmp_path: Path) -> None:
    with served(folder) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/recommend", json={"history": ["i1"]}).status_code == 200
    with served(tmp_path / "nothing") as client:
        until(lambda: client.get("/readyz").json()["status"] == "failed")
        assert "nothing" in client.get("/readyz").json()["error"]
        response = client.post("/recommend", json={"history": ["i1"]})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"


def test_impossible_options_are_refused() -> None:
    from seqrec_fast.serving import create_app

    with pytest.raises(InputError, match=r"^limits\.k: "):
        Limits(k=0)
    with pytest.raises(InputError, match=r"^deadline: "):
        create_app(Slow(), deadline=0.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^sessions: "):
        create_app(object(), sessions=5)  # type: ignore[arg-type]


def test_a_middleware_of_the_caller_stands_before_the_traffic() -> None:
    from starlette.responses import PlainTextResponse

    from seqrec_fast.serving import create_app

    slow = Slow()
    slow.open.set()
    app = create_app(slow)  # type: ignore[arg-type]

    def guard(inner: Any) -> Any:
        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and (b"authorization", b"me") not in scope["headers"]:
                await PlainTextResponse("who?", 401)(scope, receive, send)
            else:
                await inner(scope, receive, send)

        return guarded

    async def ask(**headers: str) -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answer = await client.post("/recommend", json={"history": ["a"]}, headers=headers)
            return int(answer.status_code)

    async def main() -> None:
        assert await ask() == 200
        app.add_middleware(guard)
        app.middleware_stack = None
        assert await ask() == 401
        assert await ask(authorization="me") == 200
        await app.state.service.stop()

    asyncio.run(main())
