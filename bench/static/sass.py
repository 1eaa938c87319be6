"""Machine code as data: instructions, loops and the classes of opcodes that an audit asks about.

Source of the text: `nvdisasm -json`, which gives each function as a list of instructions without
addresses. Every instruction is 128 bits from sm_70 on, so the address is 16 times the index.

A loop is a branch to an earlier (or equal) address. The endless self-branch that pads the end of
every function is not one. A kernel whose trip count is a small constant may have no loop at all,
because the compiler unrolled it; its whole body is then the unit to count.

Of a loop the hot path is counted: where a warp may diverge the compiler adds copies of code that run
one part of the warp at a time, entered by BRA.DIV and BRA.CONV only. They lie in the loop and run
never, as long as the lanes of a warp stay together.

    hot = hot_path(code)
    len(hot) / weights, per_class(hot)
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

INSTRUCTION_BYTES = 16
LAST_HEX = re.compile(r"0x([0-9a-f]+)\s*$")
UNIFORM_CONDITION = re.compile(r"!?UP\d")  # BRA.U !UP0, 0x1b0: a predicate among the operands

# Prefixes of the opcodes in each class. I2F runs on the slow unit (16 lanes per SM and clock), I2FP
# on the integer pipe (64 lanes); both turn an integer into a float. HADD2.F32 widens fp16 to
# fp32 (bf16 needs only a shift); F2FP packs two fp32 into a pair of 16 bits.
INTEGER_TO_FLOAT = ("I2F",)
WIDEN = ("HADD2.F32",)
NARROW = ("F2FP",)
SPILLS = ("LDL", "STL")
WARP_MMA = (
    "HMMA",
    "IMMA",
    "QMMA",
    "OMMA",
)  # of one warp: operands of 16 bits, integers, 8 and 4 bits
GROUP_MMA = (
    "HGMMA",
    "IGMMA",
    "QGMMA",
    "UTCHMMA",
    "UTCIMMA",
    "UTCQMMA",
    "UTCOMMA",
)  # of four warps, of none
TENSOR_CORE = (*WARP_MMA, *GROUP_MMA)
MULTIPLY_ADD = ("FFMA", "HFMA2")
DIVERGENCE = ("BRA.DIV", "BRA.CONV")
LEAVES = ("EXIT", "RET", "BRX", "JMX")

# What an instruction occupies, by the prefix of its opcode; the first that fits (SHFL before
# SHF). "int" is the ALU pipe: comparisons, minima and choices of fp32 are made there too. Integer products run
# on the FMA pipe, beside fp32; the compiler also moves (IMAD.MOV) and shifts (IMAD.SHL) with them. "cvt" are
# conversions, and what else needs the slow unit. Uniform instructions (one per warp, on a datapath of their
# own), branches, barriers and NOPs are "other". Evidence: `stalls.py`, and sources in profiles/specs/sm_*.toml.
CLASSES = (
    ("exchange", ("SHFL", "LDS", "STS", "LDSM", "STSM")),
    (
        "int",
        ("LOP3", "PRMT", "SHF", "SGXT", "SEL", "IADD", "VIADD", "LEA", "IMNMX", "VIMNMX", "ISETP"),
    ),
    ("int", ("PLOP3", "MOV", "BFI", "BMSK", "IABS", "FSEL", "FSETP", "FMNMX")),
    ("imad", ("IMAD", "IDP")),
    ("half2", ("HADD2", "HMUL2", "HFMA2", "HSET", "HMNMX2")),
    ("fp32", ("FADD", "FMUL", "FFMA")),
    ("cvt", ("I2F", "I2IP", "F2F", "F2I", "F2FP", "FRND", "MUFU", "POPC", "FLO", "BREV")),
    ("mma", TENSOR_CORE),
    ("load", ("LDG",)),
)
WIDE_IMAD = ("IMAD.WIDE", "IMAD.HI")  # 64 bits of a product: the pipe is busy twice as long
CLASS_NAMES = (*dict.fromkeys(name for name, _ in CLASSES), "other")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        index: position in its function; its address is 16 times that.
        opcode: with modifiers, such as "LDG.E.128.CONSTANT".
        operands: as printed.
        predicate: guard such as "@!P0", or "" when it always executes.
    """

    index: int
    opcode: str
    operands: str
    predicate: str = ""

    def is_any(self, prefixes: Iterable[str]) -> bool:
        """Whether the opcode starts with one of the prefixes."""
        return self.opcode.startswith(tuple(prefixes))

    def is_global_load(self) -> bool:
        """Whether it reads global memory, into registers (LDG) or shared memory (LDGSTS)."""
        return self.opcode.split(".")[0] in ("LDG", "LDGSTS")


Code = Sequence[Instruction]


def disassemble(cubin: bytes, nvdisasm: Path) -> dict[str, tuple[Instruction, ...]]:
    """Every function of a cubin by name.

    Args:
        cubin: an ELF image as written by ptxas.
        nvdisasm: the disassembler, version 12.8 or later (the first known to have `-json`).

    Raises:
        subprocess.CalledProcessError: the disassembler refused the file.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run(
            [nvdisasm, "-json", file.name], capture_output=True, text=True, check=True
        ).stdout
    _, functions = json.loads(output)
    return {f["function-name"]: parse(f["sass-instructions"]) for f in functions}


def parse(raw: Iterable[dict[str, str]]) -> tuple[Instruction, ...]:
    """Instructions from one function's list in the JSON of nvdisasm."""
    return tuple(
        Instruction(i, r["opcode"], r.get("operands", ""), r.get("predicate", ""))
        for i, r in enumerate(raw)
    )


