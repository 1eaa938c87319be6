"""PTX text to a `Kernel`.

Reads what Triton and NVRTC write (PTX ISA, "Syntax", "State Spaces, Types, and Variables",
"Directives"): scopes, vectors, predicates, register ranges, arrays, parameters, debug lines. What it
does not know it refuses, by line.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

from bench.static.ptx.errors import PtxError, UnsupportedError
from bench.static.ptx.program import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Negated,
    Operand,
    Pair,
    Parameter,
    Register,
    Symbol,
    Vector,
)
from bench.static.ptx.source_lines import name_locations
from bench.static.ptx.types import KINDS

NAME = r"[%$A-Za-z_][\w$.]*"
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{;]*)\{")
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.([busf]\d+)\b.*?([\w$]+)(?:\[(\d+)\])?$", re.S
)
ARRAY = re.compile(
    r"(?:\.extern\s+)?\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.[busf](\d+)\s+([\w$]+)"
    r"(?:\[(\d*)\])?$"
)
MODULE_ARRAY = re.compile(
    r"^[ \t]*(?:\.visible\s+)?\.(?:const|global)\s+(?:\.align\s+\d+\s+)?\.[busf](\d+)\s+([\w$]+)"
    r"(?:\[(\d+)\])?(?:\s*=\s*(\{[^}]*\}|[^;{]+))?;",
    re.M,
)
SHARED_ARRAY = re.compile(r"^[ \t]*((?:\.extern\s+)?\.shared\b[^;]*);", re.M)
REGISTERS = re.compile(r"\.reg\s*\.(\w+)\s+(.*)$", re.S)
RANGE = re.compile(rf"({NAME})<(\d+)>$")
STATEMENT = re.compile(rf"(?:@(!?)({NAME})\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
LABEL = re.compile(r"([$\w]+)\s*:(?!:)")
NAMED_LOCATION = re.compile(r'\.loc "([^"]*)"')
INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]*|[1-9]\d*)U?$")
FLOAT = re.compile(r"0([fFdD])([0-9a-fA-F]{8}|[0-9a-fA-F]{16})$")
END_OF_SPACE = re.compile(r"\s*")
ENDS_BLOCK = ("bra", "ret", "exit", "bar", "barrier")  # the first part of an opcode


def parse(ptx: str, entry: str | None = None) -> Kernel:
    """Read one entry point.

    Args:
        ptx: the text of a module.
        entry: its name as it stands in the text; None if the module has only one.

    Raises:
        PtxError: no such entry, or text that is not PTX.
        UnsupportedError: a directive or operand outside what is emulated.
    """
    text = COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), name_locations(ptx))
    found = {m[1]: m for m in ENTRY.finditer(text)}
    if entry is None and len(found) == 1:
        (entry,) = found
    if entry is None or entry not in found:
        wanted = "one entry to be named" if entry is None else f"an entry named {entry}"
        raise PtxError(f"expected {wanted}; the PTX has {', '.join(found) or 'none'}.")
    match = found[entry]
    target = re.search(r"\.target\s+(\w+)", text)
    required = re.search(r"\.reqntid\s+([\d,\s]+)", match[3])
    kernel = Kernel(
        name=entry,
        target=target[1] if target else "unknown",
        parameters=parse_parameters(match[2]),
        required_block=tuple(int(n) for n in required[1].split(",")) if required else None,
    )
    for variable in SHARED_ARRAY.finditer(outside := outside_braces(text)):
        declare_array(kernel, variable[1], outside.count("\n", 0, variable.start(1)) + 1)
    kernel.module = module_arrays(text)
    Body(kernel, text).read(match.end())
    kernel.blocks = basic_blocks(kernel)
    return kernel


def parse_parameters(text: str) -> tuple[Parameter, ...]:
    """The parameters between an entry's parentheses."""
    parameters = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = PARAMETER.match(part)
        if match is None:
            raise PtxError(f"expected a kernel parameter, found `{part}`.")
        parameters.append(Parameter(match[2], match[1], int(match[3] or 0)))
    return tuple(parameters)


def outside_braces(text: str) -> str:
    """The text with everything between braces blank: what belongs to no function."""
    kept, depth = [], 0
    for part in re.split(r"([{}])", text):
        depth -= part == "}"
        kept.append(part if depth == 0 and part not in "{}" else re.sub(r"[^\n]", " ", part))
        depth += part == "{"
    return "".join(kept)


def module_arrays(text: str) -> dict[str, bytes]:
    """Contents of the module's arrays; those that hold addresses are left out, and so unknown."""
    arrays = {}
    for match in MODULE_ARRAY.finditer(text):
        try:
            arrays[match[2]] = contents(match[1], match[3], match[4])
        except ValueError:
            continue
    return arrays


