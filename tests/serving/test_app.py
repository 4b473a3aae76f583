# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast serve`` as a process of its own, asked over real connections."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import bundle as bundles
from seqrec_fast.engine import Recommender
from tests.cli.support import run
from tests.serving.conftest import Server, make_bundle

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
LIMITS = ("--max-k", 50, "--max-body", 4000, "--max-history", 40, "--max-users", 3)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    one = Server(folder, "--threads", 1, "--grace", 0, *LIMITS)
    yield one
    one.end()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, timeout=10) as one:
        yield one


def same(answer: dict[str, Any], expected: Any) -> None:
    assert answer["items"] == expected.items.tolist()
    # A batch adds up in another order than a user alone.
    np.testing.assert_allclose(answer["scores"], expected.scores, rtol=1e-5, atol=1e-5)
    assert tuple(answer["unknown"]) == expected.unknown
    assert tuple(answer["unknown_filters"]) == expected.unknown_filters
    assert answer["fallback"] == expected.fallback


# --------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("history", "options"),
    [
        (["i1", "i2", "i3"], {}),
        (["i1", "nobody knows it", "i3"], {"k": 5}),
        ([], {"k": 7}),
        (["nobody knows it", 17], {"exclude_seen": False}),
        (["i4"], {"k": 20, "deny": ["i5", "i6", "not there"]}),
        (["i4"], {"k": 20, "allow": ["i5", "i6", "i4"], "deny": ["i5"]}),
        (["i4"], {"k": 20, "where": {"title": {"not": ["Title 5", "Title 6"]}}}),
        (["i4"], {"k": 3, "limit": {"title": 1}, "where": None}),
    ],
)
def test_answers_are_those_of_the_recommender(
    client: Any, recommender: Recommender, history: list[Any], options: dict[str, Any]
) -> None:
    response = client.post("/recommend", json={"history": history, **options})
    assert response.status_code == 200, response.text
    same(response.json(), recommender.recommend([history], **options)[0])
    assert "titles" not in response.json()


def test_many_histories_in_one_request_with_titles(client: Any, recommender: Recommender) -> None:
    histories: list[list[str]] = [["i1"], [], ["i9", "i8"]]
    body = {"histories": histories, "k": 4, "titles": True}
    answer = client.post("/recommend", json=body).json()
    expected = recommender.recommend(histories, k=4)
    for one, other in zip(answer["results"], expected, strict=True):
        same(one, other)
        assert tuple(one["titles"]) == other.titles


def test_similar_items(client: Any, recommender: Recommender) -> None:
    answer = client.post("/similar", json={"item": "i7", "k": 6, "titles": True}).json()
    same(answer, recommender.similar_items("i7", 6))
    assert answer["titles"][0].startswith("Title ")
    assert client.post("/similar", json={"item": "nobody"}).json()["unknown"] == ["nobody"]


def test_integer_ids_come_back_as_integers(tmp_path: Path, serve: Callable[..., Server]) -> None:
    bundles.save(make_bundle(text_ids=False), tmp_path / "bundle")
    url = serve(tmp_path / "bundle", "--grace", 0).url
    expected = Recommender.load(tmp_path / "bundle").recommend([[1001, 1002]], k=3)[0]
    for history in ([1001, 1002], ["1001", "1002"]):
        answer = httpx.post(f"{url}/recommend", json={"history": history, "k": 3}).json()
        assert answer["items"] == expected.items.tolist()


