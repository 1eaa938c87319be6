"""Atomic operations one lane after another, as Python does them; constant and global arrays."""

from __future__ import annotations

import numpy as np
import pytest

from bench.static.ptx import Fault, FaultError
from tests.ptx_text import at, run

CASES = 20_480
PLACES = 100
MASKS = {"u32": 2**32 - 1, "s32": 2**32 - 1, "b32": 2**32 - 1, "f32": 2**32 - 1}


def signed(value: int, kind: str) -> int:
    bits = int(kind[1:])
    return value - (1 << bits) if kind[0] == "s" and value >> bits - 1 else value


def changed(name: str, kind: str, old: int, b: int, c: int) -> int:
    """The new value, by the table of the ISA; all as unsigned bits."""
    if kind == "f32":
        total = np.uint32(old).view(np.float32) + np.uint32(b).view(np.float32)
        return int(np.float32(total).view(np.uint32))
    bits = int(kind[1:])
    results = {
        "add": lambda: old + b,
        "min": lambda: min(old, b, key=lambda v: signed(v, kind)),
        "max": lambda: max(old, b, key=lambda v: signed(v, kind)),
        "and": lambda: old & b,
        "or": lambda: old | b,
        "xor": lambda: old ^ b,
        "exch": lambda: b,
        "inc": lambda: 0 if old >= b else old + 1,
        "dec": lambda: b if old == 0 or old > b else old - 1,
        "cas": lambda: c if old == b else old,
    }
    return results[name]() & (1 << bits) - 1


OPERATIONS = [
    *[("add", kind) for kind in ("u32", "s32", "u64", "f32")],
    *[(name, kind) for name in ("min", "max") for kind in ("u32", "s32", "u64", "s64")],
    *[(name, kind) for name in ("and", "or", "xor", "exch", "cas") for kind in ("b32", "b64")],
    ("inc", "u32"),
    ("dec", "u32"),
]


