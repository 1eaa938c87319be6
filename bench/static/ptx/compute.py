"""What an opcode does: operations on registers, and families of them.

An `Operation` binds an instruction to a machine and gives its step. A family makes the operations of
a pattern: "add.{u,s}{16,32}" is four opcodes, whose types are read from their names.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx import integers, numerics
from bench.static.ptx.conversions import conversion
from bench.static.ptx.errors import Fault
from bench.static.ptx.parser import Immediate, Pair, Symbol, Vector
from bench.static.ptx.types import KINDS

if TYPE_CHECKING:
    from bench.static.ptx.machine import Machine, Step
    from bench.static.ptx.parser import Instruction

Array = npt.NDArray[Any]
Bind = Callable[["Machine", "Instruction"], "Step"]

ALTERNATIVES = re.compile(r"\{([^{}]*)\}")
UNSIGNED_ORDER = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@dataclass(frozen=True)
class Operation:
    """What an opcode does.

    Attributes:
        group: class of instruction, for counting.
        bind: makes an instruction's step for a machine.
        approximate: whether hardware's result may differ in the last bits from the one here.
    """

    group: str
    bind: Bind
    approximate: bool = False


def expand(pattern: str) -> Iterator[str]:
    """Every opcode that a pattern with braces stands for."""
    match = ALTERNATIVES.search(pattern)
    if match is None:
        yield pattern
        return
    for alternative in match[1].split(","):
        yield from expand(pattern[: match.start()] + alternative + pattern[match.end() :])


def table(group: str, pattern: str, bind: Bind) -> dict[str, Operation]:
    """The same operation for every opcode of a pattern."""
    return {opcode: Operation(group, bind) for opcode in expand(pattern)}


def compute(
    machine: Machine,
    instruction: Instruction,
    function: Callable[..., Array],
    result: str,
    kinds: tuple[str, ...],
    *,
    wide: bool = False,
) -> Step:
    """The step of an instruction that maps operands to a result, lane by lane."""
    target, *sources = instruction.operands
    if len(sources) != len(kinds):
        raise ValueError(f"{len(kinds)} source operands are expected")
    write = machine.writer(target, result)
    reads = [
        machine.reader(source, kind, instruction, wide=wide)
        for source, kind in zip(sources, kinds, strict=True)
    ]
    if len(reads) == 2:
        first, second = reads
        return lambda: write(function(first(), second()))
    return lambda: write(function(*[read() for read in reads]))


def integer(
    group: str, pattern: str, function: Callable[..., Array], arity: int, amounts: int = 0
) -> dict[str, Operation]:
    """Integer operations whose operands and result have the type the opcode ends in.

    Args:
        group: class of instruction.
        pattern: opcodes.
        function: of arrays.
        arity: operands of that type.
        amounts: further operands, positions or lengths, of type u32.
    """
    operations = {}
    for opcode in expand(pattern):
        kind = opcode.split(".")[-1]
        kinds = (kind,) * arity + ("u32",) * amounts
        bind = partial(compute, function=function, result=kind, kinds=kinds)
        operations[opcode] = Operation(group, bind)
    return operations


def wide(pattern: str, function: Callable[..., Array], arity: int) -> dict[str, Operation]:
    """mul.wide and mad.wide: the result, and a third operand, are twice as wide."""
    operations = {}
    for opcode in expand(pattern):
        kind = opcode.split(".")[-1]
        double = f"{kind[0]}{2 * int(kind[1:])}"
        kinds = (kind, kind, double)[:arity]
        bind = partial(compute, function=function, result=double, kinds=kinds)
        operations[opcode] = Operation("integer", bind)
    return operations


def floating(pattern: str, function: Callable[..., Array], arity: int) -> dict[str, Operation]:
    """Float operations on float64 values: decoded, computed, rounded once."""
    operations = {}
    for opcode in expand(pattern):
        kind = opcode.split(".")[-1]
        bind = partial(
            compute,
            function=partial(rounded, function=function, opcode=opcode),
            result=kind,
            kinds=(kind,) * arity,
        )
        group = "fp32" if kind.startswith("f32") else "half"
        operations[opcode] = Operation(group, bind)
    return operations


def rounded(*bits: Array, function: Callable[..., Array], opcode: str) -> Array:
    """A float operation from bits to bits, with the modifiers of its opcode."""
    _, *modifiers, kind = opcode.split(".")
    values = [numerics.decode(b, kind) for b in bits]
    if "ftz" in modifiers:
        values = [numerics.flush(v, kind) for v in values]
    result = function(*values)
    if "relu" in modifiers:
        result = numerics.relu(result)
    if "sat" in modifiers:
        result = numerics.saturate(result)
    encoded = numerics.encode(result, kind)
    if "ftz" in modifiers:
        flushed = numerics.flush(numerics.decode(encoded, kind), kind)
        encoded = numerics.encode(flushed, kind)
    return encoded


def approximate(pattern: str, function: Callable[[Array], Array]) -> dict[str, Operation]:
    """Functions that hardware approximates: here they are rounded correctly, and marked."""
    return {
        opcode: Operation("fp32", operation.bind, approximate=True)
        for opcode, operation in floating(pattern, function, 1).items()
    }


def conversions(*patterns: str) -> dict[str, Operation]:
    """cvt."""
    operations = {}
    for opcode in (opcode for pattern in patterns for opcode in expand(pattern)):
        function, result, kinds = conversion(opcode)
        bind = partial(compute, function=function, result=result, kinds=kinds, wide=True)
        operations[opcode] = Operation("conversion", bind)
    return operations


# Instructions with operands of their own kind


def bind_move(machine: Machine, instruction: Instruction) -> Step:
    """mov: copies, packs {a, b} into a wider register, or unpacks one."""
    target, source = instruction.operands
    kind = instruction.opcode.split(".")[-1]
    if isinstance(source, Vector):
        part = f"b{KINDS[kind].bits // len(source.items)}"
        reads = [machine.reader(item, part, instruction) for item in source.items]
        write = machine.writer(target, kind)
        return lambda: write(np.stack(np.broadcast_arrays(*[read() for read in reads]), axis=1))
    if isinstance(target, Vector):
        part = f"b{KINDS[kind].bits // len(target.items)}"
        writes = [machine.writer(item, part) for item in target.items]
        read, dtype = machine.reader(source, kind, instruction), KINDS[part].dtype

        def unpack() -> None:
            parts = np.ascontiguousarray(read()).view(dtype).reshape(-1, len(writes))
            for i, write in enumerate(writes):
                write(np.ascontiguousarray(parts[:, i]))

        return unpack
    return compute(machine, instruction, lambda a: a, kind, (kind,))


def bind_lookup(machine: Machine, instruction: Instruction) -> Step:
    """lop3.b32 d, a, b, c, table."""
    target, *sources, constant = instruction.operands
    assert isinstance(constant, Immediate)
    write, number = machine.writer(target, "b32"), constant.value
    reads = [machine.reader(source, "b32", instruction) for source in sources]
    first, second, third = reads
    return lambda: write(integers.lookup(first(), second(), third(), number))


def bind_select(machine: Machine, instruction: Instruction) -> Step:
    """selp d, a, b, p: a where p, else b. Only the one chosen must be defined."""
    kind = instruction.opcode.split(".")[-1]
    target, a, b, predicate = instruction.operands
    write = machine.writer(target, kind)
    read_a, read_b = (machine.reader(o, kind, instruction) for o in (a, b))
    read_p = machine.reader(predicate, "pred", instruction)

    def step() -> None:
        chosen = read_p()
        outer, running = machine.mask, machine.running()
        machine.mask = running & chosen
        value_a = read_a()
        machine.mask = running & ~chosen
        value_b = read_b()
        machine.mask = outer
        write(np.where(chosen, value_a, value_b))

    return step


def bind_compare(machine: Machine, instruction: Instruction) -> Step:
    """setp.CMP{.BOOL}.TYPE p{|q}, a, b{, c}: p = (a CMP b) BOOL c, and q = !(a CMP b) BOOL c."""
    _, *modifiers, kind = instruction.opcode.split(".")
    target, a, b, *rest = instruction.operands
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    write = machine.writer(first, "pred")
    write_other = machine.writer(second, "pred") if second else None
    read_a, read_b = (machine.reader(o, kind, instruction) for o in (a, b))
    read_c = machine.reader(rest[0], "pred", instruction) if rest else None
    join = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
    compare = comparison(modifiers[0], kind)

    def step() -> None:
        result = compare(read_a(), read_b())
        other = ~result
        if read_c is not None:
            c = read_c()
            result, other = join[modifiers[1]](result, c), join[modifiers[1]](other, c)
        write(result)
        if write_other is not None:
            write_other(other)

    return step


def comparison(name: str, kind: str) -> Callable[[Array, Array], Array]:
    """A comparison of two arrays of a type; floats know unordered ones ("equ", "num", "nan")."""
    if kind not in ("f16", "bf16", "f32"):
        function: Callable[[Array, Array], Array] = getattr(
            operator, UNSIGNED_ORDER.get(name, name)
        )
        return function

    def compare(a: Array, b: Array) -> Array:
        a, b = numerics.decode(a, kind), numerics.decode(b, kind)
        unordered = np.isnan(a) | np.isnan(b)
        if name in ("num", "nan"):
            return unordered if name == "nan" else ~unordered
        ordered: Array = getattr(operator, name[:2])(a, b) & ~unordered
        return ordered | unordered if len(name) == 3 else ordered

    return compare


def bind_branch(machine: Machine, instruction: Instruction) -> Step:
    """bra."""
    (label,) = instruction.operands
    assert isinstance(label, Symbol)
    block = machine.kernel.block_of(label.name)
    return lambda: machine.jump(block)


def bind_exit(machine: Machine, instruction: Instruction) -> Step:
    """ret and exit: a kernel's threads end."""
    return lambda: machine.jump(machine.end)


