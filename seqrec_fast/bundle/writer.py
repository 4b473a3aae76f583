# SPDX-License-Identifier: Apache-2.0
"""Writing a bundle so that a crash at any moment leaves the old one or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast import __version__
from seqrec_fast._files import alone, hold, scratch_name, tidy
from seqrec_fast.bundle.content import (
    CLEANING,
    FORMAT,
    FORMAT_VERSION,
    INDEX,
    ITEMS,
    MANIFEST,
    MAX_EXTRA_BYTES,
    METRICS,
    MODEL,
    RESERVED,
    TRAINING,
    VOCABULARY,
    WEIGHTS,
    Bundle,
    check_counts,
    check_finite,
    check_index,
    check_removed,
    check_shapes,
    config_num_items,
    name_problem,
)
from seqrec_fast.bundle.folder import aside_name, sealed, stamp
from seqrec_fast.bundle.jsonio import MAX_BYTES, parse_object, render
from seqrec_fast.bundle.tensorfile import header, write_tensors
from seqrec_fast.errors import InputError

__all__ = ["save"]

_Write = Callable[[Callable[[Any], None]], None]


def save(
    bundle: Bundle,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    after: str | None = None,
) -> None:
    """Writes a bundle; a bundle that is there already is replaced in one step.

    All files are written to a hidden folder beside ``path`` and brought to the disk before that
    folder takes its name. Whoever reads meanwhile gets the old bundle or the new one. Of several
    processes that save at once, each waits for its turn, and the last one stays.

    Args:
        bundle: what to write.
        path: the folder; missing parents are made. A symbolic link to a folder is followed.
        overwrite: replace a bundle that is there.
        after: the :func:`stamp` of the bundle that this one was made from: no other is replaced, so
            that a change which somebody saved meanwhile is not lost.

    Raises:
        InputError: contents that a bundle can't hold, something at ``path`` that is not a bundle,
            ``overwrite=False`` and there is one, another one than ``after`` says, or the system
            refused (no space, no permission). Nothing new is left behind.
    """
    contents = _contents(bundle)
    target = Path(os.path.realpath(path))
    made: list[Path] = []
    scratch = scratch_name(target)
    held = -1
    try:
        made = _make_parents(target.parent)
        with alone(target.parent):
            tidy(target)
            _check_target(target, overwrite, after)
            scratch.mkdir()
            held = os.open(scratch, os.O_RDONLY)
            hold(held)
        _write_files(scratch, contents)
        with alone(target.parent):
            _check_target(target, overwrite, after)  # another may have come meanwhile
            _swap(scratch, target)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"{path}: the bundle can't be written, {_why(error)}") from error
        raise
    finally:
        if held >= 0:
            os.close(held)


# ---------------------------------------------------------------------- contents


def _contents(bundle: Bundle) -> dict[str, _Write]:
    """Checks the bundle and says how to write each of its files."""
    num_items = config_num_items(bundle.config)
    weights = _weights(bundle.tensors)
    check_shapes(num_items, {name: tensor.shape for name, tensor in weights.items()})
    for name, tensor in weights.items():
        check_finite(name, tensor)
    popularity = np.ascontiguousarray(bundle.popularity)
    if popularity.dtype.kind in "iu":
        popularity = popularity.astype(np.int64, copy=False)
    check_counts(num_items, len(bundle.items), popularity)
    vocabulary = {**bundle.items.to_tensors(), "popularity": popularity}
    if bundle.removed is not None:
        check_removed(num_items, bundle.removed)
        vocabulary["removed"] = np.ascontiguousarray(bundle.removed)
    found: dict[str, _Write] = {
        MODEL: _bytes(MODEL, render(MODEL, bundle.config)),
        WEIGHTS: _tensors(WEIGHTS, weights),
        VOCABULARY: _tensors(VOCABULARY, vocabulary),
        METRICS: _bytes(METRICS, render(METRICS, bundle.metrics)),
        CLEANING: _bytes(CLEANING, render(CLEANING, bundle.cleaning)),
        TRAINING: _bytes(TRAINING, render(TRAINING, bundle.training)),
    }
    if bundle.item_table is not None:
        if len(bundle.item_table) != num_items:
            raise InputError(
                f"{ITEMS}: {len(bundle.item_table)} rows, but {MODEL} states {num_items} items"
            )
        found[ITEMS] = _tensors(ITEMS, bundle.item_table.to_tensors())
    if bundle.index is not None:
        check_index(num_items, bundle.index)
        found[INDEX] = _tensors(INDEX, bundle.index)
    data: Any
    for name, data in bundle.extra_files.items():
        problem = name_problem(name)
        if problem is None and name.lower() in RESERVED:
            problem = f"the file name {name!r} belongs to the bundle itself; choose another"
        if problem is not None:
            raise InputError(f"extra_files: {problem}")
        if not isinstance(data, bytes) or len(data) > MAX_EXTRA_BYTES:
            raise InputError(
                f"extra_files: {name!r} must be at most {MAX_EXTRA_BYTES >> 20} MiB of bytes"
            )
        found[name] = _bytes(name, data)
    return found


def _weights(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    given: Any
    for name, given in tensors.items():
        if not isinstance(given, np.ndarray) or given.dtype != np.float32:
            kind = getattr(given, "dtype", type(given).__name__)
            raise InputError(f"{WEIGHTS}: tensor {name!r} must be a float32 array, found {kind}")
        found[name] = given
    return found


def _bytes(name: str, data: bytes) -> _Write:
    return lambda write: write(data)


def _tensors(name: str, tensors: Mapping[str, NDArray[Any]]) -> _Write:
    try:
        header(tensors)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return lambda write: write_tensors(tensors, write)


# ---------------------------------------------------------------------- files


def _write_files(folder: Path, contents: Mapping[str, _Write]) -> None:
    """Writes all files and the manifest, and waits until they are on the disk."""
    files: dict[str, dict[str, Any]] = {}
    for name, fill in contents.items():
        files[name] = _write_file(folder / name, fill)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "files": files,
    }
    _write_file(folder / MANIFEST, _bytes(MANIFEST, sealed(manifest)))
    _sync_folder(folder)


def _write_file(path: Path, fill: _Write) -> dict[str, Any]:
    digest = hashlib.sha256()
    size = 0
    with open(path, "xb") as stream:

        def write(data: Any) -> None:
            nonlocal size
            stream.write(data)
            digest.update(data)
            size += len(data)

        fill(write)
        stream.flush()
        os.fsync(stream.fileno())
    return {"sha256": digest.hexdigest(), "size": size}


def _sync_folder(folder: Path) -> None:
    """Brings the names inside a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------- taking the place