@pytest.mark.parametrize(("name", "kind"), OPERATIONS)
def test_atomic_operation(name: str, kind: str) -> None:
    """Many lanes want the same places; each gets what was there when its turn came."""
    rng = np.random.default_rng(7)
    size = int(kind[1:]) // 8
    dtype = f"u{size}"
    if kind == "f32":
        b = (rng.standard_normal(CASES) * 100).astype(np.float32).view(np.uint32)
        c = b
        cells = rng.standard_normal(PLACES).astype(np.float32).view(np.uint32)
    else:
        few = name in ("inc", "dec", "cas")
        top = 5 if few else 1 << 8 * size
        b, c = (rng.integers(0, top, CASES, dtype=np.uint64).astype(dtype) for _ in range(2))
        cells = rng.integers(0, top, PLACES, dtype=np.uint64).astype(dtype)
    places = rng.integers(0, PLACES, CASES, dtype=np.uint32)
    expected, olds = cells.tolist(), []
    for place, first, second in zip(places.tolist(), b.tolist(), c.tolist(), strict=True):
        olds.append(expected[place])
        expected[place] = changed(name, kind, expected[place], first, second)
    register = "%q" if size == 8 else "%r"
    third = f", {register}12" if name == "cas" else ""
    old = np.zeros(CASES, dtype)
    body = f"""
    {at(0, 4, 0)} {at(1, size, 1)} {at(2, size, 2)} {at(3, size, 3)}
    ld.global.b32 %r0, [%q0];
    ld.global.b{8 * size} {register}11, [%q1]; ld.global.b{8 * size} {register}12, [%q2];
    mul.wide.u32 %q4, %r0, {size}; add.s64 %q4, %d4, %q4;
    atom.global.{name}.{kind} {register}13, [%q4], {register}11{third};
    st.global.b{8 * size} [%q3], {register}13;
    """
    after = cells.copy()
    run(body, [places, b, c, old, after], 256, CASES // 256)
    assert old.tolist() == olds
    assert after.tolist() == expected
    if name not in ("exch", "cas"):
        reduced = cells.copy()
        without = body.replace(
            f"atom.global.{name}.{kind} {register}13,", f"red.global.{name}.{kind}"
        )
        without = without.replace(f"st.global.b{8 * size} [%q3], {register}13;", "")
        run(without, [places, b, c, old, reduced], 256, CASES // 256)
        assert reduced.tolist() == expected


@pytest.mark.parametrize(
    "form",
    [
        "atom.global",
        "atom.global.gpu.acq_rel",
        "atom.global.acq_rel.gpu",
        "atom.relaxed.sys.global",
    ],
)
def test_forms_of_nvcc_of_triton_and_of_the_isa(form: str) -> None:
    total = np.zeros(1, np.uint32)
    run(f"{form}.add.u32 %r0, [%d0], 3; membar.gl; fence.acq_rel.gpu;", [total], 64, 5)
    assert total.tolist() == [3 * 320]


def test_subnormal_sums_are_flushed_in_global_memory_only() -> None:
    tiny = np.array([1e-40, 1e-40], np.float32)
    body = """
    .shared .align 4 .b8 cell[4];
    ld.global.b32 %r0, [%d0+4];
    atom.global.add.f32 %r1, [%d0], %r0;
    mov.b32 %r2, cell; st.shared.b32 [%r2], %r0;
    atom.shared.add.f32 %r1, [%r2], %r0;
    ld.shared.b32 %r3, [%r2]; st.global.b32 [%d0+4], %r3;
    """
    run(body, [tiny], 1)
    assert tiny[0] == 0.0
    assert tiny[1] == np.float32(1e-40) + np.float32(1e-40) != 0


COUNT = """
    .shared .align 4 .b8 cell[4];
    mov.b32 %r2, cell; mov.b32 %r3, 0;
    setp.eq.u32 %p0, %t, 0; @%p0 st.shared.b32 [%r2], %r3;
    FIRST
    atom.shared.add.u32 %r4, [%r2], 1;
    SECOND
    ld.shared.b32 %r5, [%r2];
    @%p0 st.global.b32 [%d0], %r5;
"""


def test_atomics_meet_without_a_race_but_plain_accesses_need_a_barrier() -> None:
    total = np.zeros(1, np.uint32)
    for first, second in (("bar.sync 0;", "bar.sync 0;"), ("bar.sync 0;", ""), ("", "bar.sync 0;")):
        body = COUNT.replace("FIRST", first).replace("SECOND", second)
        if first and second:
            run(body, [total], 96)
            assert total.tolist() == [96]
        else:
            with pytest.raises(FaultError) as caught:
                run(body, [total], 96)
            assert caught.value.kind == Fault.RACE


def test_an_atomic_on_shared_memory_that_nothing_wrote() -> None:
    body = ".shared .align 4 .b8 cell[4]; mov.b32 %r2, cell; atom.shared.add.u32 %r4, [%r2], 1;"
    with pytest.raises(FaultError) as caught:
        run(body, [np.zeros(1, np.uint32)], 32)
    assert caught.value.kind == Fault.UNINITIALISED_SHARED


def test_constant_and_global_arrays() -> None:
    """A table in bytes, one in words, a number; a global array is as new for every launch."""
    variables = """
    .const .align 4 .b8 bytes[8] = {0, 0, 128, 63, 0, 0, 0, 64};
    .global .align 4 .u32 words[3] = {7, 0x10};
    .const .f32 half = 0f3F000000;
    """
    out = np.zeros(6, np.uint32)
    body = """
    mov.u64 %q0, bytes; ld.const.f32 %r0, [%q0+4]; ld.const.f32 %r1, [half];
    mov.u64 %q1, words; ld.global.v2.b32 {%r2, %r3}, [%q1]; ld.global.b32 %r4, [words+8];
    st.global.b32 [%q1+8], %r2;
    st.global.v4.b32 [%d0], {%r0, %r1, %r2, %r3}; st.global.b32 [%d0+16], %r4;
    """.replace(".v2.b32 {%r2, %r3}, [%q1]", ".b32 %r2, [%q1]; ld.global.b32 %r3, [%q1+4]")
    for _ in range(2):
        run(body, [out], 1, variables=variables)
        assert out[:2].view(np.float32).tolist() == [2.0, 0.5]
        assert out[2:].tolist() == [7, 16, 0, 0]
    with pytest.raises(FaultError) as caught:
        run("mov.u64 %q0, bytes; ld.const.b32 %r0, [%q0+8];", [out], 1, variables=variables)
    assert caught.value.kind == Fault.OUT_OF_BOUNDS
