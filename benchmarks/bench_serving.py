# SPDX-License-Identifier: Apache-2.0
"""Closed-loop HTTP load on ``seqrec-fast serve``, beside the same app over ONNX Runtime and faiss.

Each server is a process of its own and so is the client, which keeps so many connections busy: each
sends its next request when the answer to its last one has come. The rival is the very same FastAPI
app, micro-batching included, around the same weights exported to ONNX Runtime with faiss's
IndexFlatIP for the search; short trials say with which batches and threads it is quickest, and it
runs with those.

``python -m benchmarks.bench_serving --seconds 10`` prints a table and writes
``benchmarks/results/serving.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from benchmarks.random_bundles import random_bundle
from seqrec_fast import bundle as bundles
from seqrec_fast.bundle import Bundle
from seqrec_fast.engine import Recommender

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
BODIES = 1000
TRIAL = 3.0


# --------------------------------------------------------------------------------- servers


def make_bundle(model: str, items: int, events: int) -> Bundle:
    """A model of the usual size with random weights."""
    return random_bundle(
        model,
        range(items),
        events,
        norms=0.0,
        popularity=np.ones(items, np.int64),
        dim=64 if model == "sasrec" else 128,
        temperature=None,
    )


class Found(NamedTuple):
    """A recommendation's fields."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    unknown: tuple[Any, ...] = ()
    fallback: str | None = None
    unknown_filters: tuple[Any, ...] = ()


class Rival:
    """A recommender's interface over ONNX Runtime and faiss, for known ids and without filters."""

    version = None

    def __init__(self, bundle: Bundle, threads: int) -> None:
        from seqrec_fast.benchmarks.engine_rivals import rival_stacks

        stacks, missing = rival_stacks(
            bundle, threads, runtimes=["onnxruntime"], searches=["faiss"]
        )
        if not stacks:
            raise SystemExit(f"the rival cannot run here: {missing}")
        (self._stack,) = stacks.values()
        self._items = bundle.items
        self.num_items = len(bundle.items)

    def info(self) -> dict[str, Any]:
        return {"model": "rival"}

    def recommend(
        self, histories: Any, k: int, exclude_seen: bool, allow: Any, deny: Any
    ) -> list[Found]:
        assert allow is None
        assert deny is None
        flat = self._items.encode(np.concatenate([np.array(h, np.int64) for h in histories]))
        rows = np.split(flat, np.cumsum([len(h) for h in histories])[:-1])
        scores, ids = self._stack(rows, k, exclude_seen=exclude_seen)
        names = self._items.decode(ids.reshape(-1)).reshape(ids.shape)
        return [Found(*row) for row in zip(names, scores, strict=True)]


def serve_rival(path: str, workers: int, threads: int, max_batch: int) -> None:
    """Runs in a process of its own."""
    from seqrec_fast.serving import create_app
    from seqrec_fast.serving.server import serve

    recommender: Any = Rival(bundles.load(path), threads)
    app = create_app(recommender, workers=workers, max_batch=max_batch, max_queue=4096)
    serve(
        app,
        host="127.0.0.1",
        port=0,
        grace=0,
        log_level="warning",
        started=lambda url: print(json.dumps({"url": url}), flush=True),
    )


@contextmanager
def server(command: list[str], threads: int = 1) -> Iterator[tuple[str, int]]:
    """A server process: its address and process id; ``threads`` are those of faiss."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process.pid
    finally:
        process.terminate()
        process.wait(30)


class Setting(NamedTuple):
    """How the rival's server runs."""

    workers: int
    threads: int
    max_batch: int

    def flags(self) -> list[str]:
        values = self._asdict().items()
        return [part for n, v in values for part in (f"--{n.replace('_', '-')}", str(v))]


def settings(workers: int) -> list[Setting]:
    """What may suit the rival: each request alone, batches, or both cores for one batch."""
    return [Setting(workers, 1, 1), Setting(workers, 1, 64), Setting(1, 2, 64)]


