# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and that are opened without being trusted."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

from seqrec_fast.errors import InputError

__all__ = ["checked_path", "open_plain", "write_whole"]


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
    scratch = target.with_name(f".{target.name}.{os.urandom(6).hex()}.tmp")
    try:
        with open(scratch, "xb", buffering=0) as stream:
            fill(stream)
            os.fsync(stream.fileno())
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
