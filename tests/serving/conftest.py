# SPDX-License-Identifier: Apache-2.0
"""A small bundle on disk, the recommender that is right by definition, and servers over it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seqrec_fast import bundle as bundles
from seqrec_fast.bundle import Bundle
from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.engine import Recommender
from seqrec_fast.engine.encoders import tensor_shapes

ROOT = Path(__file__).resolve().parent.parent.parent
ITEMS = 200


def make_bundle(*, text_ids: bool = True, seed: int = 5) -> Bundle:
    config: dict[str, Any] = {
        **{"model": "sasrec", "num_items": ITEMS, "dim": 16, "layers": 2, "heads": 2},
        **{"feed_forward": 2, "hidden": 16, "max_length": 20, "cell_activation": "tanh"},
        **{"tied_output": True, "item_bias": True},
    }
    rng = np.random.default_rng(seed)
    return Bundle(
        config=config,
        tensors={
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in tensor_shapes(config).items()
        },
        items=Vocabulary.from_ids([f"i{n}" if text_ids else 1000 + n for n in range(ITEMS)]),
        popularity=rng.permutation(ITEMS),
        item_table=ItemTable({"title": [f"Title {n}" for n in range(ITEMS)]}, "title"),
    )


@dataclass
class Found:
    """What a stand-in for a recommender answers: a recommendation's fields."""

    items: NDArray[Any]
    scores: NDArray[np.float32]
    unknown: tuple[Any, ...] = ()
    fallback: str | None = None
    titles: tuple[str | None, ...] = ()
    unknown_filters: tuple[Any, ...] = ()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "bundle"
    bundles.save(make_bundle(), path)
    return path


@pytest.fixture(scope="session")
def recommender(folder: Path) -> Recommender:
    return Recommender.load(folder, threads=1)


class Server:
    """``seqrec-fast serve`` in a process of its own, at a free port."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "seqrec_fast.cli.main", "serve", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://[^\s\"]+", line)
        if found is None:
            self.process.kill()
            raise AssertionError(line + self.process.communicate()[1])
        self.url = found[0]

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Exit code and what was written to stderr."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    servers: list[Server] = []

    def start(*arguments: object) -> Server:
        servers.append(Server(*arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.end()
