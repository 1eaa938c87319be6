"""How often the loops within a hot loop run, where the machine code says it.

    MOV R0, RZ                              what the counter starts with, before the loop
    0x40: VIADD R0, R0, 0x1                 its only change, by a constant
          ISETP.GE.AND P0, PT, R0, 0xc, PT  its only test, against a constant
          @!P0 BRA 0x40                     the only way out: 12 passes

Start, step and end are read off the instructions and the counter is run through, so it does not matter which of
change and test comes first. Everything else is not derived: a bound in a register, a second way out, a counter
that another branch may have set, or whose change a branch may skip. Such a loop counts once, and what is said
of the kernel is a lower bound. A loop that does nothing but ask a barrier (PHASECHK) counts once too, and for
sure: how often it asks is time that the kernel waits, and not its work. A block that was moved behind the code
it belongs to, and that branches back there, is no loop: one gets to it without passing its target.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import prod

from bench.static import sass

MOST_PASSES = 1 << 16  # of nested loops together; more is taken for a misreading
IDLE = (  # no work: asks a barrier whether its phase is over, and passes the time until then
    *("SYNCS.PHASECHK", "NANOSLEEP", "YIELD", "NOP", "WARPSYNC", "BSSY", "BSYNC"),
    *("MOV", "UMOV", "BRA"),
)
MOVES = ("MOV", "UMOV", "IMAD.MOV", "CS2R", "HFMA2.MMA", "HFMA2")
ADDS = ("IADD", "VIADD", "UIADD", "IMAD.IADD", "UVIADD")
ZERO = ("RZ", "URZ")
PREDICATE = re.compile(r"U?P[\dT]")
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "EQ": operator.eq,
    "NE": operator.ne,
}  # fmt: skip
TURNED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "EQ": "EQ", "NE": "NE"}


@dataclass(frozen=True)
class Inner:
    """A loop within the hot loop.

    Attributes:
        first: index of its first instruction, which every way into it passes.
        last: of the branch back.
        body: indices of all its instructions, also of those that were moved elsewhere.
        passes: how often it runs in one pass of what is around it; None: the code does not say.
    """

    first: int
    last: int
    body: frozenset[int]
    passes: int | None


def inner_loops(code: sass.Code, hot: sass.Code) -> tuple[Inner, ...]:
    """Every loop within the hot loop of a function, outer ones first.

    Args:
        code: the whole function.
        hot: what is counted of it, such as `sass.hot_path`.
    """
    counted = {i.index for i in hot}
    ways: dict[int, list[int]] = {}
    bodies: dict[int, frozenset[int]] = {}
    for first, last in sass.loops(code):
        inside = first in counted and last in counted and first != min(counted)
        if inside and (body := sass.natural_loop(code, first, last)):
            ways.setdefault(first, []).append(last)
            bodies[first] = bodies.get(first, frozenset()) | body
    found: list[Inner] = []
    for first, held in sorted(bodies.items(), key=lambda item: -len(item[1])):
        back = ways[first]
        known = passes(code, first, back[0], held) if len(back) == 1 else None
        if all(_waits(code, last, held) for last in back):
            known = 1
        around = prod(loop.passes or 1 for loop in found if first in loop.body)
        if known is not None and known * around > MOST_PASSES:
            known = None
        found.append(Inner(first, max(back), held, known))
    return tuple(found)


def executed(hot: sass.Code, inner: Iterable[Inner]) -> sass.Code:
    """The hot path with each instruction as often as one pass runs it; a loop of unknown passes counts once."""
    found: list[sass.Instruction] = []
    for instruction in hot:
        around = (loop.passes or 1 for loop in inner if instruction.index in loop.body)
        found += [instruction] * prod(around)
    return tuple(found)


def passes(code: sass.Code, first: int, last: int, within: Collection[int]) -> int | None:
    """How often a loop runs; None where its counter, start, step or end cannot be read."""
    body = [code[index] for index in sorted(within)]
    branch = code[last]
    if any(_leaves(i, within) for i in body if i != branch) or _entered(code, within):
        return None
    guard = _guard(branch)
    if guard is None:
        return None
    tests = [i for i in body if _writes(i, guard[2])]
    if len(tests) != 1 or tests[0].predicate:
        return None
    test = re.fullmatch(r"U?P\d, U?PT, ([-\w]+), ([-\w]+), U?PT", ", ".join(operands(tests[0])))
    words = tests[0].opcode.split(".")
    if test is None or words[0] not in ("ISETP", "UISETP") or words[-1] != "AND":
        return None
    compare, counter, end = COMPARISONS.get(words[1]), test[1], number(test[2])
    if end is None:  # the constant may stand first
        compare, counter, end = COMPARISONS.get(TURNED.get(words[1], "")), test[2], number(test[1])
    changes = [i for i in body if _writes(i, counter)]
    step = added(changes[0], counter) if len(changes) == 1 else None
    start = start_of(code, first, counter)
    if not step or start is None or end is None or compare is None:
        return None
    change, tested = changes[0].index, tests[0].index
    if not all(_once(code, index, first, last, within) for index in (change, tested)):
        return None
    change_first = tested in _after(code, change, last, within)
    return run((start, step, end), compare, "U32" in words, guard[1] != "!", change_first)


def run(
    counter: tuple[int, int, int],
    compare: Callable[[int, int], bool],
    unsigned: bool,
    wanted: bool,
    change_first: bool,
) -> int | None:
    """Passes until the test says otherwise; None beyond MOST_PASSES.

    Args:
        counter: start, step and end, of 32 bits.
        compare: the test.
        unsigned: whether it takes both for unsigned.
        wanted: what it has to say for another pass.
        change_first: whether the counter is changed before it is tested.
    """
    value, step, end = counter
    for done in range(1, MOST_PASSES + 1):
        tested = value + step if change_first else value
        value += step
        if compare(_wrapped(tested, unsigned), _wrapped(end, unsigned)) != wanted:
            return done
    return None


def start_of(code: sass.Code, first: int, counter: str) -> int | None:
    """What the counter holds when the loop is entered from above; None where it is no constant there."""
    targets = {t for i in code for t in sass.successors(i) if t != i.index + 1}
    for index in range(first - 1, -1, -1):
        instruction = code[index]
        if _writes(instruction, counter):
            return None if instruction.predicate else moved(instruction)
        if index in targets or instruction.opcode.startswith(("BRA", "CALL", "JMP", *sass.LEAVES)):
            return None
    return None


def moved(instruction: sass.Instruction) -> int | None:
    """The constant that an instruction puts into its register; None if it is none."""
    sources = operands(instruction)[1:]
    if not instruction.is_any(MOVES) or not sources:
        return None
    if instruction.is_any(("HFMA2",)):  # the compiler's other way to make a zero
        return 0 if sources == ["-RZ", "RZ", "0", "0"] else None
    if instruction.is_any(("IMAD.MOV",)) and sources[:2] != ["RZ", "RZ"]:
        return None
    return number(sources[-1])


def added(instruction: sass.Instruction, register: str) -> int | None:
    """The constant that an instruction adds to its own register; None if it does anything else."""
    if instruction.predicate or not instruction.is_any(ADDS) or ".X" in instruction.opcode:
        return None
    sources = [s for s in operands(instruction)[1:] if s not in (*ZERO, "PT", "!PT", "UPT", "!UPT")]
    if instruction.is_any(("IMAD.IADD",)):
        sources = [s for s in sources if s != "0x1"] if sources.count("0x1") == 1 else sources[1:]
    if sources.count(register) != 1 or len(sources) != 2:
        return None
    return number(next(s for s in sources if s != register))


def number(text: str) -> int | None:
    """A constant as the disassembler prints it; None for a register."""
    if text in ZERO:
        return 0
    return int(text, 16) if re.fullmatch(r"-?0x[0-9a-f]+", text) else None


def operands(instruction: sass.Instruction) -> list[str]:
    """Operands, without the marks of reuse."""
    return [text.strip().partition(".")[0] for text in instruction.operands.split(",")]


def _writes(instruction: sass.Instruction, register: str) -> bool:
    """Whether an instruction may write a register or predicate: its first operands are what it writes."""
    names = operands(instruction)
    if instruction.opcode.startswith(("ST", "RED", "BRA", "BAR")):
        return False
    if PREDICATE.fullmatch(register):  # ISETP writes two, IADD3 two behind its result, R2P all
        results = names[:2] if PREDICATE.fullmatch(names[0]) else names[:3]
        return register in results or instruction.is_any(("R2P",))
    found = re.fullmatch(r"(U?R)(\d+)", names[0])
    wanted = re.fullmatch(r"(U?R)(\d+)", register)
    if found is None or wanted is None or found[1] != wanted[1]:
        return False
    return 0 <= int(wanted[2]) - int(found[2]) < _registers(instruction)


def _registers(instruction: sass.Instruction) -> int:
    """How many registers in a row an instruction may write."""
    wide = re.search(r"\.(64|128|256)\b", instruction.opcode)
    if wide:
        return int(wide[1]) // 32
    if instruction.is_any(sass.TENSOR_CORE) or instruction.opcode.startswith(("LDSM", "R2UR")):
        return 4
    return 2 if instruction.is_any((*sass.WIDE_IMAD, "CS2R", "F2F.F64", "DADD", "DFMA")) else 1


def _guard(branch: sass.Instruction) -> re.Match[str] | None:
    """What a branch depends on: "!" or nothing, and the predicate; None where it always branches."""
    guard = re.fullmatch(r"@(!?)(U?P\d)", branch.predicate)
    return guard or re.match(r"(!?)(UP\d),", branch.operands)


def _waits(code: sass.Code, last: int, body: Collection[int]) -> bool:
    """Whether a loop only asks a barrier until it says yes, and does nothing else."""
    guard = _guard(code[last])
    if guard is None or not all(code[i].is_any(IDLE) for i in body):
        return False
    return any(_writes(code[i], guard[2]) for i in body)  # which a question alone does, of IDLE


def _leaves(instruction: sass.Instruction, body: Collection[int]) -> bool:
    """Whether a warp whose lanes are together may leave the loop here."""
    return instruction.is_any((*sass.LEAVES, "CALL")) or any(
        index not in body for index in sass.successors(instruction)
    )


def _entered(code: sass.Code, body: Collection[int]) -> bool:
    """Whether a branch from elsewhere leads into the loop."""
    return any(
        target in body and target != index + 1
        for index in sass.reached(code, 0, set())
        if index not in body
        for target in sass.successors(code[index])
    )


def _once(code: sass.Code, index: int, first: int, last: int, body: Collection[int]) -> bool:
    """Whether every pass of the loop runs an instruction, and runs it once."""
    elsewhere = set(range(len(code))) - set(body)
    skipped = last in sass.reached(code, first, elsewhere | {index})
    return not skipped and index not in _after(code, index, last, body)


def _after(code: sass.Code, index: int, last: int, body: Collection[int]) -> set[int]:
    """What may run after an instruction in the same pass of the loop, before the branch back."""
    avoided = set(range(len(code))) - set(body) | {last}
    following = sass.successors(code[index])
    return set().union(*(sass.reached(code, i, avoided) for i in following))


def _wrapped(value: int, unsigned: bool) -> int:
    """A value as 32 bits hold it."""
    value &= 0xFFFFFFFF
    return value if unsigned or value < 1 << 31 else value - (1 << 32)
