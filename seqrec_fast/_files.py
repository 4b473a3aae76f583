# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and that are opened without being trusted."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from seqrec_fast.errors import InputError

fcntl: Any = None
with contextlib.suppress(ImportError):  # not on Windows
    import fcntl

__all__ = ["alone", "checked_path", "hold", "open_plain", "scratch_name", "tidy", "write_whole"]

_PATIENCE = 10.0  # seconds to wait for others who save in the same folder


def checked_path(path: str | os.PathLike[str], what: str) -> Path:
    """A path that was given.

    Args:
        path: the path.
        what: names the contents in messages.

    Raises:
        InputError: what was given is no path, or holds a null character.
    """
    given: object = path
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(
            f"path: expected a text or a pathlib.Path, found {type(path).__name__}; give the file "
            f"of the {what}"
        )
    if "\0" in os.fspath(path):
        raise InputError(f"{os.fspath(path)!r}: no path holds a null character; give another")
    return Path(path)


def scratch_name(target: Path) -> Path:
    """A new hidden name beside ``target``, under which it is written until it is complete."""
    return target.with_name(f".{target.name}.{os.urandom(6).hex()}.tmp")


def hold(descriptor: int) -> None:
    """Marks what is open as being written, until it is closed or the process has ended."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks: nothing is tidied there
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps others who save in a folder waiting: for steps that two may not take at once.

    Where the file system has no locks, or somebody keeps one for seconds, nobody waits any longer.
    """
    descriptor = -1
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        _lock(descriptor)
    try:
        yield
    finally:
        if descriptor >= 0:
            if fcntl is not None:  # a process forked meanwhile has the lock too until it is undone
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    if fcntl is None:
        return
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                return
            time.sleep(0.002)


def tidy(target: Path) -> None:
    """Removes what processes that were killed left under names of :func:`scratch_name`.

    What a process that lives is writing is left alone: it holds a lock on it.
    """
    if fcntl is None or not target.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.tmp")
    for entry in os.scandir(target.parent):
        if not pattern.fullmatch(entry.name):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
            finally:
                os.close(descriptor)


def write_whole(path: Path, fill: Callable[[IO[bytes]], None], what: str) -> None:
    """Writes a file through a temporary one beside it, and brings it to the disk before the rename.

    Args:
        path: the file; a symbolic link is followed.
        fill: writes to the unbuffered stream that it is given.
        what: names the contents in messages.

    Raises:
        InputError: the system refused. What was there stays, nothing new is left behind.
    """
    target = Path(os.path.realpath(path))
    scratch = scratch_name(target)
    try:
        with alone(target.parent):
            tidy(target)
            stream = open(scratch, "xb", buffering=0)  # noqa: SIM115
            hold(stream.fileno())
        with stream:
            fill(stream)
            os.fsync(stream.fileno())
            with alone(target.parent):  # others tidy away what is closed and has a scratch name
                stream.close()
                os.rename(scratch, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = (error.strerror or type(error).__name__).lower()
            raise InputError(
                f"{path}: the {what} can't be written ({reason}); give a place with room, where "
                f"you may write"
            ) from error
        raise


def open_plain(path: Path, what: str) -> IO[bytes]:
    """Opens a plain file for reading, without a buffer.

    Args:
        path: the file.
        what: names the contents in messages.

    Raises:
        InputError: it is missing, can't be read, or is no plain file.
    """
    try:
        # without waiting for the other end of a pipe
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(
            f"{path}: the {what} can't be read ({reason}); give the file that save wrote"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: not a plain file; give the file that save wrote")
    return os.fdopen(descriptor, "rb", buffering=0)
