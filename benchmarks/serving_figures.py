# SPDX-License-Identifier: Apache-2.0
"""The tables of serving, written from ``benchmarks/results``; see :mod:`benchmarks.figures`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["engine_table", "serving_rows", "serving_table", "sessions_table"]

_OURS = "seqrec_fast"
_WORK = {
    "sasrec-1x50": "SASRec, one user, 50 events",
    "gru-1x200": "GRU H 128, one user, 200 events",
    "lstm-1x200": "LSTM H 128, one user, 200 events",
    "sasrec-256xbeauty": "SASRec, 256 users, lengths as in Beauty",
    "sasrec-256x50": "SASRec, 256 users, 50 events each",
}


def _read(results: Path, name: str) -> Any:
    path = results / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _where(found: Any) -> str:
    machine = found["machine"]
    return f"\nMeasured on {machine['cpu']}, {machine['cores']} cores, {machine['date']}.\n"


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.3g} µs"
    return f"{microseconds / 1000:.3g} ms"


def engine_table(results: Path) -> str:
    """Requests beside the best rival, start and clients."""
    found = _read(results, "engine")
    if found is None:
        return "None yet.\n"
    rows = []
    for row in found["requests"]:
        mine, rival = (row["microseconds"][name] for name in (_OURS, row["best_rival"]))
        rows.append(
            [
                _WORK[row["case"]],
                str(row["threads"]),
                _time(mine["p50"]),
                _time(mine["p99"]),
                f"{_time(rival['p50'])} ({row['best_rival']})",
                f"{1 / row['ratio']:.2f} x",
            ]
        )
    start, clients = found["start"], found["clients"]
    return (
        _table(["work", "threads", "p50", "p99", "best rival, p50", "as fast"], rows)
        + f"\nImport, load and first recommendation in a fresh process: "
        f"{start['milliseconds']:.0f} ms, {start['resident_mib']:.0f} MiB resident. Two client "
        f"threads against one: {clients['ratio']:.2f} x the requests.\n" + _where(found)
    )


def serving_table(results: Path) -> str:
    """HTTP under closed-loop load."""
    found = _read(results, "serving")
    if found is None:
        return "None yet.\n"
    rows = [
        [
            str(run["clients"]),
            run["stack"],
            f"{run['requests_per_second']:,.0f}",
            f"{run['p50_ms']:.2f} ms",
            f"{run['p99_ms']:.2f} ms",
            str(run["errors"]),
            f"{run['throughput_ratio']:.2f} x" if "throughput_ratio" in run else "",
        ]
        for run in found["runs"]
    ]
    header = ["clients", "stack", "requests/s", "p50", "p99", "errors", "throughput"]
    return _table(header, rows) + _where(found)


def sessions_table(results: Path) -> str:
    """Events and requests of live users."""
    found = _read(results, "sessions")
    if found is None:
        return "None yet.\n"
    rows = [
        [
            f"{case['model']}, {case['length']} events, hop {case['hop']}",
            str(case["users"]),
            _time(case["encode"]["p50"]),
            f"{_time(case['observe']['p50'])}, 1/{case['ratio']:.0f}",
            _time(case["observe_recommend"]["p50"]),
            _time(case["past_window_observe_recommend"]["p50"]),
        ]
        for case in found["cases"]
    ]
    header = ["model", "users in turn", "re-encoding", "observe", "observe + recommend"]
    million = found["million"]
    return (
        _table([*header, "the same past the window"], rows)
        + f"\n{million['users']:,} GRU users (H 128) and {million['events']:,} events by "
        f"`observe_many` on {million['threads']} threads: {million['observes_a_second']:,.0f} "
        f"events a second, {million['bytes_a_user']:.0f} bytes a user, of which "
        f"{million['state_bytes']} are the state. A snapshot takes {million['save_seconds']:.1f} s "
        f"to write and {million['load_seconds']:.1f} s to load, "
        f"{million['file_bytes_a_user']:.0f} bytes a user.\n" + _where(found)
    )


def serving_rows(results: Path) -> list[list[str]]:
    """What the README's first screen shows."""
    rows = []
    engine = _read(results, "engine")
    for row in [] if engine is None else engine["requests"]:
        if row["threads"] == 1 and row["case"] in ("sasrec-1x50", "sasrec-256xbeauty"):
            mine = row["microseconds"][_OURS]["p50"]
            rows.append(
                [
                    f"top-100 of 12,101 items, {_WORK[row['case']]}, one thread",
                    f"{_time(mine)}, {1 / row['ratio']:.1f} x as fast as the best rival "
                    f"({row['best_rival']})",
                    "`python -m benchmarks.bench_engine`",
                ]
            )
    serving = _read(results, "serving")
    rows += [
        [
            f"the same over HTTP, {run['clients']} clients",
            f"{run['requests_per_second']:,.0f} requests/s, {run['throughput_ratio']:.1f} x as "
            "many as the same app over ONNX Runtime + faiss",
            "`python -m benchmarks.bench_serving`",
        ]
        for run in ([] if serving is None else serving["runs"])
        if run.get("throughput_ratio") and run["clients"] > 1
    ]
    live = _read(results, "sessions")
    if live is not None:
        million = live["million"]
        rows.append(
            [
                f"live GRU users, {million['users']:,} of them",
                f"{million['observes_a_second']:,.0f} events/s, "
                f"{million['bytes_a_user']:.0f} bytes a user",
                "`python -m benchmarks.bench_sessions`",
            ]
        )
    return rows
