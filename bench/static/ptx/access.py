"""Loads, stores, asynchronous copies, matrix loads and stores.

PTX ISA, "Data Movement and Conversion Instructions", "Warp-level Matrix Instructions". Each
`bind_*` takes a machine and an instruction and gives its step; the opcode says the rest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx.counters import count_global, count_shared
from bench.static.ptx.errors import Fault
from bench.static.ptx.memory import IN_FLIGHT, NEVER_WRITTEN
from bench.static.ptx.program import Address, Immediate, Operand, Register, Symbol, Vector
from bench.static.ptx.registers import ALL_PARTS
from bench.static.ptx.types import KINDS, UNSIGNED
from bench.static.ptx.warp import check_warps

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.static.ptx.machine import Machine, Step
    from bench.static.ptx.memory import GlobalMemory, LocalMemory, SharedMemory
    from bench.static.ptx.program import Instruction

Array = npt.NDArray[Any]

MATRIX_ROW_BYTES = 16
MATRIX_ROWS = 8


def address_reader(
    machine: Machine, operand: Operand, instruction: Instruction
) -> Callable[[], Array]:
    """A function that gives the address of each lane that runs, int64."""
    assert isinstance(operand, Address), f"{operand} is no address"
    bits = 64
    if isinstance(operand.base, Register):
        bits = machine.kernel.registers[operand.base.name]
    read = machine.lane_reader(operand.base, f"u{bits}", instruction)
    offset, mask = np.int64(operand.offset), np.int64((1 << min(bits, 63)) - 1)
    return lambda: (read().astype(np.int64) + offset) & mask


def items(operand: Operand) -> tuple[Operand, ...]:
    """The registers of a vector, or the one register."""
    return operand.items if isinstance(operand, Vector) else (operand,)


def vector_items(opcode: str, operand: Operand) -> tuple[Operand, ...]:
    """The registers of a load or store: as many as its opcode says."""
    found = items(operand)
    vector = re.search(r"\.v([24])\b", opcode)
    if len(found) != (int(vector[1]) if vector else 1):
        raise ValueError(f"{len(found)} registers")
    return found


def count(
    machine: Machine,
    instruction: Instruction,
    space: str,
    positions: Array,
    lanes: Array,
    size: int,
    *,
    write: bool,
) -> None:
    """Count one execution of a global or shared access; others are not counted."""
    if space == "global":
        access = machine.launch.counters.access(instruction, space, write=write)
        count_global(access, positions, lanes, size)
    elif space == "shared":
        access = machine.launch.counters.access(instruction, space, write=write)
        within = positions - machine.cta[lanes] * machine.shared.stride
        count_shared(access, within, lanes, size)


def space_and_kind(opcode: str) -> tuple[str, str]:
    """The state space and the element type of an ld or st."""
    parts = opcode.replace("::cta", "").split(".")
    return next(p for p in parts if p in ("param", "global", "const", "shared", "local")), parts[-1]


def memory_of(machine: Machine, space: str) -> GlobalMemory | SharedMemory | LocalMemory:
    """The memory of a state space."""
    if space in ("global", "const"):
        return machine.launch.memory
    return machine.shared if space == "shared" else machine.local


def bind_load(machine: Machine, instruction: Instruction) -> Step:
    """ld from global, constant, shared or local memory."""
    space, kind = space_and_kind(instruction.opcode)
    targets = vector_items(instruction.opcode, instruction.operands[0])
    writes = [machine.lane_writer(target, kind) for target in targets]
    address = address_reader(machine, instruction.operands[1], instruction)
    memory, each = memory_of(machine, space), KINDS[kind].bits // 8
    size = each * len(targets)

    def step() -> None:
        lanes = machine.lanes
        positions = memory.locate(machine, instruction, address(), lanes, size)
        unwritten = None
        if space == "shared":
            unwritten = machine.shared.check_read(machine, instruction, positions, lanes, size)
        count(machine, instruction, space, positions, lanes, size, write=False)
        first = positions // each
        for i, write in enumerate(writes):
            if unwritten is not None:
                missing: Array = unwritten[:, i * each : (i + 1) * each]
                taint_lanes(machine, np.any(missing, axis=1))
            write(memory.views[each][first + i])

    return step


def taint_lanes(machine: Machine, unwritten: Array) -> None:
    """What these of the running lanes have loaded from shared memory is undefined."""
    machine.taint = np.zeros(machine.size, np.uint8)
    machine.taint[machine.lanes[unwritten]] = ALL_PARTS
    machine.taint_origin = NEVER_WRITTEN


def bind_store(machine: Machine, instruction: Instruction) -> Step:
    """st to global, shared or local memory."""
    space, kind = space_and_kind(instruction.opcode)
    sources = vector_items(instruction.opcode, instruction.operands[1])
    reads = [machine.lane_reader(s, kind, instruction, wide=True) for s in sources]
    address = address_reader(machine, instruction.operands[0], instruction)
    memory, each = memory_of(machine, space), KINDS[kind].bits // 8
    size = each * len(sources)

    def step() -> None:
        lanes = machine.lanes
        positions = memory.locate(machine, instruction, address(), lanes, size)
        values = [KINDS[kind].flatten(read()) for read in reads]
        count(machine, instruction, space, positions, lanes, size, write=True)
        if space == "shared":
            data = np.stack(values, axis=1).view(np.uint8)
            machine.shared.write(machine, instruction, positions, lanes, data)
            return
        first = positions // each
        for i, value in enumerate(values):
            memory.views[each][first + i] = value

    return step


def bind_load_parameter(machine: Machine, instruction: Instruction) -> Step:
    """ld.param: a kernel's argument, or a part of a struct passed by value."""
    kind = instruction.opcode.split(".")[-1]
    form = KINDS[kind]
    targets = vector_items(instruction.opcode, instruction.operands[0])
    source = instruction.operands[1]
    assert isinstance(source, Address)
    assert isinstance(source.base, Symbol)
    raw = machine.launch.parameters[source.base.name]
    size = form.bits // 8
    parts = [
        np.frombuffer(raw, UNSIGNED[form.bits], 1, source.offset + i * size)
        for i in range(len(targets))
    ]
    writes = [machine.writer(target, kind, wide=True) for target in targets]

    def step() -> None:
        for write, part in zip(writes, parts, strict=True):
            write(form.shape(part))

    return step


