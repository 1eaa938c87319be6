"""The lanes of some CTAs and their registers: reading operands, writing results, raising faults.

Every thread is a *lane* of NumPy vectors; a register is an unsigned array with a number per lane.
Under a mask only some lanes run: the others keep their values. What a lane has not written is
undefined, and so is whatever is computed from it. Compilers move such values about, so it is no
fault to compute with them, but it is one to use them: as an address, in a branch, or to be stored.
This is kept for every 16 bits of a register, so that half of a pair may be undefined.

    %r7    values     3   1   4   1   5   9   2   6
           undefined  .   .   .   .   x   x   x   x       stored by lane 5: uninitialised register
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx.errors import Fault, FaultError, UnsupportedError
from bench.static.ptx.memory import NEVER_WRITTEN
from bench.static.ptx.program import (
    Immediate,
    Instruction,
    Kernel,
    Negated,
    Operand,
    Register,
    Symbol,
)
from bench.static.ptx.types import KINDS, UNSIGNED, Kind

Array = npt.NDArray[Any]

WARP_LANES = 32
ALL_PARTS = 0b1111  # of 16 bits, in a register of 64


def parts(bits: int) -> int:
    """A bit for every 16 bits of a register, one at least."""
    return (1 << max(1, bits // 16)) - 1


def fit(value: int, bits: int) -> int:
    """A constant as the bits of a type: constants have 64 bits and are cut to the type they meet.

    Raises:
        ValueError: more than signs would be lost.
    """
    signed = value - (1 << 64) if value >= 1 << 63 and bits < 64 else value
    if not -(1 << max(bits, 2) - 1) <= signed < 1 << bits:
        raise ValueError(f"{value} does not fit into {bits} bits")
    return signed & (1 << bits) - 1


class Registers:
    """Lanes and their registers.

    Attributes:
        size: lanes, in whole warps.
        warps: in all.
        cta: of each lane, counted from the first of these.
        thread: of each lane, within its CTA.
        lane: of each lane, within its warp.
        mask: lanes that run the current instruction, or None for all.
        lanes: their indices, ascending.
    """

    def __init__(
        self, kernel: Kernel, ctas: Array, grid: tuple[int, ...], block: tuple[int, ...]
    ) -> None:
        self.kernel = kernel
        self.ctas = ctas
        self.threads = int(np.prod(block))
        padded = -(-self.threads // WARP_LANES) * WARP_LANES
        self.size = len(ctas) * padded
        self.warps = self.size // WARP_LANES
        self.thread = np.tile(np.arange(padded), len(ctas))
        self.cta = np.repeat(np.arange(len(ctas)), padded)
        self.lane = self.thread % WARP_LANES
        self.all_lanes = np.arange(self.size)
        self.mask: Array | None = None
        self.lanes = self.all_lanes
        self.specials = self.special_registers(grid, block)
        self.symbols: dict[str, int] = {}  # addresses of variables
        self.values: list[Array] = []
        self.undefined: list[Array | None] = []
        self.origins: list[str] = []  # which register made each one undefined
        self.slots: dict[str, int] = {}
        self.taint: Array | None = None  # undefined parts that the current step has read, by lane
        self.taint_origin = ""
        self.nothing = {bits: np.zeros(self.size, dtype) for bits, dtype in UNSIGNED.items()}
        self.nowhere = np.full(self.size, ALL_PARTS, np.uint8)

    def special_registers(self, grid: tuple[int, ...], block: tuple[int, ...]) -> dict[str, Array]:
        """Registers that say where a lane is; uint32 [lanes] ("Special Registers")."""
        x, y, _ = block
        cta = self.ctas[self.cta]
        thread = self.thread
        values = {
            "%tid.x": thread % x,
            "%tid.y": thread // x % y,
            "%tid.z": thread // x // y,
            "%ctaid.x": cta % grid[0],
            "%ctaid.y": cta // grid[0] % grid[1],
            "%ctaid.z": cta // grid[0] // grid[1],
            "%laneid": self.lane,
            "%warpid": thread // WARP_LANES,
            "WARP_SZ": np.full(self.size, WARP_LANES),
        }
        for axis, threads, ctas in zip("xyz", block, grid, strict=True):
            values[f"%ntid.{axis}"] = np.full(self.size, threads)
            values[f"%nctaid.{axis}"] = np.full(self.size, ctas)
        return {name: value.astype(np.uint32) for name, value in values.items()}

    def running(self) -> Array:
        """Lanes that run the current instruction, bool [lanes]."""
        return np.ones(self.size, bool) if self.mask is None else self.mask

    def slot(self, name: str) -> int:
        """Where a register's values are kept.

        Raises:
            LookupError: it was not declared.
        """
        if name not in self.kernel.registers:
            raise LookupError(f"{name} is not declared")
        if name not in self.slots:
            bits = self.kernel.registers[name]
            self.slots[name] = len(self.values)
            self.values.append(self.nothing[bits])
            self.undefined.append(self.nowhere)
            self.origins.append(name.split("#")[0])
        return self.slots[name]

    def reader(
        self,
        operand: Operand,
        kind: str,
        instruction: Instruction,
        *,
        wide: bool = False,
        used: bool = False,
    ) -> Callable[[], Array]:
        """A function that gives an operand's values.

        Args:
            operand: register, constant or variable.
            kind: type to read it as, a key of KINDS.
            instruction: it belongs to.
            wide: whether the register may be wider than the type ("Operand Size Exceeding
                Instruction-Type Size").
            used: whether an undefined value is a fault, rather than passed on to the result.

        Returns:
            a function to an array [lanes], or [1] for a constant; [lanes, 2] for packed types.
        """
        form = KINDS[kind]
        match operand:
            case Negated(register) if kind == "pred":
                positive = self.reader(register, kind, instruction, used=used)
                return lambda: ~positive()
            case Register(name) if name in self.specials:
                return self.constant(self.specials[name], form)
            case Register(name) if name in self.kernel.registers:
                return self.register_reader(name, form, instruction, wide, used)
            case Immediate(value, float_bits):
                if float_bits is not None and float_bits != form.bits:
                    raise ValueError(f"a {float_bits}-bit constant for .{kind}")
                return self.constant(np.array([fit(value, form.bits)], UNSIGNED[form.bits]), form)
            case Symbol(name) if name in self.symbols:
                return self.constant(np.array([self.symbols[name]], UNSIGNED[form.bits]), form)
        name = operand.name if isinstance(operand, Register | Symbol) else str(operand)
        raise UnsupportedError(name, instruction.line, f"in `{instruction.text}`.")

    def constant(self, values: Array, form: Kind) -> Callable[[], Array]:
        """A reader of values that never change."""
        if values.dtype != UNSIGNED[form.bits]:
            values = values.astype(UNSIGNED[form.bits])
        shaped = form.shape(values)
        return lambda: shaped

    def register_reader(
        self, name: str, form: Kind, instruction: Instruction, wide: bool, used: bool
    ) -> Callable[[], Array]:
        """A reader of a register."""
        slot, declared = self.slot(name), self.kernel.registers[name]
        if declared != form.bits and not (wide and declared > form.bits):
            raise ValueError(f"{name} has {declared} bits, the instruction {form.bits}")
        values, undefined = self.values, self.undefined

        def read() -> Array:
            if undefined[slot] is not None:
                self.note_undefined(slot, form.bits, instruction, used)
            if declared != form.bits:
                return form.shape(values[slot].astype(UNSIGNED[form.bits]))
            return form.shape(values[slot])

        return read

    def note_undefined(self, slot: int, bits: int, instruction: Instruction, used: bool) -> None:
        """Remember what the step reads that was never written; a fault if it is used."""
        missing = self.undefined[slot]
        assert missing is not None
        missing = missing & np.uint8(parts(bits))
        if used:
            bad = missing != 0 if self.mask is None else (missing != 0) & self.mask
            if bad.any():
                self.fault_undefined(instruction, np.flatnonzero(bad), self.origins[slot])
            return
        self.taint = missing if self.taint is None else self.taint | missing
        self.taint_origin = self.origins[slot]

    def fault_undefined(self, instruction: Instruction, lanes: Array, origin: str) -> None:
        """Fault for the use of what comes from a register, a lane or a place that was not written."""
        if origin == NEVER_WRITTEN:
            self.fault(Fault.UNINITIALISED_SHARED, instruction, lanes, f"uses {NEVER_WRITTEN}")
        detail = f"uses what comes from {origin}, which was never written"
        self.fault(Fault.UNINITIALISED_REGISTER, instruction, lanes, detail)

    def smear(self) -> None:
        """What the step has read undefined in part makes all of its result undefined."""
        if self.taint is not None:
            self.taint = np.where(self.taint != 0, np.uint8(ALL_PARTS), np.uint8(0))

    def writer(self, operand: Operand, kind: str, *, wide: bool = False) -> Callable[[Array], None]:
        """A function that puts values [lanes] (or [1]) of a type into a register, where lanes run.

        Args:
            operand: the register, or `_`.
            kind: type of the values.
            wide: whether the register may be wider than the type; it is then filled with the sign
                of signed types, else with zeros.
        """
        if operand in (Register("_"), Symbol("_")):
            return lambda _: None
        assert isinstance(operand, Register), f"{operand} is no register"
        slot, declared = self.slot(operand.name), self.kernel.registers[operand.name]
        form, dtype = KINDS[kind], UNSIGNED[declared]
        if declared != form.bits and not (wide and declared > form.bits):
            raise ValueError(f"{operand.name} has {declared} bits, the result {form.bits}")
        signed = np.dtype(f"i{form.bits // 8}") if kind[0] == "s" else None
        values, undefined = self.values, self.undefined

        def write(result: Array) -> None:
            flat = form.flatten(result)
            if flat.dtype != dtype:
                flat = (flat if signed is None else flat.view(signed)).astype(dtype)
            if len(flat) != self.size:
                flat = np.full(self.size, flat[0])
            if self.mask is None:
                values[slot], undefined[slot] = flat, None
            else:
                values[slot] = np.where(self.mask, flat, values[slot])
            if self.taint is not None or undefined[slot] is not None:
                self.update_undefined(slot, declared)

        return write

    def update_undefined(self, slot: int, bits: int) -> None:
        """After a write: lanes that ran are defined, except for what the step read undefined."""
        before, taint = self.undefined[slot], self.taint
        after = self.nothing[8] if taint is None else taint & np.uint8(parts(bits))
        if self.mask is not None:
            after = np.where(self.mask, after, np.uint8(0) if before is None else before)
        self.undefined[slot] = after if after.any() else None
        if taint is not None:
            self.origins[slot] = self.taint_origin

    def lane_writer(self, operand: Operand, kind: str) -> Callable[[Array], None]:
        """Like a wide `writer`, for results of the lanes that run only: [len(self.lanes)]."""
        write, form = self.writer(operand, kind, wide=True), KINDS[kind]

        def scatter(result: Array) -> None:
            if self.mask is not None:
                whole = np.zeros(self.size, result.dtype)
                whole[self.lanes] = result
                result = whole
            write(form.shape(np.ascontiguousarray(result)))

        return scatter

    def lane_reader(
        self, operand: Operand, kind: str, instruction: Instruction, *, wide: bool = False
    ) -> Callable[[], Array]:
        """Like `reader`, for the lanes that run only, and values that are used: [len(self.lanes)]."""
        read = self.reader(operand, kind, instruction, wide=wide, used=True)

        def gather() -> Array:
            values = read()
            if len(values) == 1:
                return np.repeat(values, len(self.lanes), axis=0)
            return values if self.mask is None else values[self.lanes]

        return gather

    # Faults

    def fault(self, kind: Fault, instruction: Instruction, lanes: Array, detail: str) -> None:
        """Stop the run.

        Raises:
            FaultError: always.
        """
        first = int(lanes[0])
        raise FaultError(
            kind=kind,
            kernel=self.kernel.name,
            instruction=instruction,
            cta=int(self.ctas[self.cta[first]]),
            thread=int(self.thread[first]),
            threads=len(lanes),
            detail=detail,
        )

    def check_alignment(
        self, instruction: Instruction, addresses: Array, lanes: Array, size: int
    ) -> None:
        """Fault unless every address is a multiple of the access."""
        odd = addresses.astype(np.int64) % size != 0
        if odd.any():
            detail = f"{size} bytes at {int(addresses[odd][0]):#x}, which is no multiple of {size}"
            self.fault(Fault.MISALIGNED, instruction, lanes[odd], detail)