@pytest.mark.skipif(not hasattr(Recommender, "sessions"), reason="the engine keeps no users yet")
def test_live_users_get_what_their_history_gets(
    folder: Path, serve: Callable[..., Server], recommender: Recommender
) -> None:
    url = serve(folder, "--sessions", 100, "--ttl", 60, "--grace", 0).url
    rng = np.random.default_rng(2)
    histories: dict[str, list[str]] = {f"user {n}": [] for n in range(5)}
    with httpx.Client(base_url=url, timeout=10) as client:
        for step in range(40):
            user = f"user {rng.integers(5)}"
            items = [f"i{n}" for n in rng.integers(0, 200, rng.integers(1, 3))]
            body = {"item": items[0]} if len(items) == 1 else {"items": items}
            told = client.post(f"/users/{user}/events", json=body).json()
            assert told == {"events": len(items), "known": len(items)}
            histories[user] += items
            if step % 4 == 0:
                answer = client.get(f"/users/{user}/recommendations", params={"k": 7}).json()
                expected = recommender.recommend([histories[user]], k=7)[0]
                np.testing.assert_allclose(answer["scores"], expected.scores, rtol=1e-4, atol=1e-4)
                assert answer["items"] == expected.items.tolist()
        query = {"k": 5, "where": '{"title": {"not": ["Title 5"]}}', "limit": '{"title": 1}'}
        answer = client.get("/users/user 1/recommendations", params=query).json()
        where = {"title": {"not": ["Title 5"]}}
        options: Any = {"where": where, "limit": {"title": 1}}
        expected = recommender.recommend([histories["user 1"]], 5, **options)[0]
        assert answer["items"] == expected.items.tolist()
        for query, message in (
            ({"where": "title=1"}, "where: found 'title=1'; give a JSON object by columns"),
            ({"where": "[1]"}, "where: found a list; give an object by columns of the items"),
            ({"limit": '{"colour": 1}'}, "column 'colour' is not in the item table"),
        ):
            refused = client.get("/users/user 1/recommendations", params=query)
            assert refused.status_code == 422
            assert message in refused.json()["error"]
        assert _value(client.get("/metrics").text, "seqrec_sessions_users") == 5
        assert client.delete("/users/user 0").json() == {"forgotten": True}
        gone = client.get("/users/user 0/recommendations").json()
        assert gone["fallback"] == "popularity"
        # bytes that are no UTF-8 would all read as one user
        for user in ("%FF", "%FE", "a%C3", "%ED%A0%80"):
            for refused in (
                client.post(f"/users/{user}/events", json={"item": "i1"}),
                client.get(f"/users/{user}/recommendations"),
                client.delete(f"/users/{user}"),
            ):
                assert refused.status_code == 422
                assert "user: the id in the path is not UTF-8" in refused.json()["error"]
        for user in ("%EF%BF%BD", "%C3%A9", "\u00e9"):  # what is UTF-8 stays
            told = client.post(f"/users/{user}/events", json={"item": "i1"})
            assert told.json() == {"events": 1, "known": 1}


def test_concurrent_clients_get_their_own_answers(
    server: Server, client: Any, recommender: Recommender
) -> None:
    rng = np.random.default_rng(1)
    asked = [
        {
            "history": [f"i{n}" for n in rng.integers(0, 200, rng.integers(0, 25))],
            "k": int(rng.choice([1, 10])),
            **({"deny": [f"i{n}" for n in range(0, 200, 3)]} if number % 5 == 0 else {}),
        }
        for number in range(150)
    ]

    async def main() -> list[Any]:
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as many:
            return await asyncio.gather(*(many.post("/recommend", json=one) for one in asked))

    for one, response in zip(asked, asyncio.run(main()), strict=True):
        assert response.status_code == 200
        history = one.pop("history")
        same(response.json(), recommender.recommend([history], **one)[0])
    text = client.get("/metrics").text
    assert _value(text, "seqrec_queue_calls_total") < _value(text, "seqrec_queue_requests_total")


def test_where_the_time_goes_is_told(client: Any) -> None:
    response = client.post("/recommend", json={"history": ["i1"]})
    parts = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert list(parts) == ["queue", "engine", "outside"]
    assert all(float(part) >= 0 for part in parts.values())


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "body: not JSON"),
        ("", 400, "body: not JSON"),
        ("[1]", 422, "body: found a list; send one JSON object"),
        ("{}", 422, "body: give either history (one user) or histories"),
        ('{"history": [], "histories": []}', 422, "body: give either"),
        ('{"histroy": []}', 422, "unknown field 'histroy'; known are history"),
        ('{"history": "a,b"}', 422, "history: found a text; give a list of ids"),
        ('{"history": ["a", null]}', 422, "history[1]: found null; an id is a text or a whole"),
        ('{"history": ["a", 1.5]}', 422, "history[1]: found a number with a fraction"),
        ('{"history": ["a", ["b"]]}', 422, "history[1]: found a list"),
        ('{"history": ["a", true]}', 422, "history[1]: found true or false"),
        ('{"histories": [["a"], "b"]}', 422, "histories[1]: found a text"),
        ('{"histories": []}', 422, "histories: 0 users; give 1 to 3 a request"),
        ('{"histories": [[], [], [], []]}', 422, "histories: 4 users; give 1 to 3"),
        ('{"history": [], "k": 0}', 422, "k: found 0; give a whole number from 1 to 50"),
        ('{"history": [], "k": 51}', 422, "k: found 51; give a whole number from 1 to 50"),
        ('{"history": [], "k": "5"}', 422, 'k: found "5"; give a whole number'),
        ('{"history": [], "k": true}', 422, "k: found true"),
        ('{"history": [], "exclude_seen": 1}', 422, "exclude_seen: found 1; give true or false"),
        ('{"history": [], "titles": null}', 422, "titles: found null"),
        ('{"history": [], "deny": "a"}', 422, "deny: found a text"),
        ('{"history": [], "allow": [["a"]]}', 422, "allow[0]: found a list"),
        ('{"history": [], "deadline_ms": 0}', 422, "deadline_ms: found 0; give milliseconds"),
        ('{"history": [' + ",".join("1" * 41) + "]}", 422, "history: 41 ids, at most 40 are"),
    ],
)
def test_bad_requests_are_one_clear_message(
    client: Any, body: str, status: int, message: str
) -> None:
    response = client.post("/recommend", content=body)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize("path", ["/similar"])
