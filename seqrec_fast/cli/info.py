# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast info``: what this installation can do and why not more; what a bundle holds."""

from __future__ import annotations

import os
import platform
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seqrec_fast.cli.console import print_json, say, table
from seqrec_fast.cli.figures import figures_table

__all__ = ["EPILOG", "add_arguments", "installation", "operations", "run"]

EPILOG = """\
examples:
  seqrec-fast info
  seqrec-fast info bundle
  seqrec-fast info --json
"""

BACKENDS = ("reference", "native", "cuda", "triton")
_GPU_KINDS = {"cuda": "CUDA", "triton": "Triton"}
_WITHOUT_GPU_KERNELS = {"linear": "on a GPU torch's own product (cuBLAS) computes it"}

#: package -> the extra that brings it; nothing where the core needs it
_PACKAGES = {
    "numpy": "",
    "safetensors": "",
    "pyarrow": "",
    "duckdb": "",
    "torch": "train",
    "matplotlib": "train",
    "tqdm": "train",
    "faiss": "retrieval",
}
#: module -> the distributions that may have brought it, where the names differ
_DISTRIBUTIONS = {"faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs")}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="folder written by train")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code."""
    if args.bundle is not None:
        from seqrec_fast import bundle as bundles

        found = bundles.info(args.bundle)
        if args.json:
            print_json(found)
        else:
            say(_describe_bundle(found))
        return 0
    facts = installation()
    if args.json:
        print_json(facts)
    else:
        say(_describe_installation(facts))
    return 0


def installation() -> dict[str, Any]:
    """Versions, processor, native code, faiss, what each operation runs on; ready for JSON."""
    from seqrec_fast import __version__
    from seqrec_fast.retrieval import faiss_library

    native: dict[str, Any]
    features: list[str] = []
    try:
        module = import_module("seqrec_fast.native")
        native = {"available": True, **module.build_info(), "threads": module.get_num_threads()}
        features = list(module.cpu_features())
    except ImportError as error:
        native = {"available": False, "reason": " ".join(str(error).split())}
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count(), "features": features},
        "native": native,
        "packages": {name: _version(name) for name in _PACKAGES},
        "faiss": faiss_library.abilities(),
        "operations": operations(),
    }


def operations() -> dict[str, dict[str, dict[str, Any]]]:
    """Operation -> backend -> whether it can run, and why not.

    The operations are the modules in ``seqrec_fast/ops``; they are listed without importing them,
    since that would load torch.
    """
    spec = find_spec("seqrec_fast.ops")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    names = sorted(
        path.stem
        for folder in folders
        for path in folder.glob("*.py")
        if not path.stem.startswith("_")
    )
    native = _native_operations()
    missing = "torch is not installed: pip install 'seqrec-fast[train]'"
    torch = None if find_spec("torch") else missing
    kernels = {
        kind: {path.stem for folder in folders for path in folder.glob(f"{kind}/[!_]*.py")}
        for kind in _GPU_KINDS
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        reasons: dict[str, str | None] = {
            "reference": torch,
            "native": _why_not_native(name, native),
            **{kind: torch or _why_not_gpu(name, kind, kernels) for kind in _GPU_KINDS},
        }
        found[name] = {
            backend: {"available": reasons[backend] is None, "reason": reasons[backend]}
            for backend in BACKENDS
        }
    return found


def _native_operations() -> set[str] | str:
    """The operations that have native kernels here, or why none can be had."""
    try:
        module = import_module("seqrec_fast.native")
    except ImportError as error:
        return f"the native module cannot be loaded: {' '.join(str(error).split())}"
    return {one.name for one in module.operations() if one.backend == "native" and one.available}


def _why_not_native(operation: str, native: set[str] | str) -> str | None:
    if isinstance(native, str):
        return native
    return None if operation in native else "no native kernel in this version"


def _why_not_gpu(operation: str, kind: str, kernels: Mapping[str, set[str]]) -> str | None:
    """Why an operation has no kernels of this kind, or why they cannot run on a GPU here."""
    if operation not in kernels[kind]:
        others = [title for k, title in _GPU_KINDS.items() if operation in kernels[k]]
        if others:
            return f"the kernels for GPUs are in {others[0]}"
        none = f"no {_GPU_KINDS[kind]} kernel in this version"
        return _WITHOUT_GPU_KERNELS.get(operation, none)
    forced = kind in os.environ.get("SEQREC_FAST_BACKEND", "").split(",")
    if not forced and not _torch_for_gpus():
        return f"torch {_version('torch')} was built without CUDA"
    # whether there is a GPU only torch knows, which takes seconds to load
    try:
        backend = import_module("seqrec_fast.ops._backend")
        found: str | None = backend.unavailable(operation, "cpu" if forced else "cuda")
    except ImportError as error:
        return " ".join(str(error).split())
    return found


@cache
def _torch_for_gpus() -> bool:
    """Whether torch was built for GPUs, read from its files without loading it."""
    spec = find_spec("torch")
    for place in (spec.submodule_search_locations or []) if spec else []:
        try:
            text = (Path(place) / "version.py").read_text(encoding="utf-8")
        except OSError:
            return True  # unknown: torch itself will tell
        return re.search(r"^(cuda|hip)\b[^=\n]*=\s*['\"]", text, re.MULTILINE) is not None
    return False


def _version(package: str) -> str | None:
    for distribution in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        # not Linux: the platform module knows at least the architecture
        return platform.processor() or platform.machine()
    return platform.machine()


def _describe_installation(facts: Mapping[str, Any]) -> str:
    cpu, native = facts["cpu"], facts["native"]
    lines = [
        f"seqrec-fast {facts['version']}, Python {facts['python']}, {facts['platform']}",
        f"processor: {cpu['name']}, {cpu['cores']} cores; {' '.join(cpu['features'])}",
    ]
    if native["available"]:
        lines.append(
            f"native code: {native['isa']} in use (built: {' '.join(native['isa_compiled'])}), "
            f"{native['threads']} threads, {native['compiler']}"
        )
    else:
        lines.append(f"native code: not available, {native['reason']}")
    packages = [
        f"{name} {version}"
        if version
        else f"{name} missing (pip install 'seqrec-fast[{_PACKAGES[name]}]')"
        for name, version in facts["packages"].items()
    ]
    lines += [f"packages: {', '.join(packages)}", *_describe_faiss(facts["faiss"]), ""]
    rows = [
        [name, *("yes" if backends[b]["available"] else "-" for b in BACKENDS)]
        for name, backends in facts["operations"].items()
    ]
    lines.append(table(["operation", *BACKENDS], rows, left=range(len(BACKENDS) + 1)))
    reasons: dict[str, dict[str, None]] = {}  # operations in their order, each once
    for name, backends in facts["operations"].items():
        for one in backends.values():
            if one["reason"]:
                reasons.setdefault(one["reason"], {})[name] = None
    lines += ["", *(f"{reason}: {', '.join(names)}" for reason, names in reasons.items())]
    return "\n".join(lines)


def _describe_faiss(found: Mapping[str, Any]) -> list[str]:
    """The build of faiss, and why kinds of index cannot run on a GPU; a reason once."""
    if found["version"] is None:
        return [found["reason"]]
    build = "GPUs" if found["gpu_build"] else "the CPU"
    gpus = f", {found['gpus']} GPU(s)" if found["gpu_build"] else ""
    lines = [f"faiss: {found['version']}, built for {build}{gpus} ({found['options']})"]
    reasons: dict[str, list[str]] = {}
    for kind, reason in found["kinds"].items():
        reasons.setdefault(reason or "available", []).append(kind)
    return [*lines, *(f"{', '.join(kinds)}: {reason}" for reason, kinds in reasons.items())]


def _describe_index(found: Mapping[str, Any], items: int) -> str:
    """Kind, options and what was measured; and of how many items, where there are others now."""
    options = ", ".join(f"{name} {value}" for name, value in found["options"].items())
    measured = found["measured"] or {}
    told = f"index: {found['kind']} ({options})"
    recall, then = measured.get("recall"), measured.get("items")
    if isinstance(recall, (int, float)) and "k" in measured:
        told += f", recall@{measured['k']} {recall:.4f}"
    if "measured_on" in measured:
        told += f", measured on {measured['measured_on']}"
    if isinstance(then, int) and then != items:
        told += f", when there were {then:,} items"
    return told


def _describe_bundle(found: Mapping[str, Any]) -> str:
    training = found["training"]
    options = ", ".join(
        f"{name} {value}" for name, value in found["config"].items() if name != "model"
    )
    removed = f" ({found['removed']:,} of them removed)" if found["removed"] else ""
    lines = [
        f"{found['path']}: {found['model']}, {found['num_items']:,} items{removed}, "
        f"{found['parameters']:,} parameters, {found['bytes']:,} bytes",
        f"format {found['format_version']}, written {found['created']} by seqrec-fast "
        f"{found['library_version']}",
        f"options: {options}",
    ]
    if "best_epoch" in training:
        lines.append(
            f"training: best epoch {training['best_epoch']}, {training['seconds']:.0f} s"
            f"{', refitted' if training['refitted'] else ''}"
            f"{', interrupted' if training['interrupted'] else ''}"
        )
    if log := training.get("source", {}).get("log"):
        lines.append(f"log: {log}")
    if (table_facts := found["item_table"]) is not None:
        columns = ", ".join(f"{name} ({kind})" for name, kind in table_facts["columns"].items())
        lines.append(f"item table, for titles, rules and limits: {columns}")
    if found["index"] is not None:
        lines.append(_describe_index(found["index"], found["num_items"] - found["removed"]))
    metrics = found["metrics"]
    figures = {
        name: metrics[name]
        for name in ("validation", "test", "test_refit", "popularity")
        if isinstance(metrics.get(name), Mapping)
        and {"values", "users", "protocol"} <= set(metrics[name])
    }
    if figures:
        lines += ["", figures_table(figures, cutoff=10)]
    rows = [[name, f"{size:,}"] for name, size in found["files"].items()]
    return "\n".join([*lines, "", table(["file", "bytes"], rows)])
