"""How many programs of a compiled kernel fit on one multiprocessor at a time.

Registers are handed out per warp in blocks of 256, shared memory in steps of 1 KiB with 1 KiB kept
by the driver per program. Limits: CUDA C++ Programming Guide, table "Technical Specifications per
Compute Capability"; an architecture that is not in the table has no answer here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.static.compile import CompiledKernel

REGISTERS = 65536
REGISTERS_PER_BLOCK = 256
RESERVED_SHARED_BYTES = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor holds at a time.

    Attributes:
        warps: resident warps.
        programs: resident programs (thread blocks).
        shared_bytes: shared memory for all of them.
    """

    warps: int
    programs: int
    shared_bytes: int


MULTIPROCESSORS = {
    75: Multiprocessor(warps=32, programs=16, shared_bytes=64 * 1024),
    80: Multiprocessor(warps=64, programs=32, shared_bytes=164 * 1024),
    86: Multiprocessor(warps=48, programs=16, shared_bytes=100 * 1024),
    87: Multiprocessor(warps=48, programs=16, shared_bytes=164 * 1024),
    89: Multiprocessor(warps=48, programs=24, shared_bytes=100 * 1024),
    90: Multiprocessor(warps=64, programs=32, shared_bytes=228 * 1024),
    100: Multiprocessor(warps=64, programs=32, shared_bytes=228 * 1024),
    120: Multiprocessor(warps=48, programs=24, shared_bytes=100 * 1024),
}


def resident_warps(kernel: CompiledKernel) -> int:
    """Warps of one kernel on one multiprocessor, if there are programs enough to fill it.

    Raises:
        KeyError: the limits of this compute capability are not in the table.
    """
    limits = MULTIPROCESSORS[kernel.capability]
    per_warp = -(-kernel.registers * 32 // REGISTERS_PER_BLOCK) * REGISTERS_PER_BLOCK
    by_registers = REGISTERS // per_warp // kernel.num_warps
    shared = -(-kernel.shared_bytes // 1024) * 1024 + RESERVED_SHARED_BYTES
    by_shared = limits.shared_bytes // shared
    by_warps = limits.warps // kernel.num_warps
    return min(by_registers, by_shared, by_warps, limits.programs) * kernel.num_warps
