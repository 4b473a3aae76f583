# SPDX-License-Identifier: Apache-2.0
"""Damaged bundles, full disks, missing rights, checkpoints of other runs: refused and told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.refusals import check_refused, recommend, snapshot, text_log, train
from tests.cli.support import Ran, World, run, write_log

ROOT = Path(__file__).resolve().parents[2]

BUNDLE_FILES = (
    "manifest.json",
    "model.json",
    "weights.safetensors",
    "vocabulary.safetensors",
    "items.safetensors",
    "metrics.json",
    "cleaning.json",
    "training.json",
    "curve.png",
)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": _truncate,
    "altered": _flip,
}


def test_the_files_of_a_bundle_are_all_damaged_below(world: World) -> None:
    assert {path.name for path in world.bundle.iterdir()} == set(BUNDLE_FILES)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_damaged_bundle_is_refused(name: str, damage: str, world: World, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(world.bundle, bundle)
    DAMAGE[damage](bundle / name)
    for arguments in (recommend(bundle), ["evaluate", bundle, world.log]):
        check_refused(run(*arguments), (str(bundle), name))


def test_bundle_of_a_newer_version_is_refused(world: World, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(world.bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["format_version"] = 99
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    check_refused(run(*recommend(bundle)), ("manifest.json", "99"))


# --------------------------------------------------------------------- the system


def test_disk_that_fills_up_leaves_no_half_written_bundle(world: World, tmp_path: Path) -> None:
    """A real process whose files may not grow beyond 4 KiB: the weights do not fit."""
    out = tmp_path / "out"
    command = train(world.log, tmp_path, "--checkpoint", "CHECKPOINT", "--dim", "64", "--json")
    # the checkpoint is put aside, so that it is the bundle that fails
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from seqrec_fast import training\n"
        "from seqrec_fast.cli import main, train\n"
        "real = train.save\n"
        "def save(*args):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "    real(*args)\n"
        "train.save = save\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    arguments = [str(argument) for argument in command]
    arguments[arguments.index("CHECKPOINT")] = str(tmp_path / "kept")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("seqrec-fast: error: ")
    assert str(out) in last
    assert os.strerror(errno.EFBIG).lower() in last.lower()
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]  # the hours are not lost
    resumed = run(*train(world.log, tmp_path, "--checkpoint", tmp_path / "kept", "--dim", "64",
                         "--resume"))  # fmt: skip
    assert resumed.code == 0, resumed.err


def test_no_space_for_the_bundle(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own 'no space left' while a bundle replaces another: the old one stays whole."""
    from seqrec_fast.bundle import writer

    out = tmp_path / "out"
    shutil.copytree(world.bundle, out)
    before = snapshot(tmp_path)

    def full(path: Path, fill: object) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(writer, "_write_file", full)
    done = run(*train(world.log, tmp_path))
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("seqrec-fast: error: ")
    assert "no space" in last
    shutil.rmtree(tmp_path / "out.checkpoint")
    assert snapshot(tmp_path) == before
    assert run(*recommend(out)).code == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_place_that_refuses_to_be_written_is_told_before_training(
    number: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every folder can be written, so the refusal of the system is put in its place."""
    from seqrec_fast import training
    from seqrec_fast.cli import console

    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(console.tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setattr(training, "fit", lambda *a, **o: pytest.fail("trained before checking"))
    check_refused(run(*train(world.log, tmp_path)), ("--out", os.strerror(number)))
    assert list(tmp_path.iterdir()) == []


def test_file_without_permission_is_named(world: World, tmp_path: Path) -> None:
    """Reading as a user who may not: the library is loaded first, then the rights are given up."""
    log = tmp_path / "secret.csv"
    write_log(log)
    log.chmod(0)
    code = (
        "import os, sys\n"
        "from seqrec_fast.cli import main\n"
        "from seqrec_fast import data, training\n"
        "import duckdb, pyarrow\n"
        "if os.geteuid() == 0:\n"
        "    os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    for parent in [tmp_path, *tmp_path.parents][:4]:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    arguments = [str(argument) for argument in train(log, place)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    check_refused(
        Ran(done.returncode, done.stdout, done.stderr), ("secret.csv", "ermission denied")
    )
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("more", [("--dim", "4"), ("--seed", "1"), ("--learning-rate", "0.5")])
def test_resume_with_other_options_is_refused(
    more: tuple[str, ...], world: World, tmp_path: Path
) -> None:
    from seqrec_fast import data, training

    log = data.read_log(world.log)
    split = data.leave_one_out(data.prepare(log))
    place = tmp_path / "out.checkpoint"
    training.fit(split, dim=8, heads=2, max_length=10, threads=1, epochs=1, checkpoint=place,
                 progress=False)  # fmt: skip
    before = snapshot(tmp_path)
    done = run(*train(world.log, tmp_path, "--resume", *more))
    check_refused(done, ("out.checkpoint", "other options"))
    assert snapshot(tmp_path) == before


def test_ids_of_mixed_kinds_are_taken_as_text(tmp_path: Path) -> None:
    """Not an error: 7 and 'a7' in one column are ids of text, and both come back as written."""
    rows = "".join(f"{user if user % 2 else f'u{user}'},{item if item % 2 else f'a{item}'},{item}\n"
                   for user in range(20) for item in range(8))  # fmt: skip
    log = text_log(tmp_path, "user_id,item_id,timestamp\n" + rows)
    assert run(*train(log, tmp_path)).code == 0
    done = run("recommend", tmp_path / "out", "--history", "7,a2", "--json")
    found = json.loads(done.out)
    assert found["unknown"] == []
    assert {row["item"] for row in found["recommendations"]} == {"1", "3", "5", "a0", "a4", "a6"}
