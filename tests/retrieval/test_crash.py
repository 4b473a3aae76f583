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
from pathlib import Path
from typing import Any

import pytest

from seqrec_fast import bundle as bundles
from seqrec_fast import retrieval
from tests.bundle.conftest import make_bundle

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """
import json, os, random, signal, sys, time
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

INDEX = """
def save():
    version = int(retrieval.load(path, mmap=False).vectors([0])[0, 0])
    while True:
        version += 1
        index = retrieval.build(np.full((2000, 16), version, np.float32))
        index.add(np.full((version % 7, 16), version))
        index.save(path)

def check():
    index = retrieval.load(path)
    vectors = index.vectors(np.arange(index.size))
    version = int(vectors[0, 0])
    assert (vectors == version).all() and index.size == 2000 + version % 7, (version, index)
    return version

kill_over_and_over(save, check)
"""

# Version n has n new items, whose ids, titles and vectors tell their number, and one removed item.
BUNDLE = """
def save():
    content = bundles.load(path)
    while True:
        version = len(content.items) - 29
        add, vectors, titles = [f"new-{version}"], [[float(version)] * 4], [f"New {version}"]
        if version > 1:
            add.append(content.items.ids[(version - 2) % 30])
            vectors.append(None)
            titles.append(None)
        content = catalogue.change(
            content, add=add, vectors=vectors, table=ItemTable({"title": titles}, "title"),
            remove=[content.items.ids[(version - 1) % 30]],
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
    gone = [] if found.removed is None else np.flatnonzero(found.removed).tolist()
    assert gone == ([] if not version else [(version - 1) % 30]), gone
    return version

kill_over_and_over(save, check)
"""


def killed(folder: Path, program: str) -> dict[str, Any]:
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
    found: dict[str, Any] = json.loads(done.stdout)
    versions = found["versions"]
    assert versions == sorted(versions)  # nothing that was there is lost
    assert versions[-1] > versions[0]
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_index_is_of_one_version(tmp_path: Path) -> None:
    path = tmp_path / "it"
    retrieval.build([[0.0] * 16] * 2000).save(path)
    killed(tmp_path, INDEX)
    retrieval.load(path).save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["it"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_bundle_is_of_one_version_in_all_its_members(tmp_path: Path) -> None:
    path = tmp_path / "it"
    bundles.save(make_bundle(), path)
    killed(tmp_path, BUNDLE)
    bundles.save(bundles.load(path), path)
    assert [one.name for one in tmp_path.iterdir()] == ["it"]


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
