# SPDX-License-Identifier: Apache-2.0
"""Reading a bundle, and refusing one that is missing, damaged, newer or hostile."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.bundle.content import (
    CLEANING,
    FORMAT,
    FORMAT_VERSION,
    ITEMS,
    MANIFEST,
    MAX_EXTRA_BYTES,
    MAX_FILES,
    METRICS,
    MODEL,
    REQUIRED,
    RESERVED,
    TRAINING,
    VOCABULARY,
    WEIGHTS,
    Bundle,
    check_counts,
    check_finite,
    check_shapes,
    config_num_items,
    name_problem,
)
from seqrec_fast.bundle.jsonio import MAX_BYTES, parse_object, render
from seqrec_fast.bundle.tensorfile import Entry, read_header, read_tensors
from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.errors import BundleError, InputError

__all__ = ["info", "load"]

T = TypeVar("T")
_RETRIES = 5


def load(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Reads a bundle.

    Args:
        path: the folder.
        verify: compare every file with its SHA-256. ``False`` skips that comparison alone; sizes,
            shapes, types and contents are always checked.

    Returns:
        The bundle; every array is its own, nothing refers to the files.

    Raises:
        BundleError: one line that names the file and the reason.
    """
    return _consistently(Path(path), lambda folder: _load(folder, verify))


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a bundle holds, without reading its weights.

    Args:
        path: the folder.

    Returns:
        ``path, format_version, library_version, created, model, num_items, parameters, bytes,
        files`` (name to size), ``config, metrics, training, cleaning``; ready for JSON.

    Raises:
        BundleError: as :func:`load`; the contents of the weights, the vocabulary and the item table
            are not read, so that a fault in them goes unnoticed here.
    """
    return _consistently(Path(path), _info)


# ---------------------------------------------------------------------- the folder as a whole


def _consistently(path: Path, read: Callable[[_Folder], T]) -> T:
    """Reads; once more if the bundle was replaced by another meanwhile."""
    for attempt in range(_RETRIES):
        try:
            folder = _Folder(path)
        except BundleError:
            if attempt:  # the first look may fall between the two renames of a save
                raise
            continue
        try:
            found = read(folder)
        except BundleError:
            if folder.replaced():
                continue
            raise
        if not folder.replaced():
            return found
    raise BundleError(f"{path}: the bundle is being replaced over and over; try again later")


class _Folder:
    """One bundle on disk: its checked manifest, and its files opened one at a time."""

    def __init__(self, path: Path) -> None:
        self.shown = path
        self.path = path if path.exists() else _left_aside(path)
        try:
            self.identity = _identity(self.path)
            if not self.path.is_dir():
                raise BundleError(f"{path}: not a folder; a bundle is a folder with {MANIFEST}")
        except OSError as error:
            raise BundleError(
                f"{path}: there is no bundle ({_reason(error)}); give the folder that train wrote"
            ) from None
        self.manifest: dict[str, Any] = {}
        self.files: dict[str, tuple[str, int]] = {}

    def replaced(self) -> bool:
        """Whether another bundle stands at this path now."""
        if self.path != self.shown and self.shown.exists():
            return True  # what was left aside is no longer the bundle, and may be on its way out
        try:
            return _identity(self.path) != self.identity
        except OSError:
            return True

    def refuse(self, name: str, reason: object) -> BundleError:
        return BundleError(f"{self.shown / name}: {reason}")

    def open(self, name: str, limit: int) -> tuple[IO[bytes], int]:
        """Opens a file that is a plain one and not too large; returns it with its size."""
        try:
            # Not through a symlink, and without waiting for the other end of a pipe.
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            full = self.path / name
            if full.is_symlink():
                raise self.refuse(name, "it is a symbolic link; put the file itself in its place")
            descriptor = os.open(full, flags)
        except FileNotFoundError:
            what = "this folder is not a bundle" if name == MANIFEST else "the bundle is incomplete"
            raise self.refuse(name, f"it is missing, {what}") from None
        except OSError as error:
            raise self.refuse(name, f"it can't be read ({_reason(error)})") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise self.refuse(name, "it is not a plain file")
        if status.st_size > limit:
            os.close(descriptor)
            raise self.refuse(
                name, f"it has {status.st_size} bytes, more than the {limit} that are allowed"
            )
        return os.fdopen(descriptor, "rb", buffering=0), status.st_size

    def read(self, name: str, limit: int, verify: bool) -> bytes:
        """The contents of a small file that the manifest names."""
        stream, size = self.open(name, limit)
        with stream:
            self.check_size(name, size)
            data = _exactly(stream, size)
        self.check_hash(name, hashlib.sha256(data).hexdigest(), verify)
        return data

    def check_size(self, name: str, size: int) -> None:
        wanted = self.files[name][1]
        if size != wanted:
            raise self.refuse(
                name,
                f"it has {size} bytes, but {MANIFEST} states {wanted}; it was "
                f"{'truncated' if size < wanted else 'altered'}",
            )

    def check_hash(self, name: str, digest: str, verify: bool) -> None:
        if verify and digest != self.files[name][0]:
            raise self.refuse(name, "its SHA-256 is not that of the manifest; it was altered")

    def object(self, name: str, verify: bool) -> dict[str, Any]:
        """A JSON file."""
        data = self.read(name, MAX_BYTES, verify)
        try:
            return parse_object(data)
        except InputError as error:
            raise self.refuse(name, error) from None

    def tensors(
        self, name: str, verify: bool, check: Callable[[list[Entry]], None] | None = None
    ) -> dict[str, NDArray[Any]]:
        """A safetensors file; ``check`` sees its header before memory is reserved."""
        digest = hashlib.sha256()
        stream, size = self.open(name, _memory())
        with stream:
            self.check_size(name, size)
            try:
                entries = read_header(stream, size, digest.update)
                if check is not None:
                    check(entries)
                found = read_tensors(stream, entries, digest.update)
            except BundleError:
                raise
            except InputError as error:
                raise self.refuse(name, error) from None
            except MemoryError:
                raise self.refuse(name, f"its {size} bytes do not fit into memory") from None
        self.check_hash(name, digest.hexdigest(), verify)
        return found

    # ------------------------------------------------------------------ manifest

    def read_manifest(self, verify: bool) -> None:
        """Reads and checks the manifest."""
        stream, size = self.open(MANIFEST, MAX_BYTES)
        with stream:
            data = _exactly(stream, size)
        try:
            self.manifest = parse_object(data)
            self._check_manifest()
            if verify and data != sealed(self.manifest):
                raise InputError("its checksum does not match its contents; it was altered")
        except InputError as error:
            raise self.refuse(MANIFEST, error) from None

    def _check_manifest(self) -> None:
        found = self.manifest.get("format")
        if found != FORMAT:
            raise InputError(f"'format' is {str(found)[:50]!r}, not {FORMAT!r}; not a bundle")
        version = self.manifest.get("format_version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise InputError(f"'format_version' must be a whole number, found {version!r}")
        if version > FORMAT_VERSION:
            raise InputError(
                f"the bundle has format version {version}, this library reads up to "
                f"{FORMAT_VERSION}; upgrade seqrec-fast"
            )
        for key in ("library_version", "created"):
            if not isinstance(self.manifest.get(key), str):
                raise InputError(f"{key!r} must be text, found {self.manifest.get(key)!r}")
        files = self.manifest.get("files")
        if not isinstance(files, dict) or len(files) > MAX_FILES:
            raise InputError(f"'files' must be an object that names at most {MAX_FILES} files")
        for name, what in files.items():
            problem = name_problem(name)
            if problem is None and name == MANIFEST:
                problem = "it names itself"
            if problem is not None:
                raise InputError(problem)
            digest, size = (
                (what.get("sha256"), what.get("size")) if isinstance(what, dict) else (None, None)
            )
            if (
                not isinstance(digest, str)
                or len(digest) != 64
                or isinstance(size, bool)
                or not isinstance(size, int)
                or size < 0
            ):
                raise InputError(f"the entry of {name!r} must state its sha256 and its size")
            self.files[name] = (digest, size)
        for name in REQUIRED:
            if name not in files:
                raise InputError(f"it does not name {name}; the bundle is incomplete")


def sealed(manifest: dict[str, Any]) -> bytes:
    """The one text of a manifest, with the checksum of all its other entries inside."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(render(MANIFEST, content)).hexdigest()
    return render(MANIFEST, {**content, "sha256": digest})


