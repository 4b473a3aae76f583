# SPDX-License-Identifier: Apache-2.0
"""Training learns, repeats itself, resumes exactly, stops early, and fails clearly."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import seqrec_fast as sf
from seqrec_fast import data
from seqrec_fast.errors import InputError, TrainingError
from seqrec_fast.models import MODELS, model_from_config
from seqrec_fast.training import Run, fit

SMALL: dict[str, Any] = {
    "dim": 16,
    "heads": 2,
    "dropout": 0.1,
    "learning_rate": 1e-2,
    "batch_size": 32,
    "max_length": 8,
    "threads": 1,
    "progress": False,
}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in run.model.state_dict().items()}


def assert_same(a: Run, b: Run) -> None:
    assert a.metrics == b.metrics
    assert [r["loss"] for r in a.history] == [r["loss"] for r in b.history]
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, b.model.state_dict()[name]), name


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax", "bce"])
@pytest.mark.parametrize("model", MODELS)
def test_learns_what_popularity_cannot(split: data.Split, model: str, loss: str) -> None:
    negatives = 1 if loss == "bce" else 20
    run = fit(split, model, epochs=15, patience=15, loss=loss, negatives=negatives, **SMALL)
    found = run.metrics["test"]["values"]["NDCG@10"]
    baseline = run.metrics["popularity"]["values"]["NDCG@10"]
    assert found > 2 * baseline
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert "strict" in run.metrics["test"]["protocol"]


@pytest.mark.parametrize("model", ["sasrec", "gru"])
def test_several_interests_learn_resume_and_serve(
    split: data.Split, tmp_path: Path, model: str
) -> None:
    options = {**SMALL, "model": model, "interests": 3, "epochs": 6, "patience": 6, "refit": True}
    run = fit(split, **options)
    baseline = run.metrics["popularity"]["values"]["NDCG@10"]
    assert run.metrics["test"]["values"]["NDCG@10"] > 2 * baseline
    assert run.history[5]["loss"] < 0.8 * run.history[0]["loss"]
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(split, checkpoint=checkpoint, **{**options, "progress": crash_after(2)})
    assert_same(fit(split, checkpoint=checkpoint, resume=True, **options), run)
    run.save(tmp_path / "bundle")
    served = sf.Recommender.load(tmp_path / "bundle")
    found = served.embed([[1, 2, 3]])[0]
    want = run.model.encode(sf.JaggedBatch.from_lists([split.items.encode([1, 2, 3])]))[0]
    assert found.shape == (3, 16)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(want), rtol=1e-4, atol=1e-5)


def test_a_bundle_from_before_several_interests_loads(split: data.Split, tmp_path: Path) -> None:
    run = fit(split, epochs=1, **SMALL)
    run.save(tmp_path / "bundle")
    content = sf.bundle.load(tmp_path / "bundle")
    older = replace(content, config={n: v for n, v in content.config.items() if n != "interests"})
    assert len(older.config) == len(content.config) - 1
    want = sf.Recommender(content).embed([[1, 2]])
    assert (sf.Recommender(older).embed([[1, 2]]) == want).all()
    again = model_from_config(older.config)
    again.load_state_dict(run.model.state_dict())


def test_sgd_mini_batch_and_full_batch_learn(split: data.Split) -> None:
    options = {**SMALL, "optimizer": "sgd", "dropout": 0.0, "model": "gru", "hidden": 32}
    mini = fit(split, epochs=15, patience=15, **{**options, "learning_rate": 0.3})
    assert mini.history[-1]["loss"] < 0.8 * mini.history[0]["loss"]
    full = fit(split, epochs=30, patience=30, **{**options, "batch_size": 0, "learning_rate": 0.3})
    assert full.history[-1]["loss"] < full.history[0]["loss"]


def test_full_batch_in_passes_is_one_step(
    split: data.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients accumulated over passes are those of the whole batch."""
    options = {**SMALL, "batch_size": 0, "optimizer": "sgd", "dropout": 0.0}
    whole = fit(split, "gru", epochs=1, **options)
    monkeypatch.setattr("seqrec_fast.training.batches.TOKENS_PER_PASS", 100)
    parts = fit(split, "gru", epochs=1, **options)
    assert parts.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=1e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["sasrec", "lstm"])
def test_equal_seeds_make_equal_runs(split: data.Split, model: str) -> None:
    first = fit(split, model, epochs=2, seed=7, **SMALL)
    torch.manual_seed(999)
    assert_same(first, fit(split, model, epochs=2, seed=7, **SMALL))
    other = fit(split, model, epochs=2, seed=8, **SMALL)
    assert other.history[0]["loss"] != first.history[0]["loss"]


