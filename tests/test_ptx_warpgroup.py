"""wgmma against the tables of the PTX ISA, and every way to use it too early or too late."""

from __future__ import annotations

from itertools import product

import ml_dtypes
import numpy as np
import pytest

from bench.static.ptx import Fault, FaultError, UnsupportedError
from tests.ptx_text import run

THREADS = 256  # two warpgroups
ROWS = 64
COPIED = 128  # bytes that each thread brings into shared memory
LEFT_START = 16384  # of A in shared memory, in bytes
MODES = {128: 1, 64: 2, 32: 3}
SUFFIX = {
    "f16": "k16.f32.f16.f16",
    "bf16": "k16.f32.bf16.bf16",
    "e4m3": "k32.f32.e4m3.e4m3",
    "s8": "k32.s32.s8.s8",
}
DTYPES = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "s8": np.dtype(np.int8),
}


def place(row: int, byte: int, width: int) -> int:
    """Where a byte of a swizzled row of `width` bytes lies ("Swizzling Modes").

    Said with rows and chunks, not with bits of addresses: chunks of 16 bytes change places by the number of
    the row, of the pair of rows, or of the four rows.
    """
    chunk, within = divmod(byte, 16)
    turn = {128: row % 8, 64: row // 2 % 4, 32: row // 4 % 2}[width]
    return row * width + (chunk ^ turn) * 16 + within


def left_place(lane: int, i: int, kind: str) -> tuple[int, int]:
    """Row within the warp's 16, and column, of element i of A ("Register Fragments for wgmma")."""
    per = 4 // DTYPES[kind].itemsize  # elements of a register
    row = (lane >> 2) + 8 * (i // per % 2)
    return row, lane % 4 * per + i % per + 4 * per * (i // (2 * per))


def result_place(thread: int, i: int) -> tuple[int, int]:
    """Row and column of number i of D, by thread of the warpgroup."""
    row = 16 * (thread // 32) + (thread % 32 >> 2) + 8 * (i // 2 % 2)
    return row, 8 * (i // 4) + thread % 4 * 2 + i % 2


def put(memory: np.ndarray, start: int, matrix: np.ndarray, width: int, step: int) -> None:
    """Write rows [rows, k], as the `step`-th 32 bytes of swizzled rows, into uint8 memory."""
    rows = np.ascontiguousarray(matrix).view(np.uint8)
    for row, byte in product(range(len(rows)), range(32)):
        memory[start + place(row, 32 * step + byte, width)] = rows[row, byte]


def descriptor(start: int, width: int, step: int = 0) -> int:
    """Of a matrix in the swizzled rows that start at a multiple of 1024 bytes."""
    return (start + 32 * step) >> 4 | (8 * width >> 4) << 32 | MODES[width] << 62


def names(first: int, count: int) -> str:
    """A fragment's registers."""
    return "{" + ", ".join(f"%r{first + i}" for i in range(count)) + "}"


def program(columns: int, kind: str, left: str, right: str, keep: int, tail: str) -> str:
    """Loads D into %r0 and on and A into %r56 and on, copies to shared memory, multiplies, stores D."""
    vectors = range(0, COPIED, 16)
    copy = "".join(
        f"ld.global.v4.b32 {names(40, 4)}, [%q0+{i}]; st.shared.v4.b32 [%r60+{i}], {names(40, 4)};\n"
        for i in vectors
    )
    load_d = "".join(f"ld.global.b32 %r{i}, [%q2+{4 * i}];\n" for i in range(columns // 2))
    store_d = "".join(f"st.global.b32 [%q2+{4 * i}], %r{i};\n" for i in range(columns // 2))
    shared = not left.startswith("{")
    opcode = f"wgmma.mma_async.sync.aligned.m64n{columns}{SUFFIX[kind]}"
    return f"""
    mov.b32 %r60, tile; mad.lo.u32 %r60, %t, {COPIED}, %r60;
    mul.wide.u32 %q0, %t, {COPIED}; add.s64 %q0, %q0, %d0;
    {copy}
    mul.wide.u32 %q1, %i, 16; add.s64 %q1, %q1, %d1;
    ld.global.v4.b32 {names(56, 4)}, [%q1];
    mul.wide.u32 %q2, %i, {2 * columns}; add.s64 %q2, %q2, %d2;
    {load_d}
    bar.sync 0;
    fence.proxy.async.shared::cta;
    mov.b64 %q4, {left if shared else 0}; mov.b64 %q5, {right};
    setp.ne.u32 %p0, {keep}, 0;
    wgmma.fence.sync.aligned;
    {opcode} {names(0, columns // 2)}, {"%q4" if shared else left}, %q5, %p0{tail};
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    {store_d}
    """


VARIABLES = f".shared .align 1024 .b8 tile[{THREADS * COPIED}];"


def multiply(
    kind: str,
    columns: int = 16,
    width: int = 128,
    step: int = 0,
    in_registers: bool = True,
    keep: int = 1,
    signs: tuple[int, int] = (1, 1),
    edit: tuple[str, str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """D of both warpgroups [2, 64, columns] as emulated, and as it should be, exactly.

    Args:
        kind: of A and B.
        columns: of D.
        width: bytes of a swizzled row.
        step: which 32 bytes of the rows are multiplied.
        in_registers: whether A is.
        keep: scale-d.
        signs: scale-a and scale-b.
        edit: a text of the program, and what stands there instead.
    """
    rng = np.random.default_rng([columns, width, step])
    depth = 32 // DTYPES[kind].itemsize
    a, b, c = (
        rng.integers(-8, 9, shape)
        for shape in ((2, ROWS, depth), (columns, depth), (2, ROWS, columns))
    )
    a = a if in_registers else np.stack([a[0], a[0]])  # one A in shared memory for both warpgroups
    memory = np.zeros(THREADS * COPIED, np.uint8)
    put(memory, 0, b.astype(DTYPES[kind]), width, step)
    put(memory, LEFT_START, a[0].astype(DTYPES[kind]), width, step)
    number = np.int32 if kind == "s8" else np.float32
    left = np.zeros((THREADS, 16 // DTYPES[kind].itemsize), DTYPES[kind])
    d = np.zeros((THREADS, columns // 2), number)
    for thread in range(THREADS):
        group, within = divmod(thread, 128)
        for i in range(left.shape[1]):
            row, column = left_place(within % 32, i, kind)
            left[thread, i] = a[group, 16 * (within // 32) + row, column]
        for i in range(columns // 2):
            d[thread, i] = c[group, *result_place(within, i)]
    tail = "" if kind == "s8" else f", {signs[0]}, {signs[1]}"
    if kind in ("f16", "bf16"):
        tail += ", 0" if in_registers else ", 0, 0"
    where = names(56, 4) if in_registers else str(descriptor(LEFT_START, width, step))
    text = program(columns, kind, where, str(descriptor(0, width, step)), keep, tail)
    if edit:
        assert edit[0] in text
        text = text.replace(*edit)
    buffers = [memory, left.view(np.uint8).ravel(), d.ravel()]
    run(text, buffers, THREADS, variables=VARIABLES, race=True)
    got = np.zeros((2, ROWS, columns))
    for thread in range(THREADS):
        group, within = divmod(thread, 128)
        for i in range(columns // 2):
            got[group, *result_place(within, i)] = d[thread, i]
    return got, signs[0] * signs[1] * a @ b.T + keep * c


@pytest.mark.parametrize("kind", SUFFIX)
@pytest.mark.parametrize("in_registers", [True, False], ids=["registers", "shared"])
def test_every_type_from_registers_and_from_shared_memory(kind: str, in_registers: bool) -> None:
    got, expected = multiply(kind, in_registers=in_registers)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("width", "step"), [(128, 0), (128, 3), (64, 0), (64, 1), (32, 0)])
@pytest.mark.parametrize("columns", [8, 72])
def test_every_swizzle_and_step_along_the_rows(width: int, step: int, columns: int) -> None:
    got, expected = multiply("bf16", columns, width, step, in_registers=False)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("signs", [(1, -1), (-1, -1)])
def test_scales_of_one_bit(keep: int, signs: tuple[int, int]) -> None:
    got, expected = multiply("f16", keep=keep, signs=signs)
    np.testing.assert_array_equal(got, expected)


def test_products_of_one_d_follow_each_other_without_a_wait() -> None:
    once = "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16"
    again = f"{once} {names(0, 8)}, {names(56, 4)}, %q5, 1, 1, 1, 0;\nwgmma.commit_group.sync.aligned;\n"
    got, expected = multiply("f16", keep=0)
    wait = "wgmma.wait_group.sync.aligned 0;"
    twice, _ = multiply("f16", keep=0, edit=(wait, again + wait))
    np.testing.assert_array_equal(twice, 2 * got)
    later, _ = multiply(
        "f16", keep=0, edit=(wait, f"wgmma.wait_group.sync.aligned 0;\n{again}{wait}")
    )
    np.testing.assert_array_equal(later, 2 * expected)


FENCE, SHOW = "wgmma.fence.sync.aligned;", "fence.proxy.async.shared::cta;"
WAIT, COMMIT = "wgmma.wait_group.sync.aligned 0;", "wgmma.commit_group.sync.aligned;"
STORE = f"st.shared.v4.b32 [%r60], {names(40, 4)};"


@pytest.mark.parametrize(
    ("before", "after", "fault", "detail"),
    [
        (FENCE, "", Fault.ASYNC_PRODUCT, "no wgmma.fence since %r56 was written"),
        (FENCE, f"{FENCE} add.u32 %r57, %r57, 1;", Fault.ASYNC_PRODUCT, "since %r57 was written"),
        (FENCE, f"{FENCE} add.u32 %r3, %r3, 1;", Fault.ASYNC_PRODUCT, "since %r3 was written"),
        (SHOW, "", Fault.ASYNC_PRODUCT, "no fence.proxy.async since the shared memory"),
        (SHOW, f"{SHOW} {STORE} bar.sync 0;", Fault.ASYNC_PRODUCT, "no fence.proxy.async"),
        (WAIT, f"{STORE} {WAIT}", Fault.ASYNC_PRODUCT, "a wgmma reads which nothing has waited"),
        (WAIT, f"add.u32 %r56, %r56, 1; {WAIT}", Fault.ASYNC_PRODUCT, "%r56 was written before"),
        (WAIT, "", Fault.UNINITIALISED_REGISTER, "a wgmma that nothing has waited for"),
        (COMMIT, "", Fault.UNINITIALISED_REGISTER, "a wgmma that nothing has waited for"),
        (WAIT, "wgmma.wait_group.sync.aligned 1;", Fault.UNINITIALISED_REGISTER, "waited for"),
        ("bar.sync 0;", "", Fault.RACE, "another warp wrote the same shared memory"),
        ("mov.b64 %q5, ", "mul.wide.u32 %q5, %t, 16; add.s64 %q5, %q5, ", Fault.ASYNC_PRODUCT,
         "different values of the descriptor"),
        (WAIT, f"setp.lt.u32 %p1, %t, 16; @%p1 bra OUT; {WAIT} OUT:", Fault.MISSING_LANES,
         "must run it together"),
    ],
    ids=str,
)  # fmt: skip
def test_what_comes_too_early_or_too_late(
    before: str, after: str, fault: Fault, detail: str
) -> None:
    with pytest.raises(FaultError, match=detail) as caught:
        multiply("f16", edit=(before, after))
    assert caught.value.kind == fault


def test_undefined_operands_make_d_undefined() -> None:
    load = f"ld.global.v4.b32 {names(56, 4)}, [%q1];"
    with pytest.raises(FaultError, match="%r56, which was never written") as caught:
        multiply("f16", edit=(load, ""))
    assert caught.value.kind == Fault.UNINITIALISED_REGISTER


@pytest.mark.parametrize("right", [descriptor(0, 128) & ~(3 << 62), descriptor(0, 128) | 1 << 49])
def test_other_layouts_are_refused(right: int) -> None:
    with pytest.raises(UnsupportedError, match="nor is a matrix with the descriptor 0x"):
        multiply("f16", edit=(f"mov.b64 %q5, {descriptor(0, 128)}", f"mov.b64 %q5, {right}"))


@pytest.mark.parametrize("tail", [", 1, 1, 1;", ", 2, 1, 0;", ", 1, 1;"])
def test_other_operands_are_refused(tail: str) -> None:
    with pytest.raises(UnsupportedError, match="of another form"):
        multiply("f16", edit=(", %p0, 1, 1, 0;", f", %p0{tail}"))