def loops(code: Code) -> tuple[tuple[int, int], ...]:
    """Index ranges (first, last), both inclusive, of every loop body."""
    found = []
    for instruction in code:
        if not instruction.opcode.startswith("BRA"):
            continue
        target = LAST_HEX.search(instruction.operands)
        if target is None:
            continue
        first = int(target[1], 16) // INSTRUCTION_BYTES
        if first < instruction.index:
            found.append((first, instruction.index))
    return tuple(found)


def hot_code(code: Code) -> Code:
    """The body that does the work: the loop with tensor-core instructions, else the longest loop.

    A function without a loop is returned whole: it was unrolled.
    """
    found = loops(code)
    if not found:
        return code

    def weight(body: tuple[int, int]) -> tuple[bool, int]:
        first, last = body
        return bool(count(code[first : last + 1], TENSOR_CORE)), last - first

    first, last = max(found, key=weight)
    return code[first : last + 1]


def hot_path(code: Code) -> Code:
    """`hot_code` without the blocks that only a divergent warp reaches.

    From the first instruction every branch within the body is followed, except those that a warp takes
    when its lanes have parted (DIVERGENCE). A forward branch that guards an ordinary block is
    followed both ways: what it may skip is counted.
    """
    body = hot_code(code)
    inside = {instruction.index: instruction for instruction in body}
    if not body:
        return ()
    seen = walk(body[0].index, lambda index: (i for i in successors(inside[index]) if i in inside))
    return tuple(instruction for instruction in body if instruction.index in seen)


def guarded(code: Code) -> set[int]:
    """Indices on the hot path of what a forward branch within it may skip, though it is counted.

    Many of them mean that the path of a typical warp is not known: the loop is guarded.
    """
    hot = hot_path(code)
    skipped: set[int] = set()
    for instruction in hot:
        if not instruction.opcode.startswith("BRA") or instruction.is_any(DIVERGENCE):
            continue
        targets = [index for index in successors(instruction) if index > instruction.index + 1]
        if len(successors(instruction)) > 1 and targets and targets[0] <= hot[-1].index:
            skipped.update(i.index for i in hot if instruction.index < i.index < targets[0])
    return skipped


def outside(code: Code) -> Code:
    """What a warp may run once, before and after the body of `hot_code`; empty without a loop."""
    if not loops(code):
        return ()
    body = hot_code(code)
    first, last = body[0].index, body[-1].index

    def following(index: int) -> Iterable[int]:
        after = [last + 1] if first <= index <= last else successors(code[index])
        return (i for i in after if i < len(code))

    seen = walk(0, following)
    return tuple(i for i in code if i.index in seen and not first <= i.index <= last)


def successors(instruction: Instruction) -> list[int]:
    """Indices of the instructions that a warp whose lanes are together may run next."""
    following = [instruction.index + 1]
    if instruction.is_any(LEAVES):
        return following if instruction.predicate else []
    if not instruction.opcode.startswith("BRA") or instruction.is_any(DIVERGENCE):
        return following
    target = LAST_HEX.search(instruction.operands)
    taken = [int(target[1], 16) // INSTRUCTION_BYTES] if target else []
    conditional = instruction.predicate or UNIFORM_CONDITION.match(instruction.operands)
    return [*taken, *following] if conditional else taken


def natural_loop(code: Code, first: int, last: int) -> set[int]:
    """Indices between a branch at `last` and its target; empty if some way to it avoids the target."""
    if last not in reached(code, 0, set()) or last in reached(code, 0, {first}):
        return set()
    before: dict[int, list[int]] = {}
    for index in reached(code, 0, set()):
        for following in successors(code[index]):
            before.setdefault(following, []).append(index)
    return {first} | walk(last, lambda index: [] if index == first else before.get(index, []))


def reached(code: Code, start: int, avoided: set[int]) -> set[int]:
    """Indices that a warp whose lanes are together may come to from one, without those to avoid."""
    if start in avoided:
        return set()
    return walk(
        start,
        lambda i: (j for j in successors(code[i]) if j < len(code) and j not in avoided),
    )


def walk(start: int, following: Callable[[int], Iterable[int]]) -> set[int]:
    """Everything that can be reached from one index, itself included."""
    seen: set[int] = set()
    todo = [start]
    while todo:
        index = todo.pop()
        if index not in seen:
            seen.add(index)
            todo += following(index)
    return seen


def per_class(code: Iterable[Instruction]) -> Counter[str]:
    """Instructions by class; every name of CLASS_NAMES may occur."""
    return Counter(class_of(instruction) for instruction in code)


def class_of(instruction: Instruction) -> str:
    """The class of one instruction, one of CLASS_NAMES."""
    return next((name for name, prefixes in CLASSES if instruction.is_any(prefixes)), "other")


def count(code: Iterable[Instruction], prefixes: Iterable[str]) -> int:
    """Instructions whose opcode starts with one of the prefixes."""
    return sum(instruction.is_any(prefixes) for instruction in code)


def opcodes(code: Iterable[Instruction]) -> Counter[str]:
    """How often each opcode occurs, without its modifiers."""
    return Counter(instruction.opcode.split(".")[0] for instruction in code)


def load_widths(code: Iterable[Instruction]) -> Counter[int]:
    """Global loads by width in bits: {128: 8, 16: 4}."""
    widths: Counter[int] = Counter()
    for instruction in code:
        if instruction.is_global_load():
            match = re.search(r"\.(?:[US])?(8|16|64|128|256)\b", instruction.opcode)
            widths[int(match[1]) if match else 32] += 1
    return widths
