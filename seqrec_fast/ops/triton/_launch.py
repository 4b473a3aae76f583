# SPDX-License-Identifier: Apache-2.0
"""What every Triton kernel here is started with: availability, configurations, jagged tiles.

Nothing here waits for the device or reads its memory. Grids are upper bounds from shapes alone, so
that a captured CUDA graph serves every batch of its size.

Kernels accumulate in float32 whatever the tensors hold. Tensors that every program reads or writes
by tokens x heads x width are addressed in 64 bits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec_fast.ops._backend import allows_tf32

try:
    import triton
    import triton.language as tl
except ImportError:  # the kernels cannot be imported then, but the reason can be asked for
    triton = None

__all__ = [
    "DTYPES",
    "FLOAT16_WIDTH",
    "INTERPRETED",
    "LEAST_VERSION",
    "Config",
    "Tuned",
    "Variant",
    "forms",
    "input_precision",
    "load_rows",
    "named",
    "padded_width",
    "product",
    "rounded",
    "row_of_tile",
    "row_tiles",
    "signature",
    "store_rows",
    "tuned",
    "unavailable",
    "widths",
]

#: of Triton, what torch 2.8 came with
LEAST_VERSION = (3, 4)

#: dtypes of the kernels as Triton spells them in signatures
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

#: the width for which float16 stands in the table of resources
FLOAT16_WIDTH = 64

RESOURCES = Path(__file__).with_name("resources.json")


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


if triton is not None:
    #: whether kernels run in Triton's interpreter on the CPU. It is settled when Triton is first
    #: imported. Kernels convert to float32 before ``tl.dot`` where it is true, because the
    #: interpreter multiplies the bits of bfloat16.
    INTERPRETED = tl.constexpr(_interpreted())


def unavailable() -> str | None:
    """Why Triton kernels cannot run in this process, with the remedy; None where they can."""
    if triton is None:
        return "Triton is not installed; it comes with CUDA builds of torch (or pip install triton)"
    version = _version(triton)
    if version < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        return f"Triton {triton.__version__} is too old; install {least} or newer, as torch pins it"
    if INTERPRETED.value:
        if version < (3, 7) and _version(np) >= (2, 4):
            # it makes an int of an array with one element, which numpy no longer allows
            return (
                f"the interpreter of Triton {triton.__version__} does not work with numpy "
                f"{np.__version__}; pip install 'numpy<2.4'"
            )
        return None
    if not torch.cuda.is_available():
        return (
            "torch finds no GPU; TRITON_INTERPRET=1, set before torch is imported, runs the "
            "kernels on the CPU (for tests only)"
        )
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and capability < (8, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, 8.0 is the least"
    return None


def _version(module: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in module.__version__.split(".")[:2])


class Config(NamedTuple):
    """How one kernel is compiled: sizes of its tiles, warps a program, stages of its pipeline."""

    blocks: dict[str, int]
    warps: int = 4
    stages: int = 2


class Variant(NamedTuple):
    """One compiled form of a kernel that ships, and what the compile gate compiles.

    Attributes:
        name: as :func:`named` makes it; the row of the table of resources.
        kernel: the ``@triton.jit`` function.
        signature: type of every argument that is not a constexpr, as Triton spells it.
        constants: every constexpr, sizes of tiles among them.
        warps: a program.
        stages: of the software pipeline.
        matrix: whether it multiplies matrices, on tensor cores where types have 16 bits.
        multiples: whole numbers that are multiples of 16 when it is used, which with aligned
            pointers makes wide and asynchronous loads possible.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int
    matrix: bool
    multiples: tuple[str, ...] = ()

    def attributes(self) -> dict[tuple[int, ...], list[list[Any]]]:
        """What ``triton.compiler.ASTSource`` takes as ``attrs``: pointers and ``multiples``.

        Memory of torch begins at multiples of 16 bytes, and Triton sees so when a kernel starts.
        """
        types = {**self.signature, **dict.fromkeys(self.multiples, "*")}
        places = {n: i for i, n in enumerate(self.kernel.arg_names)}
        return {(places[n],): [["tt.divisibility", 16]] for n in types if types[n][0] == "*"}


