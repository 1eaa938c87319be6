"""atom and red: read, change and write a place in one go.

PTX ISA, "Parallel Synchronization and Communication Instructions: atom, red". Lanes take their turns
in ascending order; on hardware the order is open, and with it the last bits of sums of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx import numerics
from bench.static.ptx.access import address_reader, count, memory_of
from bench.static.ptx.types import KINDS

if TYPE_CHECKING:
    from bench.static.ptx.machine import Machine, Step
    from bench.static.ptx.program import Instruction

Array = npt.NDArray[Any]

FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, b: b,
    "inc": lambda old, b: np.where(old >= b, 0, old + 1).astype(old.dtype),
    "dec": lambda old, b: np.where((old == 0) | (old > b), b, old - 1).astype(old.dtype),
    "cas": lambda old, b, c: np.asarray(np.where(old == b, c, old)),
}


def bind_atomic(machine: Machine, instruction: Instruction) -> Step:
    """atom.SPACE.OP.TYPE d, [a], b{, c} and red.SPACE.OP.TYPE [a], b."""
    parts = instruction.opcode.split(".")
    space = next(part for part in parts if part in ("global", "shared"))
    name, kind = parts[-2:]
    operands = list(instruction.operands)
    write = machine.lane_writer(operands.pop(0), kind) if parts[0] == "atom" else None
    address = address_reader(machine, operands.pop(0), instruction)
    reads = [machine.lane_reader(operand, kind, instruction) for operand in operands]
    if len(reads) != (2 if name == "cas" else 1):
        raise ValueError(f"{len(reads)} operands")
    memory, size, dtype = memory_of(machine, space), KINDS[kind].bits // 8, KINDS[kind].dtype
    function = (
        float_add(flush=space == "global") if kind == "f32" and name == "add" else FUNCTIONS[name]
    )

    def step() -> None:
        lanes = machine.lanes
        positions = memory.locate(machine, instruction, address(), lanes, size)
        count(machine, instruction, space, positions, lanes, size, write=True)
        if space == "shared":
            machine.shared.touch_atomically(machine, instruction, positions, lanes, size)
        values = [read() for read in reads]
        cells = memory.views[size].view(dtype)
        old = np.zeros(len(lanes), dtype)
        for turn in turns(positions):
            places = positions[turn] // size
            old[turn] = cells[places]
            cells[places] = function(old[turn], *(value[turn] for value in values))
        if write is not None:
            write(old)

    return step


def float_add(*, flush: bool) -> Callable[[Array, Array], Array]:
    """fp32 addition of bits; in global memory subnormals count as zero."""

    def add(a: Array, b: Array) -> Array:
        values = [numerics.decode(bits, "f32") for bits in (a, b)]
        if flush:
            values = [numerics.flush(value, "f32") for value in values]
        total = numerics.encode(numerics.add(*values), "f32")
        if not flush:
            return total
        return numerics.encode(numerics.flush(numerics.decode(total, "f32"), "f32"), "f32")

    return add


def turns(positions: Array) -> list[Array]:
    """Indices that touch different places, in groups: the first of each place, the second, ..."""
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    first = np.flatnonzero(np.r_[True, np.diff(ordered) != 0])
    rank = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    by_rank = np.argsort(rank, kind="stable")
    cuts = np.flatnonzero(np.diff(rank[by_rank])) + 1
    return np.split(order[by_rank], cuts)
