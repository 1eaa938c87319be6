"""mma.sync, ldmatrix and stmatrix against the fragment tables of the PTX ISA and exact fractions."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from bench.static.ptx import Fault, FaultError, Rounding
from bench.static.ptx.opcodes import OPCODES
from tests.ptx_reference import reference
from tests.ptx_text import run

MMA = sorted(o for o in OPCODES if o.startswith("mma.") and "block_scale" not in o)
WARPS = 160  # 20,480 numbers of D
LANES = range(32)
UNIT = {
    "f16": 13,
    "bf16": 10,
    "e4m3": 6,
    "e5m2": 5,
    "f32": 26,
    "tf32": 13,
    "s8": 0,
    "u8": 0,
    "s32": 0,
}
Place = Callable[[int, int], tuple[int, int]]
BITS = {"f16": 16, "bf16": 16, "s8": 8, "u8": 8, "e4m3": 8, "e5m2": 8, "tf32": 32}


def a_place(lane: int, i: int, depth: int, bits: int) -> tuple[int, int]:
    """Row and column of element a_i ("Matrix Fragments for mma.m16n8k...")."""
    group, thread, per = lane >> 2, lane % 4, 32 // bits
    row = group + 8 * (i // per % 2)
    return row, thread * per + i % per + (depth // 2 if i >= 2 * per else 0)


def b_place(lane: int, i: int, depth: int, bits: int) -> tuple[int, int]:
    """Row and column of element b_i."""
    group, thread, per = lane >> 2, lane % 4, 32 // bits
    return thread * per + i % per + (depth // 2 if i >= per else 0), group


def c_place(lane: int, i: int) -> tuple[int, int]:
    """Row and column of elements c_i and d_i."""
    return (lane >> 2) + (0 if i < 2 else 8), lane % 4 * 2 + (i & 1)


def value(bits: int, kind: str) -> Fraction:
    """The number that bits stand for."""
    exponent_bits, mantissa_bits, bias = {
        "f16": (5, 10, 15), "bf16": (8, 7, 127), "f32": (8, 23, 127),
        "e4m3": (4, 3, 7), "e5m2": (5, 2, 15), "tf32": (8, 23, 127),
    }[kind]  # fmt: skip
    exponent = bits >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = bits & (1 << mantissa_bits) - 1
    if exponent:
        mantissa += 1 << mantissa_bits
    scale = Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits)
    return -mantissa * scale if bits >> exponent_bits + mantissa_bits else mantissa * scale


def finite(rng: np.random.Generator, kind: str, shape: tuple[int, ...], spread: int) -> np.ndarray:
    """Random bits of finite numbers within 2^-spread to 2^spread (or subnormal); any integers."""
    bits = rng.integers(0, 1 << BITS.get(kind, 32), shape, dtype=np.int64)
    if kind in ("s8", "u8", "s32"):
        return bits
    exponent_bits, mantissa_bits, bias = {
        "f16": (5, 10, 15), "bf16": (8, 7, 127), "f32": (8, 23, 127),
        "e4m3": (4, 3, 7), "e5m2": (5, 2, 15), "tf32": (8, 23, 127),
    }[kind]  # fmt: skip
    low, high = max(bias - spread, 0), min(bias + spread, (1 << exponent_bits) - 2)
    exponent = rng.integers(low, high + 1, shape)
    return bits & ~(((1 << exponent_bits) - 1) << mantissa_bits) | exponent << mantissa_bits


def pack(elements: np.ndarray, bits: int) -> np.ndarray:
    """Elements [..., n] into 32-bit registers [..., n * bits / 32], the first one lowest."""
    per = 32 // bits
    parts = elements.reshape(*elements.shape[:-1], -1, per).astype(np.uint64)
    return (parts << (np.arange(per, dtype=np.uint64) * np.uint64(bits))).sum(-1).astype(np.uint32)


def execute(
    opcode: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, **options: Rounding
) -> np.ndarray:
    """Registers of D [warps, 32, n] for those of A, B and C."""
    d = np.zeros_like(c)
    counts = [x.shape[-1] for x in (a, b, c)]
    body, first, names = "", 0, []
    for pointer, count in enumerate(counts):
        registers = [f"%r{first + i}" for i in range(count)]
        body += f"mul.wide.u32 %q0, %i, {4 * count}; add.s64 %q0, %q0, %d{pointer};\n"
        body += "".join(f"ld.global.b32 {r}, [%q0+{4 * i}];\n" for i, r in enumerate(registers))
        names.append("{" + ", ".join(registers) + "}")
        first += count
    results = [f"%r{first + i}" for i in range(counts[2])]
    body += f"{opcode} {{{', '.join(results)}}}, {', '.join(names)};\n"
    body += f"mul.wide.u32 %q0, %i, {4 * counts[2]}; add.s64 %q0, %q0, %d3;\n"
    body += "".join(f"st.global.b32 [%q0+{4 * i}], {r};\n" for i, r in enumerate(results))
    flat = [np.ascontiguousarray(x.reshape(-1)) for x in (a, b, c)]
    run(body, [*flat, out := d.reshape(-1)], 128, len(a) * 32 // 128, **options)
    return out.reshape(c.shape)


def fragments(opcode: str, spread: int) -> tuple[list[np.ndarray], list[str], int]:
    """Random elements of A, B and C [warps, 32, n], their types D, A, B, C, and the depth."""
    depth = int(re.search(r"n8k(\d+)", opcode)[1])
    kinds = opcode.split(".")[-4:]
    rng = np.random.default_rng(depth)
    counts = (16 * depth // 32, 8 * depth // 32, 4)
    elements = [
        finite(rng, kind, (WARPS, 32, count), spread)
        for kind, count in zip(kinds[1:], counts, strict=True)
    ]
    return elements, kinds, depth


def matrices(
    elements: list[np.ndarray], kinds: list[str], depth: int, warp: int
) -> tuple[list[list[Fraction]], list[list[Fraction]], list[list[Fraction]]]:
    """A [16][depth], B [depth][8] and C [16][8] of one warp."""
    a = [[Fraction(0)] * depth for _ in range(16)]
    b = [[Fraction(0)] * 8 for _ in range(depth)]
    c = [[Fraction(0)] * 8 for _ in range(16)]
    places = (
        lambda lane, i: a_place(lane, i, depth, BITS[kinds[1]]),
        lambda lane, i: b_place(lane, i, depth, BITS[kinds[2]]),
        c_place,
    )
    for matrix, place, given, kind in zip((a, b, c), places, elements, kinds[1:], strict=True):
        for lane in LANES:
            for i in range(given.shape[-1]):
                row, column = place(lane, i)
                bits = int(given[warp, lane, i])
                matrix[row][column] = value(bits, kind)
    return a, b, c


def nearest(number: Fraction, kind: str) -> int:
    """Rounded to nearest even: fp32 or fp16 bits, by trying the two neighbours."""
    mantissa_bits, bias, top = {"f32": (23, 127, 254), "f16": (10, 15, 30)}[kind]
    sign = (1 << (31 if kind == "f32" else 15)) if number < 0 else 0
    magnitude = abs(number)
    if not magnitude:
        return 0
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    exponent = max(exponent, 1 - bias)
    unit = Fraction(2) ** (exponent - mantissa_bits)
    steps = round(magnitude / unit)  # Python rounds ties to even
    bits = steps + ((exponent + bias - 1) << mantissa_bits)
    return sign | min(bits, (top + 1) << mantissa_bits)


def scaled(elements: np.ndarray, kind: str) -> np.ndarray:
    """Numbers times 2^UNIT[kind], which makes them integers."""
    if kind in ("s8", "u8", "s32"):
        dtype = {"s8": np.int8, "u8": np.uint8, "s32": np.int32}[kind]
        return elements.astype(dtype).astype(np.int64)
    table = {
        "f16": lambda: elements.astype(np.uint16).view(np.float16),
        "bf16": lambda: (elements.astype(np.uint32) << np.uint32(16)).view(np.float32),
        "tf32": lambda: (elements.astype(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32),
        "f32": lambda: elements.astype(np.uint32).view(np.float32),
        "e4m3": lambda: torch_fp8(elements, torch.float8_e4m3fn),
        "e5m2": lambda: torch_fp8(elements, torch.float8_e5m2),
    }
    numbers = table[kind]().astype(np.float64) * 2.0 ** UNIT[kind]
    integers = numbers.astype(np.int64)
    np.testing.assert_array_equal(integers, numbers)
    return integers


def torch_fp8(codes: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(codes.astype(np.uint8)).view(dtype).float().numpy()


def gather(elements: np.ndarray, place: Place, rows: int, columns: int) -> np.ndarray:
    """The matrices [warps, rows, columns] that fragments [warps, 32, n] are pieces of."""
    matrix = np.zeros((len(elements), rows, columns), np.int64)
    for lane in LANES:
        for i in range(elements.shape[-1]):
            matrix[:, *place(lane, i)] = elements[:, lane, i]
    return matrix


@pytest.mark.parametrize("opcode", MMA)
def test_mma_is_exact_where_the_sum_fits(opcode: str) -> None:
    """Numbers of like size, whose sum of products has at most 53 bits: one correct rounding."""
    elements, kinds, depth = fragments(opcode, spread=3)
    if ".satfinite." in opcode:
        elements[2][:40], elements[2][40:80] = (1 << 31) - 5, (1 << 31) + 5
    registers = [pack(x, BITS.get(kind, 32)) for x, kind in zip(elements, kinds[1:], strict=True)]
    d = execute(opcode, *registers)
    a, b, c = (scaled(x, kind) for x, kind in zip(elements, kinds[1:], strict=True))
    a = gather(a, lambda lane, i: a_place(lane, i, depth, BITS[kinds[1]]), 16, depth)
    b = gather(b, lambda lane, i: b_place(lane, i, depth, BITS[kinds[2]]), depth, 8)
    unit = UNIT[kinds[1]] + UNIT[kinds[2]]
    shift = max(unit, UNIT[kinds[3]])
    c = gather(c, c_place, 16, 8) << shift - UNIT[kinds[3]]
    exact = ((a @ b) << shift - unit) + c
    assert np.abs(exact).max() < 2**53
    if ".satfinite." in opcode:
        assert exact.max() >= 2**31  # else nothing would be clamped
        exact = np.clip(exact, -(2**31), 2**31 - 1)
    if kinds[0] == "s32":
        expected = exact.astype(np.int32).view(np.uint32)
    else:
        dtype, bits = (np.float32, np.uint32) if kinds[0] == "f32" else (np.float16, np.uint16)
        expected = (exact * 2.0**-shift).astype(dtype).view(bits)
    got = d.view(np.uint16) if kinds[0] == "f16" else d
    np.testing.assert_array_equal(gather(got, c_place, 16, 8), expected)


def test_numbers_of_any_size_are_within_float64() -> None:
    """Sums that need more than 53 bits: within 2^-24 of the result and 2^-48 of the largest term."""
    opcode = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    elements, kinds, depth = fragments(opcode, 14)
    registers = [pack(elements[0], 16), pack(elements[1], 16), elements[2].astype(np.uint32)]
    d = execute(opcode, *registers)
    for warp in range(20):
        a, b, c = matrices(elements, kinds, depth, warp)
        for lane in LANES:
            for i in range(4):
                row, column = c_place(lane, i)
                terms = [a[row][k] * b[k][column] for k in range(depth)] + [c[row][column]]
                bound = abs(sum(terms)) / 2**24 + max(map(abs, terms)) / 2**48
                assert abs(value(int(d[warp, lane, i]), "f32") - sum(terms)) <= bound


def truncated(terms: list[Fraction], accumulator: Fraction, extra_bits: int) -> Fraction:
    """One step of the model: align to the largest, cut, add, cut to 24 bits."""

    def exponent(x: Fraction) -> int:
        found = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
        return found - (Fraction(2) ** found > abs(x))

    def cut(x: Fraction, unit: Fraction) -> Fraction:
        return (abs(x) // unit) * unit * (1 if x >= 0 else -1)

    largest = max([*terms, accumulator], key=abs)
    if not largest:
        return Fraction(0)
    unit = Fraction(2) ** (exponent(largest) - 23 - extra_bits)
    total = sum(cut(x, unit) for x in [*terms, accumulator])
    return cut(total, Fraction(2) ** (exponent(total) - 23)) if total else Fraction(0)


@pytest.mark.parametrize("rounding", [Rounding(4, 0), Rounding(8, 1), Rounding(16, 2)])
def test_truncation_model(rounding: Rounding) -> None:
    opcode = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    elements, kinds, depth = fragments(opcode, 10)
    few = [x[:8] for x in elements]
    registers = [pack(few[0], 16), pack(few[1], 16), few[2].astype(np.uint32)]
    d = execute(opcode, *registers, rounding=rounding)
    differs = 0
    for warp in range(8):
        a, b, c = matrices(few, kinds, depth, warp)
        for lane in LANES:
            for i in range(4):
                row, column = c_place(lane, i)
                result = c[row][column]
                for first in range(0, depth, rounding.terms):
                    part = range(first, first + rounding.terms)
                    products = [a[row][k] * b[k][column] for k in part]
                    result = truncated(products, result, rounding.extra_bits)
                assert value(int(d[warp, lane, i]), "f32") == result
                exact = c[row][column] + sum(a[row][k] * b[k][column] for k in range(depth))
                differs += nearest(exact, "f32") != int(d[warp, lane, i])
    assert differs > 100  # else the model would be nothing but rounding


@pytest.mark.parametrize("matrices_moved", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_to_and_from_shared_memory(matrices_moved: int, trans: str) -> None:
    """Lane l gives the row of matrix l / 8; it gets elements 2 (l % 4) and the next of row l / 4."""
    form = f"m8n8.x{matrices_moved}{trans}.shared.b16"
    registers = ", ".join(f"%r{i}" for i in range(matrices_moved))
    given = np.arange(256, dtype=np.uint16)
    loaded = np.zeros((32, matrices_moved), np.uint32)
    stored = np.zeros(256, np.uint16)
    body = f"""
    mov.u32 %r20, buffer;
    mul.wide.u32 %q0, %t, 16; add.s64 %q1, %q0, %d0; add.s64 %q2, %q0, %d2;
    shl.b32 %r21, %t, 4; add.s32 %r22, %r20, %r21; add.s32 %r23, %r22, 512;
    ld.global.v4.b32 {{%r8, %r9, %r10, %r11}}, [%q1];
    st.shared.v4.b32 [%r22], {{%r8, %r9, %r10, %r11}};
    st.shared.v4.b32 [%r23], {{%r8, %r9, %r10, %r11}};
    ldmatrix.sync.aligned.{form} {{{registers}}}, [%r22];
    mul.wide.u32 %q3, %t, {4 * matrices_moved}; add.s64 %q3, %q3, %d1;
    {" ".join(f"st.global.b32 [%q3+{4 * i}], %r{i};" for i in range(matrices_moved))}
    stmatrix.sync.aligned.{form} [%r23], {{{registers}}};
    ld.shared.v4.b32 {{%r8, %r9, %r10, %r11}}, [%r23];
    st.global.v4.b32 [%q2], {{%r8, %r9, %r10, %r11}};
    """
    run(body, [given, loaded, stored], 32, variables=".shared .align 16 .b8 buffer[1024];")
    for lane in LANES:
        for m in range(matrices_moved):
            matrix = given[64 * m : 64 * m + 64].reshape(8, 8)
            matrix = matrix.T if trans else matrix
            pair = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2].astype(np.uint32)
            assert loaded[lane, m] == pair[0] | pair[1] << 16
    np.testing.assert_array_equal(stored, given)  # stmatrix puts back what ldmatrix took


def test_half_a_warp_cannot_multiply() -> None:
    body = """
    mov.b32 %r0, 0;
    setp.lt.u32 %p0, %t, 16; @!%p0 bra OUT;
    mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%r1,%r2,%r3,%r4}, {%r0,%r0}, {%r0}, {%r0,%r0,%r0,%r0};
    OUT:
    """
    with pytest.raises(FaultError, match="all must run it together") as caught:
        run(body, [np.zeros(1, np.uint32)], 32)
    assert caught.value.kind == Fault.MISSING_LANES


def test_oracle_of_one_rounding_agrees_with_that_of_fma() -> None:
    fma = reference("fma.rn.f32")
    rng = np.random.default_rng(3)
    for a, b, c in rng.integers(0, 1 << 31, (2000, 3)).tolist():
        if all(bits >> 23 & 255 not in (0, 255) for bits in (a, b, c)):
            exact = value(a, "f32") * value(b, "f32") + value(c, "f32")
            assert nearest(exact, "f32") == fma(a, b, c)