def named(kernel: str, dtype: str, width: int, config: Config, **flags: bool) -> str:
    """The name of a variant, e.g. ``attention_forward bf16 64 KEYS=64 warps=4 stages=2``.

    Args:
        kernel: name of its function.
        dtype: a value of ``DTYPES``.
        width: what its tiles are padded to.
        config: how it is compiled.
        flags: constexprs that change what it computes; those that are true are named.
    """
    blocks = [f"{k}={v}" for k, v in config.blocks.items()]
    set_flags = [k for k, v in flags.items() if v]
    stated = [*set_flags, *blocks, f"warps={config.warps}", f"stages={config.stages}"]
    return " ".join([kernel, dtype, str(width), *stated])


def signature(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any]
) -> dict[str, str]:
    """The types of all arguments of a kernel but its constexprs, in their order.

    Args:
        kernel: a ``@triton.jit`` function.
        types: by name of argument; the type ``"i32"`` for those that are not there.
        constants: the constexprs.
    """
    return {n: types.get(n, "i32") for n in kernel.arg_names if n not in constants}


class Tuned:
    """A kernel with its configurations: ``kernel[grid](...)`` as with ``@triton.jit``.

    ``grid`` may be a function of the constexprs, sizes of tiles among them. ``fn`` is the kernel.
    """

    def __init__(
        self,
        fn: Any,
        configs: Sequence[Config],
        key: Sequence[str],
        serves: Callable[[Config, Mapping[str, Any]], bool] | None,
        name: Callable[[Config, Mapping[str, Any]], str] | None,
    ) -> None:
        self.fn, self.configs, self.key = fn, tuple(configs), list(key)
        self._serves, self._name = serves, name
        self._tuners: dict[int, Any] = {}
        if len(self.configs) > 1 and name is None:
            raise AssertionError(f"{fn.__name__}: several configurations, but no name of a variant")

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def start(*arguments: Any, **keywords: Any) -> Any:
            given = dict(zip(self.fn.arg_names, arguments, strict=False)) | keywords
            choices = self.choices(given)
            if INTERPRETED.value:
                return self._start(grid, choices[0], arguments, keywords)
            tensor = next(a for a in given.values() if isinstance(a, Tensor))
            with torch.cuda.device(tensor.device):
                left = self.fitting(choices, given)
                if len(left) == 1:
                    return self._start(grid, left[0], arguments, keywords)
                return self._autotuner()[grid](*arguments, **keywords)

        return start

    def choices(self, given: Mapping[str, Any]) -> list[Config]:
        """The configurations made for these arguments."""
        found = [c for c in self.configs if self._serves is None or self._serves(c, given)]
        if not found:
            raise AssertionError(f"{self.fn.__name__}: no configuration serves these arguments")
        return found

    def _start(self, grid: Any, config: Config, arguments: Any, keywords: Any) -> Any:
        options = {**config.blocks, "num_warps": config.warps, "num_stages": config.stages}
        return self.fn[grid](*arguments, **keywords, **options)

    def fitting(self, choices: Sequence[Config], given: Mapping[str, Any]) -> Sequence[Config]:
        """Those that run on the current device without spills, by the table of resources.

        All where only one is made for the arguments, the first where the table leaves none.
        """
        if self._name is None or len(choices) == 1:
            return choices
        device = torch.cuda.current_device()
        left = [c for c in choices if _fits(device, self._name(c, given))]
        return left or choices[:1]

    def _autotuner(self) -> Any:
        """One a device: what it found on one need not fit another."""
        device = torch.cuda.current_device()
        if device not in self._tuners:
            ours = [(_triton_config(c), c) for c in self.configs]

            def prune(configs: list[Any], named_args: Mapping[str, Any], **rest: Any) -> list[Any]:
                given = {**named_args, **rest}
                left = self.fitting(self.choices(given), given)
                # configurations for other arguments may have the same sizes
                return [t for t, c in ours if any(c is chosen for chosen in left)]

            self._tuners[device] = triton.autotune(
                [t for t, _ in ours], self.key, prune_configs_by={"early_config_prune": prune}
            )(self.fn)
        return self._tuners[device]