def test_bad_requests_for_similar_items(client: Any, path: str) -> None:
    for body, message in (({}, "item: is missing"), ({"item": ["a"]}, "item: found a list")):
        response = client.post(path, json=body)
        assert response.status_code == 422
        assert message in response.json()["error"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [5000, 200_000])
def test_a_body_beyond_the_limit_is_413(server: Server, size: int, chunked: bool) -> None:
    body = b'{"history": ["' + b"x" * size + b'"]}'

    def parts() -> Iterator[bytes]:
        for at in range(0, len(body), 1000):
            yield body[at : at + 1000]

    response = httpx.post(f"{server.url}/recommend", content=parts() if chunked else body)
    assert response.status_code == 413
    assert "at most 4000 are taken" in response.json()["error"]


def test_unknown_paths_and_methods_answer_in_the_same_form(client: Any) -> None:
    for response, status in (
        (client.get("/nothing"), 404),
        (client.get("/recommend"), 405),
        (client.post("/users/u/events", json={"item": "i1"}), 404),  # no sessions
        (client.post("/admin/reload"), 404),  # not allowed
    ):
        assert response.status_code == status
        assert "error" in response.json()


# --------------------------------------------------------------------------- operation


def _value(text: str, name: str) -> float:
    from prometheus_client.parser import text_string_to_metric_families

    values = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]
    assert values, name
    return float(sum(values))


def test_metrics_are_prometheus_text_and_count(client: Any) -> None:
    before = client.get("/metrics")
    assert before.headers["content-type"].startswith("text/plain; version=")
    for _ in range(5):
        client.post("/recommend", json={"histories": [["i1"], ["i2"]]})
    client.post("/recommend", content="{")
    after = client.get("/metrics").text

    def grown(name: str) -> float:
        return _value(after, name) - _value(before.text, name)

    assert grown("seqrec_http_requests_total") == 6
    assert grown("seqrec_http_seconds_count") == 6
    assert grown("seqrec_queue_requests_total") == 5
    assert grown("seqrec_queue_users_total") == 10
    assert grown("seqrec_batch_users_sum") == 10
    assert grown("seqrec_http_outside_engine_seconds_count") == 5
    assert grown("seqrec_engine_seconds_sum") > 0
    assert _value(after, "seqrec_ready") == 1
    assert 'model="sasrec"' in after


def test_health_and_readiness(client: Any) -> None:
    assert client.get("/healthz").json() == {"status": "live"}
    told = client.get("/readyz").json()
    assert told["status"] == "ready"
    assert told["items"] == 200


