# SPDX-License-Identifier: Apache-2.0
"""Large files: written some items at a time, searched where they lie on the disk."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrec_fast import retrieval
from seqrec_fast.bundle.tensorfile import LEAST_MAPPED
from seqrec_fast.errors import InputError
from seqrec_fast.retrieval import storage


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16"])
def test_it_is_the_index_that_build_makes(tmp_path: Path, metric: str, dtype: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((17_000, 32)).astype(np.float32)
    path = tmp_path / "index"
    chunks = np.split(vectors, [0, 100, 5000])
    assert retrieval.write_exact(path, iter(chunks), metric, dtype=dtype) == 17_000
    index = retrieval.load(path)
    built = retrieval.build(vectors, metric=metric, dtype=dtype)
    assert index.describe() == built.describe()
    for found, expected in zip(
        index.search(vectors[:4], 50), built.search(vectors[:4], 50), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    table: Any = index._state().table
    held = table if dtype == "float32" else table.values if dtype == "bfloat16" else table.items
    assert held.nbytes < LEAST_MAPPED or not held.flags.writeable  # mapped
    assert index.nbytes == built.nbytes
    again = tmp_path / "again"
    built.save(again)
    for (name, one), (_, other) in zip(
        sorted(storage.read_index(path).tensors.items()),
        sorted(storage.read_index(again).tensors.items()),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other, err_msg=name)
    index.add(vectors[:1])
    index.save(tmp_path / "again")
    assert retrieval.load(tmp_path / "again").size == 17_001
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again", "index"]


def test_chunks_that_do_not_fit_leave_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Any]:
        yield np.ones((2, 3))
        raise RuntimeError("the source failed")

    path = tmp_path / "index"
    with pytest.raises(RuntimeError, match="the source failed"):
        retrieval.write_exact(path, broken())
    for chunks, message in (
        ([], "chunks: found none"),
        ([np.ones((2, 0))], "chunks: number 0 has 0 columns"),
        ([np.ones((2, 3)), np.ones((2, 4))], "chunks: number 1 has 4 columns, the others have 3"),
        ([np.full((2, 3), np.nan)], "chunks: number 0: row 0 is not finite"),
    ):
        with pytest.raises(InputError, match=message):
            retrieval.write_exact(path, chunks)
    assert list(tmp_path.iterdir()) == []
    retrieval.write_exact(path, [np.empty((0, 3))])
    assert retrieval.load(path).size == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_mapped_file_takes_little_memory_of_its_own(tmp_path: Path) -> None:
    """A small form of ``benchmarks.bench_large_index``: a file of 64 MB, in a fresh process."""
    code = f"""
        import json
        import numpy as np
        from pathlib import Path
        from seqrec_fast import retrieval

        def own():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

        rng = np.random.default_rng(0)
        chunks = (rng.standard_normal((10_000, 64), dtype=np.float32) for _ in range(25))
        queries = rng.standard_normal((256, 64), dtype=np.float32)
        retrieval.build(queries).search(queries, 10)  # threads and their memory are there
        found = {{}}
        for dtype in ("float32", "int8", "bfloat16"):
            before = own()
            retrieval.write_exact({str(tmp_path / "index")!r}, chunks, dtype=dtype)
            index = retrieval.load({str(tmp_path / "index")!r})
            index.search(queries, 10)
            found[dtype] = own() - before
            chunks = (np.full((10_000, 64), n, np.float32) for n in range(25))
        print(json.dumps(found))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kib = json.loads(done.stdout)
    assert kib["float32"] < 20_000  # of 62,500
    assert kib["int8"] < 20_000
    assert kib["bfloat16"] < 20_000
