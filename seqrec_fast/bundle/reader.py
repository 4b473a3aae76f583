# SPDX-License-Identifier: Apache-2.0
"""Reading a bundle, and refusing one that is missing, damaged, newer or hostile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.bundle.content import (
    CLEANING,
    INDEX,
    ITEMS,
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
)
from seqrec_fast.bundle.folder import Folder, memory
from seqrec_fast.bundle.tensorfile import Entry, read_header, read_one
from seqrec_fast.data.items import ItemTable, read_schema
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.errors import BundleError, InputError

__all__ = ["info", "load"]

T = TypeVar("T")
_RETRIES = 5


def load(
    path: str | os.PathLike[str], *, verify: bool = True, mmap: bool = False, index: bool = True
) -> Bundle:
    """Reads a bundle.

    Args:
        path: the folder.
        verify: compare every file with its SHA-256. ``False`` skips that comparison alone; sizes,
            shapes, types and contents are always checked.
        mmap: weights of 1 MiB or more are read-only views of the file, which is mapped into
            memory, so that processes that load the same bundle share them. They stay valid when
            the bundle is replaced by :func:`save`, which never writes into a file that is there;
            whoever does changes the weights, and whoever shortens the file ends the process. On
            file systems that cannot map, and on Windows, the weights are read. So is the index.
        index: read the index where there is one; ``False`` leaves it out.

    Returns:
        The bundle; without ``mmap`` every array is its own, nothing refers to the files.

    Raises:
        BundleError: one line that names the file and the reason.
        InputError: what was given is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(
            f"bundle: expected the folder that train wrote, found {type(path).__name__}"
        )
    return _consistently(Path(path), lambda folder: _load(folder, verify, mmap, index))


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a bundle holds, without reading its weights.

    Args:
        path: the folder.

    Returns:
        ``path, format_version, library_version, created, model, num_items, removed`` (how many of
        the items are not recommended any more), ``parameters, bytes, files`` (name to size),
        ``config, metrics, training, cleaning, item_table`` (``title``, and ``columns``: name to
        ``"text"`` or ``"number"``; or ``None``), and ``index``: the facts of the index, or
        ``None``; ready for JSON.

    Raises:
        BundleError: as :func:`load`; the weights, the ids and the cells of the item table are not
            read, so that a fault in them goes unnoticed here.
    """
    return _consistently(Path(path), _info)


# ---------------------------------------------------------------------- the folder as a whole


def _consistently(path: Path, read: Callable[[Folder], T]) -> T:
    """Reads; once more if the bundle was replaced by another meanwhile."""
    if "\0" in str(path):
        raise BundleError(f"{str(path)!r}: no path holds a null character; give another")
    for attempt in range(_RETRIES):
        try:
            folder = Folder(path)
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


# ---------------------------------------------------------------------- the contents


def _load(folder: Folder, verify: bool, mmap: bool, with_index: bool) -> Bundle:
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

    tensors = folder.tensors(WEIGHTS, verify, fits, mmap)
    for name, tensor in tensors.items():
        _checked(folder, check_finite, name, tensor)
    stored = folder.tensors(VOCABULARY, verify, one_row)
    popularity = stored.pop("popularity", None)
    if popularity is None:
        raise folder.refuse(VOCABULARY, "the tensor 'popularity' is missing")
    removed = stored.pop("removed", None)
    if removed is not None:
        _checked(folder, check_removed, num_items, removed)
    items = _made(folder, VOCABULARY, Vocabulary.from_tensors, stored)
    _checked(folder, check_counts, num_items, len(items), popularity)
    table: ItemTable | None = None
    if ITEMS in folder.files:
        stored = folder.tensors(ITEMS, verify, one_row)
        table = _made(folder, ITEMS, ItemTable.from_tensors, stored)
        if len(table) != num_items:
            raise folder.refuse(ITEMS, f"{len(table)} rows, but {MODEL} states {num_items} items")
    index: dict[str, NDArray[Any]] | None = None
    if with_index and INDEX in folder.files:
        index = folder.tensors(INDEX, verify, mapped=mmap)
        _checked(folder, check_index, num_items, index)
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
        removed=removed,
        index=index,
    )


def _info(folder: Folder) -> dict[str, Any]:
    folder.read_manifest(verify=True)
    config = folder.object(MODEL, verify=True)
    num_items = _checked(folder, config_num_items, config)
    entries, _ = _one_tensor(folder, WEIGHTS, "")
    removed = _one_tensor(folder, VOCABULARY, "removed")[1]
    if removed is not None:
        _checked(folder, check_removed, num_items, removed)
    sizes = {name: stated for name, (_, stated) in sorted(folder.files.items())}
    for name in sizes:
        stream, size = folder.open(name, memory())
        stream.close()
        folder.check_size(name, size)
    return {
        "path": str(folder.shown),
        "format_version": folder.manifest["format_version"],
        "library_version": folder.manifest["library_version"],
        "created": folder.manifest["created"],
        "model": config["model"],
        "num_items": num_items,
        "removed": 0 if removed is None else int(np.count_nonzero(removed)),
        "parameters": sum(int(np.prod(entry.shape, dtype=np.int64)) for entry in entries),
        "bytes": sum(sizes.values()),
        "files": sizes,
        "config": config,
        "metrics": folder.object(METRICS, verify=True),
        "cleaning": folder.object(CLEANING, verify=True),
        "training": folder.object(TRAINING, verify=True),
        "item_table": _table_facts(folder) if ITEMS in folder.files else None,
        "index": _index_facts(folder) if INDEX in folder.files else None,
    }


def _one_tensor(folder: Folder, name: str, tensor: str) -> tuple[list[Entry], NDArray[Any] | None]:
    """The header of a file, and one of its tensors where it is there."""
    stream, size = folder.open(name, memory())
    with stream:
        folder.check_size(name, size)
        try:
            entries = read_header(stream, size, lambda _: None)
            return entries, read_one(stream, entries, tensor)
        except InputError as error:
            raise folder.refuse(name, error) from None


def _table_facts(folder: Folder) -> dict[str, Any]:
    """The columns of the item table; its cells are not read."""
    schema = _one_tensor(folder, ITEMS, "schema")[1]
    tensors = {} if schema is None else {"schema": schema}
    title, columns = _made(folder, ITEMS, read_schema, tensors)
    return {"title": title, "columns": dict(columns)}


def _index_facts(folder: Folder) -> dict[str, Any]:
    """What the index tells of itself; its vectors are not read."""
    from seqrec_fast.retrieval.storage import read_meta

    stream, size = folder.open(INDEX, memory())
    with stream:
        try:
            meta = read_meta(stream, size)
        except InputError as error:
            raise folder.refuse(INDEX, error) from None
    names = ("kind", "metric", "dim", "size", "options", "measured")
    facts = {name: meta.get(name) for name in names}
    if not isinstance(facts["options"], dict) or not isinstance(facts["measured"] or {}, dict):
        raise folder.refuse(
            INDEX, "its options or what was measured are no objects; it was altered"
        )
    return facts


def _checked(folder: Folder, check: Callable[..., T], *arguments: Any) -> T:
    """Runs a check whose message names the file itself, under the path of the folder."""
    try:
        return check(*arguments)
    except InputError as error:
        raise BundleError(f"{folder.shown}/{error}") from None


def _made(
    folder: Folder,
    name: str,
    make: Callable[[dict[str, NDArray[Any]]], T],
    tensors: dict[str, NDArray[Any]],
) -> T:
    try:
        return make(tensors)
    except InputError as error:
        raise folder.refuse(name, error) from None
