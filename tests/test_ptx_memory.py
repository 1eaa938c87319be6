"""Shared memory, asynchronous copies, and the counts of sectors and bank conflicts."""

from __future__ import annotations

import numpy as np
import pytest

from bench.static.ptx import Access, Fault, FaultError
from tests.ptx_text import at, run

SHARED = ".shared .align 128 .b8 buffer[8192];"
BASE = "mov.b32 %r20, buffer;"


def only(report_accesses: tuple[Access, ...], opcode: str) -> Access:
    """The one access with this opcode."""
    (access,) = (access for access in report_accesses if access.opcode == opcode)
    return access


def sectors(positions: list[int], size: int) -> int:
    """Sectors of 32 bytes that one warp touches."""
    return len({(position + byte) // 32 for position in positions for byte in range(size)})


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("neighbours", "mov.u32 %r1, %t;"),
        ("all the same", "mov.b32 %r1, 5;"),
        ("every other", "shl.b32 %r1, %t, 1;"),
        ("a sector each", "shl.b32 %r1, %t, 3;"),
        ("backwards", "sub.u32 %r1, 31, %t;"),
        ("scattered", "mul.lo.u32 %r1, %t, 37; and.b32 %r1, %r1, 255;"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_sectors_of_a_request(name: str, index: str, size: int) -> None:
    """Counted again here from every lane's bytes."""
    body = f"""
    {index} mul.wide.u32 %q0, %r1, {size}; add.s64 %q0, %d0, %q0;
    ld.global.b{8 * size} {"%q1" if size == 8 else "%r2"}, [%q0];
    """
    access = only(run(body, [np.zeros(4096, np.uint8)], 32).accesses, f"ld.global.b{8 * size}")
    indices = {
        "neighbours": range(32),
        "all the same": [5] * 32,
        "every other": range(0, 64, 2),
        "a sector each": range(0, 256, 8),
        "backwards": range(31, -1, -1),
        "scattered": [37 * t & 255 for t in range(32)],
    }[name]
    positions = [size * i for i in indices]
    assert access.requests == 1
    assert access.bytes == 32 * size
    assert access.distinct_bytes == size * len(set(indices))
    assert access.sectors == sectors(positions, size)


def passes(positions: list[int], size: int) -> int:
    """Passes through 32 banks, from the words that each lane wants; by phases of 128 bytes."""
    lanes = min(32, 128 // max(size, 4))
    total = 0
    for first in range(0, len(positions), lanes):
        wanted: dict[int, set[int]] = {}
        for position in positions[first : first + lanes]:
            for word in range(position // 4, -(-(position + size) // 4)):
                wanted.setdefault(word % 32, set()).add(word)
        total += max(map(len, wanted.values()), default=0)
    return total


@pytest.mark.parametrize("stride", [0, 1, 2, 3, 4, 8, 16, 17, 32])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("active", [32, 11])
def test_bank_conflicts(stride: int, size: int, active: int) -> None:
    """Lane l touches `size` bytes at l * stride * size; some lanes may stay away."""
    registers = "{%r4, %r5, %r6, %r7}" if size == 16 else "%q1" if size == 8 else "%r4"
    opcode = "st.shared.v4.b32" if size == 16 else f"st.shared.b{8 * size}"
    body = f"""
    {BASE} mul.lo.u32 %r1, %t, {stride * size}; add.u32 %r1, %r1, %r20;
    mov.b32 %r4, 0; mov.b32 %r5, 0; mov.b32 %r6, 0; mov.b32 %r7, 0; mov.b64 %q1, 0;
    setp.lt.u32 %p0, %t, {active};
    @%p0 {opcode} [%r1], {registers};
    """
    report = run(body, [np.zeros(1, np.uint32)], 32, variables=SHARED.replace("8192", "16384"))
    access = only(report.accesses, opcode)
    positions = [lane * stride * size for lane in range(active)]
    assert access.passes == passes(positions, size)
    assert access.ideal_passes == passes([size * lane for lane in range(active)], size)
    assert report.bank_conflicts == access.passes - access.ideal_passes


def test_rows_of_ldmatrix_may_conflict() -> None:
    """Rows of 16 bytes side by side fill the banks once; 128 bytes apart they all want the same."""
    for stride, expected in ((16, 4), (128, 32), (144, 4)):
        body = f"""
        {BASE} mul.lo.u32 %r1, %t, {stride}; add.u32 %r1, %r1, %r20;
        mov.b32 %r0, 0;
        st.shared.v4.b32 [%r1], {{%r0, %r0, %r0, %r0}};
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r1];
        """
        report = run(body, [np.zeros(1, np.uint32)], 32, variables=SHARED)
        access = only(report.accesses, "ldmatrix.sync.aligned.m8n8.x4.shared.b16")
        assert (access.passes, access.ideal_passes) == (expected, 4)


def test_instructions_are_counted_by_warp() -> None:
    """Three warps, one of which skips the multiplication; a guard does not save the issue."""
    body = """
    setp.lt.u32 %p0, %t, 64;
    @%p0 add.u32 %r1, %t, 1;
    @!%p0 bra OUT;
    mul.lo.u32 %r2, %t, %t;
    OUT:
    """
    report = run(body, [np.zeros(1, np.uint32)], 96, 2)
    assert report.instructions["add.u32"] == 6
    assert report.instructions["mul.lo.u32"] == 4
    assert report.instructions["ret"] == 4  # who branches there has ended already
    assert report.per_weight(96) == report.instructions.total() * 32 / 96


def copy(wanted: str = "") -> str:
    """Every thread copies 16 bytes to its place in shared memory."""
    return f"""
    {BASE} shl.b32 %r1, %t, 4; add.u32 %r1, %r20, %r1;
    {at(0, 16, 0)} {at(1, 16, 1)}
    cp.async.cg.shared.global [%r1], [%q0], 16{wanted};
    """


LOAD = "ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r1]; st.global.v4.b32 [%q1], {%r4, %r5, %r6, %r7};"
OTHERS = "xor.b32 %r8, %t, 32; shl.b32 %r8, %r8, 4; add.u32 %r1, %r20, %r8;"


def copied(body: str, threads: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """What was given, and what the kernel wrote."""
    given = np.random.default_rng(1).integers(0, 1 << 32, (threads, 4), dtype=np.uint32)
    result = np.zeros_like(given)
    run(body, [given, result], threads, variables=SHARED)
    return given, result


def test_a_copy_lands_when_it_is_waited_for() -> None:
    given, result = copied(copy() + "cp.async.commit_group; cp.async.wait_group 0;" + LOAD)
    np.testing.assert_array_equal(result, given)
    given, result = copied(copy() + "cp.async.wait_all;" + LOAD)
    np.testing.assert_array_equal(result, given)


def test_another_thread_needs_the_barrier_too() -> None:
    wait = "cp.async.commit_group; cp.async.wait_group 0;"
    given, result = copied(copy() + wait + "bar.sync 0;" + OTHERS + LOAD)
    np.testing.assert_array_equal(result, np.roll(given, 32, axis=0))
    with pytest.raises(FaultError) as caught:
        copied(copy() + wait + OTHERS + LOAD)
    assert caught.value.kind == Fault.RACE


@pytest.mark.parametrize(
    "wait",
    [
        "",
        "cp.async.commit_group;",
        "cp.async.wait_group 0;",  # never committed
        "cp.async.commit_group; cp.async.wait_group 1;",
    ],
)
@pytest.mark.parametrize("then", [LOAD, "st.shared.b32 [%r1], %t;"])
def test_a_copy_in_flight_may_not_be_touched(wait: str, then: str) -> None:
    with pytest.raises(FaultError) as caught:
        copied(copy() + wait + then)
    assert caught.value.kind == Fault.ASYNC_COPY


def test_groups_land_in_order() -> None:
    """Of three groups, wait_group 1 leaves only the last in flight."""
    steps = ""
    for group in range(3):
        steps += f"add.u32 %r1, %r20, {1024 * group}; add.u32 %r1, %r1, %r9;\n"
        steps += "cp.async.cg.shared.global [%r1], [%q0], 16; cp.async.commit_group;\n"
    start = f"{BASE} shl.b32 %r9, %t, 4; {at(0, 16, 0)} {at(1, 16, 1)}\n"
    read = "cp.async.wait_group 1; add.u32 %r1, %r20, {}; add.u32 %r1, %r1, %r9;" + LOAD
    for offset in (0, 1024):
        given, result = copied(start + steps + read.replace("{}", str(offset), 1))
        np.testing.assert_array_equal(result, given)
    with pytest.raises(FaultError) as caught:
        copied(start + steps + read.replace("{}", "2048", 1))
    assert caught.value.kind == Fault.ASYNC_COPY


@pytest.mark.parametrize("wanted", [0, 4, 12, 16])
def test_what_a_copy_does_not_read_becomes_zero(wanted: int) -> None:
    """The last thread's source may lie beyond the buffer by as much."""
    given, result = copied(copy(f", {wanted}") + "cp.async.wait_all;" + LOAD)
    expected = given.copy()
    expected[:, wanted // 4 :] = 0
    np.testing.assert_array_equal(result, expected)


def test_a_copy_that_reads_nothing_may_point_anywhere() -> None:
    body = (
        copy(", 0")
        .replace("[%q0], 16", "[%q2], 16")
        .replace("cp.async", "mov.b64 %q2, 0; cp.async", 1)
    )
    _, result = copied(body + "cp.async.wait_all;" + LOAD)
    assert not result.any()


WRITE = f"{BASE} shl.b32 %r1, %t, 2; add.u32 %r1, %r20, %r1; st.shared.b32 [%r1], %t;"
OTHER = "xor.b32 %r2, %t, 32; shl.b32 %r2, %r2, 2; add.u32 %r2, %r20, %r2;"
FIRST = f"{BASE} mov.b32 %r3, 1; "


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("read after write", WRITE + OTHER + "ld.shared.b32 %r4, [%r2];"),
        (
            "write after read",
            WRITE + OTHER + "bar.sync 0; ld.shared.b32 %r4, [%r1]; st.shared.b32 [%r2], %t;",
        ),
        ("write after write", WRITE + OTHER + "st.shared.b32 [%r2], %t;"),
        ("two warps at once", FIRST + "st.shared.b32 [%r20], %t;"),
        (
            "write after several warps read it",
            FIRST + "st.shared.b32 [%r20], %r3; bar.sync 0; ld.shared.b32 %r4, [%r20];"
            "setp.ge.u32 %p0, %t, 32; @%p0 st.shared.b32 [%r20], %t;",
        ),
    ],
)
def test_races_between_warps(name: str, body: str) -> None:
    nothing = [np.zeros(1, np.uint32)]
    with pytest.raises(FaultError) as caught:
        run(body, nothing, 64, variables=SHARED)
    assert caught.value.kind == Fault.RACE
    run(body, nothing, 64, variables=SHARED, race=False)


@pytest.mark.parametrize(
    "body",
    [
        WRITE + OTHER + "bar.sync 0; ld.shared.b32 %r4, [%r2];",
        WRITE
        + OTHER
        + "bar.sync 0; ld.shared.b32 %r4, [%r2]; bar.sync 0; st.shared.b32 [%r2], %t;",
        WRITE + "ld.shared.b32 %r4, [%r1]; st.shared.b32 [%r1], %r4;",  # a warp with itself
        FIRST + "st.shared.b32 [%r20], %r3;",  # all write the same value
        WRITE + "bar.sync 0; ld.shared.b32 %r4, [%r20]; ld.shared.b32 %r4, [%r20];",  # all read
    ],
)
def test_no_race(body: str) -> None:
    run(body, [np.zeros(1, np.uint32)], 64, variables=SHARED)


def test_ctas_do_not_race_with_each_other() -> None:
    run(WRITE, [np.zeros(1, np.uint32)], 32, 50, variables=SHARED)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (
            Fault.UNINITIALISED_SHARED,
            f"{BASE} ld.shared.b32 %r4, [%r20]; st.global.b32 [%d0], %r4;",
        ),
        (
            Fault.UNINITIALISED_SHARED,
            WRITE + "ld.shared.v2.b32 {%r4, %r5}, [%r20+256]; add.u32 %r6, %r5, 1;"
            "st.global.b32 [%d0], %r6;",
        ),
        (
            Fault.UNINITIALISED_SHARED,
            f"{BASE} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r4}}, [%r20];",
        ),
        (Fault.OUT_OF_BOUNDS, f"{BASE} ld.shared.b32 %r4, [%r20+8192];"),
        (Fault.OUT_OF_BOUNDS, f"{BASE} ld.shared.b32 %r4, [%r20+-4];"),
        (Fault.MISALIGNED, f"{BASE} ld.shared.b32 %r4, [%r20+2];"),
        (Fault.MISALIGNED, "ld.global.b64 %q1, [%d0+4];"),
        (Fault.OUT_OF_BOUNDS, "ld.global.b32 %r4, [%d0+-4];"),
        (Fault.OUT_OF_BOUNDS, "ld.global.v2.b32 {%r4, %r5}, [%d0+16];"),
        (Fault.OUT_OF_BOUNDS, "mov.b64 %q1, 0; ld.global.b32 %r4, [%q1];"),
        (Fault.OUT_OF_BOUNDS, ".local .align 8 .b8 x[8]; ld.local.b64 %q1, [x+8];"),
        (
            Fault.DIVERGENT_BARRIER,
            "setp.lt.u32 %p0, %t, 7; @%p0 bra A; bar.sync 0; A: mov.b32 %r0, 0;",
        ),
        (
            Fault.DIVERGENT_BARRIER,
            "setp.lt.u32 %p0, %t, 32; @%p0 bra A; bar.sync 0; bra B; A: bar.sync 0; B: mov.b32 %r0, 0;",
        ),
    ],
)
def test_faults_of_memory_and_barriers(kind: Fault, body: str) -> None:
    with pytest.raises(FaultError) as caught:
        run(body, [np.zeros(5, np.uint32)], 64, variables=SHARED)
    assert caught.value.kind == kind


def test_loading_more_than_was_written_is_no_fault() -> None:
    """The ragged end of a vector load; only the part that is there is used."""
    result = np.zeros(1, np.uint32)
    body = f"{BASE} st.shared.b32 [%r20], %t; ld.shared.v2.b32 {{%r4, %r5}}, [%r20];"
    run(body + "st.global.b32 [%d0], %r4;", [result], 1, variables=SHARED)


def test_threads_that_are_about_to_end_are_not_missed() -> None:
    """An early return, then a barrier and a shuffle: both concern those who have not left."""
    result = np.zeros(64, np.uint32)
    body = f"""
    {at(0, 4, 0)}
    setp.ge.u32 %p0, %t, 40; @%p0 bra OUT;
    bar.sync 0;
    shfl.sync.bfly.b32 %r0, %t, 1, 31, -1;
    st.global.b32 [%q0], %r0;
    OUT:
    """
    run(body, [result], 64)
    assert result.tolist() == [t ^ 1 for t in range(40)] + [0] * 24


@pytest.mark.parametrize("barrier", ["bar.sync", "barrier.sync.aligned"])
def test_nothing_runs_past_a_barrier(barrier: str) -> None:
    """What one warp reads behind it, another wrote before it, on a longer way."""
    result = np.zeros(64, np.uint32)
    body = f"""
    {at(0, 4, 0)} {BASE} shl.b32 %r1, %t, 2; add.u32 %r1, %r20, %r1; {OTHER}
    st.shared.b32 [%r1], %t; {barrier} 0; ld.shared.b32 %r4, [%r2];
    {barrier} 0; st.shared.b32 [%r1], %r4; st.global.b32 [%q0], %r4;
    """
    run(body, [result], 64, variables=SHARED)
    assert result.tolist() == [t ^ 32 for t in range(64)]


@pytest.mark.parametrize(
    "body",
    [
        "st.shared.b32 [%r20], %t;",
        "shl.b32 %r1, %t, 3; mul.wide.u32 %q1, %r1, 2; add.s64 %q1, %d0, %q1;"
        "cp.async.cg.shared.global [%r20], [%q1], 16;",
    ],
)
def test_lanes_of_one_instruction_may_not_disagree(body: str) -> None:
    with pytest.raises(FaultError, match="another value to the same place") as caught:
        run(BASE + body, [np.arange(128, dtype=np.uint32)], 32, variables=SHARED)
    assert caught.value.kind == Fault.RACE


def test_addresses_of_32_bits_wrap() -> None:
    """As in s[63 - i]: below the array, then forward by a constant."""
    result = np.zeros(64, np.uint32)
    body = f"""
    {at(0, 4, 0)} {WRITE} bar.sync 0;
    shl.b32 %r2, %t, 2; sub.u32 %r2, %r20, %r2; ld.shared.b32 %r3, [%r2+252];
    st.global.b32 [%q0], %r3;
    """
    run(body, [result], 64, variables=SHARED)
    assert result.tolist() == list(range(63, -1, -1))


def test_barriers_that_are_not_strict() -> None:
    """Hardware since sm_70 counts threads, wherever they arrive."""
    result = np.zeros(64, np.uint32)
    body = f"""
    {at(0, 4, 0)}
    setp.lt.u32 %p0, %t, 7; @%p0 bra A; mov.b32 %r0, 1; bar.sync 0; bra B;
    A: mov.b32 %r0, 2; bar.sync 0; B: st.global.b32 [%q0], %r0;
    """
    run(body, [result], 64, strict=False)
    assert result.tolist() == [2] * 7 + [1] * 57


def test_warps_that_never_come_leave_the_others_waiting() -> None:
    """Lanes wait inside a loop for others of their CTA that have already left the kernel's barrier."""
    body = """
    setp.lt.u32 %p0, %t, 32; @%p0 bra A; bar.sync 0; bar.sync 0; bra B; A: bar.sync 0; B:
    """
    with pytest.raises(FaultError) as caught:
        run(body, [np.zeros(1, np.uint32)], 64)
    assert caught.value.kind == Fault.DIVERGENT_BARRIER


def test_a_buffer_may_be_empty_or_read_only() -> None:
    given = np.arange(4, dtype=np.uint32)
    given.flags.writeable = False
    result = np.zeros(4, np.uint32)
    body = f"{at(0, 4, 0)} {at(1, 4, 1)} ld.global.b32 %r0, [%q0]; st.global.b32 [%q1], %r0;"
    run(body, [given, result, np.zeros(0, np.uint8)], 4)
    assert result.tolist() == [0, 1, 2, 3]
