"""What a launch did: instructions by class, and how its memory accesses fell on sectors and banks.

The counts are of PTX, before the assembler schedules, fuses and removes: dynamic evidence beside
`bench.static.sass`, which reads the machine code but cannot run it.

A *request* is one memory instruction of one warp. Global memory is moved in sectors of 32 bytes: a
request for 32 neighbouring fp32 needs 4, one for 32 scattered ones 32. Shared memory has 32 banks
of 4 bytes: a request is served in passes, each of which takes from a bank at most one word, which any number
of lanes may share. 8- and 16-byte accesses are served by halves and quarters of a warp, so 2 and 4
passes are ideal (CUDA C++ Programming Guide, "Shared Memory" of compute capability 5.x and later).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx.registers import WARP_LANES

if TYPE_CHECKING:
    from bench.static.ptx.program import Instruction

Array = npt.NDArray[Any]

SECTOR_BYTES = 32
BANKS = 32
BANK_BYTES = 4


@dataclass
class Access:
    """One memory instruction, over the whole launch.

    Attributes:
        opcode: of the instruction.
        line: in the PTX.
        source: place in the kernel's source, or None.
        space: "global" or "shared".
        write: whether it writes that space.
        requests: warps that executed it.
        bytes: asked for by all lanes.
        distinct_bytes: asked for by each warp, counting what its lanes share once. Global only.
        sectors: of 32 bytes, touched by each warp, added up. Global only.
        passes: through the banks. Shared only.
        ideal_passes: the fewest that requests of this width can take. Shared only.
    """

    opcode: str
    line: int
    source: str | None
    space: str
    write: bool
    requests: int = 0
    bytes: int = 0
    distinct_bytes: int = 0
    sectors: int = 0
    passes: int = 0
    ideal_passes: int = 0

    @property
    def sector_efficiency(self) -> float | None:
        """Share of the bytes moved that somebody asked for; None for shared memory."""
        return self.distinct_bytes / (SECTOR_BYTES * self.sectors) if self.sectors else None


@dataclass
class Report:
    """One launch.

    Attributes:
        kernel: entry point.
        target: of the PTX, "sm_90a".
        ctas: thread blocks.
        threads: per block.
        instructions: full opcode to the number of warps that issued it, guarded-off ones included.
        by_class: the same, summed by class of instruction.
        approximate: opcodes that ran and that hardware computes only approximately.
        accesses: one entry per memory instruction.
    """

    kernel: str
    target: str
    ctas: int
    threads: int
    instructions: Counter[str] = field(default_factory=Counter)
    by_class: Counter[str] = field(default_factory=Counter)
    approximate: tuple[str, ...] = ()
    accesses: tuple[Access, ...] = ()

    def per_weight(self, weights: int) -> float:
        """Thread instructions per weight: each issue of a warp stands for 32 threads."""
        return self.instructions.total() * WARP_LANES / weights

    @property
    def sector_efficiency(self) -> float | None:
        """Share of the bytes moved to and from global memory that somebody asked for."""
        moved = SECTOR_BYTES * sum(a.sectors for a in self.accesses)
        return sum(a.distinct_bytes for a in self.accesses) / moved if moved else None

    @property
    def bank_conflicts(self) -> int:
        """Passes through shared memory beyond the ideal."""
        return sum(a.passes - a.ideal_passes for a in self.accesses)

    def bytes(self, space: str, *, write: bool) -> int:
        """Bytes that all lanes asked to read or write in a space."""
        return sum(a.bytes for a in self.accesses if (a.space, a.write) == (space, write))


class Counters:
    """Adds up accesses while a launch runs."""

    def __init__(self) -> None:
        self.accesses: dict[tuple[int, str], Access] = {}

    def access(self, instruction: Instruction, space: str, *, write: bool) -> Access:
        """The entry of an instruction, made when it first runs."""
        key = (instruction.line, space)
        if key not in self.accesses:
            self.accesses[key] = Access(
                instruction.opcode, instruction.line, instruction.source, space, write
            )
        return self.accesses[key]


def count_global(access: Access, addresses: Array, lanes: Array, size: int) -> None:
    """Add one execution of a global access.

    Args:
        access: where to add it.
        addresses: int64 [n], aligned to `size`.
        lanes: int64 [n], ascending; 32 to a warp.
        size: bytes per lane, at most 32.
    """
    if not len(lanes):
        return
    rows, requests = by_warp(addresses, lanes)
    rows.sort(axis=1)
    inside = rows >= 0
    first = inside[:, 0]
    new_sector = np.diff(rows // SECTOR_BYTES, axis=1) != 0
    new_address = np.diff(rows, axis=1) != 0
    access.requests += requests
    access.bytes += len(lanes) * size
    access.sectors += int(first.sum() + (new_sector & inside[:, 1:]).sum())
    access.distinct_bytes += size * int(first.sum() + (new_address & inside[:, 1:]).sum())


def by_warp(values: Array, lanes: Array) -> tuple[Array, int]:
    """Values in rows of 32 lanes, -1 where a lane is not there; and the number of warps."""
    warps = lanes // WARP_LANES
    if len(lanes) == WARP_LANES * (warps[-1] - warps[0] + 1):
        rows = values.reshape(-1, WARP_LANES).copy()
    else:
        rows = np.full((warps[-1] - warps[0] + 1, WARP_LANES), -1, values.dtype)
        rows.ravel()[lanes - warps[0] * WARP_LANES] = values
        rows = rows[(rows >= 0).any(axis=1)]
    return rows, len(rows)


def count_shared(access: Access, positions: Array, lanes: Array, size: int) -> None:
    """Add one execution of a shared access.

    Args:
        access: where to add it.
        positions: int64 [n], bytes from the start of the CTA's window, aligned to `size`.
        lanes: int64 [n], ascending; 32 to a warp.
        size: bytes per lane, at most 16.
    """
    if not len(lanes):
        return
    unit = max(size, BANK_BYTES)
    columns = BANKS * BANK_BYTES // unit  # lanes served together, and distinct places in a pass
    rows, requests = by_warp(positions // unit, lanes)
    access.requests += requests
    access.bytes += len(lanes) * size
    passes, ideal = passes_of(rows.reshape(-1, columns), columns)
    access.passes += passes
    access.ideal_passes += ideal


def passes_of(words: Array, columns: int) -> tuple[int, int]:
    """Passes through the banks that these phases take, and the number of phases.

    Args:
        words: index of the bank-wide unit each lane wants, -1 for none; [phases, lanes].
        columns: units in one pass.
    """
    words.sort(axis=1)
    distinct = words >= 0
    distinct[:, 1:] &= np.diff(words, axis=1) != 0
    phase = np.repeat(np.arange(len(words)), words.shape[1])
    place = phase * columns + (words % columns).ravel()
    load = np.bincount(place, distinct.ravel(), minlength=len(words) * columns)
    deepest = load.reshape(-1, columns).max(axis=1)
    return int(deepest.sum()), int((deepest > 0).sum())