# ---------------------------------------------------------------------------------- client


class _Connection(asyncio.Protocol):
    """Sends the next request when an answer has come; notes how long it took."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._read = b""
        self._begin = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        load = self._load
        load.sent += 1
        self._begin = time.perf_counter()
        self._transport.write(load.requests[load.sent % len(load.requests)])

    def data_received(self, data: bytes) -> None:
        self._read += data
        head = self._read.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._read.find(b"content-length: ") + 16
        length = int(self._read[at : self._read.find(b"\r", at)])
        if len(self._read) < head + 4 + length:
            return
        load = self._load
        now = time.perf_counter()
        load.seconds.append(now - self._begin)
        load.errors += not self._read.startswith(b"HTTP/1.1 200")
        self._read = b""
        if now < load.until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self._load.until:
            self._load.errors += 1
        self._load.left()


class Load:
    """Some connections at work until a time."""

    def __init__(self, requests: list[bytes], clients: int, seconds: float) -> None:
        self.requests = requests
        self.until = time.perf_counter() + seconds
        self.seconds: list[float] = []
        self.errors = self.sent = 0
        self._open = clients
        self._done = asyncio.Event()

    def left(self) -> None:
        self._open -= 1
        if not self._open:
            self._done.set()

    async def run(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self._open):
            await loop.create_connection(lambda: _Connection(self), host, port)
        await self._done.wait()


def client(url: str, clients: int, seconds: float, bodies: list[str]) -> dict[str, Any]:
    """Runs in a process of its own; returns the figures of the load."""
    import uvloop

    host, port = url.removeprefix("http://").split(":")
    requests = [
        f"POST /recommend HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        .encode()
        for body in bodies
    ]  # fmt: skip

    async def main() -> Load:
        load = Load(requests, clients, seconds)
        await load.run(host, int(port))
        return load

    begin = time.perf_counter()
    load = uvloop.run(main())
    spent = time.perf_counter() - begin
    p50, p99, most = np.percentile(load.seconds, [50, 99, 100]) * 1e3
    return {
        "requests": len(load.seconds),
        "errors": load.errors,
        "requests_per_second": round(len(load.seconds) / spent, 1),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "max_ms": round(float(most), 3),
    }


# --------------------------------------------------------------------------------- figures


def scraped(url: str) -> dict[str, float]:
    """Sums and counts of ``/metrics``."""
    found: dict[str, float] = {}
    for line in urlopen(f"{url}/metrics").read().decode().splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and "_bucket" not in name:
            found[name.partition("{")[0]] = float(value)
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(url: str, pid: int, clients: int, seconds: float, bodies: Path) -> dict[str, Any]:
    """One run: what the client saw, and where the server's time went."""
    command = [sys.executable, "-m", "benchmarks.bench_serving", "--client", url]
    command += ["--bodies", str(bodies), "--clients", str(clients)]

    def once(duration: float) -> dict[str, Any]:
        done = subprocess.run(
            [*command, "--seconds", str(duration)], stdout=subprocess.PIPE, check=True, cwd=ROOT
        )
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures

    once(1.0)  # warm
    before, cpu = scraped(url), cpu_seconds(pid)
    figures = once(seconds)
    after, used = scraped(url), cpu_seconds(pid) - cpu

    def mean(name: str, by: str = "") -> float:
        total = after[f"{name}_sum"] - before[f"{name}_sum"]
        return total / max(1.0, after[f"{by or name}_count"] - before[f"{by or name}_count"])

    outside = mean("seqrec_http_outside_engine_seconds")
    return {
        "clients": clients,
        **figures,
        "outside_engine_us": round(1e6 * outside, 1),
        "queue_us": round(1e6 * mean("seqrec_queue_seconds"), 1),
        "engine_us_per_batch": round(1e6 * mean("seqrec_engine_seconds"), 1),
        "users_per_batch": round(mean("seqrec_batch_users"), 2),
        "server_cpu_us_per_request": round(1e6 * used / figures["requests"], 1),
    }