def _recover(target: Path) -> None:
    """Ends what a save that was cut off left undone."""
    aside = aside_name(target)
    if aside.is_dir():
        if target.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, target)


def _check_target(target: Path, overwrite: bool, after: str | None) -> None:
    """Refuses to replace anything but a bundle (or an empty folder), or another than ``after``."""
    _recover(target)
    if after is not None and stamp(target) != after:
        raise InputError(
            f"{target}: another bundle took its place meanwhile, from which this one was not made; "
            f"make it again"
        )
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target}: there is a file of that name; give a folder")
    present = {entry.name for entry in target.iterdir()}
    if not present:
        return
    manifest = target / MANIFEST
    named: set[str] | None = None
    if manifest.is_file() and manifest.stat().st_size <= MAX_BYTES:
        try:
            found = parse_object(manifest.read_bytes())
        except InputError:
            found = {}
        if found.get("format") == FORMAT and isinstance(found.get("files"), dict):
            named = {MANIFEST, *found["files"]}
    if named is None:
        raise InputError(
            f"{target}: the folder is not empty and not a bundle; give a new name, or remove it"
        )
    if not overwrite:
        raise InputError(f"{target}: there is a bundle already; give a new name or overwrite=True")
    foreign = sorted(present - named)
    if foreign:
        raise InputError(
            f"{target}: the bundle there also holds {foreign[0]!r}, which would be lost; move it "
            f"away first"
        )


def _make_parents(folder: Path) -> list[Path]:
    """Makes the folder and its parents; returns those that are new, outermost first."""
    new: list[Path] = []
    while not folder.exists():
        new.append(folder)
        folder = folder.parent
    new.reverse()
    for one in new:
        one.mkdir(exist_ok=True)
    return new


def _swap(scratch: Path, target: Path) -> None:
    """Gives the new folder its name; the old one is removed afterwards."""
    aside = aside_name(target)
    replaced = target.exists() and any(target.iterdir())
    if replaced:
        os.rename(target, aside)
    try:
        os.rename(scratch, target)
    except BaseException:
        if replaced:
            os.rename(aside, target)
        raise
    _sync_folder(target.parent)
    if replaced:
        try:
            shutil.rmtree(aside)
        except OSError as error:
            warnings.warn(
                f"{aside}: the previous bundle could not be removed ({_why(error)}); the new one "
                f"is in place",
                stacklevel=3,
            )


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "no space is left on the device; free some, or give another place"
    reason = (error.strerror or type(error).__name__).lower()
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{reason}; give a place where you may write"
    return reason