def bind_trap(machine: Machine, instruction: Instruction) -> Step:
    """trap: a failed assertion."""
    return lambda: machine.fault(Fault.TRAP, instruction, machine.lanes, "the kernel gave up")


def bind_barrier(machine: Machine, instruction: Instruction) -> Step:
    """bar.sync 0: all threads of the CTA."""
    (barrier,) = instruction.operands
    if barrier != Immediate(0):
        raise ValueError("only barrier 0, of all threads, is emulated")
    return lambda: machine.wait(instruction)


def bind_dot4(machine: Machine, instruction: Instruction) -> Step:
    """dp4a.A.B: each of A and B u32 or s32; the result is signed if either is."""
    _, a, b = instruction.opcode.split(".")
    result = "u32" if a == b == "u32" else "s32"
    kinds = (f"{a[0]}8x4", f"{b[0]}8x4", result)
    return compute(machine, instruction, integers.dot4, result, kinds)


def bind_nothing(machine: Machine, instruction: Instruction) -> Step:
    """Hints and fences that change nothing where lanes run in order."""
    return lambda: None


def bind_policy(machine: Machine, instruction: Instruction) -> Step:
    """createpolicy: a cache hint; its value is opaque."""
    write = machine.writer(instruction.operands[0], "b64")
    return lambda: write(np.zeros(1, np.uint64))


def native_float32(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """fp32 in NumPy's own fp32, which rounds as the GPU does; NaN made canonical."""

    def compute32(a: Array, b: Array) -> Array:
        result = function(a.view(np.float32), b.view(np.float32))
        bits = result.view(np.uint32)
        nan = np.isnan(result)
        return np.where(nan, np.uint32(numerics.NAN_BITS["f32"]), bits) if nan.any() else bits

    return compute32


def predicate(pattern: str, function: Callable[..., Array], arity: int) -> dict[str, Operation]:
    """Logic on predicates."""
    bind = partial(compute, function=function, result="pred", kinds=("pred",) * arity)
    return table("logic", pattern, bind)