# ---------------------------------------------------------------------- the contents


def _load(folder: _Folder, verify: bool) -> Bundle:
    folder.read_manifest(verify)
    config = folder.object(MODEL, verify)
    num_items = _checked(folder, config_num_items, config)

    def fits(entries: list[Entry]) -> None:
        other = [entry for entry in entries if entry.dtype != np.float32]
        if other:
            raise InputError(
                f"tensor {other[0].name[:80]!r} is {other[0].dtype}; weights are float32"
            )
        _checked(folder, check_shapes, num_items, {e.name: e.shape for e in entries})

    def one_row(entries: list[Entry]) -> None:
        if any(len(entry.shape) != 1 for entry in entries):
            raise InputError("its tensors must have one dimension each")

    tensors = folder.tensors(WEIGHTS, verify, fits)
    for name, tensor in tensors.items():
        _checked(folder, check_finite, name, tensor)
    stored = folder.tensors(VOCABULARY, verify, one_row)
    popularity = stored.pop("popularity", None)
    if popularity is None:
        raise folder.refuse(VOCABULARY, "the tensor 'popularity' is missing")
    items = _made(folder, VOCABULARY, Vocabulary.from_tensors, stored)
    _checked(folder, check_counts, num_items, len(items), popularity)
    table: ItemTable | None = None
    if ITEMS in folder.files:
        stored = folder.tensors(ITEMS, verify, one_row)
        table = _made(folder, ITEMS, ItemTable.from_tensors, stored)
        if len(table) != num_items:
            raise folder.refuse(ITEMS, f"{len(table)} rows, but {MODEL} states {num_items} items")
    return Bundle(
        config=config,
        tensors=tensors,
        items=items,
        popularity=popularity,
        item_table=table,
        metrics=folder.object(METRICS, verify),
        cleaning=folder.object(CLEANING, verify),
        training=folder.object(TRAINING, verify),
        extra_files={
            name: folder.read(name, MAX_EXTRA_BYTES, verify)
            for name in folder.files
            if name not in RESERVED
        },
    )


