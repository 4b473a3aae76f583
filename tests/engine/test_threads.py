# SPDX-License-Identifier: Apache-2.0
"""Many threads on one Recommender: models that take turns meanwhile, forks, threads of a call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from seqrec_fast.engine import Recommender
from tests.engine.conftest import ITEMS, make_bundle


def storm(work: Callable[[int, threading.Event], None], beside: Callable[[], Any]) -> None:
    """Runs ``work`` in six threads while ``beside`` runs here; raises what any of them raised."""
    stop, faults = threading.Event(), []

    def guarded(number: int) -> None:
        try:
            work(number, stop)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    try:
        beside()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if faults:
        raise faults[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_every_answer_is_that_of_one_of_two_models(threads: int) -> None:
    bundles = [make_bundle("sasrec"), make_bundle("gru")]
    rec = Recommender(bundles[0], threads=threads)
    random = np.random.default_rng(0)
    rows = [[f"i{n}" for n in random.integers(0, ITEMS, random.integers(1, 9))] for _ in range(40)]
    right = {}
    for bundle in bundles:
        alone = Recommender(bundle, threads=threads)
        right[alone.version] = [a.items.tolist() for a in alone.recommend(rows, 5)]
    done, seen = [0] * 6, set()

    def work(number: int, stop: threading.Event) -> None:
        while not stop.is_set():
            found = rec.recommend(rows, 5)
            versions = {answer.version for answer in found}
            assert len(versions) == 1
            assert [answer.items.tolist() for answer in found] == right[versions.pop()]
            seen.add(found[0].version)
            done[number] += 1

    def swaps() -> None:
        end = time.monotonic() + 1.0
        turn = 0
        while time.monotonic() < end:
            turn += 1
            rec.swap(bundles[turn % 2])

    storm(work, swaps)
    assert min(done) > 0
    assert seen == set(right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX alone")
def test_a_child_goes_on_after_a_fork_amid_requests_and_swaps() -> None:
    bundles = [make_bundle("sasrec"), make_bundle("gru")]
    rec = Recommender(bundles[0], threads=2)
    row = ["i1", "i2"]

    def work(number: int, stop: threading.Event) -> None:
        while not stop.is_set():
            rec.recommend([row] * 20, 5)
            if number == 0:
                rec.swap(bundles[int(time.monotonic() * 1000) % 2])

    def forks() -> None:
        for _ in range(8):
            time.sleep(0.01)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(20)
                    assert len(rec.recommend([row] * 20, 5)) == 20
                    assert rec.version
                    rec.swap(bundles[1])
                    assert len(rec.recommend([row], 5)[0]) == 5
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    storm(work, forks)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="has a GIL")
def test_the_module_does_not_bring_the_gil_back() -> None:
    code = "import sys; import seqrec_fast._C; sys.exit(sys._is_gil_enabled())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
