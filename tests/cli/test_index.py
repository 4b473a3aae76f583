# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast index`` and what the other commands do with the index that it leaves."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import seqrec_fast as sf
from seqrec_fast import bundle as bundles
from seqrec_fast import retrieval
from seqrec_fast.errors import DeviceError
from seqrec_fast.retrieval import KINDS, tuning
from seqrec_fast.retrieval.exact import ExactIndex
from tests.cli.support import ITEMS, USERS, World, run
from tests.retrieval import fake_faiss_gpu
from tests.serving.conftest import Server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_SECONDS", 0.01)


@pytest.fixture
def bundle(world: World, tmp_path: Path) -> Path:
    shutil.copytree(world.bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def indexed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("indexed") / "bundle"
    shutil.copytree(world.bundle, place)
    done = run("index", place, "--kind", "exact", "--option", "dtype=int8", "--k", 5)
    assert done.code == 0, done.err
    return place


def test_auto_chooses_measures_and_keeps(bundle: Path, world: World) -> None:
    done = run("index", bundle, "--log", world.log, "--k", 5, "--recall", 0.9, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["k"], told["target"], told["picture"]) == (5, 0.9, "index.png")
    assert told["measured_on"].startswith(f"{USERS} users of {world.log}")
    assert told["queries_chosen_on"] + told["queries_measured_on"] == USERS
    chosen = next(one for one in told["trials"] if one["chosen"])
    assert chosen["recall"] >= 0.9
    assert {one["kind"] for one in (*told["trials"], *told["skipped"])} == {
        kind for kind in KINDS if not kind.startswith("gpu-") and kind not in ("sharded", "qdrant")
    }
    content = bundles.load(bundle)
    assert content.extra_files["index.png"].startswith(b"\x89PNG")
    assert "curve.png" in content.extra_files
    facts = bundles.info(bundle)["index"]
    assert (facts["kind"], facts["size"]) == (chosen["kind"], ITEMS)
    for name in ("k", "target", "recall", "measured_on", "cpu", "threads", "median_us"):
        assert facts["measured"][name] is not None, name
    assert facts["measured"]["recall"] == chosen["recall"]
    said = run("info", bundle).out
    assert f"index: {chosen['kind']} (" in said
    assert f"recall@5 {chosen['recall']:.4f}, measured on {USERS} users of" in said


def test_without_a_log_it_says_that_the_queries_are_made_up(bundle: Path) -> None:
    done = run("index", bundle, "--k", 5, "--queries", 20)
    assert done.code == 0, done.err
    assert "measuring on 20 made-up histories" in done.out
    assert "no log was given, so the recall for real users may differ" in done.out
    for text in ("recall@5", "median", "p99", "memory", "build", "chosen", "is now the index of"):
        assert text in done.out
    assert "building exact dtype=float32" in done.err
    measured = bundles.info(bundle)["index"]["measured"]
    assert measured["measured_on"].startswith("20 made-up histories")


def test_what_is_made_up_is_the_same_again(bundle: Path) -> None:
    told = [
        json.loads(run("index", bundle, "--kind", "exact", "--queries", 9, "--json").out)
        for _ in range(2)
    ]
    assert told[0]["trials"][0]["recall"] == told[1]["trials"][0]["recall"] == 1.0


def test_one_kind_with_options(indexed: Path) -> None:
    facts = bundles.info(indexed)["index"]
    assert facts["options"] == {"dtype": "int8"}
    assert facts["measured"]["recall"] == 1.0
    assert "target" not in facts["measured"]


def test_the_rest_of_the_bundle_stays(indexed: Path, world: World) -> None:
    before, after = bundles.load(world.bundle), bundles.load(indexed)
    assert before.metrics == after.metrics
    assert before.training == after.training
    assert before.extra_files == after.extra_files
    assert before.items.ids.tolist() == after.items.ids.tolist()
    for name, tensor in before.tensors.items():
        assert after.tensors[name].tobytes() == tensor.tobytes()
    assert sf.Recommender.load(indexed).version == sf.Recommender.load(world.bundle).version


def test_remove_takes_it_out(bundle: Path) -> None:
    assert run("index", bundle, "--k", 5, "--queries", 10).code == 0
    assert (bundle / "index.safetensors").exists()
    assert json.loads(run("index", bundle, "--remove", "--json").out)["index"] is None
    assert {"index.safetensors", "index.png"}.isdisjoint(one.name for one in bundle.iterdir())


@pytest.mark.parametrize("kind", ["auto", "exact", "ivf-native"])
def test_what_was_removed_is_not_found(bundle: Path, tmp_path: Path, kind: str) -> None:
    gone = ["i1", "i2"]
    (tmp_path / "gone.txt").write_text("\n".join(gone))
    assert run("items", bundle, "--remove", tmp_path / "gone.txt").code == 0
    done = run("index", bundle, "--kind", kind, "--k", 5, "--queries", 10)
    assert done.code == 0, done.err
    found = [
        sf.Recommender.load(bundle, retrieval=way).recommend([["i1", "i3"]], ITEMS)[0].items
        for way in ("exact", "index")
    ]
    assert not set(gone) & set(found[0].tolist())
    assert sorted(found[1].tolist()) == sorted(found[0].tolist())


@pytest.mark.parametrize("kind", ["auto", "exact", "ivf-native"])
def test_recall_is_that_of_the_items_that_are_left(
    bundle: Path, world: World, tmp_path: Path, kind: str
) -> None:
    left = 6
    (tmp_path / "gone.txt").write_text("\n".join(f"i{n}" for n in range(left, ITEMS)))
    assert run("items", bundle, "--remove", tmp_path / "gone.txt").code == 0
    done = run("index", bundle, "--kind", kind, "--k", 10, "--log", world.log, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["k"], told["removed"]) == (left, ITEMS - left)  # there are no more to be found
    assert next(one for one in told["trials"] if one["chosen"])["recall"] == 1.0
    facts = bundles.info(bundle)
    assert (facts["removed"], facts["index"]["measured"]["k"]) == (ITEMS - left, left)
    found = sf.Recommender.load(bundle, retrieval="index").recommend([["i1"]], ITEMS)[0]
    assert len(found.items) == left - 1
    said = run("info", bundle).out
    assert f"{ITEMS} items ({ITEMS - left} of them removed)" in said
    assert f"recall@{left} 1.0000" in said
    assert "when there were" not in said
    (tmp_path / "gone.txt").write_text("i1")
    assert run("items", bundle, "--remove", tmp_path / "gone.txt").code == 0
    assert f"when there were {left} items" in run("info", bundle).out


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq", "hnsw"])
def test_indexes_of_faiss_are_whole_in_the_bundle(bundle: Path, kind: str) -> None:
    pytest.importorskip("faiss")
    done = run("index", bundle, "--kind", kind, "--k", 5, "--queries", 10)
    assert done.code == 0, done.err
    ways = [sf.Recommender.load(bundle, retrieval=way) for way in ("exact", "index")]
    exact, through = (way.recommend([["i1", "i3"]], ITEMS)[0].items.tolist() for way in ways)
    assert through == exact


def test_an_index_for_a_gpu_is_told_where_there_is_none(
    bundle: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pytest.importorskip("faiss")
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real))
    done = run("index", bundle, "--kind", "gpu-flat", "--k", 5, "--queries", 10)
    assert done.code == 0, done.err
    assert bundles.info(bundle)["index"]["kind"] == "gpu-flat"
    monkeypatch.setitem(sys.modules, "faiss", fake_faiss_gpu.fake(real, gpus=0))
    reason = "kind 'gpu-flat': "
    with pytest.raises(DeviceError, match=f"^index.safetensors: {reason}.* sees no GPU"):
        sf.Recommender.load(bundle, retrieval="index")
    with pytest.raises(DeviceError, match=f"/index.safetensors: {reason}.* sees no GPU"):
        retrieval.load(bundle / "index.safetensors")
    for arguments in (
        ("index", bundle, "--kind", "gpu-flat"),
        ("recommend", bundle, "--history", "i1", "--index"),
        ("evaluate", bundle, world.log, "--index"),
    ):
        done = run(*arguments)
        assert done.code == 2
        assert reason in done.err
        assert "sees no GPU" in done.err
    done = run("evaluate", bundle, world.log)
    assert done.code == 0, done.err
    assert "the index is not measured: index.safetensors: kind 'gpu-flat': " in done.out
    assert run("recommend", bundle, "--history", "i1").code == 0


