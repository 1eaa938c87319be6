"""What an opcode does: operations on registers, and families of them.

An `Operation` binds an instruction to a machine and gives its step. A family makes the operations of
a pattern: "add.{u,s}{16,32}" is four opcodes, whose types are read from their names.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx import integers, numerics
from bench.static.ptx.conversions import conversion
from bench.static.ptx.errors import Fault
from bench.static.ptx.program import Immediate, Pair, Symbol, Vector
from bench.static.ptx.registers import ALL_PARTS
from bench.static.ptx.types import KINDS

if TYPE_CHECKING:
    from bench.static.ptx.machine import Machine, Step
    from bench.static.ptx.program import Instruction, Operand

Array = npt.NDArray[Any]
Bind = Callable[["Machine", "Instruction"], "Step"]

DIRECTED = ("rm", "rp", "rz")
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
    """Every opcode that a pattern with braces, which may be nested, stands for.

    Raises:
        ValueError: a brace has no partner.
    """
    start = pattern.find("{")
    if "}" in pattern.partition("{")[0]:
        raise ValueError(f"the braces of {pattern} are not balanced")
    if start < 0:
        yield pattern
        return
    depth, cuts = 0, []  # before and after each alternative of the first braces
    for place, sign in enumerate(pattern[start:], start):
        depth += (sign == "{") - (sign == "}")
        if depth == 0 or (depth == 1 and sign in "{,"):
            cuts.append(place)
        if depth == 0:
            break
    else:
        raise ValueError(f"the braces of {pattern} are not balanced")
    for before, after in pairwise(cuts):
        yield from expand(pattern[:start] + pattern[before + 1 : after] + pattern[cuts[-1] + 1 :])


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
    apart: bool = False,
) -> Step:
    """The step of an instruction that maps operands to a result, lane by lane.

    Args:
        machine: to run it.
        instruction: with as many source operands as there are kinds.
        function: of arrays.
        result: type.
        kinds: types of the operands.
        wide: whether registers may be wider than their operand's type.
        apart: whether every part of the result depends on the same part of the operands only.
    """
    target, *sources = instruction.operands
    if len(sources) != len(kinds):
        raise ValueError(f"{len(kinds)} source operands are expected")
    write = machine.writer(target, result, wide=wide)
    reads = [
        machine.reader(source, kind, instruction, wide=wide)
        for source, kind in zip(sources, kinds, strict=True)
    ]

    def step() -> None:
        values = [read() for read in reads]
        if machine.taint is not None and not apart:
            machine.smear()
        write(function(*values))

    return step


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
        apart = opcode.startswith(("and.", "or.", "xor.", "not."))
        bind = partial(compute, function=function, result=kind, kinds=kinds, apart=apart)
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
            apart=kind.endswith("x2"),
        )
        group = "fp32" if kind.startswith("f32") else "half"
        operations[opcode] = Operation(group, bind)
    return operations


def mixed(pattern: str, function: Callable[..., Array], arity: int) -> dict[str, Operation]:
    """fma.rn.f32.f16, add.rn.f32.f16 and their like: fp32 but for the 16-bit operands before the last."""
    operations = {}
    for opcode in expand(pattern):
        *_, wide_kind, narrow = opcode.split(".")
        kinds = (*(narrow,) * (arity - 1), wide_kind)

        def once(*bits: Array, kinds: tuple[str, ...] = kinds) -> Array:
            values = map(numerics.decode, bits, kinds)
            return numerics.encode(function(*values), kinds[-1])

        bind = partial(compute, function=once, result=wide_kind, kinds=kinds)
        operations[opcode] = Operation("fp32", bind)
    return operations


def rounded(*bits: Array, function: Callable[..., Array], opcode: str) -> Array:
    """A float operation from bits to bits, with the modifiers of its opcode."""
    name, *modifiers, kind = opcode.split(".")
    values = [numerics.decode(b, kind) for b in bits]
    if "ftz" in modifiers:
        values = [numerics.flush(v, kind) for v in values]
    result = function(*values)
    mode = next((m for m in modifiers if m in DIRECTED), None)
    if mode is not None:
        if mode == "rm" and name != "mul":
            result = numerics.zero_downward(result, *addends(name, values))
        return numerics.encode_directed(result, mode)
    if "relu" in modifiers:
        result = numerics.relu(result)
    if "sat" in modifiers:
        result = numerics.saturate(result)
    encoded = numerics.encode(result, kind)
    if "ftz" in modifiers:
        flushed = numerics.flush(numerics.decode(encoded, kind), kind)
        encoded = numerics.encode(flushed, kind)
    return encoded


def addends(name: str, values: list[Array]) -> tuple[Array, Array]:
    """The two numbers that an add, sub or fma adds."""
    if name == "fma":
        return values[0] * values[1], values[2]
    return values[0], -values[1] if name == "sub" else values[1]


def approximate(
    pattern: str, function: Callable[..., Array], arity: int = 1
) -> dict[str, Operation]:
    """Functions that hardware approximates: here they are rounded correctly, and marked."""
    return {
        opcode: Operation("fp32", operation.bind, approximate=True)
        for opcode, operation in floating(pattern, function, arity).items()
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
        return bind_pack(machine, instruction, source.items, part, machine.writer(target, kind))
    if isinstance(target, Vector):
        part = f"b{KINDS[kind].bits // len(target.items)}"
        writes = [machine.writer(item, part) for item in target.items]
        return bind_unpack(machine, machine.reader(source, kind, instruction), part, writes)
    return compute(machine, instruction, lambda a: a, kind, (kind,), apart=True)


def bind_pack(
    machine: Machine,
    instruction: Instruction,
    items: tuple[Operand, ...],
    part: str,
    write: Callable[[Array], None],
) -> Step:
    """mov d, {a, b}: the first item becomes the lowest bits."""
    reads = [machine.reader(item, part, instruction) for item in items]
    shift = KINDS[part].bits // 16

    def pack() -> None:
        values: list[Array] = []
        taints: list[Array] = []
        for i, read in enumerate(reads):
            machine.taint = None
            values.append(read())
            if machine.taint is not None:
                taints.append(machine.taint << np.uint8(i * shift))
        machine.taint = np.bitwise_or.reduce(taints) if taints else None
        write(np.stack(np.broadcast_arrays(*values), axis=1))

    return pack


def bind_unpack(
    machine: Machine,
    read: Callable[[], Array],
    part: str,
    writes: list[Callable[[Array], None]],
) -> Step:
    """mov {d, e}, a."""
    dtype, shift = KINDS[part].dtype, KINDS[part].bits // 16

    def unpack() -> None:
        values = np.ascontiguousarray(read()).view(dtype).reshape(-1, len(writes))
        taint = machine.taint
        for i, write in enumerate(writes):
            machine.taint = None if taint is None else taint >> np.uint8(i * shift)
            write(np.ascontiguousarray(values[:, i]))

    return unpack


def bind_lookup(machine: Machine, instruction: Instruction) -> Step:
    """lop3.b32 d, a, b, c, table."""
    *registers, constant = instruction.operands
    assert isinstance(constant, Immediate)
    if not 0 <= constant.value < 256:
        raise ValueError(f"{constant.value} is no table of eight bits")
    function = partial(integers.lookup, table=constant.value)
    without_table = replace(instruction, operands=tuple(registers))
    return compute(machine, without_table, function, "b32", ("b32",) * 3, apart=True)


def bind_permute(machine: Machine, instruction: Instruction) -> Step:
    """prmt.b32 d, a, b, selector. An operand of which a constant selector takes no byte may be undefined."""
    target, a, b, selector = instruction.operands
    if isinstance(selector, Immediate):
        from_b = {bool(selector.value >> 4 * byte & 4) for byte in range(4)}
        a = a if False in from_b else Immediate(0)
        b = b if True in from_b else Immediate(0)
    without_unread = replace(instruction, operands=(target, a, b, selector))
    return compute(machine, without_unread, integers.permute, "b32", ("b32",) * 3)


def bind_select(machine: Machine, instruction: Instruction) -> Step:
    """selp d, a, b, p: a where p, else b. The one that is not chosen may be undefined."""
    kind = instruction.opcode.split(".")[-1]
    target, a, b, predicate = instruction.operands
    write = machine.writer(target, kind)
    read_a, read_b = (machine.reader(o, kind, instruction) for o in (a, b))
    read_p = machine.reader(predicate, "pred", instruction)

    def step() -> None:
        chosen = read_p()
        taint, machine.taint = machine.taint, None
        value_a = read_a()
        taint_a, machine.taint = machine.taint, None
        value_b = read_b()
        if not (taint is taint_a is machine.taint is None):
            machine.taint = select_taint(chosen, taint, taint_a, machine.taint)
        write(np.where(chosen, value_a, value_b))

    return step


def select_taint(chosen: Array, predicate: Array | None, a: Array | None, b: Array | None) -> Array:
    """Lanes in which a selection is undefined: the predicate is, or the value it chose."""
    never = np.zeros(1, np.uint8)
    predicate, a, b = (never if taint is None else taint for taint in (predicate, a, b))
    return np.where(chosen, a, b) | np.where(predicate != 0, np.uint8(ALL_PARTS), never)


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
        c = read_c() if read_c is not None else None
        machine.smear()
        if c is not None:
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
    """bra; with .uni all lanes of a warp that run must take it, or none."""
    (label,) = instruction.operands
    assert isinstance(label, Symbol)
    block, uniform = machine.kernel.block_of(label.name), instruction.opcode == "bra.uni"

    def step() -> None:
        if uniform:
            detail = "take another way"
            machine.check_together(instruction, Fault.MISSING_LANES, machine.active, detail)
        machine.jump(block)

    return step


def bind_exit(machine: Machine, instruction: Instruction) -> Step:
    """ret and exit: a kernel's threads end."""
    if instruction.operands:
        raise ValueError("it takes none")
    return lambda: machine.jump(machine.end)


