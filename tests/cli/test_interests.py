# SPDX-License-Identifier: Apache-2.0
"""A model of several interests from the log to answers: every command, batch and HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import seqrec_fast as sf
from tests.cli.support import TINY, World, run
from tests.serving.conftest import Server


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("interests") / "bundle"
    done = run("train", world.log, "--interests", 3, "--model", "gru", "--out", out, *TINY)
    assert done.code == 0, done.err
    assert "3 interests a user" in done.out
    return out


def test_evaluate_repeats_the_figures_of_the_training(world: World, bundle: Path) -> None:
    done = run("evaluate", bundle, world.log, "--k", "5,10,20,50", "--json")
    assert done.code == 0, done.err
    found, trained = json.loads(done.out), sf.bundle.load(bundle).metrics["test"]["values"]
    assert found["metrics"] == pytest.approx(trained, abs=1e-9)
    assert found["interests"] == 3
    assert "3 interests a user" in run("evaluate", bundle, world.log).out


def test_info_says_how_many(bundle: Path) -> None:
    assert "interests 3" in run("info", bundle).out


def test_recommend_and_batch_answer_as_the_recommender(
    world: World, bundle: Path, tmp_path: Path
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    rec = sf.Recommender.load(bundle)
    wanted = rec.recommend([["i1", "i2"]], 5)[0]
    done = run("recommend", bundle, "--history", "i1,i2", "--k", 5, "--json")
    found = [row["item"] for row in json.loads(done.out)["recommendations"]]
    assert found == wanted.items.tolist()
    out = tmp_path / "lists.parquet"
    done = run("batch", bundle, world.log, out, "--k", 4)
    assert done.code == 0, done.err
    assert all(len(items) == 4 for items in pq.read_table(out)["items"].to_pylist())


def test_serve_answers_and_refuses_sessions(bundle: Path) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    wanted = sf.Recommender.load(bundle).recommend([["i1", "i2"]], 5)[0]
    server = Server(bundle, "--threads", 1)
    try:
        answer = httpx.post(f"{server.url}/recommend", json={"history": ["i1", "i2"], "k": 5})
        assert answer.json()["items"] == wanted.items.tolist()
        np.testing.assert_allclose(answer.json()["scores"], wanted.scores, rtol=1e-5)
    finally:
        server.end()
    done = run("serve", bundle, "--sessions", 10, "--port", 0)
    assert done.code != 0
    assert "3 interests a user" in done.err
