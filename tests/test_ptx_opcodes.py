"""Every arithmetic opcode that the emulator accepts, bit for bit against `ptx_reference`.

One thread per case: it loads its operands, executes the opcode, and stores the result. An opcode of
the whitelist that has neither a reference nor an error bound fails a test, unless its family is
listed in `TESTED_ELSEWHERE`.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ptx_cases
import pytest
from ptx_reference import (
    FAMILIES,
    FORMATS,
    LOGIC,
    PACKED,
    Reference,
    UnknownOpcodeError,
    reference,
    results,
    width_of,
)

from bench.static.compile import tool
from bench.static.ptx import launch
from bench.static.ptx.compute import expand
from bench.static.ptx.opcodes import OPCODES

BLOCK = 128
FEW = 256  # cases for each constant, and for variants in how operands are written
CONSTANTS = 6  # for each operand of an opcode
TESTED_ELSEWHERE = {
    "memory": {"ld", "st", "cp", "cvta", "createpolicy", "atom", "red", "membar", "fence"},
    "control": {"bra", "ret", "exit", "bar", "barrier", "trap"},
    "warp": {"shfl", "vote", "activemask", "redux"},
    "matrix": {"mma", "wgmma", "ldmatrix", "stmatrix"},
}
NOT_HERE = set().union(*TESTED_ELSEWHERE.values())


def has_reference(opcode: str) -> bool:
    try:
        return bool(reference(opcode))
    except UnknownOpcodeError:
        return False


def is_approximate(opcode: str) -> bool:
    return bool({"approx", "full"} & set(opcode.split(".")))


ARITHMETIC = sorted(opcode for opcode in OPCODES if opcode.split(".")[0] not in NOT_HERE)
EXACT = [opcode for opcode in ARITHMETIC if not is_approximate(opcode)]
COMPARISONS = [opcode for opcode in EXACT if opcode.startswith("setp.")]
APPROXIMATE = [opcode for opcode in ARITHMETIC if is_approximate(opcode)]


# ---- kernels ------------------------------------------------------------------------------------

OUT = 9
LETTERS = {1: "p", 8: "h", 16: "h", 32: "r", 64: "d"}  # a register file per width
ITEMS = {1: np.uint32, 8: np.uint16, 16: np.uint16, 32: np.uint32, 64: np.uint64}
KERNEL = """.version 8.7
.target sm_120
.address_size 64
.visible .entry opcode({parameters})
{{
    .reg .pred %p<10>;
    .reg .b16 %h<10>;
    .reg .b32 %r<14>;
    .reg .b64 %d<31>;
    mov.u32 %r10, %ctaid.x;
    mov.u32 %r11, %ntid.x;
    mov.u32 %r12, %tid.x;
    mad.lo.s32 %r13, %r10, %r11, %r12;
{body}
    ret;
}}
"""


def register(kind: str, index: int) -> str:
    return f"%{LETTERS[width_of(kind)]}{index}"


def stored_bits(kind: str) -> int:
    """Of a result: predicates are stored as 0 or 1, bytes with what extends them to 16 bits."""
    return 32 if kind == "pred" else max(width_of(kind), 16)


def address(index: int, step: int) -> str:
    """Leaves in %d10+index where this thread's items of parameter `index` lie."""
    return f"""
    ld.param.u64 %d{20 + index}, [p{index}];
    cvta.to.global.u64 %d{20 + index}, %d{20 + index};
    mul.wide.s32 %d30, %r13, {step};
    add.s64 %d{10 + index}, %d{20 + index}, %d30;"""


def load(index: int, kind: str) -> str:
    """Operand `index` into the register of its number."""
    width = width_of(kind)
    text = address(index, np.dtype(ITEMS[width]).itemsize)
    if width == 1:
        text += f"\n    ld.global.b32 %r{index}, [%d{10 + index}];"
        return text + f"\n    setp.ne.s32 %p{index}, %r{index}, 0;"
    return text + f"\n    ld.global.b{max(width, 16)} {register(kind, index)}, [%d{10 + index}];"


def store(kind: str, source: str, slot: int) -> str:
    bits, text = stored_bits(kind), ""
    if kind == "pred":
        text, source = f"\n    selp.b32 %r8, 1, 0, {source};", "%r8"
    return f"{text}\n    st.global.b{bits} [%d{10 + OUT}+{slot * bits // 8}], {source};"


@dataclass(frozen=True)
class Line:
    """One execution of the opcode: its destination, its operands, and where the result is."""

    sources: tuple[str, ...]
    target: str
    result: str | None = None