# Asynchronous copies ("Data Movement and Conversion Instructions: Asynchronous copy")


def bind_copy_async(machine: Machine, instruction: Instruction) -> Step:
    """cp.async.{ca,cg}.shared.global [to], [from], size{, bytes to read}: the rest becomes zeros.

    The bytes are poisoned until the thread that copies them has waited.
    """
    to = address_reader(machine, instruction.operands[0], instruction)
    source = address_reader(machine, instruction.operands[1], instruction)
    constant = instruction.operands[2]
    assert isinstance(constant, Immediate)
    size = constant.value
    if size not in ((16,) if ".cg." in instruction.opcode else (4, 8, 16)):
        raise ValueError(f"copies of {size} bytes")
    wanted = None
    if len(instruction.operands) > 3:
        wanted = machine.lane_reader(instruction.operands[3], "u32", instruction)

    def step() -> None:
        lanes = machine.lanes
        positions = machine.shared.locate(machine, instruction, to(), lanes, size)
        length = np.full(len(lanes), size) if wanted is None else wanted().astype(np.int64)
        data = read_partly(machine, instruction, source(), lanes, length, size)
        count(machine, instruction, "shared", positions, lanes, size, write=True)
        machine.shared.write(machine, instruction, positions, lanes, data, IN_FLIGHT)
        machine.copies.append((lanes, machine.groups[lanes], positions, data))

    return step


def read_partly(
    machine: Machine,
    instruction: Instruction,
    addresses: Array,
    lanes: Array,
    length: Array,
    size: int,
) -> Array:
    """`size` bytes per lane, of which `length` are read from global memory; uint8 [lanes, size]."""
    data = np.zeros((len(lanes), size), np.uint8)
    for bytes_read in np.unique(length[length > 0]):
        some = np.flatnonzero(length == bytes_read)
        memory, width = machine.launch.memory, int(bytes_read)
        if width > size:
            detail = f"asks to read {width} bytes into {size}"
            machine.fault(Fault.OUT_OF_BOUNDS, instruction, lanes[some], detail)
        positions = memory.locate(machine, instruction, addresses[some], lanes[some], width, size)
        count(machine, instruction, "global", positions, lanes[some], width, write=False)
        data[some, :width] = memory.bytes[positions[:, None] + np.arange(width)]
    return data


def bind_commit(machine: Machine, instruction: Instruction) -> Step:
    """cp.async.commit_group: what was issued since the last commit is one group."""

    def step() -> None:
        machine.groups[machine.lanes] += 1

    return step


def bind_wait_group(machine: Machine, instruction: Instruction) -> Step:
    """cp.async.wait_group n: all but the latest n groups have landed."""
    (constant,) = instruction.operands
    assert isinstance(constant, Immediate)
    pending = constant.value

    def step() -> None:
        land(machine, machine.groups[machine.lanes] - pending)

    return step


