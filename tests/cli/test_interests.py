# SPDX-License-Identifier: Apache-2.0
"""A model of several interests from the log to answers: every command, batch and HTTP."""

from __future__ import annotations

import json
import shutil
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
    plain = pq.read_table(out)["items"].to_pylist()
    done = run("batch", bundle, world.log, out, "--k", 4, "--diversity", 50, "--overwrite")
    assert done.code == 0, done.err
    assert pq.read_table(out)["items"].to_pylist() != plain
    wanted = rec.recommend([["i1", "i2"]], 5, diversity=50.0)[0]
    done = run("recommend", bundle, "--history", "i1,i2", "--k", 5, "--diversity", 50, "--json")
    found = [row["item"] for row in json.loads(done.out)["recommendations"]]
    assert found == wanted.items.tolist()
    done = run("batch", world.bundle, world.log, tmp_path / "no.parquet", "--diversity", 1)
    assert done.code == 2
    assert "diversity: the model has one interest a user" in done.err


def test_evaluate_with_an_index_finds_what_the_exact_search_finds(
    world: World, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    done = run("index", tmp_path / "bundle", "--kind", "exact", "--dtype", "int8", "--k", 5)
    assert done.code == 0, done.err
    done = run("evaluate", tmp_path / "bundle", world.log, "--k", "5,10", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["index"]["recall"] == {"recall@5": 1.0, "recall@10": 1.0}
    for name, value in found["index"]["metrics"].items():
        assert value == pytest.approx(found["metrics"][name], abs=1e-9), name


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
        wanted = sf.Recommender.load(bundle).recommend([["i1", "i2"]], 5, diversity=50.0)[0]
        body = {"history": ["i1", "i2"], "k": 5, "diversity": 50}
        answer = httpx.post(f"{server.url}/recommend", json=body)
        assert answer.json()["items"] == wanted.items.tolist()
        for wrong in (-1, "much", None, True):
            answer = httpx.post(f"{server.url}/recommend", json={**body, "diversity": wrong})
            assert answer.status_code == 422
            assert "diversity: found" in answer.json()["error"]
    finally:
        server.end()
    done = run("serve", bundle, "--sessions", 10, "--port", 0)
    assert done.code != 0
    assert "3 interests a user" in done.err
