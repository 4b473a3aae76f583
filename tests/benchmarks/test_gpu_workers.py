# SPDX-License-Identifier: Apache-2.0
"""Jobs of ``bench gpu`` in processes that end, hang or are spoilt."""

from __future__ import annotations

from typing import Any

import pytest

from seqrec_fast.benchmarks import gpu_workers
from seqrec_fast.benchmarks.gpu_workers import Lost, children
from tests.benchmarks.gpu_jobs import Unable, Worker


def answers(jobs: list[tuple[str, str]], **options: Any) -> list[Any]:
    return list(children(Worker, jobs, group=lambda job: job[0], **options))


def test_one_process_answers_until_it_is_lost() -> None:
    said = ["a", "b", "ends", "c", "spoils", "d", "raises", "e"]
    first, second, ended, third, spoils, fourth, raised, fifth = answers([("x", s) for s in said])
    assert first[1] == second[1]
    assert ended == Lost("its process ended with code 7")
    assert third[1] == spoils[1] != first[1]
    assert fourth[1] != third[1]
    assert raised == Lost("ValueError: a bad job")
    assert fifth == ("e", fifth[1])


def test_what_never_answers_is_ended() -> None:
    hung, after = answers([("x", "hangs"), ("x", "a")], patience=3.0)
    assert hung == Lost("no answer within 3 s")
    assert after[0] == "a"


def test_a_group_that_loses_its_processes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_workers, "LIVES", 1)
    killed, left, other = answers([("x", "is killed"), ("x", "a"), ("y", "b")])
    assert killed == Lost("its process ended with SIGKILL")
    assert left == Lost("not tried after 1 lost processes")
    assert other[0] == "b"


def test_without_a_device_every_job_says_so() -> None:
    assert list(children(Unable, ["a"])) == [Lost("RuntimeError: no device")]


def test_nothing_is_started_for_no_jobs() -> None:
    assert list(children(Unable, [])) == []