def _info(folder: _Folder) -> dict[str, Any]:
    folder.read_manifest(verify=True)
    config = folder.object(MODEL, verify=True)
    num_items = _checked(folder, config_num_items, config)
    stream, size = folder.open(WEIGHTS, _memory())
    with stream:
        folder.check_size(WEIGHTS, size)
        try:
            entries = read_header(stream, size, lambda _: None)
        except InputError as error:
            raise folder.refuse(WEIGHTS, error) from None
    sizes = {name: stated for name, (_, stated) in sorted(folder.files.items())}
    for name in sizes:
        stream, size = folder.open(name, _memory())
        stream.close()
        folder.check_size(name, size)
    return {
        "path": str(folder.shown),
        "format_version": folder.manifest["format_version"],
        "library_version": folder.manifest["library_version"],
        "created": folder.manifest["created"],
        "model": config["model"],
        "num_items": num_items,
        "parameters": sum(int(np.prod(entry.shape, dtype=np.int64)) for entry in entries),
        "bytes": sum(sizes.values()),
        "files": sizes,
        "config": config,
        "metrics": folder.object(METRICS, verify=True),
        "cleaning": folder.object(CLEANING, verify=True),
        "training": folder.object(TRAINING, verify=True),
    }


def _checked(folder: _Folder, check: Callable[..., T], *arguments: Any) -> T:
    """Runs a check whose message names the file itself, under the path of the folder."""
    try:
        return check(*arguments)
    except InputError as error:
        raise BundleError(f"{folder.shown}/{error}") from None


def _made(
    folder: _Folder,
    name: str,
    make: Callable[[dict[str, NDArray[Any]]], T],
    tensors: dict[str, NDArray[Any]],
) -> T:
    try:
        return make(tensors)
    except InputError as error:
        raise folder.refuse(name, error) from None


def _left_aside(path: Path) -> Path:
    """Where a save that was cut off between its two renames left the previous bundle."""
    aside = aside_name(path)
    return aside if aside.is_dir() else path


def aside_name(path: Path) -> Path:
    """The name under which a bundle waits while its successor takes its place."""
    full = Path(os.path.realpath(path))
    return full.with_name(f".{full.name}.old")


def _identity(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _exactly(stream: IO[bytes], size: int) -> bytes:
    """Reads at most ``size`` bytes; a file that shrank meanwhile fails its checksum."""
    parts: list[bytes] = []
    left = size
    while left:
        part = stream.read(left)
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _memory() -> int:
    """Bytes of memory of this machine: no file of a bundle can be larger."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2**40


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
