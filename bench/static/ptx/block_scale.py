"""mma.sync with a scale per block of k ("Block scaling for mma.sync"): D = (A * SA) (B * SB) + C.

The fragments of A, B, C and D are those of tensor_core.py; e2m1 numbers lie eight to a register, the first
lowest. K is cut into as many blocks as `.scale_vec` says, and byte i of a scale register belongs to block i.
With lane = 4 g + t, and the selectors {0, 0} that compilers use here,

    SA, row g        the register of lane 4 g        SA, row g + 8    that of lane 4 g + 1
    SB, column g     the register of lane 4 g

Scales are ue8m0, 2^(code - 127), or ue4m3, an e4m3 without its sign.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx import numerics
from bench.static.ptx.program import Immediate, Vector
from bench.static.ptx.registers import WARP_LANES
from bench.static.ptx.tensor_core import (
    COLUMNS,
    ROWS,
    SHAPE,
    accumulators,
    fragment_d,
    matrix_a,
    matrix_b,
    matrix_c,
    multiply,
    numbers,
    operand_items,
    read_fragment,
)
from bench.static.ptx.warp import check_warps, taint_warps

if TYPE_CHECKING:
    from bench.static.ptx.machine import Machine, Step
    from bench.static.ptx.program import Instruction, Operand

Array = npt.NDArray[Any]

BLOCKS = re.compile(r"\.scale_vec::(\d)X\.")
ELEMENT_BITS = {"e2m1": 4, "e4m3": 8, "e5m2": 8}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def bind_scaled_mma(machine: Machine, instruction: Instruction) -> Step:
    """mma.sync.aligned.m16n8kK.row.col.kind::X.block_scale.scale_vec::NX.f32.A.B.f32.S."""
    shape, blocks = SHAPE.search(instruction.opcode), BLOCKS.search(instruction.opcode)
    assert shape is not None
    assert blocks is not None
    depth, count = int(shape[1]), int(blocks[1])
    _, kind_a, kind_b, _, kind_of_scale = instruction.opcode.split(".")[-5:]
    *fragments, scale_a, select_a, scale_b, select_b = instruction.operands
    for select in (select_a, select_b):
        require_first(select)
    d, a, b, c = (operand_items(o) for o in fragments)
    wanted = [
        ROWS * COLUMNS // WARP_LANES,
        ROWS * depth * ELEMENT_BITS[kind_a] // (32 * WARP_LANES),
        COLUMNS * depth * ELEMENT_BITS[kind_b] // (32 * WARP_LANES),
        ROWS * COLUMNS // WARP_LANES,
    ]
    if [len(registers) for registers in (d, a, b, c)] != wanted:
        raise ValueError(f"{wanted} registers are expected")
    named = (("a", a), ("b", b), ("c", c), ("sa", (scale_a,)), ("sb", (scale_b,)))
    reads = {
        name: [machine.reader(r, "b32", instruction) for r in registers]
        for name, registers in named
    }
    writes = [machine.writer(r, "b32") for r in d]

    def step() -> None:
        check_warps(machine, instruction)
        warps = np.unique(machine.lanes // WARP_LANES)
        fragment = partial(read_fragment, machine, reads, warps)

        by_row, by_column = (scales(fragment(n), count, kind_of_scale) for n in ("sa", "sb"))
        rows = np.concatenate([by_row[:, ::4], by_row[:, 1::4]], axis=1)  # [warps, 16, blocks]
        columns = by_column[:, ::4].transpose(0, 2, 1)  # [warps, blocks, 8]
        left = matrix_a(elements(fragment("a"), kind_a), depth)
        right = matrix_b(elements(fragment("b"), kind_b), depth)
        left = left * np.repeat(rows, depth // count, axis=2)
        right = right * np.repeat(columns, depth // count, axis=1)
        accumulator = matrix_c(accumulators(fragment("c"), "f32"))
        taint_warps(machine)
        result = multiply(left, right, accumulator, "f32", machine.launch.rounding)
        for write, register in zip(writes, fragment_d(result, "f32"), strict=True):
            whole = np.zeros((machine.warps, WARP_LANES), np.uint32)
            whole[warps] = register
            write(whole.reshape(-1))

    return step


def require_first(select: Operand) -> None:
    """Refuse selectors other than {0, 0}: byte 0 of the first lanes of each four.

    Raises:
        ValueError: another byte or lane is selected.
    """
    if select != Vector((Immediate(0), Immediate(0))):
        raise ValueError("scale selectors {0, 0} are expected")


def elements(registers: Array, kind: str) -> Array:
    """Elements of fragments uint32 [warps, 32, registers] as float64 [warps, 32, registers, e]."""
    if kind != "e2m1":
        return numbers(registers, kind)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    return E2M1[registers[..., None] >> shifts & np.uint32(15)]


def scales(registers: Array, count: int, kind: str) -> Array:
    """Scales of uint32 [warps, 32, 1] as float64 [warps, 32, count], the lowest byte first."""
    codes = np.ascontiguousarray(registers).view(np.uint8)[..., :count]
    if kind == "ue8m0":
        return np.where(codes == 255, np.nan, np.ldexp(1.0, codes.astype(np.int64) - 127))
    return np.asarray(numerics.fp8_values("e4m3")[codes & np.uint8(127)], np.float64)