def test_the_schema_describes_what_is_sent_and_answered(client: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    described = client.get("/openapi.json").json()
    assert {"/recommend", "/similar", "/healthz", "/readyz", "/metrics"} == set(described["paths"])
    body = {"history": ["i1"], "k": 3, "titles": True, "deny": None}
    many = {"histories": [["i1"], ["what"]], "deadline_ms": 500}

    def check(name: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    check("Ask", body)
    check("Ask", many)
    check("Answer", client.post("/recommend", json=body).json())
    check("Answers", client.post("/recommend", json=many).json())
    check("AskSimilar", {"item": "i1"})
    check("Answer", client.post("/similar", json={"item": "i1"}).json())
    check("Error", client.post("/recommend", json={}).json())
    for wrong in ({}, {"history": [], "histories": []}, {"history": [], "k": 51}):
        with pytest.raises(jsonschema.ValidationError):
            check("Ask", wrong)


def test_the_page_stands_alone(client: Any) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for asset in ("http://", "https://", "src=", "@import", "url("):
        assert asset not in response.text


def test_sigterm_drains_without_losing_a_request(
    folder: Path, serve: Callable[..., Server]
) -> None:
    server = serve(folder, "--grace", 2)
    lost: list[Any] = []
    answered = [0]
    draining = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=server.url, timeout=10) as client:
            while not draining.is_set():
                try:
                    response = client.post("/recommend", json={"history": ["i1", "i2"]})
                except httpx.HTTPError as error:
                    lost.append(error)
                    return
                if response.status_code != 200:
                    lost.append(response)
                answered[0] += 1

    clients = [threading.Thread(target=send) for _ in range(6)]
    for one in clients:
        one.start()
    time.sleep(0.3)
    begin = time.perf_counter()
    server.signal(signal.SIGTERM)
    states = set()
    with httpx.Client(base_url=server.url, timeout=10) as watch:
        for _ in range(200):  # what a load balancer does
            response = watch.get("/readyz")
            states.add((response.status_code, response.json()["status"]))
            if response.status_code == 503:
                break
        assert watch.get("/healthz").status_code == 200
        answer = watch.post("/recommend", json={"history": ["i1"]})
        assert answer.status_code == 200  # still served
        assert answer.headers["connection"] == "close"
    draining.set()
    for one in clients:
        one.join()
    code, errors = server.wait()
    assert (503, "draining") in states
    assert lost == []
    assert answered[0] > 20
    assert code == 0, errors
    assert time.perf_counter() - begin > 1.9
    assert "Traceback" not in errors
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_the_log_of_requests_leaves_standard_output_alone(
    folder: Path, serve: Callable[..., Any]
) -> None:
    server = serve(folder, "--grace", 0, "--json", "--log-level", "debug")
    assert httpx.get(server.url + "/healthz").status_code == 200
    server.signal()
    out, errors = server.process.communicate(timeout=30)
    assert out == ""
    assert "/healthz" in errors


def test_sigint_ends_it_as_well(folder: Path, serve: Callable[..., Server]) -> None:
    server = serve(folder, "--grace", 0)
    server.signal(signal.SIGINT)
    assert server.wait() == (0, "")


def test_a_new_bundle_is_taken_on_sighup_and_on_request(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    path = tmp_path / "bundle"
    bundles.save(make_bundle(seed=1), path)
    server = serve(path, "--allow-reload", "--grace", 0)

    def served() -> Any:
        return httpx.post(f"{server.url}/recommend", json={"history": ["i1"], "k": 5}).json()

    def expected() -> Any:
        return Recommender.load(path).recommend([["i1"]], k=5)[0].items.tolist()

    assert served()["items"] == expected()
    bundles.save(make_bundle(seed=2), path)
    assert httpx.post(f"{server.url}/admin/reload").status_code == 200
    assert served()["items"] == expected()
    bundles.save(make_bundle(seed=3), path)
    server.signal(signal.SIGHUP)
    for _ in range(100):
        if served()["items"] == expected():
            break
        time.sleep(0.05)
    assert served()["items"] == expected()
    # A damaged one is refused, and the old one goes on.
    good = expected()
    (path / "weights.safetensors").write_bytes(b"nonsense")
    response = httpx.post(f"{server.url}/admin/reload")
    assert response.status_code == 422
    assert "weights.safetensors" in response.json()["error"]
    assert served()["items"] == good


# --------------------------------------------------------------------------- the command


def test_the_command_refuses_bad_input_in_one_line(folder: Path, tmp_path: Path) -> None:
    import socket

    taken = socket.create_server(("127.0.0.1", 0))
    for arguments, message in (
        ((tmp_path / "nothing",), "nothing"),
        ((folder, "--port", "70000"), "--port: at most 65535"),
        ((folder, "--port", str(taken.getsockname()[1])), "--port: 127.0.0.1:"),
        ((folder, "--ttl", "5"), "--ttl: holds for live users; give --sessions too"),
        ((folder, "--sessions", "5", "--ttl", "-1"), "--ttl: must be above 0"),
        ((folder, "--batch-window-ms", "-1"), "--batch-window-ms: must not be negative"),
        ((folder, "--max-k", "0"), "--max-k: expected a whole number of at least 1"),
        ((folder, "--log-level", "loud"), "--log-level: invalid choice"),
    ):
        done = run("serve", *arguments)
        assert done.code == 2, arguments
        assert message in done.err
        assert done.err.count("\n") == 1
    taken.close()


def test_a_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith("seqrec_fast.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = run("serve", folder)
    assert done.code == 2
    assert "pip install 'seqrec-fast[serve]'" in done.err
    assert done.err.count("\n") == 1
