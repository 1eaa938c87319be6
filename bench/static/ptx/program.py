"""A kernel as data: instructions, operands, registers, variables, basic blocks.

@%p1 ld.global.v2.b32 {%r1, %r2}, [%rd3+16];
|         |                |         |
guard    opcode          Vector     Address(base, offset)
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Register:
    """A virtual or special register; virtual ones of inner scopes carry their scope's number."""

    name: str


@dataclass(frozen=True)
class Negated:
    """`!%p1` (a predicate's opposite) or `-%r1`."""

    register: Register


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or the bits of a float with their width in `float_bits`."""

    value: int
    float_bits: int | None = None


@dataclass(frozen=True)
class Symbol:
    """A variable's or label's name."""

    name: str


@dataclass(frozen=True)
class Address:
    """`[base + offset]`, in bytes."""

    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    """`{a, b, ...}`."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """`a|b`: two destinations."""

    first: Operand
    second: Operand


Operand = Register | Negated | Immediate | Symbol | Address | Vector | Pair


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        index: among the kernel's instructions.
        opcode: with all modifiers: "cvt.rn.f16.f32".
        operands: as written, the destination first.
        guard: the predicate it runs under, or None.
        guard_negated: whether it runs where the guard is false.
        text: as written, on one line.
        line: in the PTX, counted from 1.
        source: "gemv.py:108" from the debug lines, or None.
    """

    index: int
    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    guard_negated: bool
    text: str
    line: int
    source: str | None


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter. `size_bytes` is that of a struct passed by value, else 0."""

    name: str
    type: str
    size_bytes: int


@dataclass
class Kernel:
    """One entry point of a PTX module.

    Attributes:
        name: of the entry.
        target: "sm_90a".
        parameters: in order.
        required_block: threads per CTA that the entry demands (`.reqntid`), or None.
        instructions: in the order of the text.
        labels: index of the instruction that follows each.
        registers: width in bits of each, 1 for predicates.
        shared: offset in bytes of each shared array.
        shared_bytes: of the static arrays.
        dynamic: shared arrays of unknown size, which start after the static ones.
        local: offset in bytes of each local array, within one thread.
        local_bytes: per thread.
        module: contents of each array that the module brings, constant or global.
        blocks: (first, end) instruction index of each basic block.
    """

    name: str
    target: str
    parameters: tuple[Parameter, ...]
    required_block: tuple[int, ...] | None
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    dynamic: list[str] = field(default_factory=list)
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    module: dict[str, bytes] = field(default_factory=dict)
    blocks: tuple[tuple[int, int], ...] = ()

    def block_of(self, label: str) -> int:
        """Index of the block that a label starts; one past the last for a label at the end."""
        first = self.labels[label]
        return next(
            (i for i, (start, _) in enumerate(self.blocks) if start == first), len(self.blocks)
        )