def test_without_faiss_what_needs_it_is_named(
    bundle: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    assert run("index", bundle, "--kind", "hnsw", "--k", 5, "--queries", 10).code == 0
    (tmp_path / "gone.txt").write_text("i1\n")
    monkeypatch.setitem(sys.modules, "faiss", None)
    remedy = "faiss: it is not installed; pip install 'seqrec-fast[retrieval]'"
    done = run("recommend", bundle, "--history", "i1", "--index")
    assert (done.code, remedy in done.err) == (2, True)
    done = run("items", bundle, "--remove", tmp_path / "gone.txt")
    assert (done.code, remedy in done.err) == (2, True)
    assert "or take it out first, by seqrec-fast index --remove" in done.err
    assert f"the index is not measured: {remedy}" in run("evaluate", bundle, world.log).out
    assert "index: hnsw (" in run("info", bundle).out
    assert run("recommend", bundle, "--history", "i1").code == 0
    done = run("index", bundle, "--k", 5, "--queries", 10)  # puts another in its place
    assert done.code == 0, done.err
    assert f"not measured: hnsw: {remedy}" in done.out
    assert bundles.info(bundle)["index"]["kind"] in ("exact", "ivf-native")
    assert run("items", bundle, "--remove", tmp_path / "gone.txt").code == 0


def test_an_index_of_other_vectors_is_refused(indexed: Path, tmp_path: Path, world: World) -> None:
    content = bundles.load(indexed)
    name = "item_embedding.weight"
    content.tensors[name] = content.tensors[name][::-1].copy()
    bundles.save(content, tmp_path / "changed")
    done = run("recommend", tmp_path / "changed", "--history", "i1", "--index")
    assert done.code == 2
    assert "the vector of item index 0 is not that of the model" in done.err
    assert "make the index again with seqrec-fast index" in done.err
    assert run("recommend", tmp_path / "changed", "--history", "i1").code == 0
    assert run("index", tmp_path / "changed", "--kind", "exact", "--queries", 5).code == 0
    assert run("recommend", tmp_path / "changed", "--history", "i1", "--index").code == 0


def test_without_matplotlib_there_is_no_picture(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run("index", bundle, "--k", 5, "--queries", 10)
    assert done.code == 0, done.err
    assert "no picture: matplotlib is not installed" in done.out
    assert bundles.load(bundle).index is not None
    assert "index.png" not in bundles.load(bundle).extra_files


def test_commands_recommend_through_the_index(
    indexed: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[int] = []
    search = ExactIndex.search
    monkeypatch.setattr(
        ExactIndex, "search", lambda *a, **o: searches.append(len(a[1])) or search(*a, **o)
    )
    asked = ("recommend", indexed, "--history", "i1,i2", "--json")
    plain, through = (json.loads(run(*asked, *more).out) for more in ((), ("--index",)))
    assert searches == [1]
    assert [one["item"] for one in plain["recommendations"]] == [
        one["item"] for one in through["recommendations"]
    ]
    for name, more in (("a.parquet", ()), ("b.parquet", ("--index",))):
        done = run("batch", indexed, world.log, tmp_path / name, "--k", 5, *more)
        assert done.code == 0, done.err
    assert sum(searches[1:]) == USERS
    import pyarrow.parquet as pq

    tables = [pq.read_table(tmp_path / name).to_pylist() for name in ("a.parquet", "b.parquet")]
    items = [[row["items"] for row in table] for table in tables]
    assert items[0] == items[1]


def test_evaluate_tells_both(indexed: Path, world: World) -> None:
    done = run("evaluate", indexed, world.log, "--k", "3,10", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["index"]["recall"] == {"recall@3": 1.0, "recall@10": 1.0}
    assert told["index"]["kind"] == "exact"
    through = told["index"]["metrics"]
    assert set(told["metrics"]) - set(through) == {"MRR"}
    for name, value in through.items():
        assert value == pytest.approx(told["metrics"][name], abs=1e-9), name
    said = run("evaluate", indexed, world.log, "--index").out
    assert "through the index" in said
    assert "index exact against the exact search: recall@10 1.0000" in said
    assert json.loads(run("evaluate", world.bundle, world.log, "--json").out)["index"] is None


def test_evaluate_sees_what_an_index_misses(
    indexed: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = ExactIndex.search

    def short(*arguments: Any, **options: Any) -> Any:
        found = search(*arguments, **options)
        found.ids[:, 2:], found.scores[:, 2:] = -1, -float("inf")
        return found

    monkeypatch.setattr(ExactIndex, "search", short)
    told = json.loads(run("evaluate", indexed, world.log, "--k", "2,10", "--json").out)
    assert told["index"]["recall"] == {"recall@2": 1.0, "recall@10": pytest.approx(0.2)}
    through = told["index"]["metrics"]
    assert through["HR@2"] == told["metrics"]["HR@2"]
    assert through["HR@10"] == through["HR@2"] < told["metrics"]["HR@10"]


def test_evaluate_counts_unknown_items_and_users_as_the_exact_figures_do(
    indexed: Path, world: World, tmp_path: Path
) -> None:
    lines = world.log.read_text().splitlines()
    odd = [line.replace(",i", ",x", 1) if n % 3 == 0 else line for n, line in enumerate(lines[1:])]
    odd += [f"new{n},x{n % 3},{1_700_000_000 + n},view,3" for n in range(9)]
    odd += [f"new{n},x7,{1_700_000_100 + n},view,3" for n in range(9)]
    odd += [f"new{n},i{n},{1_700_000_200 + n},view,3" for n in range(9)]
    (tmp_path / "odd.csv").write_text("\n".join([lines[0], *odd]) + "\n")
    told = json.loads(run("evaluate", indexed, tmp_path / "odd.csv", "--json").out)
    assert told["unknown"]["users_without_known_history"] > 0
    assert told["unknown"]["targets"] > 0
    for name in ("HR@10", "NDCG@10", "Recall@10"):
        assert told["index"]["metrics"][name] == pytest.approx(told["metrics"][name], abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "tree"], "--kind"),
        (["--recall", "1.5"], "--recall: expected above 0 and at most 1, found 1.5"),
        (["--recall", "0"], "--recall: expected above 0"),
        (["--budget", "-1"], "--budget: must be above 0"),
        (["--option", "dtype=int8"], "--option: belongs to one kind; give --kind too"),
        (["--kind", "exact", "--recall", "0.9"], "--recall: belongs to --kind auto"),
        (["--kind", "exact", "--option", "dtype"], "expected NAME=VALUE"),
        (["--kind", "exact", "--option", "dtype=int4"], "dtype: found 'int4'; choose one of"),
        (["--kind", "exact", "--option", "lists=4"], "options of kind 'exact': got an unexpected"),
        (
            ["--kind", "exact", "--option", "dtype=int8", "--option", "dtype=int8"],
            "--option: dtype is given twice",
        ),
        (["--queries", "1"], "--queries"),
        (["--threads", "100000"], "--threads: 100000 is more than"),
        (["--log", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_input_is_one_line_and_the_bundle_stays(
    bundle: Path, arguments: list[str], message: str
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    done = run("index", bundle, *arguments)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("seqrec-fast: error: ")
    assert message in done.err
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_log_of_other_items_is_refused(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [f"u{user},other{item},{item}" for user in range(9) for item in range(5)]
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    done = run("index", bundle, "--log", log)
    assert done.code == 2
    assert "--log: 0 users of it have a history of items that the bundle knows" in done.err


def test_a_file_of_someone_else_in_the_bundle_is_told_before_the_work(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    done = run("index", bundle)
    assert (done.code, done.out) == (2, "")
    assert "'notes.txt', which would be lost" in done.err
    assert (bundle / "notes.txt").read_text() == "mine"


def test_a_bundle_that_changed_meanwhile_is_not_overwritten(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tuning.tune

    def tune(*arguments: Any, **options: Any) -> Any:
        content = bundles.load(bundle)
        content.metrics["newer"] = 1
        bundles.save(content, bundle)
        return plain(*arguments, **options)

    monkeypatch.setattr(tuning, "tune", tune)
    done = run("index", bundle, "--k", 5, "--queries", 10)
    assert done.code == 2
    assert "another bundle took its place meanwhile" in done.err
    assert bundles.load(bundle).metrics["newer"] == 1


def test_a_command_that_is_stopped_leaves_the_old_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    before = sorted((one.name, one.read_bytes()) for one in bundle.iterdir())
    monkeypatch.setattr(tuning, "tune", stop)
    assert run("index", bundle).code == 130
    assert sorted((one.name, one.read_bytes()) for one in bundle.iterdir()) == before
    assert [one.name for one in bundle.parent.iterdir()] == ["bundle"]


def test_no_index_where_one_is_asked_for(world: World) -> None:
    recommend = ("recommend", world.bundle, "--history", "i1")
    for command in (recommend, ("evaluate", world.bundle, world.log)):
        done = run(*command, "--index")
        assert done.code == 2
        assert "the bundle has no index; make one with seqrec-fast index" in done.err


def test_through_the_index_holds_for_a_swap(indexed: Path) -> None:
    recommender = sf.Recommender.load(indexed, retrieval="index")
    recommender.swap(indexed)
    assert recommender.info()["index"]["measured"]["k"] == 5


def test_serve_goes_through_the_index(indexed: Path, tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    path = tmp_path / "bundle"
    content = bundles.load(indexed)
    assert content.index is not None
    index = retrieval.from_tensors(content.index)
    index.remove(content.items.encode(["i2"]))  # which tells the index from the exact search
    content.index = index.to_tensors()
    bundles.save(content, path)
    through = sf.Recommender.load(path, retrieval="index")
    server = Server(path, "--index", "--threads", 1, "--allow-reload", "--grace", 0)
    try:
        for options in (
            {},
            {"limit": {"title": 1}, "where": {"title": {"not": "no such title"}}},
            {"deny": ["i3", "i4"], "allow": [f"i{n}" for n in range(20)]},
        ):
            body = {"history": ["i1", "i9"], "k": ITEMS, **options}
            answer = httpx.post(f"{server.url}/recommend", json=body).json()
            wanted = through.recommend([["i1", "i9"]], ITEMS, **options)[0]
            assert answer["items"] == wanted.items.tolist()
            assert "i2" not in answer["items"]
        assert "i2" in sf.Recommender.load(path).recommend([["i1", "i9"]], ITEMS)[0].items
        content.index = None
        bundles.save(content, path)
        refused = httpx.post(f"{server.url}/admin/reload")
        assert refused.status_code == 422
        assert "the bundle has no index; make one with seqrec-fast index" in refused.json()["error"]
        assert httpx.post(f"{server.url}/recommend", json=body).json()["items"] == answer["items"]
    finally:
        server.end()
    done = run("serve", path, "--index", "--port", 0)
    assert done.code == 2
    assert "the bundle has no index" in done.err