def _triton_config(config: Config) -> Any:
    return triton.Config(dict(config.blocks), num_warps=config.warps, num_stages=config.stages)


def tuned(
    configs: Sequence[Config],
    key: Sequence[str],
    *,
    serves: Callable[[Config, Mapping[str, Any]], bool] | None = None,
    name: Callable[[Config, Mapping[str, Any]], str] | None = None,
) -> Callable[[Any], Tuned]:
    """Gives a ``@triton.jit`` kernel its configurations.

    On a GPU the first call with a new key times those that serve its arguments (which waits for the
    device: run each shape once before a CUDA graph is captured, as torch asks for anyway) and keeps
    the best; where only one serves, nothing is timed. The interpreter takes the first that serves.

    Args:
        configs: the best guess first.
        key: arguments whose values choose anew. Never the number of tokens of a jagged batch, which
            changes with every batch. Types of tensors belong to the key unasked.
        serves: whether a configuration is made for the arguments (by their names); all are if None.
        name: the name of the variant in the table of resources, which leaves out what spills or
            does not fit the device; needed where there are several configurations.
    """

    def decorate(kernel: Any) -> Tuned:
        return Tuned(kernel, configs, key, serves, name)

    return decorate


@cache
def resources() -> dict[str, dict[str, dict[str, int]]]:
    """The committed table: ``{"sm_90": {name of variant: what was measured}}``.

    Of this version of Triton, or of the newest that was measured where this one was not.
    """
    found: dict[str, dict[str, dict[str, int]]] = {}
    versions = json.loads(RESOURCES.read_text(encoding="utf-8")) if RESOURCES.is_file() else {}
    if versions:
        own = triton.__version__.partition("+")[0]
        newest = max(versions, key=lambda v: [int(part) for part in v.split(".")])
        for name, entry in versions.get(own, versions[newest]).items():
            for target, row in entry["targets"].items():
                found.setdefault(target, {})[name] = row
    return found


