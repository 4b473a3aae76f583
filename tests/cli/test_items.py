# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast items``: new items are recommended, removed ones are not, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import Recommender, bundle
from seqrec_fast.bundle import catalogue
from seqrec_fast.data import leave_one_out, prepare, read_log
from seqrec_fast.data.items import ItemTable
from tests.cli.refusals import check_refused, snapshot
from tests.cli.support import ITEMS, World, run


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Path:
    """A bundle whose titles share words."""
    content = bundle.load(world.bundle)
    titles: list[str | None] = [f"Story {n % 3} of {n % 5}" for n in range(ITEMS)]
    bundle.save(replace(content, item_table=ItemTable({"title": titles}, "title")), tmp_path / "b")
    return tmp_path / "b"


def test_a_bundle_gets_new_items_and_loses_some(copy: Path, tmp_path: Path) -> None:
    new, gone = tmp_path / "new.csv", tmp_path / "gone.txt"
    new.write_text(
        "item_id,title,similar,place\n"
        "n1,A story of 5,i5|i6,\n"
        "n2,Placed,,1 2 3 4 5 6 7 8\n"
        "i7,Renamed,,\n"
        "n3,Story 2 of 4,,\n",
        encoding="utf-8",
    )
    gone.write_text("i0\ni1\nzz\n", encoding="utf-8")
    arguments = ["items", copy, "--add", new, "--remove", gone, "--like", "similar"]
    done = run(*arguments, "--vector", "place", "--out", tmp_path / "changed", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["added"], facts["changed"], facts["removed"]) == (3, 1, 2)
    assert facts["unknown"] == ["zz"]
    assert facts["vectors"] == {"given": 1, "like": 1, "features": 1}
    assert set(facts["quality"]) == {"r2", "recall", "chance", "items"}
    assert (facts["items"], facts["recommended"]) == (ITEMS + 3, ITEMS + 1)
    served = Recommender.load(tmp_path / "changed")
    found = served.recommend([["i1", "n1"]], k=100)[0]
    assert {"n2", "n3"} <= set(found.items.tolist())
    assert not {"i0", "i1"} & set(found.items.tolist())
    assert "Renamed" in found.titles
    assert bundle.load(copy).removed is None  # the one that was given is as it was
    done = run("items", copy, "--remove", gone)
    assert done.code == 0, done.err
    assert "removed 2" in done.out
    assert "not known, so not removed: 1 (zz)" in done.out
    assert f"{ITEMS} items, {ITEMS - 2} of them recommended" in done.out


@pytest.mark.parametrize("header", ["item_id\n", "", "code\n"])
def test_a_file_of_ids_brings_items_back(copy: Path, tmp_path: Path, header: str) -> None:
    gone, back = tmp_path / "gone.txt", tmp_path / "back.csv"
    gone.write_text("i1\ni2\n")
    assert run("items", copy, "--remove", gone).code == 0
    back.write_text(f"{header}i2\ni1\n")
    named = ("--item-id", "code") if header == "code\n" else ()
    done = run("items", copy, "--add", back, *named, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["restored"], told["added"], told["changed"]) == (2, 0, 0)
    assert bundle.load(copy).removed is None
    back.write_text("item_id\nnobody\n")
    check_refused(run("items", copy, "--add", back), ("'nobody'", "no vector"))
    back.write_text("item_id\n")
    check_refused(run("items", copy, "--add", back), ("--add", "no rows"))


