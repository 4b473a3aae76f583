# SPDX-License-Identifier: Apache-2.0
"""Saving replaces a bundle in one step, whatever fails, and nothing else is ever overwritten."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrec_fast import _files
from seqrec_fast import bundle as bundles
from seqrec_fast.bundle import Bundle, writer
from seqrec_fast.errors import BundleError, InputError


class Crash(BaseException):
    """The process ends here: nothing may clean up."""


def id_of(path: Path) -> str:
    return str(bundles.load(path).items.ids[0])


def calls(monkeypatch: pytest.MonkeyPatch, fail_at: int | None, error: BaseException) -> list[str]:
    """Lets the ``fail_at``-th call of the file system fail; returns the calls as they are made."""
    made: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) - 1 == fail_at:
                raise error
            return original(*args, **kwargs)

        return call

    for owner, name in (
        (os, "fsync"),
        (os, "rename"),
        (Path, "mkdir"),
        (writer, "_write_file"),
        (writer, "_sync_folder"),
    ):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    return made


def number_of_steps(tmp_path: Path, content: Bundle, another: Bundle) -> int:
    with pytest.MonkeyPatch.context() as patch:
        made = calls(patch, None, Crash())
        bundles.save(content, tmp_path / "probe")
        made.clear()
        bundles.save(another, tmp_path / "probe")
        assert made.count("rename") == 2
        assert made.count("_write_file") == 9
        assert made.count("fsync") == 9 + 2  # every file, the new folder and the one around it
        return len(made)


def test_an_error_at_any_step_leaves_the_old_bundle(
    tmp_path: Path, content: Bundle, another: Bundle
) -> None:
    steps = number_of_steps(tmp_path, content, another)
    path = tmp_path / "place" / "bundle"
    bundles.save(content, path)
    old = id_of(path)
    new = str(another.items.ids[0])
    for step in range(steps):
        with pytest.MonkeyPatch.context() as patch:
            made = calls(patch, step, OSError(errno.EIO, "Input/output error"))
            with pytest.raises(InputError, match="can't be written, input/output error") as caught:
                bundles.save(another, path)
        assert str(path) in str(caught.value)
        # After the second rename the new bundle is there; only its flush to the disk failed.
        renamed = made[: step + 1].count("rename") - (made[step] == "rename")
        assert id_of(path) == (new if renamed == 2 else old), made[step]
        visible = [entry.name for entry in path.parent.iterdir()]
        assert [name for name in visible if name.endswith(".tmp")] == []
        bundles.save(content, path)
        assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]


def die_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """The process dies at this call: neither clean-up nor rolling back runs, as in a power cut."""
    made = calls(patch, step, Crash())
    watched = os.rename

    def remove(*args: Any, **kwargs: Any) -> None:
        if len(made) <= step:
            raise Crash  # all calls went well: die while the old bundle is about to be removed

    def rename(*args: Any, **kwargs: Any) -> None:
        if len(made) > step:
            raise Crash  # dead already
        watched(*args, **kwargs)

    patch.setattr(shutil, "rmtree", remove)
    patch.setattr(os, "rename", rename)


def test_a_crash_at_any_step_leaves_the_old_or_the_new_bundle(
    tmp_path: Path, content: Bundle, another: Bundle
) -> None:
    steps = number_of_steps(tmp_path, content, another)
    old, new = str(content.items.ids[0]), str(another.items.ids[0])
    seen = []
    for step in range(steps + 1):
        path = tmp_path / f"place{step}" / "bundle"
        bundles.save(content, path)
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, step)
            with pytest.raises(Crash):
                bundles.save(another, path)
        seen.append(id_of(path))
        # The next save puts everything in order.
        bundles.save(another, path)
        assert id_of(path) == new
        assert not (path.parent / ".bundle.old").exists()
    turn = seen.index(new)
    assert turn > 0
    assert seen == [old] * turn + [new] * (len(seen) - turn)


def test_the_bundle_is_found_between_the_two_renames(saved: Path, another: Bundle) -> None:
    old = id_of(saved)
    saved.rename(saved.parent / ".bundle.old")
    assert id_of(saved) == old
    assert bundles.info(saved)["num_items"] == 30
    bundles.save(another, saved)
    assert id_of(saved) == str(another.items.ids[0])
    assert [entry.name for entry in saved.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path,
    content: Bundle,
    another: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    existing: bool,
) -> None:
    path = tmp_path / "runs" / "deep" / "bundle"
    if existing:
        bundles.save(content, path)
    original = writer.write_tensors

    def full(tensors: Any, write: Callable[[Any], None]) -> None:
        def limited(data: Any) -> None:
            write(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        original(tensors, limited)

    monkeypatch.setattr(writer, "write_tensors", full)
    with pytest.raises(InputError, match="no space is left on the device") as caught:
        bundles.save(another, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if existing:
        assert id_of(path) == str(content.items.ids[0])
        assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_really_full_device_is_reported(
    tmp_path: Path, content: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open

    def on_full(path: Any, mode: str) -> Any:
        return real("/dev/full", "wb")

    monkeypatch.setattr(writer, "open", on_full, raising=False)
    with pytest.raises(InputError, match="no space is left"):
        bundles.save(content, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_previous_bundle_that_cannot_be_removed_is_a_warning(
    saved: Path, another: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(path: Any, **_: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", stuck)
    with pytest.warns(UserWarning, match="could not be removed"):
        bundles.save(another, saved)
    assert id_of(saved) == str(another.items.ids[0])


# ---------------------------------------------------------------------- what is never overwritten


def test_a_folder_that_is_not_a_bundle_is_left_alone(tmp_path: Path, content: Bundle) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty and not a bundle"):
        bundles.save(content, tmp_path / "home")
    (tmp_path / "home" / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(InputError, match="not empty and not a bundle"):
        bundles.save(content, tmp_path / "home")
    (tmp_path / "home" / "manifest.json").write_text("[")
    with pytest.raises(InputError, match="not empty and not a bundle"):
        bundles.save(content, tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "keep"
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


def test_a_foreign_file_inside_a_bundle_is_not_lost(saved: Path, another: Bundle) -> None:
    (saved / "notes.txt").write_text("keep")
    assert id_of(saved)  # it does not disturb reading
    with pytest.raises(InputError, match=r"also holds 'notes\.txt'"):
        bundles.save(another, saved)
    assert (saved / "notes.txt").read_text() == "keep"


def test_a_file_is_left_alone(tmp_path: Path, content: Bundle) -> None:
    (tmp_path / "file").write_text("keep")
    with pytest.raises(InputError, match="there is a file of that name"):
        bundles.save(content, tmp_path / "file")
    with pytest.raises(InputError, match=r"can't be written|file of that name"):
        bundles.save(content, tmp_path / "file" / "b")
    assert (tmp_path / "file").read_text() == "keep"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_overwrite_false_keeps_the_bundle(saved: Path, another: Bundle) -> None:
    old = id_of(saved)
    with pytest.raises(InputError, match="there is a bundle already"):
        bundles.save(another, saved, overwrite=False)
    assert id_of(saved) == old


def test_an_empty_folder_is_taken_and_a_link_is_followed(tmp_path: Path, content: Bundle) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    bundles.save(content, tmp_path / "link", overwrite=False)
    assert (tmp_path / "link").is_symlink()
    assert id_of(tmp_path / "real") == id_of(tmp_path / "link")


def test_a_place_without_permission_is_named(
    tmp_path: Path, content: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(InputError, match="permission denied; give a place where you may write"):
        bundles.save(content, tmp_path / "shut" / "b")


def test_readers_get_one_bundle_or_the_other(saved: Path, content: Bundle, another: Bundle) -> None:
    first, second = str(content.items.ids[0]), str(another.items.ids[0])
    stop = threading.Event()
    faults: list[BaseException] = []
    found: set[str] = set()

    def read(verify: bool) -> None:
        while not stop.is_set():
            try:
                loaded = bundles.load(saved, verify=verify)
            except BundleError as error:
                faults.append(error)
                return
            # weights and ids belong together
            owner = content if loaded.items == content.items else another
            if not (loaded.tensors["output_bias"] == owner.tensors["output_bias"]).all():
                faults.append(AssertionError("a mixture of two bundles"))
                return
            found.add(str(loaded.items.ids[0]))

    readers = [threading.Thread(target=read, args=(n % 2 == 0,)) for n in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(24):
        bundles.save(another if turn % 2 == 0 else content, saved)
    stop.set()
    for reader in readers:
        reader.join()
    assert [str(fault) for fault in faults] == []
    assert found == {first, second}


def test_a_change_that_somebody_saved_meanwhile_is_not_lost(
    saved: Path, content: Bundle, another: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = bundles.stamp(saved)
    bundles.save(content, saved, after=seen)
    seen = bundles.stamp(saved)
    write = writer._write_files

    def slowly(folder: Path, contents: Any) -> None:
        write(folder, contents)
        monkeypatch.setattr(writer, "_write_files", write)
        bundles.save(another, saved)  # while ours is being written

    monkeypatch.setattr(writer, "_write_files", slowly)
    for _ in range(2):  # the second time it is there from the beginning
        with pytest.raises(InputError, match="another bundle took its place meanwhile"):
            bundles.save(content, saved, after=seen)
        assert id_of(saved) == str(another.items.ids[0])
        assert [entry.name for entry in saved.parent.iterdir()] == ["bundle"]
    bundles.save(content, saved, after=bundles.stamp(saved))
    assert id_of(saved) == str(content.items.ids[0])


def test_a_stamp_names_what_is_there(saved: Path, another: Bundle, tmp_path: Path) -> None:
    first = bundles.stamp(saved)
    shutil.copytree(saved, tmp_path / "copy")
    assert bundles.stamp(tmp_path / "copy") == first != ""
    bundles.save(another, saved)
    assert bundles.stamp(saved) not in ("", first)
    saved.rename(saved.parent / ".bundle.old")  # cut off between the two renames
    assert bundles.stamp(saved) not in ("", first)
    for nothing in (tmp_path / "no", tmp_path, "\0"):
        assert bundles.stamp(nothing) == ""


def test_a_lock_that_nobody_gives_back_is_waited_for_a_while_only(
    tmp_path: Path, content: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(_files, "_PATIENCE", 0.05)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        bundles.save(content, tmp_path / "bundle")
    finally:
        os.close(folder)
    assert id_of(tmp_path / "bundle") == str(content.items.ids[0])
