"""wgmma: D = A B + D by four warps together ("Asynchronous Warpgroup Level Matrix Instructions").

Warp w of a warpgroup has rows 16 w to 16 w + 15 of A [64, K] and D [64, N], in the fragments of mma.sync
(tensor_core.py); of D there is one for each eight columns. A lies in registers or in shared memory, B [K, N]
in shared memory, where a descriptor of 64 bits says how:

    bits 0 to 13     where the matrix starts, in 16 bytes
    bits 32 to 45    from one group of 8 rows of A, or columns of B, to the next, in 16 bytes
    bits 62 and 63   swizzle: 1, 2 or 3 for rows of 128, 64 or 32 bytes

Rows run along k, and an instruction takes 32 bytes of each. So that 8 rows lie in different banks, the 16-byte
chunks of a row are exchanged: the chunk's number (bits 4 to 6 of the address) is xored with bits 7 to 9.

It is asynchronous: D is there, and what was read may be written, once the warp has waited for the group that
the instruction was committed in. Each of these is a fault:

    A's or D's registers were written after `wgmma.fence`      they may be read too early
    shared memory was written, no `fence.proxy.async` since    wgmma may not see it
    it is written, or A's registers are, before the wait       they are still being read
    D is used before the wait, but by a wgmma of the same D    it is undefined until then

Warps are emulated one by one: that all four of a warpgroup come is not checked. Matrices without swizzle, or
whose rows do not run along k, are not emulated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx.errors import Fault, UnsupportedError
from bench.static.ptx.program import Immediate, Operand, Register, Vector
from bench.static.ptx.registers import ALL_PARTS, WARP_LANES
from bench.static.ptx.tensor_core import (
    COLUMNS,
    ROWS,
    accumulators,
    encoded,
    matrix_a,
    multiply,
    numbers,
    operand_items,
)
from bench.static.ptx.warp import check_warps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.static.ptx.machine import Machine, Step
    from bench.static.ptx.program import Instruction

Array = npt.NDArray[Any]

SHAPE = re.compile(r"\.m64n(\d+)k(\d+)\.")
WARPS = 4  # of a warpgroup
LEFT_REGISTERS = 4  # of A
K_CHUNKS = 2  # of 16 bytes: what one instruction takes of a row
CHUNK_BYTES = 16  # that a swizzle keeps together
GROUP_ROWS = 8
SWIZZLED_ROW_BYTES = {1: 128, 2: 64, 3: 32}
NOT_WAITED = "a wgmma that nothing has waited for"


@dataclass(frozen=True)
class Product:
    """A wgmma in flight.

    Attributes:
        instruction: what was issued.
        warps: that issued it, [warps].
        groups: that it belongs to once it is committed, [warps].
        d: slots of D's registers.
        defined: whether all operands were, bool [warps].
        origin: what made them undefined, if not.
        left: slots of A's registers.
        left_values: what is in them, uint32 [warps, 32, registers].
        chunks: which 16 bytes of shared memory each warp reads, [warps, chunks].
    """

    instruction: Instruction
    warps: Array
    groups: Array
    d: tuple[int, ...]
    defined: Array
    origin: str
    left: tuple[int, ...]
    left_values: Array
    chunks: Array

    def part(self, some: Array) -> Product:
        """The same for some of its warps, bool [warps]."""
        return replace(
            self,
            warps=self.warps[some],
            groups=self.groups[some],
            defined=self.defined[some],
            left_values=self.left_values[some],
            chunks=self.chunks[some],
        )


class Products:
    """The products in flight of all warps.

    Attributes:
        pending: in the order of issue.
        groups: committed by each warp.
        fenced: every register as it was at each warp's last `wgmma.fence`; empty before the first.
    """

    def __init__(self, warps: int) -> None:
        self.pending: list[Product] = []
        self.groups = np.zeros(warps, np.int64)
        self.fenced: list[list[Array]] = [[] for _ in range(warps)]

    def latest(self, d: tuple[int, ...], warps: Array) -> tuple[Array, Array]:
        """Whether these warps have a product of this D in flight, and whether it is defined."""
        going_on, defined = np.zeros(len(self.groups), bool), np.ones(len(self.groups), bool)
        for product in self.pending:
            if product.d == d:
                going_on[product.warps] = True
                defined[product.warps] = product.defined
        return going_on[warps], defined[warps]

    def take(self, below: Array) -> list[Product]:
        """Those whose group is lower than this of their warp; they are no longer pending."""
        done, still = [], []
        for product in self.pending:
            finished = product.groups < below[product.warps]
            if finished.any():
                done.append(product.part(finished))
            if not finished.all():
                still.append(product.part(~finished))
        self.pending = still
        return done


class SharedMatrix:
    """A or B in shared memory, `rows` rows of 32 bytes along k."""

    def __init__(
        self, machine: Machine, instruction: Instruction, descriptor: Operand, rows: int
    ) -> None:
        self.machine, self.instruction, self.rows = machine, instruction, rows
        self.read = machine.reader(descriptor, "b64", instruction, used=True)

    def chunks(self, warps: Array, first_rows: Array) -> Array:
        """Which 16 bytes of shared memory the warps read, counted from the first; [warps, rows, 2].

        Args:
            warps: that run.
            first_rows: that each of them reads.

        Raises:
            FaultError: bytes are out of bounds, unwritten, in flight, raced for, or not shown.
            UnsupportedError: a descriptor without swizzle, or whose pattern has an offset.
        """
        machine, instruction = self.machine, self.instruction
        descriptors = uniform(machine, instruction, self.read, warps, "descriptor")
        modes, offsets = descriptors >> np.uint64(62), descriptors >> np.uint64(49) & np.uint64(7)
        width = SWIZZLED_ROW_BYTES.get(int(modes[0]))
        if width is None or (modes != modes[0]).any() or offsets.any():
            advice = f"nor is a matrix with the descriptor {int(descriptors[0]):#x}."
            raise UnsupportedError(instruction.text, instruction.line, advice)
        start, stride = (
            (descriptors >> np.uint64(bit) & np.uint64(0x3FFF)).astype(np.int64) * CHUNK_BYTES
            for bit in (0, 32)
        )
        row = first_rows[:, None] + np.arange(self.rows)
        begin = start[:, None] + row // GROUP_ROWS * stride[:, None] + row % GROUP_ROWS * width
        plain = begin[..., None] + np.arange(K_CHUNKS) * CHUNK_BYTES
        addresses = plain ^ (plain >> 7 & width // CHUNK_BYTES - 1) * CHUNK_BYTES
        lanes = np.repeat(warps * WARP_LANES, self.rows * K_CHUNKS)
        shared = machine.shared
        positions = shared.locate(machine, instruction, addresses.ravel(), lanes, CHUNK_BYTES)
        unwritten = shared.check_read(machine, instruction, positions, lanes, CHUNK_BYTES)
        shared.check_written(machine, instruction, unwritten, lanes)
        shared.check_shown(machine, instruction, positions, lanes)
        return positions.reshape(addresses.shape) // CHUNK_BYTES

    def numbers(self, chunks: Array, kind: str) -> Array:
        """Its elements, float64 [warps, rows, k]."""
        words = self.machine.shared.views[4].reshape(-1, CHUNK_BYTES // 4)[chunks]
        elements = numbers(words.reshape(*words.shape[:2], -1), kind)
        return elements.reshape(*words.shape[:2], -1)


def warps_here(machine: Machine, instruction: Instruction) -> Array:
    """The warps that run, checked to be whole."""
    check_warps(machine, instruction)
    return np.unique(machine.lanes // WARP_LANES)


def uniform(
    machine: Machine, instruction: Instruction, read: Callable[[], Array], warps: Array, name: str
) -> Array:
    """The value that the lanes of each warp agree on, [warps].

    Raises:
        FaultError: they do not agree.
    """
    values = np.broadcast_to(read(), (machine.size,)).reshape(-1, WARP_LANES)[warps]
    differ = np.flatnonzero((values != values[:, :1]).any(axis=1))
    if len(differ):
        detail = f"the lanes of a warp give it different values of the {name}"
        machine.fault(Fault.ASYNC_PRODUCT, instruction, warps[differ] * WARP_LANES, detail)
    agreed: Array = values[:, 0]
    return agreed


def slots(machine: Machine, operand: Operand, count: int) -> tuple[int, ...]:
    """Where the registers of a fragment are kept.

    Raises:
        ValueError: another number of them, or registers that have no 32 bits.
    """
    found = operand_items(operand)
    names = [register.name for register in found if isinstance(register, Register)]
    if len(names) != count or any(machine.kernel.registers.get(n) != 32 for n in names):
        raise ValueError(f"{count} registers of 32 bits are expected")
    return tuple(machine.slot(name) for name in names)


def registers(machine: Machine, kept: Sequence[int], warps: Array) -> Array:
    """What is in registers, uint32 [warps, 32, registers]."""
    if not kept:
        return np.zeros((len(warps), WARP_LANES, 0), np.uint32)
    return np.stack([machine.values[s].reshape(-1, WARP_LANES)[warps] for s in kept], axis=2)


def undefined(machine: Machine, kept: Sequence[int], warps: Array) -> tuple[Array, str]:
    """In which of these warps a register is undefined, bool [warps], and what made it so."""
    found, origin = np.zeros(len(warps), bool), ""
    for slot in kept:
        missing = machine.undefined[slot]
        if missing is not None:
            bad = (missing.reshape(-1, WARP_LANES)[warps] != 0).any(axis=1)
            origin = origin or (machine.origins[slot] if bad.any() else "")
            found |= bad
    return found, origin


def modifier_sign(modifiers: Sequence[Operand], transposable: int) -> int:
    """The sign of the product by scale-a and scale-b.

    Args:
        modifiers: scale-a, scale-b and whether each matrix of 16 bits in shared memory is transposed.
        transposable: matrices that could be; 0 for other types than 16 bits.

    Raises:
        ValueError: one is, or there are more or fewer modifiers.
    """
    values = [operand.value for operand in modifiers if isinstance(operand, Immediate)]
    signs, transposed = values[:2], values[2:]
    if not {*signs} <= {1, -1} or transposed != [0] * transposable or len(values) != len(modifiers):
        raise ValueError("scales of 1 or -1 are expected, and matrices that run along k")
    return int(np.prod(signs))


def check_fenced(
    machine: Machine, instruction: Instruction, kept: Sequence[int], warps: Array
) -> None:
    """Fault unless registers are as they were at each warp's last fence."""
    for warp in warps:
        fenced = machine.products.fenced[warp]
        lanes = slice(warp * WARP_LANES, (warp + 1) * WARP_LANES)
        for slot in kept:
            now = machine.values[slot]
            if fenced and (now is fenced[slot] or (now[lanes] == fenced[slot][lanes]).all()):
                continue
            detail = f"no wgmma.fence since {machine.origins[slot]} was written"
            machine.fault(Fault.ASYNC_PRODUCT, instruction, machine.all_lanes[lanes], detail)