def write_bodies(path: Path, items: int, events: int, k: int) -> None:
    rng = np.random.default_rng(1)
    bodies = [
        json.dumps({"history": rng.integers(0, items, events).tolist(), "k": k})
        for _ in range(BODIES)
    ]
    path.write_text(json.dumps(bodies))


def check(url: str, body: str, bundle: Path) -> None:
    """The server's answer is the library's."""
    asked = json.loads(body)
    found = json.loads(urlopen(f"{url}/recommend", body.encode()).read())
    expected = Recommender.load(bundle).recommend([asked["history"]], k=asked["k"])[0]
    np.testing.assert_allclose(found["scores"], expected.scores, rtol=1e-4, atol=1e-4)
    same = np.mean(np.array(found["items"]) == expected.items)
    assert same > 0.95, f"{url}: only {same:.0%} of the items agree"  # near ties may change places


def main() -> int:
    """Runs the benchmark; exit code 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", choices=("sasrec", "gru", "lstm"), default="sasrec")
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    for hidden in ("--client", "--bodies", "--rival"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--max-batch", type=int, default=64, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        bodies = json.loads(Path(arguments.bodies).read_text())
        print(json.dumps(client(arguments.client, arguments.clients[0], arguments.seconds, bodies)))
        return 0
    if arguments.rival:
        serve_rival(arguments.rival, arguments.workers, arguments.threads, arguments.max_batch)
        return 0

    with tempfile.TemporaryDirectory(prefix="bench_serving-") as folder:
        path, bodies_path = Path(folder) / "bundle", Path(folder) / "bodies.json"
        bundles.save(make_bundle(arguments.model, arguments.items, arguments.events), path)
        write_bodies(bodies_path, arguments.items, arguments.events, arguments.k)
        workers = ["--workers", str(arguments.workers)]
        ours = [sys.executable, "-m", "seqrec_fast.cli.main", "serve", str(path), "--port", "0"]
        ours += ["--json", "--threads", "1", "--grace", "0", *workers]
        module = [sys.executable, "-m", "benchmarks.bench_serving"]
        rival = [*module, "--rival", str(path)]
        runs: list[dict[str, Any]] = []
        for clients in arguments.clients:
            trials: dict[Setting, float] = {}
            for setting in settings(arguments.workers):
                with server([*rival, *setting.flags()], setting.threads) as (url, pid):
                    tried = load(url, pid, clients, min(TRIAL, arguments.seconds), bodies_path)
                    trials[setting] = tried["requests_per_second"]
            best = max(trials, key=lambda setting: trials[setting])
            commands = {
                "seqrec-fast": (ours, 1),
                "onnxruntime+faiss": ([*rival, *best.flags()], best.threads),
            }
            for name, (command, threads) in commands.items():
                with server(command, threads) as (url, pid):
                    check(url, json.loads(bodies_path.read_text())[0], path)
                    figures = load(url, pid, clients, arguments.seconds, bodies_path)
                runs.append({"stack": name, **figures})
                if name != "seqrec-fast":
                    runs[-1]["setting"] = best._asdict()
                    runs[-1]["trials"] = [
                        {**setting._asdict(), "requests_per_second": found}
                        for setting, found in trials.items()
                    ]
                print(json.dumps(runs[-1]), flush=True)
            ratio = runs[-2]["requests_per_second"] / runs[-1]["requests_per_second"]
            runs[-2]["throughput_ratio"] = round(ratio, 3)
            print(f"{clients} clients: {ratio:.2f} times the rival's throughput", flush=True)
    result = {
        "what": "closed-loop POST /recommend of one history, from another process",
        **{name: getattr(arguments, name) for name in ("model", "items", "events", "k", "workers")},
        "seconds": arguments.seconds,
        "runs": runs,
        "machine": describe_machine(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(run["errors"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())
