"""mma.sync: D = A B + C on the fragments of a warp ("Warp-level matrix multiply-accumulate").

All shapes m16n8kK share one layout. With lane = 4 g + t and e elements in a 32-bit register:

    A, register j, element q    row g + 8 (j & 1)      column 4 e (j >> 1) + e t + q
    B, register j, element q    row 4 e j + e t + q    column g
    C and D, number j           row g + 8 (j >> 1)     column 2 t + (j & 1)

The hardware's own rounding is undocumented. Here products are exact and their sum is rounded once,
or, with `Rounding`, aligned and truncated as Fasi, Higham, Mikaitis and Pranesh found it
("Numerical behavior of NVIDIA tensor cores", 2021). Results should therefore be compared with a
tolerance, never bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx import numerics
from bench.static.ptx.program import Operand, Vector
from bench.static.ptx.registers import WARP_LANES
from bench.static.ptx.warp import check_warps, taint_warps

if TYPE_CHECKING:
    from bench.static.ptx.machine import Machine, Step
    from bench.static.ptx.program import Instruction

Array = npt.NDArray[Any]

SHAPE = re.compile(r"\.m16n8k(\d+)\.")
ROWS, COLUMNS = 16, 8
FLOAT32_MANTISSA_BITS = 23


@dataclass(frozen=True)
class Rounding:
    """A model of how tensor cores add.

    Per block of `terms` products, the products and the accumulator are aligned to the largest of
    them, what lies more than 23 + `extra_bits` bits below it is cut off, and the sum is truncated
    to fp32. Fasi et al. found 4 terms and no extra bit on V100, 8 and 1 on A100; 16 and 2 on H100
    are as reported later.
    """

    terms: int
    extra_bits: int


def bind_mma(machine: Machine, instruction: Instruction) -> Step:
    """mma.sync.aligned.m16n8kK.row.col.D.A.B.C of any type in the whitelist."""
    shape = SHAPE.search(instruction.opcode)
    assert shape is not None
    depth = int(shape[1])
    kinds = instruction.opcode.split(".")[-4:]
    saturates = ".satfinite." in instruction.opcode
    d, a, b, c = (operand_items(o) for o in instruction.operands)
    reads = {
        name: [machine.reader(r, "b32", instruction) for r in registers]
        for name, registers in (("a", a), ("b", b), ("c", c))
    }
    writes = [machine.writer(r, "b32") for r in d]
    size = {"f16": 2, "bf16": 2, "tf32": 4, "f32": 4, "s32": 4}  # and 1 byte for all others
    wanted = [
        rows * columns * size.get(kind, 1) // (4 * WARP_LANES)
        for kind, rows, columns in zip(
            kinds,
            (ROWS, ROWS, depth, ROWS),
            (COLUMNS, depth, COLUMNS, COLUMNS),
            strict=True,
        )
    ]
    if [len(registers) for registers in (d, a, b, c)] != wanted:
        raise ValueError(f"{wanted} registers are expected")

    def step() -> None:
        check_warps(machine, instruction)
        warps = np.unique(machine.lanes // WARP_LANES)
        fragment = partial(read_fragment, machine, reads, warps)

        left = matrix_a(numbers(fragment("a"), kinds[1]), depth)
        right = matrix_b(numbers(fragment("b"), kinds[2]), depth)
        accumulator = matrix_c(accumulators(fragment("c"), kinds[3]))
        taint_warps(machine)
        result = multiply(left, right, accumulator, kinds[0], machine.launch.rounding)
        if saturates:
            result = np.clip(result, -(2.0**31), 2.0**31 - 1)
        for write, register in zip(writes, fragment_d(result, kinds[0]), strict=True):
            whole = np.zeros((machine.warps, WARP_LANES), np.uint32)
            whole[warps] = register
            write(whole.reshape(-1))

    return step


def operand_items(operand: Operand) -> tuple[Operand, ...]:
    """The registers of a fragment."""
    assert isinstance(operand, Vector)
    return operand.items


def numbers(registers: Array, kind: str) -> Array:
    """Elements of fragments uint32 [warps, 32, registers] as float64 [warps, 32, registers, e]."""
    registers = np.ascontiguousarray(registers)
    if kind in ("f16", "bf16"):
        bits = registers.view(np.uint16).reshape(*registers.shape, 2)
        return numerics.decode(bits, kind)
    if kind == "tf32":  # its lower 13 bits are not looked at
        return numerics.decode(registers & np.uint32(0xFFFFE000), "f32")[..., None]
    if kind in ("e4m3", "e5m2"):
        codes = registers.view(np.uint8).reshape(*registers.shape, 4)
        return np.asarray(numerics.fp8_values(kind)[codes])
    dtype = {"s8": np.int8, "u8": np.uint8}[kind]
    return registers.view(dtype).reshape(*registers.shape, 4).astype(np.float64)


def accumulators(registers: Array, kind: str) -> Array:
    """Numbers of the C fragment uint32 [warps, 32, registers], float64 [warps, 32, 4]."""
    registers = np.ascontiguousarray(registers)
    if kind == "s32":
        return registers.view(np.int32).astype(np.float64)
    if kind == "f16":
        return numerics.decode(registers.view(np.uint16), "f16")
    return numerics.decode(registers, "f32")


def read_fragment(
    machine: Machine,
    reads: Mapping[str, Sequence[Callable[[], Array]]],
    warps: Array,
    name: str,
) -> Array:
    """An operand's registers, uint32 [warps, 32, registers], of the warps that execute now."""
    whole = [np.broadcast_to(read(), (machine.size,)) for read in reads[name]]
    return np.stack([r.reshape(-1, WARP_LANES)[warps] for r in whole], axis=2)