def bind_fence(machine: Machine, instruction: Instruction) -> Step:
    """wgmma.fence.sync.aligned: registers are as written so far."""

    def step() -> None:
        now = list(machine.values)
        for warp in warps_here(machine, instruction):
            machine.products.fenced[warp] = now

    return step


def bind_proxy_fence(machine: Machine, _: Instruction) -> Step:
    """fence.proxy.async: what was written to the CTA's shared memory is there for wgmma too."""

    def step() -> None:
        machine.shared.show(np.unique(machine.cta[machine.lanes]))

    return step


def bind_commit(machine: Machine, instruction: Instruction) -> Step:
    """wgmma.commit_group.sync.aligned: what was issued since the last commit is one group."""

    def step() -> None:
        machine.products.groups[warps_here(machine, instruction)] += 1

    return step


def bind_wait(machine: Machine, instruction: Instruction) -> Step:
    """wgmma.wait_group.sync.aligned n: all but the latest n groups are done."""
    (constant,) = instruction.operands
    assert isinstance(constant, Immediate)
    latest = constant.value

    def step() -> None:
        here = warps_here(machine, instruction)
        below = np.full(machine.warps, -1, np.int64)
        below[here] = machine.products.groups[here] - latest
        for product in machine.products.take(below):
            finish(machine, product)

    return step


