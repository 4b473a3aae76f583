# SPDX-License-Identifier: Apache-2.0
"""The library faiss: imported only when it is asked for, and what the build that is there can do.

Several distributions (faiss-cpu, faiss-gpu, ...) install the same module ``faiss``. Two of them in
one environment overwrite each other's files: what is imported then is a mixture that fails in
strange ways, so it is refused with the remedy.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib import import_module, metadata
from typing import Any

from seqrec_fast.errors import DeviceError, InputError, MissingExtraError

__all__ = [
    "abilities",
    "faiss",
    "gpu_problem",
    "installed",
    "openmp_threads",
    "require_gpu",
    "safe_after_fork",
]

#: what a build must have for each kind on the GPU
GPU_KINDS = {
    "gpu-flat": ("GpuIndexFlatIP", "GpuIndexFlatConfig"),
    "gpu-ivf": ("GpuIndexIVFFlat", "GpuIndexIVFFlatConfig"),
    "gpu-ivfpq": ("GpuIndexIVFPQ", "GpuIndexIVFPQConfig"),
    "gpu-cagra": ("GpuIndexCagra", "GpuIndexCagraConfig"),
}
_GPU_BASE = ("StandardGpuResources", "index_gpu_to_cpu", "get_num_gpus")

_importing = threading.Lock()
_forked = False


def faiss() -> Any:
    """The module.

    Raises:
        MissingExtraError: it is not installed, or cannot be loaded.
        InputError: several distributions of it are installed.
    """
    found = sys.modules.get("faiss")
    if found is not None and _checked():
        return found
    with _importing:
        return _import()


@cache
def installed() -> dict[str, str]:
    """The distributions that install the module ``faiss``: name -> version; looked up once."""
    found = {}
    for one in metadata.distributions():
        name = (one.metadata["Name"] or "").lower().replace("_", "-")
        # Files that are not recorded cannot be looked at: then the name must do.
        if name.startswith("faiss") and (
            one.files is None or any(str(path) == "faiss/__init__.py" for path in one.files)
        ):
            found[name] = one.version
    return dict(sorted(found.items()))


def abilities() -> dict[str, Any]:
    """What can run, ready for JSON; raises nothing.

    Returns:
        ``version`` (``None`` where it cannot be used), ``distributions``, ``gpu_build`` (whether
        it is built for GPUs), ``gpus`` (their number), ``reason`` (why it cannot be used, or
        ``None``), ``options`` (of its compilation) and ``kinds``: for each kind on the GPU why it
        cannot run, or ``None``.
    """
    facts: dict[str, Any] = {
        "version": None,
        "distributions": installed(),
        "gpu_build": False,
        "gpus": 0,
    }
    try:
        module = faiss()
    except (MissingExtraError, InputError) as error:
        return {
            **facts,
            "reason": str(error),
            "options": "",
            "kinds": dict.fromkeys(GPU_KINDS, str(error)),
        }
    return {
        **facts,
        "version": module.__version__,
        "gpu_build": all(hasattr(module, name) for name in _GPU_BASE),
        "gpus": _gpus(module),
        "reason": None,
        "options": module.get_compile_options().strip(),
        "kinds": {kind: gpu_problem(kind) for kind in GPU_KINDS},
    }


def gpu_problem(kind: str, device: int = 0) -> str | None:
    """Why a kind cannot run on a GPU here, or ``None``."""
    module = faiss()
    names = ", ".join(f"{name} {version}" for name, version in installed().items()) or "faiss"
    if not all(hasattr(module, name) for name in _GPU_BASE):
        others = " ".join(installed()) or "faiss-cpu"
        return (
            f"{names} is a build for the CPU; on a machine with a GPU: pip uninstall -y {others}, "
            f"then pip install 'seqrec-fast[retrieval-gpu]'"
        )
    missing = [name for name in GPU_KINDS[kind] if not hasattr(module, name)]
    if missing:
        remedy = " (it needs cuVS: install faiss-gpu-cuvs in its place)" if "cagra" in kind else ""
        return f"{names} was built without {missing[0]}{remedy}"
    count = _gpus(module)
    if count == 0:
        return f"{names} sees no GPU; is there one, with its driver, and CUDA_VISIBLE_DEVICES set?"
    if not 0 <= device < count:
        return f"device: found {device}, but faiss sees {count} GPU(s), numbered from 0"
    return None


def require_gpu(kind: str, device: int = 0) -> Any:
    """The module, for a kind that can run on that GPU.

    Raises:
        DeviceError: no such GPU, or the build cannot do it; nothing runs on the CPU instead.
        MissingExtraError: faiss is not installed.
        InputError: several distributions of it are installed.
    """
    problem = gpu_problem(kind, device)
    if problem is not None:
        raise DeviceError(f"kind {kind!r}: {problem}")
    return faiss()


@contextmanager
def openmp_threads(module: Any, threads: int) -> Iterator[None]:
    """Runs what is inside with that many threads of OpenMP.

    OpenMP keeps the number for each thread that calls, so callers at the same time do not disturb
    each other; the caller's own number is put back. In a process forked from one that had faiss,
    OpenMP would wait for workers that the fork did not copy, so one thread must do there.
    """
    wanted = 1 if _forked else threads
    before = module.omp_get_max_threads()
    if before == wanted:
        yield
        return
    module.omp_set_num_threads(wanted)
    try:
        yield
    finally:
        module.omp_set_num_threads(before)


def safe_after_fork(module: Any) -> AbstractContextManager[None]:
    """For calls that leave the number of threads to OpenMP: one thread in a forked process."""
    return openmp_threads(module, module.omp_get_max_threads())


@cache
def _checked() -> bool:
    several = installed()
    if len(several) > 1:
        raise InputError(
            f"faiss: {' and '.join(several)} are installed, and each overwrites the module of the "
            f"other; pip uninstall -y {' '.join(several)}, then pip install "
            f"'seqrec-fast[retrieval]' for the CPU or 'seqrec-fast[retrieval-gpu]' for GPUs"
        )
    return True


def _import() -> Any:
    _checked()
    try:
        return import_module("faiss")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "faiss":
            reason = "it is not installed"
        else:
            reason = f"it cannot be loaded ({' '.join(str(error).split())})"
    except Exception as error:  # some builds check their libraries with errors of other kinds
        reason = f"it cannot be loaded ({' '.join(str(error).split())})"
    raise MissingExtraError(
        f"faiss: {reason}; pip install 'seqrec-fast[retrieval]', or kind='exact', which needs "
        f"nothing more"
    )


def _gpus(module: Any) -> int:
    try:
        return int(module.get_num_gpus()) if hasattr(module, "StandardGpuResources") else 0
    except RuntimeError:  # no driver
        return 0


def _mark_forked() -> None:
    global _forked
    _forked = _forked or "faiss" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)
