# SPDX-License-Identifier: Apache-2.0
"""A process that saves is killed at random moments: the old version or the new one is there, whole.

Each program below runs in a process of its own, which forks one child after another. A child saves
version after version and is killed (SIGKILL) after a random time; then what is on the disk is
loaded, with all checksums, and has to be one version in all its parts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import bundle as bundles
from seqrec_fast import retrieval
from seqrec_fast.bundle import catalogue
from tests.bundle.conftest import make_bundle

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """
import json, os, random, signal, sys, time, traceback
import numpy as np
from seqrec_fast import bundle as bundles, retrieval
from seqrec_fast.bundle import catalogue
from seqrec_fast.data.items import ItemTable

def kill_over_and_over(save, check, seconds=4.0, longest=0.15):
    rng, end = random.Random(0), time.monotonic() + seconds
    rounds, versions, left = 0, [], 0
    while time.monotonic() < end or rounds < 5:
        child = os.fork()
        if not child:
            try:
                save()
            finally:
                os._exit(1)  # it never ends by itself
        time.sleep(rng.random() * longest)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child failed by itself"
        left += len(os.listdir(folder)) > 1
        versions.append(check())
        rounds += 1
    print(json.dumps({"rounds": rounds, "versions": versions, "left": left}))

folder = sys.argv[1]
path = os.path.join(folder, "it")
"""

# Version n is built, added to, updated and robbed of two items, all of it by rules of n.
INDEX = """
def save():
    version = int(retrieval.load(path, mmap=False).vectors([0])[0, 0])
    while True:
        version += 1
        index = retrieval.build(np.full((2000, 16), version, np.float32), kind=KIND, **OPTIONS)
        index.add(np.full((version % 7, 16), version))
        index.update([1 + version % 50], np.full((1, 16), version + 0.5))
        index.remove([60 + version % 50, 1999])
        index.save(path)

def check():
    index = retrieval.load(path)
    vectors = index.vectors(np.arange(index.size))
    version = int(vectors[0, 0])
    expected = np.full(2000 + version % 7, version, np.float32)
    gone = []
    if version:
        expected[1 + version % 50] += 0.5
        gone = [60 + version % 50, 1999]
    assert (vectors == expected[:, None]).all(), version
    found = np.sort(index.search(np.ones((1, 16)), index.size).ids[0])
    assert (found[found >= 0] == np.setdiff1d(np.arange(index.size), gone)).all(), version
    return version

retrieval.build(np.zeros((3, 16)), kind=KIND, **OPTIONS)  # what it needs is imported
kill_over_and_over(save, check, *TIMES)
"""

# Version n has n new items, whose ids, titles and vectors tell their number, one removed item, one
# whose vector is changed each time, and an index over all of them.
BUNDLE = """
def save():
    content = bundles.load(path)
    while True:
        version = len(content.items) - 29
        add = [f"new-{version}", content.items.ids[29]]
        vectors = [[float(version)] * 4, [-float(version)] * 4]
        titles = [f"New {version}", None]
        if version > 1:
            add.append(content.items.ids[(version - 2) % 29])
            vectors.append(None)
            titles.append(None)
        content = catalogue.change(
            content, add=add, vectors=vectors, table=ItemTable({"title": titles}, "title"),
            remove=[content.items.ids[(version - 1) % 29]],
        ).bundle
        bundles.save(content, path)

def check():
    found = bundles.load(path)
    version = len(found.items) - 30
    sizes = {len(found.popularity), len(found.item_table), found.config["num_items"]}
    assert sizes == {30 + version}, sizes
    vectors = found.tensors["item_embedding.weight"]
    for at in range(30, 30 + version):
        assert found.items.ids[at] == f"new-{at - 29}" and (vectors[at] == at - 29).all()
        assert found.item_table.title(at) == f"New {at - 29}"
    assert not version or (vectors[29] == -version).all()
    gone = [] if found.removed is None else np.flatnonzero(found.removed).tolist()
    assert gone == ([] if not version else [(version - 1) % 29]), gone
    index = retrieval.from_tensors(found.index)
    every = np.arange(30 + version)
    assert (index.vectors(every) == catalogue.index_rows(found, every)).all(), version
    ids = np.sort(index.search(np.ones((1, index.dim)), index.size).ids[0])
    assert (ids[ids >= 0] == np.setdiff1d(every, gone)).all(), version
    return version

kill_over_and_over(save, check)
"""

# Processes that save under one name at once: none fails, and one of them stays.
TOGETHER = """
def one(number):
    for version in range(20):
        save(number)
    os._exit(0)

children = []
for number in range(3):
    child = os.fork()
    if not child:
        try:
            one(number)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert codes == [0, 0, 0], codes
print(json.dumps(sorted(os.listdir(folder))))
"""

INDEXES_TOGETHER = """
def save(number):
    retrieval.build(np.full((500, 16), number, np.float32)).save(path)
"""

BUNDLES_TOGETHER = """
content = bundles.load(path)

def save(number):
    content.metrics["of"] = number
    bundles.save(content, path)
"""


def of_a_process(folder: Path, program: str) -> Any:
    """What a program prints last."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DRIVER + program), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def killed(folder: Path, program: str) -> dict[str, Any]:
    found: dict[str, Any] = of_a_process(folder, program)
    versions = found["versions"]
    assert versions == sorted(versions)  # nothing that was there is lost
    assert versions[-1] > versions[0]
    return found


KINDS: dict[str, dict[str, Any]] = {"exact": {}, "exact int8": {"dtype": "int8"}, "ivf-native": {}}
if find_spec("faiss"):
    KINDS["hnsw"] = {"m": 4, "ef_construction": 8}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_of_one_version(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    retrieval.build([[0.0] * 16] * 2000).save(path)
    times = "3.0, 0.15" if kind == "exact" else "2.0, 0.4"
    facts = f"KIND, OPTIONS, TIMES = {kind.split()[0]!r}, {KINDS[kind]!r}, ({times})\n"
    killed(tmp_path, facts + INDEX)
    retrieval.load(path).save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["it"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_bundle_is_of_one_version_in_all_its_members(tmp_path: Path) -> None:
    path = tmp_path / "it"
    content = make_bundle()
    rows = catalogue.index_rows(content, np.arange(30))
    content.index = retrieval.build(rows, dtype="int8").to_tensors()
    bundles.save(content, path)
    killed(tmp_path, BUNDLE)
    bundles.save(bundles.load(path), path)
    assert [one.name for one in tmp_path.iterdir()] == ["it"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_save_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    for name, program in (("index", INDEXES_TOGETHER), ("bundle", BUNDLES_TOGETHER)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "it"
        if name == "bundle":
            bundles.save(make_bundle(), path)
        assert of_a_process(tmp_path / name, program + TOGETHER) == ["it"]
        if name == "bundle":
            assert bundles.load(path).metrics["of"] in (0, 1, 2)
        else:
            assert len(np.unique(retrieval.load(path).vectors(np.arange(500)))) == 1


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    """Two processes that save under one name: neither removes what the other is writing."""
    from seqrec_fast._files import hold, scratch_name

    path = tmp_path / "it"
    alive, dead = scratch_name(path), scratch_name(path)
    other = tmp_path / ".it.old.tmp"  # not a name of ours
    for one in (alive, dead, other):
        one.write_text("half", encoding="ascii")
    with open(alive, "rb") as stream:
        hold(stream.fileno())
        retrieval.build([[1.0]]).save(path)
        assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
            [path.name, alive.name, other.name]
        )
    retrieval.build([[1.0]]).save(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([path.name, other.name])
