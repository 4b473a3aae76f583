# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast batch`` from the outside: what it writes, says and refuses, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import seqrec_fast as sf
from tests.cli.support import USERS, World, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    path = tmp_path / "users.parquet"
    table = pa.table({"user": ["a", "b", "c"], "history": [["i1", "i2"], [], ["i3", "nobody"]]})
    pq.write_table(table, path)
    return path


def test_answers_are_those_of_recommend(world: World, histories: Path) -> None:
    out = histories.with_name("out.parquet")
    done = run("batch", world.bundle, histories, out, "--k", "4", "--threads", "1")
    assert done.code == 0, done.err
    assert f"wrote {out}: 3 users, top 4, in " in done.out
    assert "ignored: 1 of 4 ids of histories" in done.out
    assert "without a known item: 1 users (given the most popular items)" in done.out
    assert done.err == ""
    rec = sf.Recommender.load(world.bundle)
    for row in pq.read_table(out).to_pylist():
        history = {"a": ["i1", "i2"], "b": [], "c": ["i3"]}[row["user"]]
        answer = rec.recommend([history], k=4)[0]
        assert row["items"] == answer.items.tolist()
        # one user alone is another shape of the same matrix products
        np.testing.assert_allclose(row["scores"], answer.scores, rtol=1e-5)


def test_rules_and_limits(world: World, histories: Path) -> None:
    rec = sf.Recommender.load(world.bundle)
    column, some = "title", [f"Title, number {number}" for number in range(9)]
    out = histories.with_name("out.parquet")
    rule = f"{column}={'|'.join(some)}"
    arguments = "--where", rule, "--limit", f"{column}=1", "--k", 5
    done = run("batch", world.bundle, histories, out, *arguments)
    assert done.code == 0, done.err
    for row in pq.read_table(out).to_pylist():
        history = {"a": ["i1", "i2"], "b": [], "c": ["i3"]}[row["user"]]
        answer = rec.recommend([history], 5, where={column: some}, limit={column: 1})[0]
        assert row["items"] == answer.items.tolist()
    for wrong, message in (
        (("--where", "colour=red"), "column 'colour' is not in the item table"),
        (("--where", f"{column}=no such title"), "where: leaves no item that could be recommended"),
        (("--limit", "colour=1"), "column 'colour' is not in the item table"),
        (("--limit", f"{column}=0"), f"limit: column '{column}' needs a whole number"),
    ):
        place = histories.with_name("other.parquet")
        done = run("batch", world.bundle, histories, place, *wrong)
        assert done.code == 2
        assert message in done.err
        assert not place.exists()


def test_a_log_with_filters_as_json(world: World, tmp_path: Path) -> None:
    out, allow, deny = (tmp_path / name for name in ("out.parquet", "allow.txt", "deny.txt"))
    allow.write_text("i1\ni2\n\ni3\nnothing\n", encoding="utf-8")
    deny.write_text("i2\n", encoding="utf-8")
    done = run(
        "batch", world.bundle, world.log, out, "--include-seen", "--allow", allow, "--deny", deny,
        "--flat", "--weights", "int8", "--json", "--user", "user_id", "--time", "timestamp",
    )  # fmt: skip
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed["users"] == USERS
    assert printed["events"] == USERS * 8
    assert (printed["unknown_filters"], printed["without_known_items"]) == (1, 0)
    assert printed["users_per_second"] > 0
    flat = pq.read_table(out)
    assert set(flat.column("item").to_pylist()) == {"i1", "i3"}
    assert flat.num_rows == 2 * USERS
    again = run("batch", world.bundle, world.log, out)
    assert again.code == 2
    assert f"{out}: exists already; give --overwrite to replace it" in again.err
    assert run("batch", world.bundle, world.log, out, "--k", "1", "--overwrite").code == 0
    assert pq.read_table(out).num_rows == USERS


def test_ctrl_c_leaves_nothing(world: World, tmp_path: Path) -> None:
    users, out = tmp_path / "users.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"user": range(200_000), "history": [["i1"]] * 200_000}), users)
    process = subprocess.Popen(
        [sys.executable, "-m", "seqrec_fast.cli.main", "batch", str(world.bundle), str(users),
         str(out), "--chunk-users", "1", "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        # a shell that runs the tests in the background has told its children to ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size for p in tmp_path.glob(".out*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not out.exists()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "seqrec-fast: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_torch_is_not_needed(world: World, histories: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from seqrec_fast.cli.main import main\n"
        f"sys.exit(main(['batch', {str(world.bundle)!r}, {str(histories)!r}, "
        f"{str(histories.with_name('o.parquet'))!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