def measured_on(capability: int) -> Mapping[str, Mapping[str, int]]:
    """The rows of a GPU, ``capability`` 89 for 8.9, by name of the variant.

    Of the nearest older GPU of the same generation where it was not a target itself.
    """
    known = {int(target.removeprefix("sm_")): rows for target, rows in resources().items()}
    nearest = [c for c in known if c // 10 == capability // 10 and c <= capability]
    return known[max(nearest)] if nearest else {}


@cache
def _fits(device: int, variant: str) -> bool:
    """Whether a variant runs on a device without spills; so it does where the table is silent."""
    properties = torch.cuda.get_device_properties(device)
    row = measured_on(10 * properties.major + properties.minor).get(variant)
    if row is None:
        return True
    shared: int = getattr(properties, "shared_memory_per_block_optin", row["shared"])
    return not (row["spills"] or row["stack"]) and row["shared"] <= shared


def input_precision(dtype: torch.dtype) -> str:
    """How ``tl.dot`` multiplies float32: tf32 where torch's settings allow it for its matrices."""
    return "tf32" if dtype == torch.float32 and allows_tf32() else "ieee"


def padded_width(width: int) -> int:
    """The next power of two, 16 at least, which matrix instructions ask for."""
    return max(16, 1 << max(width - 1, 0).bit_length())


def row_tiles(tokens: int, rows: int, block: int) -> int:
    """How many tiles of ``block`` tokens of one row each there can be, whatever the offsets."""
    return tokens // block + rows if tokens else 0


def widths(least: int, most: int) -> Iterator[int]:
    """The padded widths that ship: powers of two."""
    width = least
    while width <= most:
        yield width
        width *= 2


def forms(widths: Iterable[int]) -> Iterator[tuple[str, int]]:
    """The types and widths of a kernel that stand in the table of resources.

    Float16 for one width: its kernels are those of bfloat16 but for conversions.
    """
    for width in widths:
        yield from ((dtype, width) for dtype in ("fp32", "bf16"))
        if width == FLOAT16_WIDTH:
            yield "fp16", width


if triton is not None:

    @triton.jit
    def product(a, b, total, PRECISION: tl.constexpr):
        """``total + a @ b``, summed in float32; PRECISION as :func:`input_precision` says."""
        if INTERPRETED:
            return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
        else:
            return tl.dot(a, b, total, input_precision=PRECISION)

    @triton.jit
    def rounded(x, dtype: tl.constexpr):
        """Float32 ``x`` in ``dtype``, to the nearest; the interpreter would cut bfloat16 off."""
        if INTERPRETED and dtype == tl.bfloat16:
            bits = x.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
            x = bits.to(tl.float32, bitcast=True)
        return x.to(dtype)

    @triton.jit
    def load_rows(
        base,
        stride,
        first,
        count,
        width,
        BLOCK: tl.constexpr,
        PADDED: tl.constexpr,
        EVEN: tl.constexpr,
    ):
        """Rows ``first, first + 1, ...`` of ``base``; 0 past ``count`` rows and ``width`` columns.

        Args:
            base: where row 0 begins.
            stride: from row to row.
            first: the first row; int32.
            count: rows that there are.
            width: columns that there are.
            BLOCK: rows to load.
            PADDED: columns to load.
            EVEN: whether ``width == PADDED``.

        Returns:
            ``[BLOCK, PADDED]``.
        """
        place = tl.arange(0, BLOCK)
        column = tl.arange(0, PADDED)
        start = base + tl.cast(first, tl.int64) * stride
        inside = (place < count - first)[:, None]
        if not EVEN:
            inside = inside & (column < width)[None, :]
        return tl.load(start + place[:, None] * stride + column[None, :], mask=inside, other=0.0)

    @triton.jit
    def store_rows(
        base,
        stride,
        first,
        count,
        width,
        tile,
        BLOCK: tl.constexpr,
        PADDED: tl.constexpr,
        EVEN: tl.constexpr,
    ):
        """The counterpart of :func:`load_rows`; ``tile`` is rounded to the type of ``base``."""
        place = tl.arange(0, BLOCK)
        column = tl.arange(0, PADDED)
        start = base + tl.cast(first, tl.int64) * stride
        inside = (place < count - first)[:, None]
        if not EVEN:
            inside = inside & (column < width)[None, :]
        where = start + place[:, None] * stride + column[None, :]
        tl.store(where, rounded(tile, base.dtype.element_ty), mask=inside)

    @triton.jit
    def row_of_tile(offsets, rows, tile, BLOCK: tl.constexpr):
        """The row of a tile, where the row begins and ends, and where the tile begins in it.

        Row r owns the tiles from ``offsets[r] // BLOCK + r`` on, which leaves enough of them for
        any length. A tile that begins at or after the length of its row has nothing to do.

        Args:
            offsets: int64 ``[rows + 1]``.
            rows: how many.
            tile: ``0 <= tile < row_tiles(tokens, rows, BLOCK)``.
            BLOCK: tokens a tile.

        Returns:
            row, its first token and the one after its last (int64), first token of the tile counted
            from the start of the row (int32).
        """
        low = 0
        high = rows - 1
        while low < high:
            middle = (low + high + 1) // 2
            first = tl.load(offsets + middle) // BLOCK + middle
            if first <= tile:
                low = middle
            else:
                high = middle - 1
        begin = tl.load(offsets + low)
        end = tl.load(offsets + low + 1)
        start = ((tile - low - begin // BLOCK) * BLOCK).to(tl.int32)
        return low, begin, end, start
