"""How many programs of a kernel fit on one multiprocessor at a time.

Registers are handed out per warp in blocks of 256, each scheduler of a multiprocessor from its own quarter;
shared memory in steps of 1 KiB with 1 KiB kept by the driver per program (cuda_occupancy.h). Limits: CUDA C++
Programming Guide, table "Technical Specifications per Compute Capability"; an architecture that is not in
the table has no answer here.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiles.specs import SCHEDULERS

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


def resident_programs(capability: int, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Programs on one multiprocessor, if there are enough to fill it.

    Args:
        capability: compute capability times ten.
        registers: per thread.
        shared_bytes: per program.
        num_warps: per program.

    Raises:
        KeyError: the limits of this compute capability are not in the table.
    """
    limits = MULTIPROCESSORS[capability]
    per_warp = -(-registers * 32 // REGISTERS_PER_BLOCK) * REGISTERS_PER_BLOCK
    by_registers = REGISTERS // SCHEDULERS // per_warp * SCHEDULERS // num_warps
    shared = -(-shared_bytes // 1024) * 1024 + RESERVED_SHARED_BYTES
    by_shared = limits.shared_bytes // shared
    return min(by_registers, by_shared, limits.warps // num_warps, limits.programs)