def test_training_leaves_the_callers_generator_and_threads_alone(split: data.Split) -> None:
    torch.manual_seed(1)
    want = torch.rand(3)
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    fit(split, "rnn", epochs=1, **SMALL)
    assert torch.equal(torch.rand(3), want)
    assert torch.get_num_threads() == threads


class Stop(Exception):
    """Stands for a crash."""


def crash_after(epochs: int) -> Any:
    seen = 0

    def watch(record: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if seen > epochs:
            raise Stop

    return watch


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("crash", [1, 3, 5, 6])
def test_resume_is_the_unbroken_run(
    split: data.Split, tmp_path: Path, crash: int, optimizer: str
) -> None:
    """Also when the break falls into the refit (epochs 5 and later)."""
    options = {**SMALL, "epochs": 4, "patience": 4, "refit": True, "optimizer": optimizer}
    unbroken = fit(split, **options)
    assert len(unbroken.history) > 6, "the crash must fall inside the run"
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(split, checkpoint=checkpoint, **{**options, "progress": crash_after(crash)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]
    assert_same(fit(split, checkpoint=checkpoint, resume=True, **options), unbroken)


def test_resume_of_a_finished_run_is_that_run(split: data.Split, tmp_path: Path) -> None:
    options = {**SMALL, "checkpoint": tmp_path / "c"}
    done = fit(split, "gru", epochs=3, **options)
    assert_same(fit(split, "gru", epochs=3, resume=True, **options), done)
    longer = fit(split, "gru", epochs=5, patience=5, **SMALL)
    more = fit(split, "gru", epochs=3, patience=5, **options)
    assert len(more.history) == 3
    assert_same(fit(split, "gru", epochs=5, patience=5, resume=True, **options), longer)


def test_resume_refuses_what_it_cannot_go_on_from(split: data.Split, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        fit(split, checkpoint=folder, resume=True, **SMALL)
    with pytest.raises(InputError, match="resume: needs checkpoint"):
        fit(split, resume=True, **SMALL)
    fit(split, "gru", epochs=1, checkpoint=folder, **SMALL)
    with pytest.raises(InputError, match="of other options: seed was 0, now 1; give the same"):
        fit(split, "gru", epochs=2, seed=1, checkpoint=folder, resume=True, **SMALL)
    for name in ("state.json", "state.safetensors"):
        broken = tmp_path / f"broken-{name}"
        shutil.copytree(folder, broken)
        content = (broken / name).read_bytes()
        (broken / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="the checkpoint is damaged"):
            fit(split, "gru", epochs=2, checkpoint=broken, resume=True, **SMALL)


def test_early_stopping_keeps_the_best_epoch(split: data.Split) -> None:
    run = fit(split, epochs=60, patience=2, **{**SMALL, "learning_rate": 3e-2})
    scores = [r["NDCG@10"] for r in run.history]
    assert len(scores) < 60
    assert run.best_epoch == scores.index(max(scores)) + 1
    assert len(scores) == run.best_epoch + 2
    assert run.metrics["validation"]["values"]["NDCG@10"] == max(scores)


def test_refit_trains_again_and_says_so(split: data.Split) -> None:
    run = fit(split, epochs=3, refit=True, **SMALL)
    assert run.refitted
    phases = [r["phase"] for r in run.history]
    assert phases == ["select"] * 3 + ["refit"] * run.best_epoch
    assert "strict" in run.metrics["test"]["protocol"]
    assert "refit" in run.metrics["test_refit"]["protocol"]
    assert run.metrics["test_refit"]["users"] == run.metrics["test"]["users"]


def test_interrupt_leaves_a_usable_bundle(split: data.Split, tmp_path: Path) -> None:
    def interrupt(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    run = fit(split, "gru", epochs=9, refit=True, **{**SMALL, "progress": interrupt})
    assert run.interrupted
    assert not run.refitted
    assert len(run.history) == 2
    run.save(tmp_path / "bundle")
    recommender = sf.Recommender.load(tmp_path / "bundle")
    (found,) = recommender.recommend([[3, 4, 5]], k=3)
    assert len(found.items) == 3
    assert not set(found.items) & {3, 4, 5}


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[float]:
    """Ctrl-C in the given step of the run; returns the list that its losses go to."""
    losses: list[float] = []

    def watch(self: object, loss: float) -> None:
        losses.append(loss)
        if len(losses) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr("seqrec_fast.training.trainer.Progress.step", watch)
    return losses


def test_interrupt_in_the_first_epoch_leaves_a_usable_bundle(
    split: data.Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 3)
    run = fit(split, "gru", epochs=9, refit=True, **SMALL)
    assert run.interrupted
    assert (run.history, run.best_epoch) == ([], 0)
    assert set(run.metrics) == {"validation", "test", "popularity"}
    run.save(tmp_path / "bundle")
    (found,) = sf.Recommender.load(tmp_path / "bundle").recommend([[3, 4, 5]], k=3)
    assert len(found.items) == 3
    monkeypatch.undo()
    untrained = fit(split, "gru", epochs=1, **SMALL | {"learning_rate": 1e-12})
    difference = run.model.scorer()[0] - untrained.model.scorer()[0]
    assert abs(difference).max() > 1e-3, "the steps that were done are kept"


def load_facts(checkpoint: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return facts


@pytest.mark.parametrize("epoch", [0, 1])
def test_interrupt_in_the_refit_keeps_the_strict_model(
    split: data.Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    options = {**SMALL, "epochs": 3, "patience": 3}
    losses = stop_at(monkeypatch, -1)
    strict = fit(split, **options)
    assert strict.best_epoch > epoch
    options |= {"refit": True, "checkpoint": tmp_path / "c"}
    # an epoch of the refit has at least as many steps
    stop_at(monkeypatch, len(losses) + (epoch and len(losses) // 3 + 3) + 2)
    stopped = fit(split, **options)
    assert stopped.interrupted
    assert not stopped.refitted
    assert_same(stopped, strict)
    assert (load_facts(tmp_path / "c")["phase"] == "refit") == bool(epoch)
    # stopped once more after it was resumed in the refit, where there is a checkpoint of it
    if epoch:
        stop_at(monkeypatch, 2)
        again = fit(split, resume=True, **options)
        assert again.interrupted
        assert_same(again, strict)
    monkeypatch.undo()
    whole = fit(split, resume=True, **options)
    assert_same(whole, fit(split, **options | {"checkpoint": None}))


def test_refit_of_a_refitted_split_is_refused_before_training(split: data.Split) -> None:
    def never(record: dict[str, Any]) -> None:
        raise AssertionError("trained")

    with pytest.raises(InputError, match="already trains on its validation events"):
        fit(split.refit(), refit=True, **{**SMALL, "progress": never})


def test_runs_in_two_threads_are_the_runs_of_their_seeds(split: data.Split) -> None:
    seeds = (1, 2)
    alone = [fit(split, "gru", epochs=2, seed=seed, **SMALL) for seed in seeds]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda seed: fit(split, "gru", epochs=2, seed=seed, **SMALL), seeds))
    for a, b in zip(alone, both, strict=True):
        assert_same(a, b)


def test_resume_refuses_other_event_weights(split: data.Split, tmp_path: Path) -> None:
    weights = torch.ones(split.train.tokens).numpy()
    options = {**SMALL, "checkpoint": tmp_path / "c"}
    fit(replace(split, train_weights=weights), "gru", epochs=1, **options)
    with pytest.raises(InputError, match="of other data: its training events are not these"):
        fit(replace(split, train_weights=weights * 2), "gru", epochs=2, resume=True, **options)


def test_a_loss_that_is_not_a_number_stops_with_the_step(split: data.Split, tmp_path: Path) -> None:
    options = {**SMALL, "optimizer": "sgd", "learning_rate": 1e30}
    with pytest.raises(TrainingError, match=r"loss is .* at step \d+ of epoch 1; lower"):
        fit(split, "rnn", epochs=2, checkpoint=tmp_path / "c", **options)


def test_bundle_holds_everything(split: data.Split, tmp_path: Path) -> None:
    run = fit(split, epochs=2, **SMALL)
    run.save(tmp_path / "bundle")
    loaded = sf.bundle.load(tmp_path / "bundle")
    assert loaded.metrics == run.metrics
    assert loaded.training["best_epoch"] == run.best_epoch
    assert loaded.cleaning == split.report.to_dict()
    assert loaded.extra_files["curve.png"].startswith(b"\x89PNG")
    assert loaded.popularity.tolist() == split.popularity.tolist()
    served = sf.Recommender.load(tmp_path / "bundle").embed([[1, 2, 3]])[:, 0]
    index = split.items.encode([1, 2, 3])
    want = run.model.encode(sf.JaggedBatch.from_lists([index]))
    torch.testing.assert_close(torch.tensor(served), torch.tensor(want), rtol=1e-4, atol=1e-5)


def test_early_stopping_may_look_at_some_users(split: data.Split) -> None:
    some = fit(split, "gru", epochs=2, validation_users=25, **SMALL)
    every = fit(split, "gru", epochs=2, **SMALL)
    assert [r["loss"] for r in some.history] == [r["loss"] for r in every.history]
    assert [r["NDCG@10"] for r in some.history] != [r["NDCG@10"] for r in every.history]
    assert some.metrics["validation"]["users"] == len(split.validation)


def test_unknown_option_is_named(split: data.Split) -> None:
    with pytest.raises(InputError, match="width: unknown option; known are batch_size"):
        fit(split, width=3)
