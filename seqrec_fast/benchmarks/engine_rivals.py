# SPDX-License-Identifier: Apache-2.0
"""Serving as it is done with other libraries: ONNX Runtime or OpenVINO, then faiss or numpy.

A trained model becomes an ONNX graph that computes the embedding after the last event alone (the
last block of a transformer forms one query a user, as ours does), with the weights as constants;
then the items are searched exactly. Rows that differ in length are padded on the right, since those
runtimes know no ragged batch; where all are equal, a graph without lengths runs. A stack that is
told the one shape it will see gets a graph of that shape.

Nothing here is needed to use the library; what is not installed is left out.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec_fast.benchmarks.engine_graphs import encoder_graph
from seqrec_fast.engine.encoders import build_encoder

__all__ = ["RUNTIMES", "SEARCHES", "RivalStack", "Weights", "rival_stacks", "weights_of"]

RUNTIMES = ("onnxruntime", "openvino")
SEARCHES = ("faiss", "numpy")

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
#: items int64 ``[rows, time]`` and the place of each row's last event, or None where all are full
Encode = Callable[[Indices, "Indices | None"], Floats]
#: users float32 ``[rows, dim]`` and k; scores and item indices, best first
Search = Callable[[Floats, int], "tuple[Floats, Indices]"]


class Weights(NamedTuple):
    """A trained model as plain values: ``model.json`` and the float32 arrays by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Floats]


def weights_of(model_or_bundle: Any) -> Weights:
    """The weights of a torch model of this library, or of a bundle in memory."""
    if hasattr(model_or_bundle, "tensors"):
        return Weights(model_or_bundle.config, model_or_bundle.tensors)
    state = model_or_bundle.state_dict()
    return Weights(
        model_or_bundle.config(),
        {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()},
    )


class RivalStack:
    """One runtime and one search; called with histories it returns scores and item indices.

    Attributes:
        name: ``"onnxruntime+faiss"`` and so on.
    """

    def __init__(self, name: str, encode: Encode, search: Search, window: int, unit: bool) -> None:
        self.name = name
        self._encode, self._search = encode, search
        self._window, self._unit = window, unit

    def embed(self, histories: Sequence[Sequence[int]]) -> Floats:
        """User embeddings float32 ``[rows, dim]`` of item indices, oldest first, no row empty."""
        rows = [history[-self._window :] for history in histories]
        if len(rows) == 1:
            users = self._encode(np.array(rows, dtype=np.int64), None)
        else:
            lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
            longest = int(lengths.max())
            if int(lengths.min()) == longest:
                users = self._encode(np.array(rows, dtype=np.int64), None)
            else:
                items = np.zeros((len(rows), longest), dtype=np.int64)
                items[np.arange(longest) < lengths[:, None]] = np.concatenate(rows)
                users = self._encode(items, lengths - 1)
        if self._unit:
            users = users / np.maximum(np.linalg.norm(users, axis=1, keepdims=True), 1e-12)
        return users

    def __call__(
        self, histories: Sequence[Sequence[int]], k: int = 100, *, exclude_seen: bool = False
    ) -> tuple[Floats, Indices]:
        """The best ``k`` items of each history.

        Args:
            histories: item indices, oldest first, one sequence a user, none empty.
            k: how many; at most the number of items.
            exclude_seen: leave out the items of the history: as many more are searched, and the
                seen ones taken out, which is what such a stack does.

        Returns:
            Scores float32 and item indices int64, both ``[rows, k]``, best first.
        """
        users = self.embed(histories)
        if not exclude_seen:
            return self._search(users, k)
        seen = [np.unique(np.asarray(history, dtype=np.int64)) for history in histories]
        scores, ids = self._search(users, k + max(map(len, seen)))
        best = np.full((len(users), k), -np.inf, dtype=np.float32)
        chosen = np.full((len(users), k), -1, dtype=np.int64)
        for row, known in enumerate(seen):
            left = np.flatnonzero(~np.isin(ids[row], known) & (ids[row] >= 0))[:k]
            best[row, : len(left)], chosen[row, : len(left)] = scores[row, left], ids[row, left]
        return best, chosen


