# SPDX-License-Identifier: Apache-2.0
"""The kinds that run on faiss on the CPU, beyond what every kind keeps (test_contract.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_fast import retrieval
from seqrec_fast.errors import InputError, MissingExtraError
from seqrec_fast.jagged import JaggedBatch
from seqrec_fast.retrieval import faiss_library
from seqrec_fast.retrieval.readers_writer import ReadersWriter
from seqrec_fast.retrieval.storage import read_index, write_index
from tests.retrieval.test_contract import QUERIES, VECTORS, brute, same

faiss = pytest.importorskip("faiss")

KINDS = ("flat", "ivf", "ivfpq", "hnsw")
WHOLE = np.random.default_rng(5).integers(-3, 4, (400, 8)).astype(np.float32)


def python_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# ------------------------------------------------------------------ filters


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_filtered_search_gives_k_where_k_are_left(data: st.DataObject) -> None:
    """``flat`` equals brute force, ties included; the others fill every place with allowed ones."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    items, queries = draw(st.sampled_from([0, 1, 5, 40, 400])), draw(st.integers(0, 6))
    hidden = np.zeros((queries, items), bool)
    given: dict[str, Any] = {}
    if draw(st.booleans()):
        mask = rng.random(items) < draw(st.sampled_from([0.02, 0.3, 1.0]))
        given["allow"] = np.flatnonzero(mask)
        hidden |= ~mask
    for name in ("exclude", "deny"):
        if draw(st.booleans()) and items:
            most = draw(st.sampled_from([5, 600]))
            rows = [rng.integers(0, items, rng.integers(0, most)) for _ in range(queries)]
            given[name] = JaggedBatch.from_lists(rows)
            for at, row in enumerate(rows):
                hidden[at, row] = True
    k = draw(st.sampled_from([1, 3, 30, 500]))
    asked = rng.integers(-3, 4, (queries, 8)).astype(np.float32)
    expected = brute(WHOLE[:items], asked, k, hidden)
    flat = retrieval.build(WHOLE[:items], kind="flat").search(asked, k, **given)
    np.testing.assert_array_equal(flat.ids, expected.ids)
    np.testing.assert_array_equal(flat.scores, expected.scores)
    kind, options = draw(
        st.sampled_from(
            [
                ("ivf", {"nprobe": 1}),
                ("hnsw", {"m": 2, "ef_search": 4, "ef_construction": 4}),
                ("ivfpq", {"nprobe": 1, "m": 4}),
                ("ivfpq", {"refine": 0, "m": 2}),
            ]
        )
    )
    scores, ids = retrieval.build(WHOLE[:items], kind=kind, **options).search(asked, k, **given)
    np.testing.assert_array_equal((ids >= 0).sum(axis=1), (expected.ids >= 0).sum(axis=1))
    for row in range(queries):
        found = ids[row][ids[row] >= 0]
        assert len(np.unique(found)) == len(found)
        assert not hidden[row, found].any()
        if options.get("refine") != 0:
            np.testing.assert_array_equal(scores[row, : len(found)], WHOLE[found] @ asked[row])
            order = np.lexsort((found, -scores[row, : len(found)]))
            np.testing.assert_array_equal(order, np.arange(len(found)))
    assert (scores[ids < 0] == -np.inf).all()


def test_faiss_does_the_work_where_it_can() -> None:
    """The native kernel must not answer in silence what faiss is there for."""
    exclude = JaggedBatch.from_lists([np.arange(20)] * 7)
    for kind in KINDS:
        index = retrieval.build(VECTORS, kind=kind)
        for filters in ({}, {"exclude": exclude}, {"deny": np.arange(0, 300, 2)}):
            index.search(QUERIES, 10, **filters)
        assert index.by_kernel == 0, kind
        index.search(QUERIES, 3, allow=[1, 2])
        assert index.by_kernel == 7, kind


# ------------------------------------------------------------------ building


