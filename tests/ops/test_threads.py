# SPDX-License-Identifier: Apache-2.0
"""Operations called by many Python threads at once, in children of forks, and at the very end."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from seqrec_fast import JaggedBatch, native, nn, ops

GENERATOR = torch.Generator().manual_seed(0)
OFFSETS = torch.tensor([0, 100, 100, 101, 400])
HEADS = torch.randn(400, 2, 32, generator=GENERATOR)
X = torch.randn(400, 64, generator=GENERATOR)
SQUARE = torch.randn(64, 64, generator=GENERATOR)
ITEMS = torch.randn(20_000, 64, generator=GENERATOR)
TARGETS = torch.randint(0, 3000, (400,), generator=GENERATOR)
LAYER = nn.GRU(64, 64)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    return torch.autograd.grad(function(x).square().sum(), x)[0]


#: each large enough to be split among threads
WORK: list[Callable[[], Tensor]] = [
    lambda: ops.attention(HEADS, HEADS, HEADS, OFFSETS),
    lambda: gradient(lambda x: ops.linear_cross_entropy(x, ITEMS[:3000], TARGETS), X),
    lambda: ops.score_topk(X[:50], ITEMS, k=20)[0],
    lambda: LAYER(JaggedBatch(X, OFFSETS))[0].values.detach(),
    lambda: gradient(lambda x: ops.hstu_attention(x, x, x, OFFSETS, normaliser=9.0), HEADS),
    lambda: gradient(lambda x: ops.feed_forward(x, SQUARE, SQUARE[0], SQUARE, SQUARE[0]), X),
]


@pytest.fixture
def expected() -> Iterator[list[Tensor]]:
    """What each work gives on one thread; the number of threads is restored."""
    before = native.get_num_threads()
    native.set_num_threads(1)
    yield [work() for work in WORK]
    native.set_num_threads(before)


def work_at_random(
    seed: int, times: int, expected: list[Tensor], kinds: tuple[int, ...] = tuple(range(len(WORK)))
) -> None:
    draw = random.Random(seed)
    for _ in range(times):
        native.set_num_threads(draw.choice([1, 2, 3, 8]))
        number = draw.choice(kinds)
        # shares of the cross-entropy are added up in the order of the threads
        torch.testing.assert_close(WORK[number](), expected[number], rtol=1e-4, atol=1e-6)


def test_many_threads_of_many_minds(expected: list[Tensor]) -> None:
    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(work_at_random, seed, 12, expected) for seed in range(12)]:
            done.result()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_while_another_thread_works(expected: list[Tensor]) -> None:
    other = threading.Thread(target=work_at_random, args=(1, 60, expected))
    other.start()
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                # torch does not always allow a backward pass in a child
                work_at_random(2, 6, expected, kinds=(0, 2, 3))
                code = 0
            finally:
                os._exit(code)
        deadline = time.monotonic() + 60
        while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, "the child hangs"
            time.sleep(0.005)
        assert found[1] == 0
    other.join()


def test_the_end_of_the_interpreter_while_threads_work() -> None:
    """Daemon threads come back from a kernel when there is no interpreter to come back to."""
    code = """
import sys, threading, time
import numpy as np
from seqrec_fast import native
items = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
def search():
    while True:
        native.score_topk(items[:20], items, 10, threads=2)
for _ in range(4):
    threading.Thread(target=search, daemon=True).start()
time.sleep(0.2)
sys.exit(0)
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
