# SPDX-License-Identifier: Apache-2.0
"""The architectures that the kernels are compiled for, and how many blocks of one fit there."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["TARGETS", "Target", "occupancy"]


class Target(NamedTuple):
    """Limits of a multiprocessor: CUDA C++ Programming Guide 13.0, "Compute Capabilities".

    Attributes:
        capability: major and minor version as one number, 90 for sm_90.
        warps: most warps resident at a time.
        blocks: most blocks resident at a time.
        shared: bytes of shared memory that the resident blocks divide among them.
        shared_block: most bytes that one block can ask for.
    """

    capability: int
    warps: int
    blocks: int
    shared: int
    shared_block: int

    @property
    def name(self) -> str:
        """As the compilers say it, ``sm_90``."""
        return f"sm_{self.capability}"


KIB = 1024
TARGETS = {
    target.name: target
    for target in (
        Target(80, 64, 32, 164 * KIB, 163 * KIB),
        Target(86, 48, 16, 100 * KIB, 99 * KIB),
        Target(90, 64, 32, 228 * KIB, 227 * KIB),
        Target(100, 64, 32, 228 * KIB, 227 * KIB),
        Target(120, 48, 24, 100 * KIB, 99 * KIB),
    )
}

#: the same on all of them
REGISTERS, REGISTERS_THREAD = 65_536, 255
#: registers are given to a warp in pieces of 256, shared memory to a block in pieces of 128 bytes
#: with one KiB for the system, and warps sit in four partitions
_PIECE, _SHARED_PIECE, _RESERVED, _PARTITIONS = 256, 128, KIB, 4


def occupancy(target: Target, registers: int, shared: int, warps: int) -> int:
    """Blocks that a multiprocessor holds at a time; 0 where one does not fit.

    Args:
        target: the architecture.
        registers: of a thread.
        shared: bytes of a block.
        warps: of a block.
    """
    if shared > target.shared_block or registers > REGISTERS_THREAD or warps > 32:
        return 0
    piece = -(-max(registers, 1) * 32 // _PIECE) * _PIECE
    by_registers = REGISTERS // _PARTITIONS // piece * _PARTITIONS // warps
    held = -(-(shared + _RESERVED) // _SHARED_PIECE) * _SHARED_PIECE
    return min(by_registers, target.shared // held, target.warps // warps, target.blocks)