def kernel(rule: Reference, lines: Sequence[Line]) -> tuple[str, list[int]]:
    """PTX that executes all lines on each thread's operands, and which operands it loads."""
    registers = [
        register(kind, i) if kind != "imm8" else "" for i, kind in enumerate(rule.operands)
    ]
    read = {source.removeprefix("!") for line in lines for source in line.sources}
    used = [i for i, name in enumerate(registers) if name in read]
    body = "".join(load(index, rule.operands[index]) for index in used)
    body += address(OUT, stored_bits(rule.result) // 8 * len(lines))
    for slot, line in enumerate(lines):
        body += f"\n    {rule.opcode} {line.target}, {', '.join(line.sources)};"
        body += store(rule.result, line.result or line.target, slot)
    parameters = ", ".join(f".param .u64 p{index}" for index in [*used, OUT])
    return KERNEL.format(parameters=parameters, body=body), used


def execute(rule: Reference, lines: Sequence[Line], columns: Sequence[np.ndarray]) -> np.ndarray:
    """Results, shaped [cases, lines]."""
    text, used = kernel(rule, lines)
    ctas = -(-len(columns[0]) // BLOCK)
    inputs = []
    for index in used:
        width = width_of(rule.operands[index])
        column = widened(columns[index], width) if width == 8 else columns[index]
        inputs.append(np.resize(column, ctas * BLOCK).astype(ITEMS[width]))
    out = np.zeros((ctas * BLOCK, len(lines)), f"u{stored_bits(rule.result) // 8}")
    launch(text, "opcode", (ctas, 1, 1), (BLOCK, 1, 1), [*inputs, out])
    return out[: len(columns[0])]


def widened(column: np.ndarray, width: int) -> np.ndarray:
    """Registers with other bits above the operand's, which an instruction must not look at."""
    return column | ~column << np.uint64(width)


def assert_bits(rule: Reference, got: np.ndarray, operands: Sequence[np.ndarray]) -> None:
    """Not one case may differ."""
    cases = [column.tolist() for column in operands]
    expected = results(rule, cases)
    if rule.result == "s8":
        expected = [extended(value, "s8", 16) for value in expected]
    different = np.nonzero(got != np.array(expected, np.uint64))[0].tolist()
    wrong = [i for i in different if not rule.agrees(int(got[i]), expected[i])]
    shown = [
        f"{rule.opcode}({', '.join(f'{column[i]:#x}' for column in cases)})"
        f" = {expected[i]:#x}, got {got[i]:#x}"
        for i in wrong[:5]
    ]
    assert not wrong, f"{len(wrong)} of {len(got)} wrong: " + "; ".join(shown)


def extended(value: int, kind: str, width: int) -> int:
    """A result in a wider register: signed types repeat their sign."""
    own = width_of(kind)
    negative = kind[0] == "s" and value >> (own - 1)
    return value | (1 << width) - (1 << own) if negative else value


def operand_registers(rule: Reference) -> tuple[str, ...]:
    return tuple(register(kind, index) for index, kind in enumerate(rule.operands))


# ---- exact opcodes ------------------------------------------------------------------------------


def test_nested_braces_of_a_pattern_give_every_opcode_once() -> None:
    assert [*expand("a{,.b}.{c{1,2},d}")] == ["a.c1", "a.c2", "a.d", "a.b.c1", "a.b.c2", "a.b.d"]
    for pattern in ("a{b,c", "a}.b", "a{b,c}}", "}{"):
        with pytest.raises(ValueError, match="not balanced"):
            list(expand(pattern))


def test_every_arithmetic_opcode_has_an_oracle() -> None:
    assert not NOT_HERE & set(FAMILIES)
    assert {opcode.split(".")[0] for opcode in OPCODES} >= NOT_HERE
    for opcode in EXACT:
        assert reference(opcode).opcode == opcode
    missing = [opcode for opcode in APPROXIMATE if opcode.replace(".ftz", "") not in BOUNDS]
    assert not missing


def test_ptxas_accepts_every_opcode(tmp_path: Path) -> None:
    """The kernels of these tests are PTX, not only what the emulator takes for it."""
    kernels = []
    for index, opcode in enumerate([*filter(has_reference, EXACT), *APPROXIMATE]):
        rule = approximate_rule(opcode) if is_approximate(opcode) else reference(opcode)
        sources = ("%r0", "%r1", "%r2", "150") if opcode == "lop3.b32" else operand_registers(rule)
        text, _ = kernel(rule, [Line(sources, register(rule.result, 7))])
        kernels.append(text[text.index(".visible") :].replace(" opcode(", f" kernel{index}("))
    header = text[: text.index(".visible")]
    (tmp_path / "all.ptx").write_text(header + "".join(kernels))
    command = [tool("ptxas"), "-arch=sm_120", "-O0", "-o", tmp_path / "all", tmp_path / "all.ptx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (header + "".join(kernels)).splitlines()
    numbers = sorted({int(number) for number in re.findall(r"line (\d+); error", done.stderr)})
    assert not [lines[number - 1].strip() for number in numbers]
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("opcode", [op for op in EXACT if not op.startswith("lop3")])
def test_opcode_is_exact(opcode: str) -> None:
    """Into a new register, then into the first operand's own if it fits."""
    rule = reference(opcode)
    columns = ptx_cases.operands(rule)
    sources = operand_registers(rule)
    lines = [Line(sources, register(rule.result, 7))]
    if sources[0][:2] == lines[0].target[:2]:
        lines.append(Line(sources, sources[0]))
    assert len(columns[0]) >= 20_000 or len(columns[0]) == 1 << width_of(rule.operands[0])
    got = execute(rule, lines, columns)
    assert_bits(rule, got[:, 0], columns)
    assert np.array_equal(got[:, 0], got[:, -1])


def literal(kind: str, bits: int, as_hexadecimal: bool) -> str:
    """An immediate operand as compilers write it."""
    if kind in ("f32", "f64"):
        return f"0f{bits:08X}" if kind == "f32" else f"0d{bits:016X}"
    if as_hexadecimal:
        return f"{bits:#x}"
    width = width_of(kind)
    return str(bits - (1 << width) if kind[0] == "s" and bits >> (width - 1) else bits)


def constants_of(opcode: str) -> list[int]:
    """Which operands are tested as constants. For setp with a predicate, the plain one stands in."""
    if opcode == "lop3.b32" or not has_reference(opcode):
        return []
    kinds = reference(opcode).operands
    if opcode in COMPARISONS and len(kinds) == 3:
        return []
    return [index for index, kind in enumerate(kinds) if takes_constant(kind)]


def takes_constant(kind: str) -> bool:
    return kind in ("f32", "f64") or (kind[0] in "usb" and kind[1:] in ("16", "32", "64"))


@pytest.mark.parametrize("opcode", [op for op in EXACT if constants_of(op)])
def test_constant_operands(opcode: str) -> None:
    """Each operand in turn is a constant."""
    rule = reference(opcode)
    columns = [column[-FEW:] for column in ptx_cases.operands(rule)]
    sources, target = operand_registers(rule), register(rule.result, 7)
    for index in constants_of(opcode):
        constants = [int(value) for value in columns[index][:CONSTANTS]]
        texts = [literal(rule.operands[index], c, i % 2 == 1) for i, c in enumerate(constants)]
        lines = [Line((*sources[:index], text, *sources[index + 1 :]), target) for text in texts]
        got = execute(rule, lines, columns)
        for slot, constant in enumerate(constants):
            fixed = np.full(len(columns[0]), constant, np.uint64)
            assert_bits(rule, got[:, slot], [*columns[:index], fixed, *columns[index + 1 :]])


@pytest.mark.skipif("lop3.b32" not in OPCODES, reason="lop3.b32 is not emulated")
def test_lop3_with_every_table() -> None:
    rule = reference("lop3.b32")
    columns = [column[:BLOCK] for column in ptx_cases.operands(rule)]
    sources = ("%r0", "%r1", "%r2")
    got = execute(rule, [Line((*sources, str(table)), "%r7") for table in range(256)], columns)
    for table in range(256):
        tables = np.full(BLOCK, table, np.uint64)
        assert_bits(rule, got[:, table], [*columns[:3], tables])


@pytest.mark.parametrize("opcode", COMPARISONS)
def test_second_destination_and_negated_operand_of_setp(opcode: str) -> None:
    """`setp p|q, a, b, c` puts (not (a CMP b)) BOOL c into q; c may be written `!c`."""
    rule = reference(opcode)
    columns = [column[-FEW:] for column in ptx_cases.operands(rule)]
    sources = operand_registers(rule)
    both = Line(sources, "%p7|%p6", "%p6")
    if len(sources) == 2:
        got = execute(rule, [both], columns)
        assert_bits(rule, 1 - got[:, 0], columns)
        return
    got = execute(rule, [both, Line((*sources[:2], f"!{sources[2]}"), "%p7")], columns)
    (combine,) = set(LOGIC) & set(opcode.split("."))
    compared = results(
        reference(opcode.replace(f".{combine}", "")), [x.tolist() for x in columns[:2]]
    )
    for value, c, q in zip(compared, columns[2].tolist(), got[:, 0].tolist(), strict=True):
        assert q == LOGIC[combine](1 - value, c)
    assert_bits(rule, got[:, 1], [*columns[:2], 1 - columns[2]])


def has_wide_form(opcode: str) -> bool:
    """A scalar conversion; bf16 must be in a register of its own size."""
    return opcode.startswith("cvt.") and not re.search(r"x2|bf16", opcode)


@pytest.mark.parametrize("opcode", [op for op in EXACT if has_wide_form(op)])
def test_cvt_between_wider_registers(opcode: str) -> None:
    """9.4.1: the lower bits of the source count; the result is extended to its register."""
    rule = reference(opcode)
    width, result = width_of(rule.operands[0]), rule.result
    mask = (1 << width) - 1
    wide = replace(
        rule,
        operands=("b64",),
        result="b64",
        compute=lambda a: extended(rule(a & mask), result, 64),
    )
    column = ptx_cases.operands(rule)[0][-FEW:]
    column = column if width == 64 else widened(column, width)
    assert_bits(wide, execute(wide, [Line(("%d0",), "%d7")], [column])[:, 0], [column])


PACKS = [("mov.b32", 16, 2), ("mov.b64", 32, 2), ("mov.b64", 16, 4)]


@pytest.mark.parametrize(("opcode", "width", "count"), PACKS)
def test_mov_packs_and_unpacks(opcode: str, width: int, count: int) -> None:
    """9.7.9.5: the first element is the least significant."""
    letter, whole = LETTERS[width], LETTERS[width * count]
    vector = "{" + ", ".join(f"%{letter}{i}" for i in range(count)) + "}"
    swapped = "{" + ", ".join(f"%{letter}{i}" for i in reversed(range(count))) + "}"
    body = address(0, width * count // 8) + address(OUT, width * count // 8)
    body += f"""
    ld.global.b{width * count} %{whole}8, [%d10];
    {opcode} {vector}, %{whole}8;
    {opcode} %{whole}9, {swapped};
    st.global.b{width * count} [%d{10 + OUT}], %{whole}9;"""
    text = KERNEL.format(parameters=f".param .u64 p0, .param .u64 p{OUT}", body=body)
    parts = np.random.default_rng(count).integers(0, 1 << width, (BLOCK, count), dtype=np.uint64)
    given = parts.astype(f"u{width // 8}")
    out = np.zeros_like(given)
    launch(text, "opcode", (1, 1, 1), (BLOCK, 1, 1), [given, out])
    assert np.array_equal(out, given[:, ::-1])


# ---- approximate opcodes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """The ISA's error bound: `ulps` from the correctly rounded result, or relative or absolute."""

    function: np.ufunc
    ulps: int = 0
    relative: float = 0.0
    absolute: float = 0.0
    largest_operand: float = np.inf  # the last one's, up to which the bound holds

    def inside(self, values: Sequence[np.ndarray]) -> np.ndarray:
        return ~(np.isfinite(values[-1]) & (np.abs(values[-1]) > self.largest_operand))


RECIPROCAL_ROOT = np.frompyfunc(lambda x: 1 / np.sqrt(x), 1, 1)
TURN = 2 * np.pi
BOUNDS = {  # 9.7.3.8 div, .13 rcp, .15 sqrt, .16 rsqrt, .18 sin to .22 tanh; 9.7.4.9, 9.7.4.10
    "div.approx.f32": Bound(np.divide, ulps=2, largest_operand=2.0**126),
    "div.full.f32": Bound(np.divide, ulps=2),
    "rcp.approx.f32": Bound(np.reciprocal, ulps=1),
    "sqrt.approx.f32": Bound(np.sqrt, relative=2**-23),
    "rsqrt.approx.f32": Bound(RECIPROCAL_ROOT, relative=2**-22.9),
    "sin.approx.f32": Bound(np.sin, absolute=2**-20.5, largest_operand=TURN),
    "cos.approx.f32": Bound(np.cos, absolute=2**-20.5, largest_operand=TURN),
    "lg2.approx.f32": Bound(np.log2, relative=2**-22, absolute=2**-22),
    "ex2.approx.f32": Bound(np.exp2, ulps=2),
    "tanh.approx.f32": Bound(np.tanh, relative=2**-11),
    **{f"tanh.approx.f16{x2}": Bound(np.tanh, absolute=2**-10.987) for x2 in ("", "x2")},
    **{f"tanh.approx.bf16{x2}": Bound(np.tanh, absolute=2**-8) for x2 in ("", "x2")},
    **{f"ex2.approx.f16{x2}": Bound(np.exp2, relative=2**-9.9) for x2 in ("", "x2")},
    **{f"ex2.approx.bf16{x2}": Bound(np.exp2, relative=2**-7) for x2 in ("", "x2")},
}


def approximate_rule(opcode: str) -> Reference:
    """Only the types of operands and result: there are no exact bits."""
    kind = opcode.split(".")[-1]
    arity = BOUNDS[opcode.replace(".ftz", "")].function.nin
    return Reference(opcode, (kind,) * arity, kind, lambda *bits: 0)


def approximate_inputs(kind: str, arity: int) -> list[np.ndarray]:
    """All bits of a 16-bit format; of f32 the usual cases and the numbers from -8 to 8."""
    rng = np.random.default_rng(arity)
    if kind != "f32":
        return [ptx_cases.exhausted(kind, rng)]
    usual = [ptx_cases.floats(kind, rng, ptx_cases.COUNT) for _ in range(arity)]
    small = rng.uniform(-8, 8, (arity, ptx_cases.COUNT)).astype(np.float32).view(np.uint32)
    return [np.concatenate(pair) for pair in zip(usual, small, strict=True)]


def elements(bits: np.ndarray, kind: str) -> np.ndarray:
    """Of packed registers, one after the other."""
    width = width_of(PACKED.get(kind, kind))
    return bits.astype(f"<u{width_of(kind) // 8}").view(f"<u{width // 8}").astype(np.uint32)


def numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    """Values in float64."""
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float64)
    return (bits << (16 if kind == "bf16" else 0)).view(np.float32).astype(np.float64)


def nearest(exact: np.ndarray, kind: str) -> np.ndarray:
    """Bits of the number next to an exact value."""
    if kind == "f16":
        return exact.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = exact.astype(np.float32).view(np.uint32)
    return bits if kind == "f32" else bits + 0x7FFF + (bits >> 16 & 1) >> 16


def steps(bits: np.ndarray) -> np.ndarray:
    """Of fp32 numbers: their distance from zero, counted in representable numbers."""
    magnitude = (bits & 0x7FFF_FFFF).astype(np.int64)
    return np.where(bits >> 31, -magnitude, magnitude)


def within(bound: Bound, kind: str, got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Whether finite results are close enough, and infinities, zeros and NaNs the right ones."""
    best = nearest(exact, kind)
    if bound.ulps:
        close = np.abs(steps(got) - steps(best)) <= bound.ulps
    else:
        allowed = np.maximum(bound.relative * np.abs(exact), bound.absolute)
        half_quantum = 2.0 ** (FORMATS[kind].quantum - 1)
        close = np.abs(numbers(got, kind) - exact) <= np.maximum(allowed, half_quantum)
    special = ~np.isfinite(exact) | (exact == 0)
    same = np.where(np.isnan(exact), got == FORMATS[kind].nan, got == best)
    return same | (close & ~special)


@pytest.mark.parametrize("opcode", APPROXIMATE)
def test_approximation_keeps_the_isas_bound(opcode: str) -> None:
    bound, kind = BOUNDS[opcode.replace(".ftz", "")], opcode.split(".")[-1]
    element, flushes = PACKED.get(kind, kind), ".ftz" in opcode
    rule = approximate_rule(opcode)
    columns = approximate_inputs(kind, bound.function.nin)
    result = execute(rule, [Line(operand_registers(rule), register(kind, 7))], columns)[:, 0]
    got = elements(result, kind)
    normal = 2.0 ** (FORMATS[element].quantum + FORMATS[element].precision - 1)
    with np.errstate(all="ignore"):
        values = [numbers(elements(column, kind), element) for column in columns]
        if flushes:
            values = [np.where(np.abs(x) < normal, np.copysign(0, x), x) for x in values]
        exact = np.asarray(bound.function(*values), np.float64)
        right = within(bound, element, got, exact) | ~bound.inside(values)
        if flushes:
            size = np.abs(numbers(got, element))
            right = np.where(np.abs(exact) < normal, (size == 0) | (size == normal), right)
    wrong = np.flatnonzero(~right)
    shown = [f"{[float(x[i]) for x in values]} gives {got[i]:#x}" for i in wrong[:5]]
    assert not shown, f"{opcode}: {len(wrong)} of {len(got)} outside the bound: {shown}"