def matrix_a(elements: Array, depth: int) -> Array:
    """A, [warps, 16, depth]."""
    warps, _, registers, e = elements.shape
    parts = elements.reshape(warps, 8, 4, registers // 2, 2, e)  # g, t, column half, row half, q
    return np.ascontiguousarray(parts.transpose(0, 4, 1, 3, 2, 5)).reshape(warps, ROWS, depth)


def matrix_b(elements: Array, depth: int) -> Array:
    """B, [warps, depth, 8]."""
    warps, _, registers, e = elements.shape
    parts = elements.reshape(warps, 8, 4, registers, e)  # g, t, j, q
    return np.ascontiguousarray(parts.transpose(0, 3, 2, 4, 1)).reshape(warps, depth, COLUMNS)


def matrix_c(values: Array) -> Array:
    """C, [warps, 16, 8]."""
    parts = values.reshape(-1, 8, 4, 2, 2)  # g, t, row half, column
    return np.ascontiguousarray(parts.transpose(0, 3, 1, 2, 4)).reshape(-1, ROWS, COLUMNS)


def fragment_d(result: Array, kind: str) -> list[Array]:
    """Registers uint32 [warps, 32] of D: float64 or int64 [warps, 16, 8]."""
    parts = result.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4)  # warp, g, t, row half, column
    bits = encoded(np.ascontiguousarray(parts).reshape(-1, WARP_LANES, 4), kind)
    return [bits[..., j] for j in range(bits.shape[-1])]


def encoded(values: Array, kind: str) -> Array:
    """Registers uint32 [..., m] of numbers float64 or int64 [..., n]; those of f16 come in pairs."""
    if kind == "s32":
        return values.astype(np.int64).astype(np.int32).view(np.uint32)
    if kind == "f16":
        return numerics.encode(values, "f16").view(np.uint32)
    return numerics.encode(values, "f32")


def multiply(a: Array, b: Array, c: Array, kind: str, rounding: Rounding | None) -> Array:
    """A B + C in float64, before the last rounding.

    Sums of products that span more than 53 bits are rounded once more, in float64.
    """
    if kind != "f32" or rounding is None:
        return numerics.add(a @ b, c)
    result = c
    for first in range(0, a.shape[-1], rounding.terms):
        part = slice(first, first + rounding.terms)
        products = a[:, :, part, None] * b[:, None, part, :]
        result = truncated_sum(products, result, rounding.extra_bits)
    return result


def truncated_sum(products: Array, accumulator: Array, extra_bits: int) -> Array:
    """Sum over axis 2 of [warps, 16, terms, 8] and of [warps, 16, 8], aligned and truncated."""
    terms = np.concatenate([products, accumulator[:, :, None, :]], axis=2)
    largest = np.abs(terms).max(axis=2, keepdims=True)
    unit = np.ldexp(1.0, np.frexp(largest)[1] - 1 - FLOAT32_MANTISSA_BITS - extra_bits)
    total = (np.trunc(terms / unit) * unit).sum(axis=2)
    last = np.ldexp(1.0, np.frexp(np.abs(total))[1] - 1 - FLOAT32_MANTISSA_BITS)
    return np.where(np.isfinite(total), np.trunc(total / last) * last, total)
