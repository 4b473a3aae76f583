# SPDX-License-Identifier: Apache-2.0
"""The answers of a batch as a Parquet file that appears only when it is complete."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Output", "check_target"]

_ENDINGS = (".parquet", ".pq")


def check_target(out: str | os.PathLike[str], overwrite: bool) -> Path:
    """Makes sure, before any work, that a file can be written at ``out``.

    Returns:
        The path, absolute, links followed.

    Raises:
        InputError: something is there that may not be replaced, or the folder can't be written to.
    """
    if not str(out).strip():
        raise InputError("out: the path is empty; name a file to write")
    target = Path(os.path.realpath(Path(out).expanduser()))
    if target.suffix.lower() not in _ENDINGS:
        raise InputError(f"{out}: the answers are written as Parquet; end the name in .parquet")
    try:
        mode = target.stat().st_mode
    except OSError:
        mode = None
    if mode is not None:
        if stat.S_ISDIR(mode):
            raise InputError(f"{out}: is a folder; name a file to write")
        if not stat.S_ISREG(mode):
            raise InputError(f"{out}: is not an ordinary file; choose another name")
        if not overwrite:
            raise InputError(f"{out}: exists already; give overwrite= to replace it")
    folder = target.parent
    if not folder.exists():
        raise InputError(f"{out}: the folder {folder} does not exist; create it first")
    if not folder.is_dir():
        raise InputError(f"{out}: {folder} is not a folder; choose another place")
    scratch = _scratch(target)
    try:
        # Not os.access: it knows nothing of read-only file systems, nor of full ones.
        scratch.touch(exist_ok=False)
        scratch.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot write in {folder}: {error.strerror}") from None
    return target


class Output:
    """Writes lists of items for users; a context manager.

    What is written goes to a hidden file beside the target, which takes its name when the block
    ends without an error and all of it is on the disk, and is removed otherwise.
    """

    def __init__(
        self, target: Path, *, user: str, items: NDArray[Any], flat: bool, overwrite: bool
    ) -> None:
        """Opens nothing yet.

        Args:
            target: what :func:`check_target` gave.
            user: name of the column of users.
            items: raw ids by item index, int64 or objects of ``str``.
            flat: a row for each user and item, instead of a row a user with lists.
            overwrite: whether a file at ``target`` may be replaced.
        """
        import pyarrow as pa

        taken = ("rank", "item", "score", "fallback") if flat else ("items", "scores", "fallback")
        self._user = "user" if user in taken else user
        self._target = target
        self._flat, self._overwrite = flat, overwrite
        self._ids = pa.array(items, pa.int64() if items.dtype == np.int64 else pa.string())
        self._scratch = _scratch(target)
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> Output:
        import pyarrow as pa

        self._file = pa.OSFile(str(self._scratch), "wb")
        return self

    def start(self, user_type: pa.DataType) -> None:
        """Begins the file with its columns, once the type of the users is known."""
        import pyarrow as pa
        import pyarrow.parquet

        fields: Sequence[tuple[str, pa.DataType]]
        if self._flat:
            fields = [("rank", pa.int32()), ("item", self._ids.type), ("score", pa.float32())]
            coded = [self._user, "rank", "item"]
        else:
            fields = [("items", pa.list_(self._ids.type)), ("scores", pa.list_(pa.float32()))]
            coded = [self._user, "items.list.element"]
        self._schema = pa.schema([(self._user, user_type), *fields, ("fallback", pa.bool_())])
        self._writer = pyarrow.parquet.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            compression_level=1,
            # scores repeat too seldom for a dictionary, which would only be built and given up
            use_dictionary=coded,
        )

    def write(
        self,
        users: pa.Array,
        scores: NDArray[np.float32],
        indices: NDArray[np.int64],
        fallback: NDArray[np.bool_],
    ) -> None:
        """Appends some users.

        Args:
            users: raw ids ``[n]``.
            scores: float32 ``[n, k]``.
            indices: int64 ``[n, k]``, -1 after the last item of a row.
            fallback: bool ``[n]``: the most popular items, for want of a known history.
        """
        import pyarrow as pa

        if self._writer is None:
            self.start(users.type)
        there = indices >= 0
        counts = there.sum(axis=1)
        items = self._ids.take(pa.array(indices[there]))
        found = pa.array(scores[there])
        if self._flat:
            owner = np.repeat(np.arange(len(users)), counts)
            ranks = np.broadcast_to(
                np.arange(1, indices.shape[1] + 1, dtype=np.int32), indices.shape
            )
            columns = [users.take(pa.array(owner)), pa.array(ranks[there]), items, found]
            columns.append(pa.array(fallback[owner]))
        else:
            offsets = np.zeros(len(users) + 1, dtype=np.int32)
            np.cumsum(counts, out=offsets[1:])
            ends = pa.array(offsets)
            columns = [
                users,
                pa.ListArray.from_arrays(ends, items),
                pa.ListArray.from_arrays(ends, found),
                pa.array(fallback),
            ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            try:
                if self._writer is not None:
                    self._writer.close()
            finally:
                self._file.close()
            if error is None:
                self._publish()
        except Exception:
            if error is None:  # else what went wrong first is what is told
                raise
        finally:
            self._scratch.unlink(missing_ok=True)

    def _publish(self) -> None:
        for path in (self._scratch, self._target.parent):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if path == self._scratch:
                if not self._overwrite and self._target.exists():
                    raise InputError(
                        f"{self._target}: was written by somebody else meanwhile; give "
                        f"overwrite= to replace it"
                    )
                os.replace(self._scratch, self._target)


def _scratch(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.urandom(6).hex()}.partial")
