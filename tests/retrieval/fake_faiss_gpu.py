# SPDX-License-Identifier: Apache-2.0
"""A module like faiss built for GPUs, in numpy: same names and signatures, same refusals.

Objects take no attributes that the real ones do not have. :data:`ATTRIBUTES` says what each class
offers; a test compares it with what the real builds were seen to offer (``faiss_gpu_names.json``).
Everything that has nothing to do with GPUs is that of the faiss that is installed.
"""

from __future__ import annotations

import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

MOST = 2048
CONFIGS = {
    "GpuIndexFlatConfig": ("device", "useFloat16"),
    "GpuIndexIVFFlatConfig": ("device", "flatConfig"),
    "GpuIndexIVFPQConfig": ("device", "flatConfig", "useFloat16LookupTables"),
    "GpuIndexCagraConfig": ("device", "graph_degree", "intermediate_graph_degree"),
    "SearchParametersCagra": ("itopk_size",),
}
_COMMON = ("d", "ntotal", "is_trained", "metric_type", "train", "add", "add_with_ids", "search")
_COMMON += ("copyFrom", "remove_ids")
ATTRIBUTES = {
    **CONFIGS,
    "StandardGpuResources": (),
    "GpuIndexFlatIP": _COMMON,
    "GpuIndexIVFFlat": (*_COMMON, "nlist", "nprobe", "cp"),
    "GpuIndexIVFPQ": (*_COMMON, "nlist", "nprobe", "cp", "pq"),
    "GpuIndexCagra": _COMMON,
}
FUNCTIONS = ("index_gpu_to_cpu", "get_num_gpus")


