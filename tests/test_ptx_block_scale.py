"""mma.sync with block scales against the fragment tables of the PTX ISA, in exact fractions."""

from __future__ import annotations

import re
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from bench.static.ptx import UnsupportedError
from bench.static.ptx.opcodes import OPCODES
from tests.ptx_text import run

SCALED = sorted(opcode for opcode in OPCODES if "block_scale" in opcode)
LANES = range(32)
NUMBERS = {"e2m1": ml_dtypes.float4_e2m1fn, "e4m3": ml_dtypes.float8_e4m3fn}
BITS = {"e2m1": 4, "e4m3": 8}


def code_at(registers: np.ndarray, lane: int, element: int, bits: int) -> int:
    """Element i of a lane's fragment: i-th field of its registers, the first lowest."""
    per = 32 // bits
    return int(registers[lane, element // per]) >> element % per * bits & (1 << bits) - 1


def number(code: int, kind: str) -> Fraction:
    return Fraction(float(np.array([code], np.uint8).view(NUMBERS[kind])[0]))


def scale(register: int, block: int, kind: str) -> Fraction:
    code = int(register) >> 8 * block & 255
    return Fraction(2) ** (code - 127) if kind == "ue8m0" else number(code & 127, "e4m3")


def execute(opcode: str, registers: list[np.ndarray], select: str = "{0, 0}") -> np.ndarray:
    """Registers of D [32, 4] for those of A, B, C and the two scales, one warp."""
    body, names, first = "", [], 0
    for pointer, part in enumerate(registers):
        count = part.shape[1]
        found = [f"%r{first + i}" for i in range(count)]
        body += f"mul.wide.u32 %q0, %i, {4 * count}; add.s64 %q0, %q0, %d{pointer};\n"
        body += "".join(f"ld.global.b32 {r}, [%q0+{4 * i}];\n" for i, r in enumerate(found))
        names.append(found)
        first += count
    a, b, c, (scale_a,), (scale_b,) = names
    d = [f"%r{first + i}" for i in range(4)]
    vectors = ", ".join("{" + ", ".join(v) + "}" for v in (d, a, b, c))
    body += f"{opcode} {vectors}, {scale_a}, {select}, {scale_b}, {select};\n"
    body += f"mul.wide.u32 %q0, %i, 16; add.s64 %q0, %q0, %d{len(registers)};\n"
    body += "".join(f"st.global.b32 [%q0+{4 * i}], {r};\n" for i, r in enumerate(d))
    out = np.zeros(128, np.uint32)
    run(body, [*(np.ascontiguousarray(r.reshape(-1)) for r in registers), out], 32, 1)
    return out.reshape(32, 4)


def random_registers(opcode: str) -> list[np.ndarray]:
    rng = np.random.default_rng(len(opcode))
    counts = {"a": 4, "b": 2}
    found = [rng.integers(0, 1 << 32, (32, n), dtype=np.uint32) for n in counts.values()]
    if ".e4m3." in opcode:  # no NaN: clear a bit of every exponent
        found = [registers & np.uint32(0xBFBFBFBF) for registers in found]
    c = rng.standard_normal((32, 4)).astype(np.float32).view(np.uint32)
    low, high = (120, 134) if opcode.endswith("ue8m0") else (8, 120)
    scales = [
        rng.integers(low, high, (32, 4), dtype=np.uint8).view(np.uint32).reshape(32, 1)
        for _ in range(2)
    ]
    return [*found, c, *scales]


@pytest.mark.parametrize("opcode", SCALED)
def test_products_are_those_of_the_isas_tables(opcode: str) -> None:
    kind_a, kind_b, _, kind_scale = opcode.split(".")[-4:]
    depth = int(re.search(r"n8k(\d+)", opcode)[1])
    blocks = int(re.search(r"scale_vec::(\d)X", opcode)[1])
    bits, per = BITS[kind_a], 32 // BITS[kind_a]
    a, b, c, scale_a, scale_b = registers = random_registers(opcode)
    left = [[Fraction(0)] * depth for _ in range(16)]
    right = [[Fraction(0)] * 8 for _ in range(depth)]
    for lane in LANES:
        group, thread = lane >> 2, lane % 4
        for i in range(4 * per):
            row = group + 8 * (i // per % 2)
            column = thread * per + i % per + (depth // 2 if i >= 2 * per else 0)
            owner = 4 * (row % 8) + (row >= 8)  # {0, 0}: the first two lanes of the four
            factor = scale(scale_a[owner, 0], column * blocks // depth, kind_scale)
            left[row][column] = number(code_at(a, lane, i, bits), kind_a) * factor
        for i in range(2 * per):
            row = thread * per + i % per + (depth // 2 if i >= per else 0)
            factor = scale(scale_b[4 * group, 0], row * blocks // depth, kind_scale)
            right[row][group] = number(code_at(b, lane, i, bits), kind_b) * factor
    got = execute(opcode, registers).view(np.float32)
    start = c.view(np.float32)
    for lane in LANES:
        for i in range(4):
            row, column = (lane >> 2) + (0 if i < 2 else 8), lane % 4 * 2 + (i & 1)
            exact = Fraction(float(start[lane, i]))
            exact += sum(left[row][k] * right[k][column] for k in range(depth))
            assert got[lane, i] == np.float32(float(exact))


def test_other_selectors_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"selectors \{0, 0\} are expected"):
        execute(SCALED[0], random_registers(SCALED[0]), "{1, 0}")