def bind_wait_all(machine: Machine, instruction: Instruction) -> Step:
    """cp.async.wait_all: whatever was issued has landed."""

    def step() -> None:
        machine.groups[machine.lanes] += 1
        land(machine, machine.groups[machine.lanes])

    return step


def land(machine: Machine, below: Array) -> None:
    """Complete the copies of the lanes that run whose group is lower than `below`."""
    limit = np.full(machine.size, -1, np.int64)
    limit[machine.lanes] = below
    still = []
    for lanes, groups, positions, data in machine.copies:
        done = groups < limit[lanes]
        if done.any():
            machine.shared.land(machine, positions[done], lanes[done], data[done])
        if not done.all():
            still.append((lanes[~done], groups[~done], positions[~done], data[~done]))
    machine.copies[:] = still


# ldmatrix and stmatrix


def matrix_form(opcode: str) -> tuple[int, bool]:
    """How many 8 x 8 matrices, and whether they are transposed."""
    number = re.search(r"\.x([124])\b", opcode)
    assert number is not None
    return int(number[1]), ".trans" in opcode


def bind_matrix_load(machine: Machine, instruction: Instruction) -> Step:
    """ldmatrix: lane 8m + r gives the address of row r of matrix m.

    Afterwards lane 4g + t has in register m the elements 2t and 2t + 1 of row g (`.trans`: of
    column g).
    """
    matrices, transposed = matrix_form(instruction.opcode)
    writes = [machine.writer(r, "b32") for r in items(instruction.operands[0])]
    if len(writes) != matrices:
        raise ValueError(f"{len(writes)} registers for {matrices} matrices")
    rows = row_locator(machine, instruction, instruction.operands[1], matrices)

    def step() -> None:
        positions, lanes = rows()
        shared = machine.shared
        unwritten = shared.check_read(machine, instruction, positions, lanes, MATRIX_ROW_BYTES)
        shared.check_written(machine, instruction, unwritten, lanes)
        count(machine, instruction, "shared", positions, lanes, MATRIX_ROW_BYTES, write=False)
        halves = shared.bytes.view(np.uint16).reshape(-1, 8)[positions // MATRIX_ROW_BYTES]
        halves = halves.reshape(-1, matrices, MATRIX_ROWS, 8)  # warp, matrix, row, column
        if transposed:
            halves = halves.swapaxes(2, 3)
        words = np.ascontiguousarray(halves).view(np.uint32).reshape(-1, matrices, 32)
        for m, write in enumerate(writes):
            write(spread(machine, lanes, words[:, m]))

    return step


def bind_matrix_store(machine: Machine, instruction: Instruction) -> Step:
    """stmatrix: the inverse of ldmatrix."""
    matrices, transposed = matrix_form(instruction.opcode)
    sources = items(instruction.operands[1])
    reads = [machine.reader(source, "b32", instruction, used=True) for source in sources]
    if len(reads) != matrices:
        raise ValueError(f"{len(reads)} registers for {matrices} matrices")
    rows = row_locator(machine, instruction, instruction.operands[0], matrices)

    def step() -> None:
        positions, lanes = rows()
        warps = np.unique(lanes // 32)
        words = np.stack([read().reshape(-1, 32)[warps] for read in reads], axis=1)
        halves = np.ascontiguousarray(words).view(np.uint16)
        halves = halves.reshape(-1, matrices, MATRIX_ROWS, 8)
        if transposed:
            halves = np.ascontiguousarray(halves.swapaxes(2, 3))
        count(machine, instruction, "shared", positions, lanes, MATRIX_ROW_BYTES, write=True)
        data = halves.reshape(-1, 8).view(np.uint8)
        machine.shared.write(machine, instruction, positions, lanes, data)

    return step


def row_locator(
    machine: Machine, instruction: Instruction, address: Operand, matrices: int
) -> Callable[[], tuple[Array, Array]]:
    """A function that gives positions and lanes of the rows, whole warps only."""
    assert isinstance(address, Address)
    read = address_reader(machine, address, instruction)

    def locate() -> tuple[Array, Array]:
        check_warps(machine, instruction)
        given = machine.lane[machine.lanes] < MATRIX_ROWS * matrices
        lanes, addresses = machine.lanes[given], read()[given]
        shared = machine.shared
        return shared.locate(machine, instruction, addresses, lanes, MATRIX_ROW_BYTES), lanes

    return locate


def spread(machine: Machine, lanes: Array, words: Array) -> Array:
    """Words [warps, 32] of the warps of these lanes as a whole register [all lanes]."""
    if words.size == machine.size:
        return words.reshape(-1)
    whole = np.zeros((machine.warps, 32), words.dtype)
    whole[np.unique(lanes // 32)] = words
    return whole.reshape(-1)