class Strict:
    """Refuses attributes that are not in the list of its class."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in ATTRIBUTES[type(self).__name__]:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        object.__setattr__(self, name, value)


def fake(real: ModuleType, gpus: int = 1, cagra: bool = True) -> ModuleType:
    """The module."""
    module = ModuleType("faiss")
    module.__getattr__ = lambda name: getattr(real, name)  # type: ignore[method-assign]
    log: list[str] = []

    class StandardGpuResources(Strict):
        def __init__(self) -> None:
            self._busy = threading.Lock()

    def config_class(name: str) -> type:
        def start(self: Any, **given: Any) -> None:
            self.device = 0
            if "flatConfig" in ATTRIBUTES[name]:
                self.flatConfig = module.GpuIndexFlatConfig()
            for key, value in given.items():
                setattr(self, key, value)

        if name == "SearchParametersCagra":

            def start(self: Any, **given: Any) -> None:
                for key, value in given.items():
                    setattr(self, key, value)

        return type(name, (Strict,), {"__init__": start})

    class GpuIndex(Strict):
        def _start(self, resources: Any, dim: int, metric: int, config: Any, kind: str) -> None:
            assert isinstance(resources, StandardGpuResources)
            assert type(config).__name__ == kind, "the config of another class"
            if not 0 <= config.device < gpus:
                raise RuntimeError("config_.device < getNumDevices()")
            self._resources = resources
            self.d, self.metric_type = dim, metric
            self._rows = np.empty((0, dim), np.float32)
            self._ids = np.empty(0, np.int64)
            self.ntotal, self.is_trained = 0, False

        def _checked(self, x: Any) -> None:
            assert isinstance(x, np.ndarray)
            assert x.dtype == np.float32
            assert x.flags.c_contiguous
            assert x.ndim == 2
            assert x.shape[1] == self.d

        def _store(self, x: Any, ids: Any) -> None:
            self._checked(x)
            if not self.is_trained:
                raise RuntimeError("Index not trained")
            assert ids.dtype == np.int64
            assert len(ids) == len(x)
            self._rows = np.concatenate([self._rows, x])
            self._ids = np.concatenate([self._ids, ids])
            self.ntotal = len(self._ids)
            log.append(f"{type(self).__name__}.add {len(x)}")

        def add(self, x: Any) -> None:
            self._store(x, np.arange(self.ntotal, self.ntotal + len(x)))

        def add_with_ids(self, x: Any, ids: Any) -> None:
            self._store(x, ids)

        def remove_ids(self, ids: Any) -> int:
            raise RuntimeError("remove_ids not implemented for this type of index")

        def search(self, x: Any, k: int, params: Any = None) -> Any:
            if params is not None and type(self) is not module.__dict__.get("GpuIndexCagra"):
                raise RuntimeError("params not implemented")
            self._checked(x)
            if not self.is_trained:
                raise RuntimeError("Index not trained")
            if not self.ntotal:
                raise RuntimeError("an empty index was searched")
            if not 0 < k <= MOST:
                raise RuntimeError(f"GPU index only supports min/max-K selection up to {MOST}")
            if not self._resources._busy.acquire(blocking=False):
                raise AssertionError("two threads use the memory of one device")
            try:
                scores = np.asarray(x, np.float32) @ self._seen().T
                order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
                found = np.full((len(x), k), -np.finfo(np.float32).max, np.float32)
                ids = np.full((len(x), k), -1, np.int64)
                found[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
                ids[:, : order.shape[1]] = self._ids[order]
                log.append(f"{type(self).__name__}.search {len(x)} x {k}")
                return found, ids
            finally:
                self._resources._busy.release()

        def _seen(self) -> Any:
            return self._rows

    class GpuIndexFlatIP(GpuIndex):
        def __init__(self, resources: Any, dim: int, config: Any) -> None:
            self._start(resources, dim, real.METRIC_INNER_PRODUCT, config, "GpuIndexFlatConfig")
            self.is_trained = True
            self._half = config.useFloat16

        def add_with_ids(self, x: Any, ids: Any) -> None:
            raise RuntimeError("add_with_ids not implemented for this type of index")

        def _seen(self) -> Any:
            return self._rows.astype(np.float16).astype(np.float32) if self._half else self._rows

    class GpuIndexIVFFlat(GpuIndex):
        config, on_cpu = "GpuIndexIVFFlatConfig", "IndexIVFFlat"

        def __init__(self, resources: Any, dim: int, lists: int, metric: int, config: Any) -> None:
            self._start(resources, dim, metric, config, self.config)
            self.nlist, self.nprobe = lists, 1
            self.cp = real.ClusteringParameters()

        def train(self, x: Any) -> None:
            self._checked(x)
            assert len(x) >= self.nlist, "fewer vectors than lists"
            self._start_cpu()
            self._cpu.train(x)
            self.is_trained = True

        def _start_cpu(self) -> None:
            self._cpu = real.IndexIVFFlat(
                real.IndexFlatIP(self.d), self.d, self.nlist, self.metric_type
            )
            self._cpu.cp.min_points_per_centroid = 1

        def copyFrom(self, cpu: Any) -> None:
            assert type(cpu).__name__ == self.on_cpu
            self._cpu, self.is_trained, self.nlist = cpu, True, cpu.nlist
            self._ids, self._rows = np.empty(0, np.int64), np.empty((0, self.d), np.float32)
            for number in range(cpu.nlist):
                size = cpu.invlists.list_size(number)
                if size:
                    got = real.rev_swig_ptr(cpu.invlists.get_ids(number), size).copy()
                    self._ids = np.concatenate([self._ids, got])
            cpu.make_direct_map()
            self._ids.sort()
            self._rows = np.stack([cpu.reconstruct(int(i)) for i in self._ids])
            self.ntotal = len(self._ids)
            self.nprobe = cpu.nprobe

        def _to_cpu(self) -> Any:
            made = real.clone_index(self._cpu)
            made.reset()
            made.add_with_ids(self._rows, self._ids)
            return made

        def search(self, x: Any, k: int, params: Any = None) -> Any:
            assert 1 <= self.nprobe <= min(MOST, self.nlist)
            found, ids = super().search(x, self.ntotal if self.ntotal < MOST else k, params)
            # Only rows of the lists that are looked into.
            _, near = self._cpu.quantizer.search(x, self.nprobe)
            _, owner = self._cpu.quantizer.search(self._rows, 1)
            place = {int(i): int(o) for i, o in zip(self._ids, owner[:, 0], strict=True)}
            for row in range(len(x)):
                keep = [at for at, i in enumerate(ids[row]) if place.get(int(i)) in set(near[row])]
                count = len(keep)
                found[row, :count], ids[row, :count] = found[row, keep], ids[row, keep]
                found[row, count:], ids[row, count:] = -np.finfo(np.float32).max, -1
            width = found.shape[1]
            if width < k:
                pad = ((0, 0), (0, k - width))
                found, ids = np.pad(found, pad), np.pad(ids, pad, constant_values=-1)
            return found[:, :k].copy(), ids[:, :k].copy()

    class GpuIndexIVFPQ(GpuIndexIVFFlat):
        config, on_cpu = "GpuIndexIVFPQConfig", "IndexIVFPQ"

        def __init__(
            self, resources: Any, dim: int, lists: int, m: int, bits: int, metric: int, config: Any
        ) -> None:
            super().__init__(resources, dim, lists, metric, config)
            if bits != 8:
                raise RuntimeError("only 8 bits per code are supported")
            self._m = m
            self.pq = SimpleNamespace(cp=real.ClusteringParameters())

        def _start_cpu(self) -> None:
            quantizer = real.IndexFlatIP(self.d)
            self._cpu = real.IndexIVFPQ(quantizer, self.d, self.nlist, self._m, 8, self.metric_type)
            self._cpu.cp.min_points_per_centroid = 1
            self._cpu.pq.cp.min_points_per_centroid = 1

    class GpuIndexCagra(GpuIndex):
        def __init__(self, resources: Any, dim: int, metric: int, config: Any) -> None:
            self._start(resources, dim, metric, config, "GpuIndexCagraConfig")
            self._degree = config.intermediate_graph_degree

        def train(self, x: Any) -> None:
            self._checked(x)
            assert len(x) > self._degree, "fewer vectors than neighbours"
            self.is_trained = True
            self._store(x, np.arange(len(x)))

        def add(self, x: Any) -> None:
            raise RuntimeError("adding vectors is not supported by GpuIndexCagra.")

        add_with_ids = add

        def search(self, x: Any, k: int, params: Any = None) -> Any:
            assert params is not None
            if k > params.itopk_size:
                raise RuntimeError("topk must be smaller than itopk_size")
            return super().search(x, k, params)

        def copyFrom(self, cpu: Any) -> None:
            assert type(cpu).__name__ == "IndexHNSWCagra"
            rows = real.downcast_index(cpu.storage)
            got = real.rev_swig_ptr(rows.get_xb(), rows.ntotal * self.d)
            self.train(got.reshape(-1, self.d).copy())

        def _to_cpu(self) -> Any:
            made = real.IndexHNSWCagra(self.d, 8, self.metric_type)
            made.add(self._rows)
            return made

    def index_gpu_to_cpu(index: Any) -> Any:
        return index._to_cpu()

    for one in (
        *(StandardGpuResources, GpuIndexFlatIP, GpuIndexIVFFlat, GpuIndexIVFPQ),
        *((GpuIndexCagra,) if cagra else ()),
        index_gpu_to_cpu,
    ):
        setattr(module, one.__name__, one)
    for name in CONFIGS:
        if cagra or "Cagra" not in name:
            setattr(module, name, config_class(name))
    module.get_num_gpus = lambda: gpus
    module.log = log
    return module
