"""Instructions in which the lanes of a warp exchange values.

PTX ISA, "Parallel Synchronization and Communication Instructions", and shfl.sync among "Data
Movement and Conversion Instructions".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx.errors import Fault
from bench.static.ptx.program import Pair
from bench.static.ptx.registers import ALL_PARTS, WARP_LANES

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.static.ptx.machine import Machine, Step
    from bench.static.ptx.program import Instruction, Operand

Array = npt.NDArray[Any]

REDUCTIONS: dict[str, Callable[..., Array]] = {
    "add": np.add.reduce,
    "min": np.minimum.reduce,
    "max": np.maximum.reduce,
    "and": np.bitwise_and.reduce,
    "or": np.bitwise_or.reduce,
    "xor": np.bitwise_xor.reduce,
}
IDENTITIES: dict[str, Callable[[np.iinfo[Any]], int]] = {
    "add": lambda _: 0,
    "min": lambda info: info.max,
    "max": lambda info: info.min,
    "and": lambda info: -1 if info.min < 0 else info.max,
    "or": lambda _: 0,
    "xor": lambda _: 0,
}


def running(machine: Machine) -> Array:
    """Which lanes run now, bool [warps, 32]."""
    return machine.running().reshape(-1, WARP_LANES)


def members(words: Array) -> Array:
    """The lanes named by membermasks uint32 [n], bool [n, 32]."""
    return (words[:, None] >> np.arange(WARP_LANES, dtype=np.uint32) & np.uint32(1)) == 1


def check_members(machine: Machine, instruction: Instruction, masks: Array) -> None:
    """Check a membermask uint32 [lanes] against the lanes that run.

    Raises:
        FaultError: a living lane that is named is not here or has another mask, or a lane is here
            unnamed.
    """
    here = running(machine)
    alive = machine.alive().reshape(-1, WARP_LANES)
    named = members(masks).reshape(-1, WARP_LANES, WARP_LANES)  # warp, lane that asks, lane named
    absent = np.any(named & (alive & ~here)[:, None, :], axis=2) & here
    if np.any(absent):
        detail = "lanes named in its mask are elsewhere"
        machine.fault(Fault.MISSING_LANES, instruction, np.flatnonzero(absent), detail)
    by_warp = masks.reshape(-1, WARP_LANES)
    differ = named & here[:, None, :] & (by_warp[:, None, :] != by_warp[:, :, None])
    unlike = np.any(differ, axis=2) & here
    if np.any(unlike):
        detail = "a lane named in its mask has another mask"
        machine.fault(Fault.MISSING_LANES, instruction, np.flatnonzero(unlike), detail)
    unnamed = np.logical_not(np.diagonal(named, axis1=1, axis2=2)) & here
    if unnamed.any():
        detail = "a lane runs it that its own mask does not name"
        machine.fault(Fault.MISSING_LANES, instruction, np.flatnonzero(unnamed.ravel()), detail)


def check_warps(machine: Machine, instruction: Instruction) -> None:
    """Check that whole warps run, as `.aligned` demands.

    Raises:
        FaultError: lanes of a warp are elsewhere, or have exited.
    """
    if machine.mask is not None:
        everyone = np.ones(machine.size, bool)
        detail = "are elsewhere, but all must run it together"
        machine.check_together(instruction, Fault.MISSING_LANES, everyone, detail)


def taint_warps(machine: Machine) -> None:
    """What a lane has read undefined makes the result of its whole warp undefined."""
    if machine.taint is not None:
        here = (machine.taint != 0) & machine.running()
        warps = here.reshape(-1, WARP_LANES).any(axis=1)
        machine.taint = np.repeat(warps, WARP_LANES) * np.uint8(ALL_PARTS)


def mask_checker(
    machine: Machine, instruction: Instruction, operand: Operand
) -> Callable[[], Array | None]:
    """A function that checks the membermask operand.

    It gives the lanes that each lane has to do with, bool [warps, lane, lane named]; None if those
    are all 32.
    """
    read = machine.reader(operand, "b32", instruction, used=True)

    def check() -> Array | None:
        masks = read()
        if machine.mask is None and (masks == np.uint32(0xFFFFFFFF)).all():
            return None
        masks = np.broadcast_to(masks, (machine.size,))
        check_members(machine, instruction, masks)
        named = members(masks).reshape(-1, WARP_LANES, WARP_LANES)
        return named & running(machine)[:, None, :]

    return check


def bind_warp_barrier(machine: Machine, instruction: Instruction) -> Step:
    """bar.warp.sync."""
    check = mask_checker(machine, instruction, instruction.operands[0])

    def step() -> None:
        check()

    return step


def bind_shuffle(machine: Machine, instruction: Instruction) -> Step:
    """shfl.sync.{up,down,bfly,idx}.b32 d[|p], a, b, c, membermask.

    c packs a clamp (bits 0 to 4) and the mask (bits 8 to 12) that splits the warp into segments.
    """
    target, *sources, mask = instruction.operands
    mode = instruction.opcode.split(".")[2]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    write = machine.writer(first, "b32")
    write_inside = machine.writer(second, "pred") if second else None
    read, read_b, read_c = (machine.reader(s, "b32", instruction) for s in sources)
    check = mask_checker(machine, instruction, mask)
    lane = machine.lane

    def step() -> None:
        named = check()
        value = np.broadcast_to(read(), (machine.size,))
        b, c = read_b().astype(np.int64) & 31, read_c().astype(np.int64)
        segment, clamp = c >> 8 & 31, c & 31
        last = (lane & segment) | (clamp & ~segment)
        source = {
            "up": lane - b,
            "down": lane + b,
            "bfly": lane ^ b,
            "idx": (lane & segment) | (b & ~segment),
        }[mode]
        inside = source >= last if mode == "up" else source <= last
        source = np.where(inside, source, lane)
        chosen = machine.all_lanes - lane + source
        if machine.taint is not None:
            machine.taint = machine.taint[chosen]
        if named is not None:
            there = np.take_along_axis(named, source.reshape(-1, WARP_LANES, 1), axis=2)
            taint_absent(machine, ~there.ravel())
        write(value[chosen])
        if write_inside is not None:
            write_inside(np.broadcast_to(inside, (machine.size,)))

    return step


def taint_absent(machine: Machine, absent: Array) -> None:
    """What is taken from a lane that does not run the shuffle, or is not named, is undefined."""
    if (absent & machine.running()).any():
        parts = absent * np.uint8(ALL_PARTS)
        machine.taint = parts if machine.taint is None else machine.taint | parts
        machine.taint_origin = "a lane that did not run a shuffle"


def by_group(machine: Machine, values: Array, named: Array | None) -> tuple[Array, Array]:
    """Which lanes count and their values: [warps, 32], or [warps, lane, 32] where masks differ."""
    rows = values.reshape(-1, WARP_LANES)
    if named is None:
        return running(machine), rows
    return named, np.broadcast_to(rows[:, None, :], named.shape)


def whole(machine: Machine, result: Array) -> Array:
    """A result of each warp, or of each lane, as a register."""
    return np.repeat(result, WARP_LANES) if result.size == machine.warps else result.reshape(-1)


def bind_vote(machine: Machine, instruction: Instruction) -> Step:
    """vote.sync.{all,any,uni}.pred and vote.sync.ballot.b32, over the lanes of the mask."""
    target, source, mask = instruction.operands
    mode = instruction.opcode.split(".")[2]
    read = machine.reader(source, "pred", instruction)
    write = machine.writer(target, "b32" if mode == "ballot" else "pred")
    check = mask_checker(machine, instruction, mask)

    def step() -> None:
        named = check()
        values = np.broadcast_to(read(), (machine.size,))
        taint_warps(machine)
        groups, true = by_group(machine, values, named)
        if mode == "ballot":
            bits = (true & groups).astype(np.uint32) << np.arange(WARP_LANES, dtype=np.uint32)
            result = bits.sum(axis=-1, dtype=np.uint32)
        else:
            every, some = (true | ~groups).all(axis=-1), (true & groups).any(axis=-1)
            result = {"all": every, "any": some, "uni": every | ~some}[mode]
        write(whole(machine, result))

    return step


def bind_reduce(machine: Machine, instruction: Instruction) -> Step:
    """redux.sync, over the lanes of the mask."""
    _, _, name, kind = instruction.opcode.split(".")
    target, source, mask = instruction.operands
    read, write = machine.reader(source, kind, instruction), machine.writer(target, kind)
    check = mask_checker(machine, instruction, mask)
    function, identity = REDUCTIONS[name], IDENTITIES[name]

    def step() -> None:
        named = check()
        given = np.broadcast_to(read(), (machine.size,))
        taint_warps(machine)
        groups, values = by_group(machine, given, named)
        neutral = values.dtype.type(identity(np.iinfo(values.dtype)))
        reduced = function(np.where(groups, values, neutral), axis=-1, dtype=values.dtype)
        write(whole(machine, reduced))

    return step


def bind_active_mask(machine: Machine, instruction: Instruction) -> Step:
    """activemask.b32."""
    write = machine.writer(instruction.operands[0], "b32")

    def step() -> None:
        bits = running(machine).astype(np.uint32) << np.arange(WARP_LANES, dtype=np.uint32)
        write(np.repeat(bits.sum(axis=1, dtype=np.uint32), WARP_LANES))

    return step
