# SPDX-License-Identifier: Apache-2.0
"""A model that live sessions cannot hold is refused while they live, and put in place after."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from seqrec_fast.engine import Recommender
from seqrec_fast.errors import InputError
from tests.engine.conftest import make_bundle


def least_memory(model: str) -> int:
    """Bytes that sessions of one user need."""
    rec = Recommender(make_bundle(model), threads=1)
    refused, enough = 0, 1 << 20
    while enough - refused > 1:
        memory = (refused + enough) // 2
        try:
            rec.sessions(1, memory=memory)
            enough = memory
        except InputError:
            refused = memory
    return enough


def test_a_model_that_live_sessions_cannot_hold_is_not_swapped_in() -> None:
    needed = least_memory("sasrec")
    assert least_memory("gru") < needed
    rec = Recommender(make_bundle("gru"), threads=1)
    roomy, narrow = rec.sessions(1, memory=needed), rec.sessions(1, memory=needed - 1)
    for sessions in (roomy, narrow):
        sessions.observe("anna", "i1")
    version, before = rec.version, narrow.embed(["anna"])
    with pytest.raises(
        InputError,
        match=rf"swap: live sessions can't .* needs {needed} bytes.*; end those sessions",
    ):
        rec.swap(make_bundle("sasrec"))
    assert rec.version == version
    assert (narrow.embed(["anna"]) == before).all()
    assert narrow.observe("anna", "i2")
    other = make_bundle("gru")
    other.tensors["projection.bias"] = other.tensors["projection.bias"] + 1
    rec.swap(other)  # one that fits
    assert narrow.events("anna") == 2
    del narrow, sessions
    rec.swap(make_bundle("sasrec"))
    assert roomy.history("anna").tolist() == ["i1"]
    with pytest.raises(InputError, match="memory: one user"):
        rec.sessions(1, memory=needed - 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX alone")
def test_a_child_swaps_after_a_fork_amid_a_swap() -> None:
    rec = Recommender(make_bundle("gru"), threads=1)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with rec._followers.lock:
            held.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            rec.swap(make_bundle("sasrec"))
            rec.sessions(10).observe("anna", "i1")
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go_on.set()
    thread.join()
    assert status == 0
