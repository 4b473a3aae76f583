# SPDX-License-Identifier: Apache-2.0
"""Live users: an event beside encoding the history anew, a million users, ten million events.

    python -m benchmarks.bench_sessions           # tables, and benchmarks/results/sessions.json

Calls are those of Python, raw ids in and out, at 12,101 items. The state of a single user lies in
the caches; those of many who take turns come from memory. Before a time counts, the embeddings
after single events must equal those of the whole history.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.random_bundles import item_names, random_bundle
from seqrec_fast.engine import Recommender, Sessions

RESULT = Path(__file__).parent / "results" / "sessions.json"
ITEMS, K = 12_101, 100
CASES = [("gru", 50), ("gru", 200), ("lstm", 200), ("sasrec", 50), ("sasrec", 200)]
MANY = 400


def times(call: Callable[[int], Any], repeats: int) -> dict[str, float]:
    """Median and 99th percentile in microseconds."""
    taken = []
    for turn in range(repeats):
        began = time.perf_counter_ns()
        call(turn)
        taken.append((time.perf_counter_ns() - began) / 1e3)
    return {"p50": statistics.median(taken), "p99": float(np.quantile(taken, 0.99))}


def check(sessions: Sessions, rec: Recommender, history: list[str]) -> None:
    """Raises unless single events give what the whole history gives."""
    for item in history:
        sessions.observe("check", item)
    mine, theirs = sessions.embed(["check"]), rec.embed([history])
    if not np.allclose(mine, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max()):
        raise SystemExit(f"embeddings differ by {np.abs(mine - theirs).max():.1e}")
    sessions.forget("check")


def case(model: str, length: int, repeats: int) -> list[dict[str, Any]]:
    """One model and one length of history, for one user and for many, by hop."""
    rec = Recommender(random_bundle(model, item_names(0, ITEMS), length), threads=1)
    ids = rec.item_ids.tolist()
    random = np.random.default_rng(0)
    history = [ids[n] for n in random.integers(0, len(ids), length)]
    found = []
    for hop in [1, length // 5] if model == "sasrec" else [1]:
        for users in (1, MANY):
            sessions = rec.sessions(1000, hop=hop)
            if hop == 1:
                check(sessions, rec, history)
            start = length - 30
            for user in range(users):
                sessions.observe_many([user] * start, history[:start])

            def observe(turn: int, s: Sessions = sessions, n: int = users) -> None:
                s.observe(turn % n, history[turn % length])

            def both(turn: int, s: Sessions = sessions, n: int = users) -> None:
                s.observe(turn % n, history[turn % length])
                s.recommend(turn % n, K)

            entry: dict[str, Any] = {"model": model, "length": length, "hop": hop, "users": users}
            entry["encode"] = times(lambda _: rec.embed([history]), repeats)
            entry["observe"] = times(observe, min(12 * users, repeats))
            entry["ratio"] = entry["encode"]["p50"] / entry["observe"]["p50"]
            entry["observe_recommend"] = times(both, min(12 * users, repeats))
            for user in range(users):
                sessions.observe_many([user] * 40, history[:40])
            entry["past_window_observe"] = times(observe, repeats)
            entry["past_window_observe_recommend"] = times(both, repeats)
            found.append(entry)
    return found


def million(users: int, events: int, threads: int) -> dict[str, Any]:
    """GRU, H 128: all users arrive, then events of random users until there are enough."""
    rec = Recommender(random_bundle("gru", item_names(0, ITEMS), 50), threads=threads)
    sessions = rec.sessions(users, remember=0)
    ids = rec.item_ids
    random = np.random.default_rng(0)
    keys = random.permutation(users).astype(np.int64) * 977
    seconds, done = 0.0, 0
    while done < events:
        some = keys if done == 0 else keys[random.integers(0, users, min(users, events - done))]
        items = ids[random.integers(0, len(ids), len(some))]
        began = time.perf_counter()
        done += sessions.observe_many(some, items)
        seconds += time.perf_counter() - began
    stats = sessions.stats()
    state = 4 * rec._current.encoder.native.state_size
    found: dict[str, Any] = {
        "users": stats.users,
        "events": stats.observes,
        "threads": threads,
        "state_bytes": state,
        "bytes_a_user": stats.bytes / stats.users,
        "bar_bytes": 1.2 * state + 64,
        "observes_a_second": stats.observes / seconds,
    }
    one = keys[:20_000].tolist()
    found["observe_one"] = times(lambda n, s=sessions: s.observe(one[n], ids[7]), len(one))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sessions"
        began = time.perf_counter()
        sessions.save(path)
        found["save_seconds"] = time.perf_counter() - began
        found["file_bytes_a_user"] = path.stat().st_size / stats.users
        began = time.perf_counter()
        again = rec.load_sessions(path, users, remember=0)
        found["load_seconds"] = time.perf_counter() - began
        if len(again) != users:
            raise SystemExit("users were lost")
    return found


def main() -> None:
    """Prints the tables and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", choices=["cases", "million"], help="leave the other part as it is"
    )
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    results["machine"] = describe_machine()
    if options.only != "million":
        results["cases"] = [e for m, n in CASES for e in case(m, n, options.repeats)]
        names = ("encode", "observe", "observe_recommend", "past_window_observe_recommend")
        print("medians, µs".ljust(34), *(name.rjust(30) for name in names))
        for entry in results["cases"]:
            title = (
                f"{entry['model']} {entry['length']}, hop {entry['hop']}, {entry['users']} users"
            )
            print(title.ljust(34), *(f"{entry[name]['p50']:30.1f}" for name in names))
    if options.only != "cases":
        results["million"] = million(options.users, options.events, options.threads)
        for name, value in results["million"].items():
            print(f"{name:24} {value}")
    results["load"] = os.getloadavg()[0]
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
