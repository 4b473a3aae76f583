# SPDX-License-Identifier: Apache-2.0
"""What each command does with good input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import seqrec_fast as sf
from tests.cli.support import ITEMS, TINY, USERS, World, run, write_log

ROOT = Path(__file__).resolve().parents[2]


# --------------------------------------------------------------------------- train


def test_train_writes_a_bundle_and_says_what_it_did(world: World) -> None:
    printed = json.loads(world.printed)
    assert printed["bundle"] == str(world.bundle)
    assert printed["model"]["model"] == "sasrec"
    assert printed["model"]["num_items"] == ITEMS
    assert printed["refitted"] is False
    assert printed["interrupted"] is False
    assert {"validation", "test", "popularity"} <= set(printed["metrics"])
    assert "strict" in printed["metrics"]["test"]["protocol"]
    assert printed["cleaning"]["steps"][0]["rows_in"] == USERS * 8
    content = sf.bundle.load(world.bundle)
    assert content.extra_files["curve.png"].startswith(b"\x89PNG")
    assert content.training["source"] == {"log": str(world.log), "options": {}}
    assert not world.bundle.with_name("bundle.checkpoint").exists()


def test_train_prints_report_figures_and_protocol(world: World, tmp_path: Path) -> None:
    done = run("train", world.log, "--model", "gru", "--out", tmp_path / "b", "--refit", *TINY)
    assert done.code == 0, done.err
    for text in ("Cleaning report", "rows read", "test, refit", "popularity", "NDCG@10", "refit"):
        assert text in done.out
    assert "select   1/2" in done.err  # one line an epoch where standard error is no terminal


def test_train_twice_gives_the_same_figures(world: World, tmp_path: Path) -> None:
    again = run("train", world.log, "--out", tmp_path / "b", "--json", *TINY)
    first, second = json.loads(world.printed), json.loads(again.out)
    assert first["metrics"] == second["metrics"]


def test_train_takes_sequences_and_other_splits(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    rng = np.random.default_rng(0)
    lines = [f"{user} " + " ".join(map(str, rng.integers(1, 20, 9))) for user in range(30)]
    log.write_text("\n".join(lines) + "\n")
    done = run("train", log, "--split", "by-ratio", "--test", "0.2", "--out", tmp_path / "b",
               "--model", "rnn", "--cell-activation", "sigmoid", "--json", *TINY)  # fmt: skip
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed["model"]["cell_activation"] == "sigmoid"
    assert "by-ratio" in printed["metrics"]["test"]["protocol"]
    source = sf.bundle.load(tmp_path / "b").training["source"]["options"]
    assert source == {"split": "by-ratio", "test": 0.2}


def test_cleaning_options_reach_the_library(world: World, tmp_path: Path) -> None:
    done = run("train", world.log, "--event-weights", "view=2.5", "--min-rating", "2",
               "--min-time", "2023-11-14", "--out", tmp_path / "b", "--json", *TINY)  # fmt: skip
    if (
        done.code != 0
    ):  # too little may be left of so small a log; the options then show in the line
        pytest.fail(done.err)
    steps = {step["name"]: step["dropped"] for step in json.loads(done.out)["cleaning"]["steps"]}
    assert sum(steps.values()) == USERS * 3, steps


def test_train_replaces_a_bundle(world: World, tmp_path: Path) -> None:
    out = tmp_path / "b"
    shutil.copytree(world.bundle, out)
    done = run("train", world.log, "--out", out, "--dim", "4", "--heads", "1", "--epochs", "1")
    assert done.code == 0, done.err
    assert sf.bundle.load(out).config["dim"] == 4


def test_resume_after_an_interrupt_equals_an_unbroken_run(world: World, tmp_path: Path) -> None:
    """Ctrl-C in a real process leaves a usable bundle; --resume goes on as if without a break."""
    options = ["--dim", "8", "--heads", "2", "--max-length", "10", "--threads", "1"]
    options += ["--epochs", "200", "--patience", "200"]
    command = [sys.executable, "-m", "seqrec_fast.cli.main", "train", str(world.log), *options]
    out = tmp_path / "broken"
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # a shell that runs the tests in the background has told its children to ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    checkpoint = tmp_path / "broken.checkpoint"
    deadline = time.monotonic() + 60
    while not (checkpoint / "state.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "--resume goes on from here" in err
    assert run("recommend", out, "--history", "i1").code == 0
    resumed = run("train", world.log, "--out", out, "--resume", "--json", *options)
    assert resumed.code == 0, resumed.err
    whole = run("train", world.log, "--out", tmp_path / "whole", "--json", *options)
    assert json.loads(resumed.out)["metrics"] == json.loads(whole.out)["metrics"]
    first, second = sf.bundle.load(out), sf.bundle.load(tmp_path / "whole")
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(tensor, second.tensors[name])
    assert not checkpoint.exists()


def test_interrupt_in_the_first_epoch_leaves_a_usable_bundle(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, loss: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("seqrec_fast.training.trainer.Progress.step", stop)
    out = tmp_path / "b"
    done = run("train", world.log, "--out", out, *TINY)
    assert done.code == 130
    assert done.err == f"seqrec-fast: interrupted, {out} holds the best model so far\n"
    assert "stopped before the first epoch was finished" in done.out
    assert run("recommend", out, "--history", "i1").code == 0
    assert "interrupted" in run("info", out).out
    training = sf.bundle.load(out).training
    assert training["interrupted"]
    assert training["history"] == []


def test_interrupt_in_the_first_epoch_replaces_no_bundle(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, loss: float) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "b"
    shutil.copytree(world.bundle, out)
    before = (out / "manifest.json").read_bytes()
    monkeypatch.setattr("seqrec_fast.training.trainer.Progress.step", stop)
    done = run("train", world.log, "--out", out, *TINY)
    assert done.code == 130
    assert done.err == f"seqrec-fast: interrupted, {out} keeps the bundle that it held\n"
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("place", ["b", "b/inside", "."])
def test_a_checkpoint_in_the_way_of_the_bundle_is_refused_before_training(
    world: World, tmp_path: Path, place: str
) -> None:
    parent = tmp_path / "p"
    shutil.copytree(world.bundle, parent / "b")
    (parent / "state.json").write_text("{}")
    if place == "b":
        shutil.rmtree(parent / "b")
    done = run("train", world.log, "--out", parent / "b", "--checkpoint", parent / place, *TINY)
    assert done.code == 2
    assert "would overwrite one another" in done.err
    assert not done.out


def test_interrupt_inside_fit_is_told_in_one_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqrec_fast import training

    def stop(*args: object, **options: object) -> None:
        (tmp_path / "b.checkpoint").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", stop)
    done = run("train", world.log, "--out", tmp_path / "b", *TINY)
    assert done.code == 130
    assert done.err.endswith("no bundle was written; --resume goes on from here\n")


def test_loss_that_is_not_a_number_exits_with_1(world: World, tmp_path: Path) -> None:
    done = run("train", world.log, "--out", tmp_path / "b", *TINY, "--optimizer", "sgd",
               "--learning-rate", "1e30", "--batch-size", "4")  # fmt: skip
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("seqrec-fast: error: loss is ")
    assert not (tmp_path / "b").exists()


# ------------------------------------------------------------------------ evaluate


def test_evaluate_repeats_the_figures_of_the_training(world: World) -> None:
    done = run("evaluate", world.bundle, world.log, "--k", "5,10,20,50", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    found, trained = json.loads(done.out), json.loads(world.printed)["metrics"]
    assert found["metrics"] == pytest.approx(trained["test"]["values"], abs=1e-9)
    assert found["popularity"] == pytest.approx(trained["popularity"]["values"], abs=1e-9)
    assert found["protocol"] == trained["test"]["protocol"]
    assert found["users"] == USERS
    assert found["unknown"] == {
        "targets": 0,
        "history_events": 0,
        "users_without_known_history": 0,
    }


def test_evaluate_tells_what_smaller_weights_lose(world: World) -> None:
    from seqrec_fast.engine.precision import apply_weights

    done = run("evaluate", world.bundle, world.log, "--k", "3,10", "--weights", "bfloat16",
               "--weights", "float32,int8", "--json")  # fmt: skip
    found = json.loads(done.out)
    assert list(found["weights"]) == ["bfloat16", "int8"]
    for form, one in found["weights"].items():
        for name in ("NDCG@3", "NDCG@10"):
            lost = found["metrics"][name] - one["metrics"][name]
            assert one["ndcg_loss"][name]["absolute"] == lost
            assert one["ndcg_loss"][name]["share"] == lost / found["metrics"][name]
        content = sf.bundle.load(world.bundle)
        content.tensors = apply_weights(content.tensors, form)
        rounded = world.bundle.with_name(f"bundle-{form}")
        sf.bundle.save(content, rounded)
        alone = json.loads(run("evaluate", rounded, world.log, "--k", "3,10", "--json").out)
        assert one["metrics"] == alone["metrics"]
        assert alone["weights"] == {}
    shown = run("evaluate", world.bundle, world.log, "--weights", "int8").out
    assert "loss of int8 against float32: NDCG@10 " in shown
    assert "loss of bfloat16" not in shown


def test_evaluate_on_validation(world: World) -> None:
    done = run("evaluate", world.bundle, world.log, "--on", "validation", "--json")
    trained = json.loads(world.printed)["metrics"]["validation"]["values"]
    assert json.loads(done.out)["metrics"]["NDCG@10"] == pytest.approx(trained["NDCG@10"])


def test_evaluate_takes_the_options_of_the_bundle(world: World, tmp_path: Path) -> None:
    options = ["--split", "by-ratio", "--test", "0.3", "--min-rating", "2"]
    out = tmp_path / "b"
    trained = run("train", world.log, "--out", out, "--json", *options, *TINY)
    done = run("evaluate", out, world.log, "--json")
    found = json.loads(done.out)
    assert found["options_from_bundle"] == {"split": "by-ratio", "test": 0.3, "min_rating": 2.0}
    expected = json.loads(trained.out)["metrics"]["test"]["values"]["NDCG@10"]
    assert found["metrics"]["NDCG@10"] == pytest.approx(expected)
    other = json.loads(run("evaluate", out, world.log, "--split", "leave-one-out", "--json").out)
    assert other["options_from_bundle"] == {"min_rating": 2.0}
    assert "leave-one-out" in other["protocol"]


def test_evaluate_counts_what_the_bundle_does_not_know(world: World, tmp_path: Path) -> None:
    """Two users more: one whose target is new (a miss), one whose whole history is new."""
    base = json.loads(run("evaluate", world.bundle, world.log, "--json").out)
    popularity = sf.bundle.load(world.bundle)
    best = popularity.items.decode([int(np.argmax(popularity.popularity))])[0]
    log = tmp_path / "log.csv"
    extra = ["a,i1,1,view,5", "a,i2,2,view,5", "a,i3,3,view,5", "a,new,4,view,5"]
    extra += ["b,new,1,view,5", "b,new2,2,view,5", "b,new3,3,view,5", f"b,{best},4,view,5"]
    log.write_text(world.log.read_text() + "\n".join(extra) + "\n")
    done = json.loads(run("evaluate", world.bundle, log, "--json").out)
    assert done["unknown"] == {
        "targets": 1,
        "history_events": 3,
        "users_without_known_history": 1,
    }
    assert done["users"] == USERS + 2
    # the miss adds 0; the most popular item is the first one given without a history
    expected = (base["metrics"]["NDCG@10"] * USERS + 0.0 + 1.0) / (USERS + 2)
    assert done["metrics"]["NDCG@10"] == pytest.approx(expected)
    shown = run("evaluate", world.bundle, log)
    assert "1 targets (counted as misses), 3 events of histories (ignored)" in shown.out


def test_evaluate_with_seen_items_ranked_too(world: World) -> None:
    done = run("evaluate", world.bundle, world.log, "--include-seen")
    assert "seen included" in done.out
    assert "popularity" in done.out


# ----------------------------------------------------------------------- recommend


def test_recommend_prints_rank_id_title_and_score(world: World) -> None:
    done = run("recommend", world.bundle, "--history", "i1, i2,i3", "--k", "4")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["rank", "item", "title", "score"]
    assert len(lines) == 6
    assert all("Title, number" in line for line in lines[2:])


def test_recommend_json_agrees_with_the_library(world: World) -> None:
    done = run("recommend", world.bundle, "--history", "i1,i2,nope", "--k", "5", "--json")
    found = json.loads(done.out)
    answer = sf.Recommender.load(world.bundle).recommend([["i1", "i2"]], k=5)[0]
    assert [row["item"] for row in found["recommendations"]] == answer.items.tolist()
    assert [row["score"] for row in found["recommendations"]] == pytest.approx(
        answer.scores.tolist()
    )
    assert [row["rank"] for row in found["recommendations"]] == [1, 2, 3, 4, 5]
    assert found["unknown"] == ["nope"]
    assert found["fallback"] is None
    assert {"i1", "i2"}.isdisjoint(row["item"] for row in found["recommendations"])


def test_recommend_by_rules_of_the_item_table(world: World) -> None:
    titles = [
        sf.Recommender.load(world.bundle).recommend([["i1"]], k=30)[0].titles[n] for n in (3, 9)
    ]
    given = ("recommend", world.bundle, "--history", "i1", "--k", "30", "--json")
    rule = f"title={titles[0]}|{titles[1]}"
    found = json.loads(run(*given, "--where", rule, "--limit", "title=1").out)
    assert [row["title"] for row in found["recommendations"]] == titles
    found = json.loads(run(*given, "--where", f"title!={titles[0]}").out)
    assert titles[0] not in [row["title"] for row in found["recommendations"]]
    for option, message in (
        (("--where", "title"), "--where 'title': write COLUMN=VALUE, !=, >= or <="),
        (("--where", "colour=red"), "column 'colour' is not in the item table; there are title"),
        (("--where", "title>=3"), "column 'title': 'min' and 'max' need numbers"),
        (("--limit", "title=x"), "--limit 'title=x': 'x' is not a whole number"),
        (("--limit", "title=" + "9" * 5000), "is not a whole number below 10^18"),
        (("--limit", "title"), "--limit 'title': write COLUMN=N"),
        (("--separator", "title=,"), "--separator 'title': no --where and no --limit asks"),
    ):
        done = run(*given, *option)
        assert done.code != 0
        assert message in done.err


def test_recommend_without_a_known_id_says_so_and_gives_the_most_popular(world: World) -> None:
    done = run("recommend", world.bundle, "--history", "x,y", "--k", "3")
    assert done.code == 0
    assert "not in the bundle, ignored: x, y" in done.out
    assert "popularity instead" in done.out
    found = json.loads(run("recommend", world.bundle, "--history", "x", "--k", "1", "--json").out)
    content = sf.bundle.load(world.bundle)
    best = content.items.decode([int(np.argmax(content.popularity))])[0]
    assert found["recommendations"][0]["item"] == best


def test_recommend_more_than_there_are(world: World) -> None:
    done = run("recommend", world.bundle, "--history", "i1", "--k", "1000")
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"{ITEMS - 1} of the 1000 asked for: no more items are left"


def test_recommend_filters(world: World, tmp_path: Path) -> None:
    stock = tmp_path / "stock.txt"
    stock.write_text("i1\ni4\n\ni5\nnope\n")
    arguments = ["recommend", world.bundle, "--history", "i1", "--allow", f"@{stock}", "--json"]
    found = json.loads(run(*arguments).out)
    assert {row["item"] for row in found["recommendations"]} == {"i4", "i5"}
    assert found["unknown_filters"] == ["nope"]
    found = json.loads(run(*arguments, "--include-seen", "--deny", "i5").out)
    assert {row["item"] for row in found["recommendations"]} == {"i1", "i4"}
    done = run("recommend", world.bundle, "--history", "i1", "--allow", "i1")
    assert done.code == 0
    assert "nothing is left to recommend" in done.out


def test_a_list_of_ids_that_cannot_be_read_names_the_option(world: World, tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    done = run("recommend", world.bundle, "--history", "i1", "--allow", f"@{missing}")
    assert done.code == 2
    assert f"--allow: {missing} can't be read (no such file or directory)" in done.err


def test_ids_with_commas_stand_in_quotes(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    write_log(log)
    log.write_text(log.read_text().replace(",i1,", ',"i,1",'))
    assert run("train", log, "--out", tmp_path / "b", *TINY).code == 0
    found = json.loads(run("recommend", tmp_path / "b", "--history", '"i,1",i2', "--json").out)
    assert found["history"] == ["i,1", "i2"]
    assert found["unknown"] == []


# ---------------------------------------------------------------------------- demo


def test_demo_names_a_program_that_is_not_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqrec_fast.cli import demo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [".venv/bin/seqrec-fast", "demo"])
    assert demo._command() == ".venv/bin/seqrec-fast"
    program = tmp_path / "seqrec-fast"
    program.write_text("")
    program.chmod(0o755)
    assert demo._command() == "seqrec-fast"


def test_demo_does_the_whole_way(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    options = ["--users", "200", "--items", "60", "--epochs", "3", "--threads", "1", "--out", out]
    done = run("demo", *options)
    assert done.code == 0, done.err
    for text in ("Cleaning report", "exact duplicates", "popularity", "recommended", "curve.png"):
        assert text in done.out
    assert (out / "bundle" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "events.csv").is_file()
    # the commands that it names work
    history = done.out.split('--history "')[1].split('"')[0]
    assert run("recommend", out / "bundle", "--history", history).code == 0
    assert run("evaluate", out / "bundle", out / "events.csv").code == 0
    again = json.loads(run("demo", *options, "--json").out)
    assert len(again["users"]) == 3
    assert all(len(user["recommendations"]) == 5 for user in again["users"])
    assert all(row["title"] for user in again["users"] for row in user["recommendations"])
    dirt = {step["name"]: step["dropped"] for step in again["cleaning"]["steps"]}
    assert dirt["exact duplicates"] > 0
    assert dirt["missing fields"] > 0
    assert dirt["impossible times"] > 0


def test_demo_learns_what_was_planted(tmp_path: Path) -> None:
    options = ["--users", "300", "--items", "60", "--epochs", "8", "--threads", "1"]
    done = run("demo", *options, "--out", tmp_path / "d", "--json")
    metrics = json.loads(done.out)["metrics"]
    model, popularity = metrics["test"]["values"], metrics["popularity"]["values"]
    assert model["NDCG@10"] > 2 * popularity["NDCG@10"]


# ------------------------------------------------------------------- without torch


def test_recommend_evaluate_and_info_run_with_torch_blocked(world: World) -> None:
    code = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "matplotlib", "tqdm"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from seqrec_fast.cli.main import main
bundle, log = sys.argv[1:]
assert main(["recommend", bundle, "--history", "i1,i2"]) == 0
heavy = sorted({"duckdb", "pyarrow", "torch"} & set(sys.modules))
assert heavy == [], heavy
assert main(["info", bundle]) == 0
assert main(["evaluate", bundle, log]) == 0
assert main(["train", log, "--out", "/nowhere/b"]) == 2
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(world.bundle), str(world.log)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "seqrec-fast[train]" in done.stderr


def test_the_log_of_real_data_from_the_command_line_alone(
    shared_data: Path, tmp_path: Path
) -> None:
    """ML-100k from the raw .inter file, by timestamps, titles shown."""
    inter, items = (shared_data / "ml-100k" / f"ml-100k.{kind}" for kind in ("inter", "item"))
    out = tmp_path / "b"
    done = run("train", inter, "--items", items, "--split", "by-time", "--epochs", "1",
               "--max-length", "20", "--dim", "16", "--no-whole-history", "--threads", "1",
               "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    assert "100,000 events of 943 users on 1,682 items" in done.out
    assert "by-time, strict" in done.out
    shown = run("recommend", out, "--history", "50,172,181", "--k", "5").out
    titles = [
        line.split(maxsplit=2)[2].rpartition(" ")[0].strip() for line in shown.splitlines()[2:]
    ]
    assert len(titles) == 5
    assert all(titles)


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("seqrec-fast")
    if not script.exists():
        pytest.skip("the package is not installed in this environment (run from its sources)")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True,
                          env={**os.environ})  # fmt: skip
    assert done.stdout == f"seqrec-fast {sf.__version__}\n"