@pytest.mark.parametrize("kind", KINDS)
def test_very_small_catalogues_without_a_warning(kind: str, capfd: Any) -> None:
    for items in (0, 1, 2, 5, 40, 300):
        index = retrieval.build(VECTORS[:items], kind=kind)
        found = index.search(QUERIES, 3)
        assert ((found.ids >= 0).sum(axis=1) == min(3, items)).all()
        index.add(VECTORS[: items // 2 + 1])
        assert len(index) == items + items // 2 + 1
    many = retrieval.build(VECTORS[:7], kind="ivf", nlist=50)
    assert many.describe()["structure"] is None
    many.add(VECTORS[7:])
    assert many.describe()["structure"]["nlist"] == 50
    out, err = capfd.readouterr()
    assert out + err == ""


def test_an_index_that_has_grown_is_trained_again() -> None:
    index = retrieval.build(VECTORS[:60], kind="ivf")
    assert index.describe()["structure"]["nlist"] == 1
    index.add(VECTORS[60:200])
    assert index.describe()["structure"]["nlist"] == 1
    index.add(VECTORS[200:])
    assert index.describe()["structure"]["nlist"] == 300 // 39
    fixed = retrieval.build(VECTORS[:60], kind="ivf", nlist=2)
    fixed.add(VECTORS[60:])
    assert fixed.describe()["structure"]["nlist"] == 2


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_the_seed_decides_what_is_built(kind: str) -> None:
    one, same_seed, other = (
        retrieval.build(VECTORS, kind=kind, seed=seed)._tensors()["faiss"] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same_seed)
    assert one.shape != other.shape or (one != other).any()


def test_a_graph_is_made_anew_before_half_of_it_is_stale() -> None:
    index = retrieval.build(VECTORS, kind="hnsw", ef_search=400)
    whole = VECTORS.copy()
    rng = np.random.default_rng(1)
    for _ in range(7):
        ids = rng.permutation(300)[:100]
        whole[ids] = rng.standard_normal((100, 16))
        index.update(ids, whole[ids])
        same(index.search(QUERIES, 300), brute(whole, QUERIES, 300))
        assert index.describe()["structure"]["replaced"] <= 300


def test_an_updated_graph_in_a_file(tmp_path: Path) -> None:
    index = retrieval.build(VECTORS, kind="hnsw", ef_search=400)
    index.update([5], VECTORS[:1] * 2)
    index.save(tmp_path / "index")
    again = retrieval.load(tmp_path / "index")
    same(again.search(QUERIES, 300), index.search(QUERIES, 300))
    again.update([5, 6], VECTORS[5:7])
    same(again.search(QUERIES, 300), brute(_with(VECTORS, [5, 6], VECTORS[5:7]), QUERIES, 300))


def _with(vectors: Any, ids: Any, rows: Any) -> Any:
    vectors = vectors.copy()
    vectors[ids] = rows
    return vectors


def test_what_the_caller_gave_may_change_later() -> None:
    for kind in KINDS:
        mine = VECTORS.copy()
        index = retrieval.build(mine, kind=kind, **({"refine": 50} if kind == "ivfpq" else {}))
        mine[:] = 0
        np.testing.assert_array_equal(index.vectors([7]), VECTORS[7:8])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "ivf", "nlist": 0}, "nlist: expected a whole number of at least 1, found 0"),
        ({"kind": "ivf", "nprobe": 1.5}, "nprobe: expected a whole number, found 1.5"),
        ({"kind": "ivf", "seed": -1}, "seed: expected a whole number from 0"),
        ({"kind": "ivfpq", "m": 5}, "m: 5 parts do not fit vectors of 16; choose one of 1, 2, 4"),
        ({"kind": "ivfpq", "nbits": 3}, "nbits: expected 4 to 12, found 3"),
        ({"kind": "ivfpq", "refine": -1}, "refine: expected a whole number from 0 on"),
        ({"kind": "hnsw", "m": 1}, "m: expected 2 to 512, found 1"),
        ({"kind": "hnsw", "ef": 1}, "options of kind 'hnsw': got an unexpected keyword"),
        ({"kind": "flat", "nlist": 1}, "options of kind 'flat': "),
    ],
)
def test_build_names_what_is_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        retrieval.build(VECTORS, **arguments)


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_what_faiss_cannot_read_is_an_error_of_the_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "index"
    retrieval.build(VECTORS, kind=kind).save(path)
    meta, tensors = read_index(path)
    other = retrieval.build(VECTORS[:280], kind=kind)._tensors()["faiss"]
    flat = faiss.serialize_index(faiss.IndexFlatL2(16))
    whole = tensors["faiss"]
    for raw in (whole[:0], whole[:3], whole[:90], whole[: len(whole) // 2], other, flat):
        write_index(path, meta, {**tensors, "faiss": np.array(raw)})
        with pytest.raises(InputError, match=r"/index: (faiss cannot read it|what it holds|its )"):
            retrieval.load(path)
    write_index(path, meta, {**tensors, "faiss": whole.astype(np.float32)})
    with pytest.raises(InputError, match="is not bytes"):
        retrieval.load(path)


# ------------------------------------------------------------------ threads and processes


def test_threads_are_those_of_the_call_alone() -> None:
    index = retrieval.build(VECTORS, kind="flat")
    before = faiss.omp_get_max_threads()
    seen: list[int] = []

    class Watched:
        def search(self, *arguments: Any, **options: Any) -> Any:
            seen.append(faiss.omp_get_max_threads())
            barrier.wait()
            return real.search(*arguments, **options)

    real, index._structure = index._structure, Watched()
    barrier = threading.Barrier(2)
    # Two callers at once, each with its own number.
    threads = [
        threading.Thread(target=lambda n=n: index.search(QUERIES, 3, threads=n)) for n in (3, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [3, 5]
    assert faiss.omp_get_max_threads() == before
    with pytest.raises(InputError, match="threads: expected"):
        index.search(QUERIES, 3, threads=0)


def test_writers_go_before_readers_that_come_later() -> None:
    lock = ReadersWriter()
    order: list[str] = []
    first = lock.reading()
    first.__enter__()

    def write() -> None:
        with lock.writing():
            order.append("write")

    def read() -> None:
        with lock.reading():
            order.append("read")

    writer = threading.Thread(target=write)
    writer.start()
    while not lock._waiting:
        pass
    reader = threading.Thread(target=read)
    reader.start()
    first.__exit__(None, None, None)
    writer.join(10)
    reader.join(10)
    assert order == ["write", "read"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_can_search_and_change() -> None:
    """Also while threads search, and after OpenMP had its workers in the parent."""
    out = python_process(
        """
        import os, threading, numpy as np
        from seqrec_fast import retrieval
        x = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float32)
        indexes = [retrieval.build(x, kind=kind) for kind in ("flat", "ivf", "ivfpq", "hnsw")]
        tuned = {"ivf": {"nprobe": 3}, "ivfpq": {"nprobe": 3}, "hnsw": {"ef_search": 9}}
        done = threading.Event()
        def search():
            while not done.is_set():
                for index in indexes:
                    index.search(x[:40], 5, threads=2)
        threads = [threading.Thread(target=search) for _ in range(2)]
        [thread.start() for thread in threads]
        expected = [index.search(x[:40], 5, threads=2).ids for index in indexes]
        for _ in range(2):
            child = os.fork()
            if child == 0:
                for index, ids in zip(indexes, expected):
                    assert (index.search(x[:40], 5, threads=2).ids == ids).all()
                    index.add(x[:1] * 100)
                    index.update([1], x[:1])
                    index.remove([2])
                    assert 600 in index.search(x[:1], 5, threads=2).ids
                    new = retrieval.build(x[:300], kind=index.kind)
                    new.add(np.concatenate([x] * 2))  # lists are made anew
                    again = retrieval.from_tensors(new.to_tensors())
                    if index.kind in tuned:
                        again = again.tuned(**tuned[index.kind])
                    again.search(x[:40], 5, threads=2)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        done.set()
        [thread.join() for thread in threads]
        print("fine")
        """
    )
    assert out.strip() == "fine"


@pytest.mark.parametrize("order", ["faiss, torch", "torch, faiss"])
def test_beside_torch_in_either_order(order: str) -> None:
    pytest.importorskip("torch")
    out = python_process(
        f"""
        import numpy as np
        import {order}
        from seqrec_fast import retrieval
        import torch
        x = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
        wanted = torch.get_num_threads()
        for kind in ("flat", "ivf", "hnsw"):
            ids = retrieval.build(x, kind=kind).search(x[:50] * 9, 5, threads=2).ids
            best = torch.topk(torch.from_numpy(x[:50]) @ torch.from_numpy(x).T, 1).indices.numpy()
            assert kind != "flat" or (ids[:, :1] == best).all()
        assert torch.get_num_threads() == wanted
        print("fine")
        """
    )
    assert out.strip() == "fine"


# ------------------------------------------------------------------ the library


def test_without_faiss_the_exact_kind_works_and_the_others_name_the_extra() -> None:
    out = python_process(
        """
        import sys
        sys.modules["faiss"] = None
        import numpy as np
        from seqrec_fast import retrieval
        from seqrec_fast.errors import MissingExtraError
        x = np.eye(4, dtype=np.float32)
        index = retrieval.build(x)
        assert index.search(x, 1).ids[:, 0].tolist() == [0, 1, 2, 3]
        for kind in retrieval.KINDS:
            if kind.startswith(("flat", "ivf", "hnsw", "gpu-")) and kind != "ivf-native":
                try:
                    retrieval.build(x, kind=kind)
                except MissingExtraError as error:
                    assert "seqrec-fast[retrieval]" in str(error), error
                else:
                    raise AssertionError(kind)
        from seqrec_fast.retrieval.faiss_library import abilities
        assert abilities()["version"] is None
        print("fine")
        """
    )
    assert out.strip() == "fine"


def test_several_distributions_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(name: str) -> Any:
        return SimpleNamespace(metadata={"Name": name}, version="1.15.1", files=None)

    both = [one("faiss-cpu"), one("numpy"), one("faiss_gpu-cu12")]
    monkeypatch.setattr(metadata, "distributions", lambda: both)
    faiss_library.installed.cache_clear()
    faiss_library._checked.cache_clear()
    try:
        with pytest.raises(
            InputError,
            match=r"faiss-cpu and faiss-gpu-cu12 are installed.*"
            r"pip uninstall -y faiss-cpu faiss-gpu-cu12, then pip install",
        ):
            retrieval.build(VECTORS, kind="flat")
        assert "faiss-gpu-cu12" in faiss_library.abilities()["reason"]
        retrieval.build(VECTORS)
    finally:
        faiss_library.installed.cache_clear()
        faiss_library._checked.cache_clear()


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError("libcublas.so.12:\ncannot open")

    monkeypatch.delitem(sys.modules, "faiss")
    monkeypatch.setattr(faiss_library, "import_module", broken)
    with pytest.raises(MissingExtraError, match=r"cannot be loaded \(libcublas.so.12: cannot open"):
        faiss_library.faiss()


# ------------------------------------------------------------------ other search options


TUNED = {"ivf": {"nprobe": 1}, "ivfpq": {"nprobe": 1}, "hnsw": {"ef_search": 1}}


@pytest.mark.parametrize("kind", TUNED)
def test_tuned_shares_the_data_and_parts_before_a_change(kind: str) -> None:
    index = retrieval.build(VECTORS, kind=kind)
    index.remove([5])
    before = index.search(QUERIES, 10)
    other = index.tuned(**TUNED[kind])
    assert other._structure is index._structure
    assert other.options() == index.options() | TUNED[kind]
    expected = retrieval.build(VECTORS, kind=kind, **TUNED[kind])
    expected.remove([5])
    for one, two in zip(other.search(QUERIES, 10), expected.search(QUERIES, 10), strict=True):
        np.testing.assert_array_equal(one, two)
    best = QUERIES[:1] * 100
    assert other.add(best)[0] == index.size == 300
    other.update([7], -best)
    assert other.search(QUERIES[:1], 1).ids[0, 0] == 300
    np.testing.assert_array_equal(other.vectors([7]), -best)
    np.testing.assert_array_equal(index.vectors([7]), VECTORS[7:8])
    for one, two in zip(index.search(QUERIES, 10), before, strict=True):
        np.testing.assert_array_equal(one, two)
    alone = index._structure
    index.update([7], best)  # nobody shares it any more
    assert index._structure is alone
    assert index.search(QUERIES[:1], 1).ids[0, 0] == 7


def test_tuned_takes_search_options_alone() -> None:
    with pytest.raises(InputError, match=r"^nlist: only nprobe can be tuned; build anew"):
        retrieval.build(VECTORS, kind="ivf").tuned(nlist=3)
    with pytest.raises(InputError, match=r"^nprobe: expected a whole number"):
        retrieval.build(VECTORS, kind="ivf").tuned(nprobe=0)
    with pytest.raises(InputError, match=r"'flat': it has none that act in a search alone"):
        retrieval.build(VECTORS, kind="flat").tuned(nprobe=3)
