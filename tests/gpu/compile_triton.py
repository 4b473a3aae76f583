# SPDX-License-Identifier: Apache-2.0
"""Compiles Triton kernels for GPUs that need not be there, and measures what comes out.

Runs as a process of its own, because Triton's interpreter and its compiler exclude each other::

    python -m tests.gpu.compile_triton list [MODULE ...]
    python -m tests.gpu.compile_triton measure < jobs.json

``list`` prints the version of Triton and every variant with its fingerprint, without compiling;
``measure`` takes ``[[module, variant, target], ...]`` and prints a JSON line for each. A module is
one with ``variants()``; without names, those of ``seqrec_fast.ops.triton``.

A variant is compiled as a launch would: pointers are divisible by 16 bytes, as torch's allocations
are; an integer whose type is written ``i32:16`` is divisible by 16.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import os
import pkgutil
import re
import sys
import tempfile
import textwrap
import types
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from tests.gpu import sass, table, targets

__all__ = ["main", "measure", "shipped", "source_of"]

_REGISTERS = re.compile(r"Used (\d+) registers")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores")


def modules() -> list[str]:
    """The modules of Triton kernels that ship."""
    try:
        package = import_module("seqrec_fast.ops.triton")
    except ModuleNotFoundError:
        return []
    names = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    return [name for name in names if hasattr(import_module(name), "variants")]


def shipped(module: str) -> Iterator[Any]:
    """The variants of a module."""
    yield from import_module(module).variants()


# --------------------------------------------------------------------------- fingerprints


def source_of(kernel: Any) -> dict[str, str]:
    """What a kernel is compiled from: its own source, of all that it calls, and of constants.

    Comments, docstrings and line numbers do not count.
    """
    found: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = [(_unwrapped(kernel).__name__, kernel)]
    while waiting:
        name, value = waiting.pop()
        if name in found:
            continue
        if not hasattr(value, "fn"):
            found[name] = repr(getattr(value, "value", value))
            continue
        function = _unwrapped(value)
        found[name] = _normalised(inspect.getsource(function))
        code = function.__code__
        given = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
        for used in code.co_names + code.co_freevars:
            waiting += _uses(used, given.get(used), code.co_names)
    return found


def _uses(name: str, value: Any, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """What of a global name goes into a kernel: kernels, constants, and those of our modules."""
    if isinstance(value, types.ModuleType):
        if value.__name__.startswith(("seqrec_fast", "tests")):
            for attribute in names:
                yield from _uses(f"{name}.{attribute}", getattr(value, attribute, None), ())
    elif hasattr(value, "fn") and hasattr(value, "arg_names"):
        if not _unwrapped(value).__module__.startswith("triton"):
            yield name, value
    elif type(value).__name__ == "constexpr" or isinstance(value, (bool, int, float, str)):
        yield name, value


def _unwrapped(kernel: Any) -> Any:
    while hasattr(kernel, "fn"):
        kernel = kernel.fn
    return kernel


def _normalised(source: str) -> str:
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def fingerprint(variant: Any) -> str:
    """Of everything that the compiler is given."""
    constants = {key: str(value) for key, value in variant.constants.items()}
    return table.fingerprint(
        source_of(variant.kernel), variant.signature, constants, variant.warps, variant.stages
    )


# --------------------------------------------------------------------------- compilation


def measure(variant: Any, target: targets.Target) -> table.Measured:
    """Compiles one variant for one target.

    Raises:
        RuntimeError: Triton's compiler refuses it; its message names the reason.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = variant.kernel
    while type(kernel).__name__ != "JITFunction":
        kernel = kernel.fn
    signature: dict[str, str] = {}
    hints: dict[tuple[int], list[list[Any]]] = {}
    for place, name in enumerate(kernel.arg_names):
        if name in variant.constants:
            signature[name] = "constexpr"
            continue
        kind, _, divisor = variant.signature[name].partition(":")
        signature[name] = kind
        if kind.startswith("*") or divisor:
            hints[(place,)] = [["tt.divisibility", int(divisor or 16)]]
    if hasattr(variant, "attributes"):
        hints = variant.attributes()
    source = ASTSource(kernel, signature, dict(variant.constants), hints)
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            compiled = triton.compile(
                source,
                target=GPUTarget("cuda", target.capability, 32),
                options={"num_warps": variant.warps, "num_stages": variant.stages},
            )
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    registers = max(int(count) for count in _REGISTERS.findall(log.getvalue()))
    frames = _STACK.findall(log.getvalue())
    counts = sass.instructions(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    # groups of warps that the compiler adds for loads or matrix products count too
    warps = getattr(compiled.metadata, "total_num_warps", None) or variant.warps
    return table.Measured(
        registers=registers,
        spills=sum(int(spilled) for _, spilled in frames),
        stack=max((int(stack) for stack, _ in frames), default=0),
        shared=shared,
        blocks=targets.occupancy(target, registers, shared, warps),
        instructions=sass.families(sum(counts.values(), start=type(next(iter(counts.values())))())),
    )


# ------------------------------------------------------------------------------- process


def main(arguments: list[str]) -> None:
    """See the top of this file."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise SystemExit("TRITON_INTERPRET is set: the compiler cannot run beside the interpreter")
    import triton

    warnings.simplefilter("ignore")
    if arguments[0] == "list":
        found = [
            {
                "module": module,
                "name": variant.name,
                "fingerprint": fingerprint(variant),
                "kernel": f"{module.rpartition('.')[2]}.{_unwrapped(variant.kernel).__name__}",
                "constants": {key: _plain(value) for key, value in variant.constants.items()},
                "warps": variant.warps,
                "stages": variant.stages,
                "matrix": variant.matrix,
                "sixteen": any(
                    t.startswith(("*bf16", "*fp16")) for t in variant.signature.values()
                ),
            }
            for module in arguments[1:] or modules()
            for variant in shipped(module)
        ]
        version = triton.__version__.partition("+")[0]
        print(json.dumps({"version": version, "variants": found}))
        return
    jobs = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        # what Triton would keep of thousands of compilations fills a disk
        os.environ["TRITON_CACHE_DIR"] = folder
        _measure_all(jobs)


def _measure_all(jobs: Iterable[tuple[str, str, str]]) -> None:
    """A line of JSON for each job."""
    known: dict[str, dict[str, Any]] = {}
    for module, name, target in jobs:
        if module not in known:
            known[module] = {variant.name: variant for variant in shipped(module)}
        result: dict[str, Any] = {"name": name, "target": target}
        try:
            result["measured"] = measure(known[module][name], targets.TARGETS[target])._asdict()
        except RuntimeError as error:
            result["error"] = str(error)
        print(json.dumps(result), flush=True)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
