# SPDX-License-Identifier: Apache-2.0
"""Threads that are inside the engine when the interpreter ends must not take the process down."""

from __future__ import annotations

import subprocess
import sys

import pytest

_CODE = """
import random, sys, threading, time
from tests.engine.conftest import make_bundle
from seqrec_fast.engine import Recommender

rec = Recommender(make_bundle(sys.argv[1]), threads=2)
sessions = rec.sessions(100)
ids = rec.item_ids.tolist()


def work():
    while True:
        rec.recommend([ids] * 50, 5)
        rec.embed([ids] * 50)
        sessions.observe(random.randrange(50), ids[0])
        sessions.observe_many(list(range(50)), ids[:50])
        sessions.recommend(random.randrange(50))


for _ in range(6):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""


@pytest.mark.parametrize("model", ["sasrec", "gru"])
def test_daemon_threads_at_the_end(model: str) -> None:
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", _CODE, model], capture_output=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b"")