def test_evaluate_does_not_rank_removed_items(world: World, copy: Path, tmp_path: Path) -> None:
    """Its figures are those of the definition, with an index too, and popularity beside them."""
    gone = tmp_path / "gone.txt"
    removed = [f"i{n}" for n in range(0, ITEMS, 3)]
    gone.write_text("\n".join(removed), encoding="utf-8")
    assert run("index", copy, "--kind", "exact", "--option", "dtype=int8").code == 0
    before = json.loads(run("evaluate", copy, world.log, "--k", "3,5", "--json").out)
    assert run("items", copy, "--remove", gone).code == 0
    done = run("evaluate", copy, world.log, "--k", "3,5", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["items"] == ITEMS - len(removed)
    assert found["removed"]["items"] == len(removed)
    served = Recommender.load(copy)
    split = leave_one_out(prepare(read_log(world.log)))
    names = split.items.decode(np.arange(len(split.items)))
    hits, shown = [], set()
    for history, target in zip(split.test.histories, split.test.targets, strict=True):
        wanted = names[target].tolist()
        if not wanted:
            continue
        answer = served.recommend([names[history].tolist()], 5)[0].items.tolist()
        shown.update(answer)
        hits.append(wanted[0] in answer)
    assert found["metrics"]["HR@5"] == pytest.approx(np.mean(hits))
    assert found["metrics"]["Coverage@5"] == pytest.approx(len(shown) / found["items"])
    assert found["removed"]["targets"] > 0
    assert found["unknown"]["targets"] == 0
    assert found["metrics"] != before["metrics"]
    assert found["popularity"] != before["popularity"]
    assert found["index"]["recall"] == {"recall@3": 1.0, "recall@5": 1.0}
    for name, value in found["index"]["metrics"].items():
        assert value == pytest.approx(found["metrics"][name]), name
    told = run("evaluate", copy, world.log).out
    assert f"removed from the catalogue, not ranked: {len(removed)} items" in told


@pytest.mark.parametrize(
    ("text", "more", "named"),
    [
        ("item_id,title\nn1,A\nn1,B\n", [], None),
        ("item_id,title\n,A\n", [], "row 1 has no item id"),
        ("item_id,title\n", [], "no rows"),
        ("item_id,title,v\nn1,A,1 2\n", ["--vector", "v"], "must be 8 finite numbers"),
        ("item_id,title,v\nn1,A,one\n", ["--vector", "v"], "expected numbers"),
        ("item_id,title,s\nn1,A,i999\n", ["--like", "s"], "i999"),
        ("item_id,title\nn1,A\n", ["--like", "nope"], "no column 'nope'"),
        ("item_id,title\nn1,A\n", ["--like", "title"], "said to be like 'A'"),
    ],
)
def test_files_that_cannot_be_used(
    copy: Path, tmp_path: Path, text: str, more: list[str], named: str | None
) -> None:
    new = tmp_path / "new.csv"
    new.write_text(text, encoding="utf-8")
    before = snapshot(copy)
    done = run("items", copy, "--add", new, *more)
    if named is None:  # of several rows of an item the first counts, as in training
        assert done.code == 0, done.err
        return
    check_refused(done, (named,))
    assert snapshot(copy) == before


def test_options_that_cannot_be_used(copy: Path, tmp_path: Path) -> None:
    check_refused(run("items", copy), ("--add", "--remove"))
    check_refused(run("items", copy, "--remove", tmp_path / "no"), ("--remove", "no"))
    check_refused(run("items", copy, "--add", tmp_path / "no.csv"), ("no.csv",))
    check_refused(run("items", copy, "--remove", copy, "--like", "x"), ("--like", "--add"))
    everything = tmp_path / "all.txt"
    everything.write_text("\n".join(f"i{n}" for n in range(ITEMS)), encoding="utf-8")
    check_refused(run("items", copy, "--remove", everything), ("--remove", "left"))


def test_a_bundle_that_changed_meanwhile_is_not_overwritten(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, others = tmp_path / "gone.txt", tmp_path / "others.txt"
    gone.write_text("i0\n", encoding="utf-8")
    others.write_text("i1\n", encoding="utf-8")
    change = catalogue.change

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(catalogue, "change", change)
        assert run("items", copy, "--remove", others).code == 0
        return change(*arguments, **options)

    monkeypatch.setattr(catalogue, "change", meanwhile)
    check_refused(run("items", copy, "--remove", gone), ("another bundle took its place",))
    content = bundle.load(copy)
    assert content.items.ids[content.removed].tolist() == ["i1"]
    assert run("items", copy, "--remove", gone).code == 0
    content = bundle.load(copy)
    assert sorted(content.items.ids[content.removed].tolist()) == ["i0", "i1"]
