# SPDX-License-Identifier: Apache-2.0
"""A bundle's folder on disk: its manifest, and its files opened without trusting them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from seqrec_fast.bundle.content import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    MAX_FILES,
    REQUIRED,
    name_problem,
)
from seqrec_fast.bundle.jsonio import MAX_BYTES, parse_object, render
from seqrec_fast.bundle.tensorfile import Entry, read_header, read_tensors
from seqrec_fast.errors import BundleError, InputError

__all__ = ["Folder", "aside_name", "memory", "sealed", "stamp"]


class Folder:
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
        """The error of a file, to be raised."""
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
        """Refuses a file whose size is not that of the manifest."""
        wanted = self.files[name][1]
        if size != wanted:
            raise self.refuse(
                name,
                f"it has {size} bytes, but {MANIFEST} states {wanted}; it was "
                f"{'truncated' if size < wanted else 'altered'}",
            )

    def check_hash(self, name: str, digest: str, verify: bool) -> None:
        """Refuses a file whose SHA-256 is not that of the manifest, if that is wanted."""
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
        self,
        name: str,
        verify: bool,
        check: Callable[[list[Entry]], None] | None = None,
        mapped: bool = False,
    ) -> dict[str, NDArray[Any]]:
        """A safetensors file; ``check`` sees its header before memory is reserved.

        ``mapped`` is that of :func:`read_tensors`.
        """
        digest = hashlib.sha256()
        stream, size = self.open(name, memory())
        with stream:
            self.check_size(name, size)
            try:
                entries = read_header(stream, size, digest.update)
                if check is not None:
                    check(entries)
                found = read_tensors(stream, entries, digest.update if verify else None, mapped)
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


def stamp(path: str | os.PathLike[str]) -> str:
    """Names the bundle that stands at a path, so that :func:`save` replaces no other.

    Args:
        path: the folder.

    Returns:
        Text that differs for bundles of other contents; empty where there is no bundle.
    """
    try:
        stream, size = Folder(Path(path)).open(MANIFEST, MAX_BYTES)
    except (BundleError, ValueError):
        return ""  # what is wrong is told by loading
    with stream:
        return hashlib.sha256(_exactly(stream, size)).hexdigest()


def sealed(manifest: dict[str, Any]) -> bytes:
    """The one text of a manifest, with the checksum of all its other entries inside."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(render(MANIFEST, content)).hexdigest()
    return render(MANIFEST, {**content, "sha256": digest})


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


def memory() -> int:
    """Bytes of memory of this machine: no file of a bundle can be larger."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2**40


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