def bind_trap(machine: Machine, instruction: Instruction) -> Step:
    """trap: a failed assertion."""
    return lambda: machine.fault(Fault.TRAP, instruction, machine.lanes, "the kernel gave up")


def bind_barrier(machine: Machine, instruction: Instruction) -> Step:
    """bar.sync 0: all threads of the CTA."""
    if instruction.operands != (Immediate(0),):
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


def native_float32(pattern: str, function: Callable[[Array, Array], Array]) -> dict[str, Operation]:
    """Operations of two fp32 in NumPy's own fp32, which rounds as the GPU does; NaN canonical."""

    def compute32(a: Array, b: Array) -> Array:
        result = function(a.view(np.float32), b.view(np.float32))
        bits = result.view(np.uint32)
        nan = np.isnan(result)
        return np.where(nan, np.uint32(numerics.NAN_BITS["f32"]), bits) if nan.any() else bits

    operations = {}
    for opcode in expand(pattern):
        kind = opcode.split(".")[-1]
        bind = partial(compute, function=compute32, result=kind, kinds=(kind, kind), apart=True)
        operations[opcode] = Operation("fp32", bind)
    return operations


def predicate(pattern: str, function: Callable[..., Array], arity: int) -> dict[str, Operation]:
    """Logic on predicates."""
    bind = partial(compute, function=function, result="pred", kinds=("pred",) * arity)
    return table("logic", pattern, bind)