def finish(machine: Machine, product: Product) -> None:
    """D is there, unless a later product goes on with it; what was read may be written again."""
    machine.shared.end_product(product.chunks)
    changed = (registers(machine, product.left, product.warps) != product.left_values).any(axis=1)
    for warp, which in np.argwhere(changed):
        detail = f"{machine.origins[product.left[which]]} was written before it was waited for"
        lanes = product.warps[[warp]] * WARP_LANES
        machine.fault(Fault.ASYNC_PRODUCT, product.instruction, lanes, detail)
    going_on, _ = machine.products.latest(product.d, product.warps)
    there = np.zeros((machine.warps, WARP_LANES), bool)
    there[product.warps[product.defined & ~going_on]] = True
    for slot in product.d:
        before = machine.undefined[slot]
        if before is not None:
            after = np.where(there.ravel(), np.uint8(0), before)
            machine.undefined[slot] = after if after.any() else None
            machine.origins[slot] = product.origin or machine.origins[slot]


def bind_product(machine: Machine, instruction: Instruction) -> Step:
    """wgmma.mma_async.sync.aligned.m64nNkK.D.A.B d, a, b, scale-d, ..."""
    shape = SHAPE.search(instruction.opcode)
    assert shape is not None
    columns, depth = int(shape[1]), int(shape[2])
    kind, kind_a, kind_b = instruction.opcode.split(".")[-3:]
    result, a, b, keep, *modifiers = instruction.operands
    in_registers, halves = isinstance(a, Vector), kind_a in ("f16", "bf16")
    sign = modifier_sign(modifiers, halves * (1 if in_registers else 2))
    d = slots(machine, result, columns // 2)
    left = slots(machine, a, LEFT_REGISTERS) if in_registers else ()
    left_matrix = None if left else SharedMatrix(machine, instruction, a, ROWS)
    right_matrix = SharedMatrix(machine, instruction, b, columns)
    read_keep = machine.reader(keep, "pred", instruction, used=True)
    writes = [machine.writer(register, "b32") for register in operand_items(result)]
    warps_of_cta = machine.warps // len(machine.ctas)

    def step() -> None:
        products, warps = machine.products, warps_here(machine, instruction)
        going_on, defined = products.latest(d, warps)
        check_fenced(machine, instruction, left, warps)
        check_fenced(machine, instruction, d, warps[~going_on])
        keeps = uniform(machine, instruction, read_keep, warps, "scale-d")
        chunks = [right_matrix.chunks(warps, np.zeros_like(warps))]
        if left_matrix is None:
            rows = matrix_a(numbers(registers(machine, left, warps), kind_a), depth)
        else:
            chunks.append(left_matrix.chunks(warps, warps % warps_of_cta % WARPS * ROWS))
            rows = left_matrix.numbers(chunks[1], kind_a)
        missing, origin = undefined(machine, left, warps)
        missing_d, origin_d = undefined(machine, d, warps)
        missing |= np.where(going_on, ~defined, missing_d) & keeps

        before = matrix_d(accumulators(registers(machine, d, warps), kind))
        before = np.where(keeps[:, None, None], before, 0.0)
        right = right_matrix.numbers(chunks[0], kind_b).swapaxes(1, 2)
        after = multiply(sign * rows, right, before, kind, machine.launch.rounding)

        machine.taint = np.full(machine.size, ALL_PARTS, np.uint8)
        machine.taint_origin = NOT_WAITED
        words = encoded(fragment_of(after), kind)
        for i, write in enumerate(writes):
            whole = np.zeros((machine.warps, WARP_LANES), np.uint32)
            whole[warps] = words[..., i]
            write(whole.reshape(-1))
        for warp in warps:  # what a product leaves in D needs no fence
            for slot in d:
                products.fenced[warp][slot] = machine.values[slot]
        read = np.concatenate([c.reshape(len(warps), -1) for c in chunks], axis=1)
        machine.shared.begin_product(read)
        products.pending.append(
            Product(
                instruction=instruction,
                warps=warps,
                groups=products.groups[warps],
                d=d,
                defined=~missing,
                origin=origin or origin_d if missing.any() else "",
                left=left,
                left_values=registers(machine, left, warps),
                chunks=read,
            )
        )

    return step


def matrix_d(values: Array) -> Array:
    """Numbers of D's fragment [warps, 32, registers] as [warps, 16, columns]."""
    blocks = values.reshape(len(values), 8, 4, -1, 2, 2)  # g, t, eight columns, row half, column
    return np.ascontiguousarray(blocks.transpose(0, 4, 1, 3, 2, 5)).reshape(len(values), ROWS, -1)


def fragment_of(matrix: Array) -> Array:
    """The inverse of `matrix_d`."""
    warps, _, columns = matrix.shape
    blocks = matrix.reshape(warps, 2, 8, columns // COLUMNS, 4, 2)  # half, g, eight columns, t, q
    return np.ascontiguousarray(blocks.transpose(0, 2, 4, 3, 1, 5)).reshape(
        warps, WARP_LANES, columns // 2
    )