def rival_stacks(
    model_or_bundle: Any,
    threads: int = 1,
    *,
    shape: tuple[int, int] | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    searches: Sequence[str] = SEARCHES,
) -> tuple[dict[str, RivalStack], dict[str, str]]:
    """Every stack that can be made here, over the same weights.

    Args:
        model_or_bundle: a torch model of this library, or a bundle in memory.
        threads: cores of runtime and search. numpy's own threads are set by the environment
            (``OPENBLAS_NUM_THREADS``) before it is imported.
        shape: rows and events of every call, if it is always one; the graphs are then fixed to it.
        runtimes: of :data:`RUNTIMES`.
        searches: of :data:`SEARCHES`.

    Returns:
        The stacks by name, and of what is missing the reason by name.
    """
    weights = weights_of(model_or_bundle)
    encoder = build_encoder(weights.config, weights.tensors)
    unit = weights.config.get("temperature") is not None
    stacks: dict[str, RivalStack] = {}
    missing: dict[str, str] = {}
    encoders: dict[str, Encode] = {}
    found: dict[str, Search] = {}
    for runtime in runtimes:
        try:
            start = {"onnxruntime": _onnxruntime_encoder, "openvino": _openvino_encoder}[runtime]
            encoders[runtime] = start(weights, threads, shape)
        except ImportError as error:
            missing[runtime] = str(error)
    for search in searches:
        try:
            make = {"faiss": _faiss_search, "numpy": _numpy_search}[search]
            vectors = encoder.item_vectors
            assert isinstance(vectors, np.ndarray)  # rivals are given float32
            found[search] = make(vectors, encoder.item_bias, threads)
        except ImportError as error:
            missing[search] = str(error)
    for runtime, encode in encoders.items():
        for search, look in found.items():
            name = f"{runtime}+{search}"
            stacks[name] = RivalStack(name, encode, look, encoder.window, unit)
    return stacks, missing


# ----------------------------------------------------------------------------------- search


def _faiss_search(items: Floats, bias: Floats | None, threads: int) -> Search:
    """IndexFlatIP; a bias is one more column that every query multiplies with 1."""
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(threads)
    table = items if bias is None else np.column_stack([items, bias])
    index = faiss.IndexFlatIP(table.shape[1])
    index.add(np.ascontiguousarray(table, dtype=np.float32))

    def search(users: Floats, k: int) -> tuple[Floats, Indices]:
        if bias is not None:
            users = np.column_stack([users, np.ones(len(users), dtype=np.float32)])
        scores, ids = index.search(np.ascontiguousarray(users), k)
        return scores, ids

    return search


def _numpy_search(items: Floats, bias: Floats | None, threads: int) -> Search:
    """A product with all items, argpartition, a sort of the best."""
    table = np.ascontiguousarray(items.T)

    def search(users: Floats, k: int) -> tuple[Floats, Indices]:
        scores = users @ table
        if bias is not None:
            scores += bias
        k = min(k, scores.shape[1])
        chosen = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k :]
        best = np.take_along_axis(scores, chosen, axis=1)
        order = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(best, order, axis=1), np.take_along_axis(chosen, order, axis=1)

    return search


# ---------------------------------------------------------------------------------- runtimes


def _onnxruntime_encoder(weights: Weights, threads: int, shape: tuple[int, int] | None) -> Encode:
    ort = import_module("onnxruntime")

    def session(ragged: bool) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        graph = encoder_graph(*weights, ragged=ragged, shape=shape)
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    equal = session(False)
    ragged = session(True) if shape is None else None

    def encode(items: Indices, last: Indices | None) -> Floats:
        if last is None:
            users: Floats = equal.run(["user"], {"items": items})[0]
        else:
            assert ragged is not None
            users = ragged.run(["user"], {"items": items, "last": last})[0]
        return users

    return encode


def _openvino_encoder(weights: Weights, threads: int, shape: tuple[int, int] | None) -> Encode:
    ov = import_module("openvino")
    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
        "ENABLE_HYPER_THREADING": False,
    }

    def request(ragged: bool) -> Any:
        graph = encoder_graph(*weights, ragged=ragged, shape=shape)
        model = core.read_model(io.BytesIO(graph))
        return core.compile_model(model, "CPU", settings).create_infer_request()

    equal = request(False)
    ragged = request(True) if shape is None else None

    def encode(items: Indices, last: Indices | None) -> Floats:
        chosen = equal if last is None else ragged
        assert chosen is not None
        chosen.set_tensor("items", ov.Tensor(items, shared_memory=True))
        if last is not None:
            chosen.set_tensor("last", ov.Tensor(last, shared_memory=True))
        chosen.start_async()
        chosen.wait()
        users: Floats = chosen.get_output_tensor(0).data.copy()
        return users

    return encode