def contents(bits: str, count: str | None, values: str | None) -> bytes:
    """The bytes of a constant or global array: what it is set to, and zeros."""
    size = int(bits) // 8
    given = [value.strip() for value in (values or "").strip("{} \n").split(",") if value.strip()]
    numbers = [int(v[2:], 16) if FLOAT.match(v) else integer(v) for v in given]
    raw = b"".join((n & (1 << 8 * size) - 1).to_bytes(size, "little") for n in numbers)
    return raw.ljust(size * int(count or 1), b"\0")


def declare_array(kernel: Kernel, text: str, line: int) -> None:
    """Give a shared or local array its place."""
    match = ARRAY.match(" ".join(text.split()))
    if match is None:
        raise UnsupportedError(text, line, "only plain shared and local arrays are.")
    space, align, bits, name, count = match.groups()
    if count == "":
        kernel.dynamic.append(name)
        return
    size = int(count or 1) * int(bits) // 8
    alignment = int(align or int(bits) // 8)
    if space == "shared":
        kernel.shared[name] = -(-kernel.shared_bytes // alignment) * alignment
        kernel.shared_bytes = kernel.shared[name] + size
    else:
        kernel.local[name] = -(-kernel.local_bytes // alignment) * alignment
        kernel.local_bytes = kernel.local[name] + size


class Body:
    """Reads the statements between an entry's braces, one after the other."""

    def __init__(self, kernel: Kernel, text: str) -> None:
        self.kernel = kernel
        self.text = text
        self.source: str | None = None
        self.scopes: list[dict[str, str]] = [{}]  # a register's name here -> its unique name
        self.labels: list[dict[str, str]] = [{}]  # likewise
        self.starts = [0]  # first instruction of each scope
        self.numbers = [0]  # of the scopes
        self.scopes_opened = 0

    def read(self, position: int) -> None:
        """Read from just after the opening brace to the brace that closes it."""
        line = self.text.count("\n", 0, position) + 1
        while self.scopes:
            start = END_OF_SPACE.match(self.text, position).end()  # type: ignore[union-attr]
            line += self.text.count("\n", position, start)
            end = self.statement(start, line)
            line += self.text.count("\n", start, end)
            position = end

    def statement(self, start: int, line: int) -> int:
        """Read the one thing that starts here; where it ends."""
        text = self.text
        if start >= len(text):
            raise PtxError(f"{self.kernel.name} has no closing brace.")
        if text[start] == "{":
            self.open_scope()
            return start + 1
        if text[start] == "}":
            self.close_scope()
            return start + 1
        if text[start] == ";":
            return start + 1
        if location := NAMED_LOCATION.match(text, start):
            self.source = location[1]
            return location.end()
        if label := LABEL.match(text, start):
            if label[1] in self.labels[-1]:
                raise PtxError(f"PTX line {line}: the label {label[1]} is there already.")
            self.labels[-1][label[1]] = label[1] + self.suffix()
            self.kernel.labels[label[1] + self.suffix()] = len(self.kernel.instructions)
            return label.end()
        end = text.find(";", start)
        if end < 0:
            raise PtxError(f"PTX line {line}: a statement without a semicolon.")
        self.declare_or_append(" ".join(text[start:end].split()), line)
        return end + 1

    def open_scope(self) -> None:
        """An opening brace: names declared from here on are the scope's own."""
        self.scopes_opened += 1
        self.numbers.append(self.scopes_opened)
        self.scopes.append({})
        self.labels.append({})
        self.starts.append(len(self.kernel.instructions))

    def close_scope(self) -> None:
        """A closing brace: branches to the scope's labels may have come before them."""
        self.scopes.pop()
        self.numbers.pop()
        labels, start = self.labels.pop(), self.starts.pop()
        instructions = self.kernel.instructions
        for index in range(start, len(instructions)) if labels and self.scopes else ():
            operands = tuple(
                Symbol(labels[o.name]) if isinstance(o, Symbol) and o.name in labels else o
                for o in instructions[index].operands
            )
            instructions[index] = replace(instructions[index], operands=operands)

    def suffix(self) -> str:
        """What makes a name of the innermost scope unique."""
        return f"#{self.numbers[-1]}" if len(self.scopes) > 1 else ""

    def declare_or_append(self, statement: str, line: int) -> None:
        """A directive, or an instruction."""
        if match := REGISTERS.match(statement):
            self.declare_registers(match[1], match[2], line)
        elif statement.startswith((".shared", ".local")):
            declare_array(self.kernel, statement, line)
        elif statement.startswith(".pragma"):
            pass  # hints such as "nounroll"
        elif statement.startswith(".param"):
            raise UnsupportedError(statement, line, "calls of functions are not.")
        elif statement.startswith("."):
            raise UnsupportedError(statement, line, "the directive has no meaning here.")
        else:
            self.append(statement, line)

    def declare_registers(self, kind: str, names: str, line: int) -> None:
        """`.reg .b32 %r<10>, %x;`.

        Raises:
            UnsupportedError: of a type that is not emulated.
            PtxError: a register of this name is there already.
        """
        if kind not in KINDS:
            raise UnsupportedError(f".reg .{kind}", line, "registers of that type are not.")
        inner = self.suffix()
        for name in (name.strip() for name in names.split(",")):
            match = RANGE.match(name)
            each = [f"{match[1]}{i}" for i in range(int(match[2]))] if match else [name]
            for one in each:
                if one in self.scopes[-1]:
                    raise PtxError(f"PTX line {line}: the register {one} is there already.")
                self.scopes[-1][one] = one + inner
                self.kernel.registers[one + inner] = KINDS[kind].bits

    def append(self, statement: str, line: int) -> None:
        """An instruction."""
        match = STATEMENT.match(statement)
        if match is None:
            raise PtxError(f"PTX line {line}: expected an instruction, found `{statement}`.")
        negated, guard, opcode, text = match.groups()
        try:
            operands = tuple(self.operand(part, line) for part in split(text))
        except UnsupportedError as error:
            advice = f"its operand `{error.opcode}` is of no form that is."
            raise UnsupportedError(opcode, line, advice) from None
        self.kernel.instructions.append(
            Instruction(
                index=len(self.kernel.instructions),
                opcode=opcode,
                operands=operands,
                guard=Register(self.unique(guard)) if guard else None,
                guard_negated=bool(negated),
                text=statement,
                line=line,
                source=self.source,
            )
        )

    def unique(self, name: str) -> str:
        """A register's unique name, from the innermost scope that declares it."""
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)

    def operand(self, text: str, line: int) -> Operand:
        """One operand.

        Raises:
            UnsupportedError: none of the forms above.
        """
        if text in self.scopes[-1]:
            return Register(self.scopes[-1][text])
        if text.startswith("{"):
            return Vector(tuple(self.operand(part, line) for part in split(text.strip("{} "))))
        if text.startswith("["):
            return self.address(text.strip("[] "), line)
        if "|" in text:
            halves = [part.strip() for part in text.split("|")]
            if len(halves) != 2 or not all(halves):
                raise UnsupportedError(text, line, "it is no operand.")
            return Pair(self.operand(halves[0], line), self.operand(halves[1], line))
        if match := FLOAT.match(text):
            return Immediate(int(match[2], 16), 32 if match[1] in "fF" else 64)
        if INTEGER.match(text):
            return Immediate(integer(text))
        if text[0] in "!-" and re.fullmatch(NAME, text[1:]):
            return Negated(Register(self.unique(text[1:])))
        if re.fullmatch(NAME, text) or text == "_":
            name = self.unique(text)
            is_register = name in self.kernel.registers or text[0] == "%" or text == "WARP_SZ"
            return Register(name) if is_register else Symbol(name)
        raise UnsupportedError(text, line, "it is no operand.")

    def address(self, text: str, line: int) -> Address:
        """What stands between brackets: `%rd1`, `%rd1+16`, `name+4` or `16`."""
        match = re.fullmatch(rf"({NAME}|\d+)\s*(?:\+\s*(-?\w+))?", text)
        if match is None:
            raise UnsupportedError(f"[{text}]", line, "it is no address.")
        base = self.operand(match[1], line)
        assert isinstance(base, Register | Symbol | Immediate)
        return Address(base, integer(match[2] or "0"))


def integer(text: str) -> int:
    """An integer constant as in C: 0x1F, 0b11, 017 (octal) or 31, perhaps with a final U."""
    digits = text.rstrip("U").lstrip("-").lower()
    base = {"0x": 16, "0b": 2}.get(digits[:2], 8 if digits[0] == "0" else 10)
    return -int(digits, base) if text[0] == "-" else int(digits, base)


def split(text: str) -> list[str]:
    """Operands between commas that are outside every bracket."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()] if current.strip() else parts


def basic_blocks(kernel: Kernel) -> tuple[tuple[int, int], ...]:
    """Stretches that are entered at their first instruction and left after their last."""
    count = len(kernel.instructions)
    cuts = {0, count, *kernel.labels.values()}
    for index, instruction in enumerate(kernel.instructions):
        if instruction.opcode.split(".")[0] in ENDS_BLOCK:
            cuts.add(index + 1)
    ordered = sorted(cuts)
    return tuple(pairwise(ordered))
