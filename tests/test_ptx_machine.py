"""Control flow, operands and refusals of the emulator."""

from __future__ import annotations

import gc
import re
import struct
import weakref

import numpy as np
import pytest

from bench.static.ptx import Fault, FaultError, PtxError, UnsupportedError, launch
from bench.static.ptx.machine import Machine
from tests.ptx_text import at, module, run


def out(threads: int, dtype: type = np.uint32) -> np.ndarray:
    return np.zeros(threads, dtype)


def collatz(n: int) -> int:
    steps = 0
    while n != 1:
        n = 3 * n + 1 if n % 2 else n // 2
        steps += 1
    return steps


def test_every_lane_has_its_own_path() -> None:
    """A loop with a branch inside, whose trip count differs from lane to lane."""
    given, steps = np.arange(1, 513, dtype=np.uint32), out(512)
    body = f"""
    {at(0, 4, 0)} {at(1, 4, 1)}
    ld.global.b32 %r0, [%q0];
    mov.b32 %r1, 0;
    LOOP:
    setp.eq.u32 %p0, %r0, 1;
    @%p0 bra DONE;
    add.u32 %r1, %r1, 1;
    and.b32 %r2, %r0, 1;
    setp.eq.u32 %p1, %r2, 0;
    @%p1 bra EVEN;
    mad.lo.u32 %r0, %r0, 3, 1;
    bra LOOP;
    EVEN:
    shr.u32 %r0, %r0, 1;
    bra LOOP;
    DONE:
    st.global.b32 [%q1], %r1;
    """
    report = run(body, [given, steps], 128, 4)
    assert steps.tolist() == [collatz(n) for n in range(1, 513)]
    longest = max(collatz(n) for n in range(1, 513))
    assert report.instructions["setp.eq.u32"] >= 2 * longest  # of the slowest warp


def test_lanes_meet_again_after_a_branch() -> None:
    """The shuffle after the branch needs all of them."""
    result = out(32)
    body = f"""
    {at(0, 4, 0)}
    setp.lt.u32 %p0, %t, 7;
    @%p0 bra LOW;
    mov.b32 %r0, 100;
    bra JOIN;
    LOW: mov.b32 %r0, 200;
    JOIN:
    shfl.sync.idx.b32 %r1, %r0, 3, 31, -1;
    st.global.b32 [%q0], %r1;
    """
    run(body, [result], 32)
    assert result.tolist() == [200] * 32


def test_threads_that_have_left_are_not_waited_for() -> None:
    result = out(64)
    body = f"""
    {at(0, 4, 0)}
    setp.ge.u32 %p0, %t, 32;
    mov.b32 %r0, 1;
    @%p0 exit;
    bar.sync 0;
    st.global.b32 [%q0], %r0;
    """
    run(body, [result], 64)
    assert result.tolist() == [1] * 32 + [0] * 32


def test_a_warp_may_poll_for_what_another_stores() -> None:
    """The polling warp stands at the lower block, but must not keep the other from running."""
    flag, result = out(1), out(64)
    body = f"""
    {at(1, 4, 1)}
    setp.ge.u32 %p0, %t, 32;
    @%p0 bra WRITE;
    POLL:
    ld.global.b32 %r0, [%d0];
    setp.eq.u32 %p1, %r0, 0;
    @%p1 bra POLL;
    st.global.b32 [%q1], %r0;
    bra DONE;
    WRITE:
    mov.b32 %r1, 7;
    st.global.b32 [%d0], %r1;
    DONE:
    """
    run(body, [flag, result], 64)
    assert result.tolist() == [7] * 32 + [0] * 32


def test_guards_and_negated_guards() -> None:
    result = out(32)
    body = f"""
    {at(0, 4, 0)}
    setp.lt.u32 %p0, %t, 10;
    @%p0 mov.b32 %r0, 1;
    @!%p0 mov.b32 %r0, 2;
    st.global.b32 [%q0], %r0;
    """
    run(body, [result], 32)
    assert result.tolist() == [1] * 10 + [2] * 22


def test_blocks_and_grids_of_three_dimensions() -> None:
    """Every special register that says where a thread is; x runs fastest."""
    block, grid = (5, 3, 2), (2, 3, 2)
    names = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    results = np.zeros((12, 30, 12), np.uint32)
    moves = " ".join(f"mov.u32 %r{i}, {name};" for i, name in enumerate(names))
    stores = " ".join(f"st.global.b32 [%q0+{4 * i}], %r{i};" for i in range(12))
    body = f"""
    {moves}
    mad.lo.u32 %r20, %r1, %r3, %r0;
    mul.lo.u32 %r21, %r3, %r4; mad.lo.u32 %r20, %r2, %r21, %r20;
    mad.lo.u32 %r22, %r7, %r9, %r6;
    mul.lo.u32 %r23, %r9, %r10; mad.lo.u32 %r22, %r8, %r23, %r22;
    mad.lo.u32 %r24, %r22, 30, %r20;
    mul.wide.u32 %q0, %r24, 48; add.s64 %q0, %q0, %d0;
    {stores}
    """
    launch(module(body, 1, 30), "k", grid, block, [results])
    for z, y, x in np.ndindex(2, 3, 2):
        for tz, ty, tx in np.ndindex(2, 3, 5):
            found = results[x + 2 * (y + 3 * z), tx + 5 * (ty + 3 * tz)]
            assert found.tolist() == [tx, ty, tz, *block, x, y, z, *grid]


def test_parameters_of_every_kind() -> None:
    """Integers, a float, and a struct passed by value, read in parts."""
    text = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 p, .param .s32 i, .param .f32 f, .param .align 8 .b8 s[24],
                  .param .u16 h)
{
.reg .b16 %h<4>; .reg .b32 %r<8>; .reg .b64 %q<8>;
ld.param.u64 %q0, [p]; ld.param.s32 %r0, [i]; ld.param.f32 %r1, [f];
ld.param.b64 %q1, [s+8]; ld.param.v2.b32 {%r2, %r3}, [s+16]; ld.param.u16 %h0, [h];
cvt.u32.u16 %r4, %h0;
st.global.b32 [%q0], %r0; st.global.f32 [%q0+4], %r1; st.global.b64 [%q0+8], %q1;
st.global.v2.b32 [%q0+16], {%r2, %r3}; st.global.b32 [%q0+24], %r4;
ret;
}
"""
    result = np.zeros(8, np.uint32)
    launch(text, None, 1, 1, [result, -5, 1.5, struct.pack("<qqii", 1, -2, -3, 4), 60000])
    assert result[:1].view(np.int32)[0] == -5
    assert result[1:2].view(np.float32)[0] == 1.5
    assert result[2:4].view(np.int64)[0] == -2
    assert result[4:7].view(np.int32).tolist() == [-3, 4, 60000]


def test_loads_extend_by_the_sign_of_their_type() -> None:
    bytes_ = np.array([0x7F, 0x80, 0xFF, 0x01], np.uint8)
    signed, unsigned = out(4), out(4)
    body = f"""
    {at(0, 1, 0)} {at(1, 4, 1)} {at(2, 4, 2)}
    ld.global.s8 %r0, [%q0]; ld.global.u8 %r1, [%q0];
    st.global.b32 [%q1], %r0; st.global.b32 [%q2], %r1;
    """
    run(body, [bytes_, signed, unsigned], 4)
    assert signed.view(np.int32).tolist() == [127, -128, -1, 1]
    assert unsigned.tolist() == [127, 128, 255, 1]


def test_local_arrays_belong_to_their_thread() -> None:
    result = out(64)
    body = f"""
    .local .align 4 .b8 stack[16];
    {at(0, 4, 0)}
    mov.b64 %q1, stack;
    and.b32 %r0, %t, 3; mul.wide.u32 %q2, %r0, 4; add.s64 %q2, %q1, %q2;
    st.local.b32 [%q1], %t; st.local.b32 [%q1+4], %t; st.local.b32 [%q1+8], %t;
    st.local.b32 [%q1+12], %t; st.local.b32 [%q2], %i;
    ld.local.b32 %r1, [%q1+4];
    st.global.b32 [%q0], %r1;
    """
    run(body, [result], 32, 2)
    assert result.tolist() == [i if i % 4 == 1 else i % 32 for i in range(64)]


def test_inner_scopes_have_registers_of_their_own() -> None:
    result = out(32)
    body = f"""
    {at(0, 4, 0)}
    mov.b32 %r0, 1;
    {{ .reg .b32 %r0; mov.b32 %r0, 5; {{ .reg .b32 x; add.u32 x, %r0, 1; mov.b32 %r1, x; }} }}
    add.u32 %r2, %r0, %r1;
    st.global.b32 [%q0], %r2;
    """
    run(body, [result], 32)
    assert result.tolist() == [7] * 32


def test_ctas_that_have_run_are_freed_without_the_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is off during a launch, and a machine refers to itself."""
    machines: list[weakref.ref[Machine]] = []
    alive = []
    start = Machine.run

    def watched(machine: Machine) -> None:
        alive.append([earlier() is not None for earlier in machines])
        machines.append(weakref.ref(machine))
        start(machine)

    monkeypatch.setattr(Machine, "run", watched)
    run(f"{at(0, 4, 0)} st.global.b32 [%q0], %t;", [out(64 * 1000)], 64, 1000)
    assert alive == [[], [False]]
    assert gc.isenabled()


def test_many_ctas_share_no_memory() -> None:
    """More CTAs than run together, each with its own shared array."""
    result = out(64 * 1000)
    body = f"""
    {at(0, 4, 0)}
    mov.b32 %r0, buffer; shl.b32 %r1, %t, 2; add.u32 %r1, %r0, %r1;
    st.shared.b32 [%r1], %i;
    bar.sync 0;
    xor.b32 %r2, %t, 63; shl.b32 %r2, %r2, 2; add.u32 %r2, %r0, %r2;
    ld.shared.b32 %r3, [%r2];
    st.global.b32 [%q0], %r3;
    """
    report = run(body, [result], 64, 1000, variables=".shared .align 4 .b8 buffer[256];")
    expected = np.arange(64 * 1000).reshape(1000, 64)[:, ::-1].ravel()
    np.testing.assert_array_equal(result, expected)
    assert report.instructions["bar.sync"] == 2000  # warps


@pytest.mark.parametrize(
    ("opcode", "advice"),
    [
        ("tcgen05.alloc.cta_group::1.sync.aligned.b32 [%q0], 32;", "sm_80 or sm_120 build"),
        ("cp.async.bulk.commit_group;", "test the kernel's sm_80 build"),
        ("mbarrier.arrive.shared.b64 %q0, [%r0];", "test the kernel's sm_80 build"),
        ("barrier.cluster.arrive;", "launch without clusters"),
        ("add.rz.ftz.f32 %r0, %r0, %r0;", "not on the whitelist"),
        ("prmt.b32.f4e %r0, %r0, %r0, %r0;", "not on the whitelist"),
        ("call.uni f, ();", "its operand `..` is of no form"),
    ],
)
def test_what_is_not_on_the_whitelist_is_refused(opcode: str, advice: str) -> None:
    with pytest.raises(UnsupportedError, match=advice) as caught:
        run(opcode, [out(1)], 32)
    assert caught.value.opcode == opcode.split()[0].rstrip(";")
    assert module(opcode, 1, 32).splitlines()[caught.value.line - 1].strip() == opcode


@pytest.mark.parametrize(
    "instruction",
    [
        "bar.sync 1;",
        "bar.sync 0, 64;",
        "add.u32 %r0, %q0, 1;",  # a register of the wrong width
        "add.u32 %r0, %t;",  # an operand missing
        "mov.b32 %r0, %clock;",
        "mov.b32 %r0, nowhere;",
        "ld.global.b32 %r0, [nowhere];",
        "cp.async.cg.shared.global [%r0], [%q0], %r0;",
        "cp.async.cg.shared.global [%r0], [%q0], 8;",
        "cp.async.ca.shared.global [%r0], [%q0], 32;",
        "ld.global.v4.b32 {%r0, %r1}, [%q0];",
        "ld.global.b32 {%r0, %r1}, [%q0];",
        "st.global.v2.b32 [%q0], %r0;",
        "lop3.b32 %r0, %t, %t, %t, 0x1EA;",
        "add.u32 %r0, %t, 99999999999;",
        "setp.eq.u32 %r0, %t, 0;",
        "setp.eq.u32 %p0|, %t, 0;",
        "setp.eq.u32 %p0|%p1|%p2, %t, 0;",
        "@%t add.u32 %r0, %t, 1;",
        "add.u32 %x, %t, 1;",
        "ld.global.b32 %r0, [%x];",
        "bra NOWHERE;",
        "ld.param.b32 %r0, [nothing];",
        "mov.b32 {%h0, %h1, %h2}, %r1;",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r1}, [%r2];",
        "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r2], {%r0};",
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%r0, %r1, %r2, %r3}, "
        "{%r4, %r5, %r6, %r7}, {%r8, %r9}, {%r0, %r1, %r2, %r3};",
        ".reg .q7 %x;",
        ".global .b8 x[4];",
    ],
)
def test_operands_of_another_form_are_refused(instruction: str) -> None:
    with pytest.raises(UnsupportedError, match="PTX line"):
        run(instruction, [out(1)], 32)


@pytest.mark.parametrize("body", ["HERE: HERE: ret;", ".reg .b32 %r0;", "ret", "{"])
def test_texts_that_are_no_ptx_are_refused(body: str) -> None:
    """A label or a register twice; no semicolon or no brace at the end."""
    with pytest.raises(PtxError):
        run(body, [out(1)], 32)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("31", 31),
        ("-31", -31),
        ("0x1F", 31),
        ("037", 31),
        ("0b11111", 31),
        ("31U", 31),
        ("0", 0),
        ("0xffffffffffffffe1", -31),
        ("4294967265", -31),
    ],
)
def test_constants_are_read_as_in_c(text: str, number: int) -> None:
    result = out(1)
    run(f"add.s32 %r0, %t, {text}; st.global.b32 [%d0], %r0;", [result], 1)
    assert result.view(np.int32)[0] == number


KINDS_OF_PARAMETERS = """
.version 8.0
.target sm_80
.visible .entry k(.param .u64 p, .param .u32 u, .param .f32 f, .param .b8 s[8]) { ret; }
"""


@pytest.mark.parametrize(
    ("position", "argument", "message"),
    [
        (0, [1, 2], "p is .u64, which"),
        (0, None, "p is .u64, which None is not"),
        (0, 1.0, "p is .u64, which 1.0 is not"),
        (1, out(1), "u is .u32, which"),
        (1, 1 << 40, "u is .u32, which 1099511627776 is not"),
        (1, 1.0, "u is .u32, which 1.0 is not"),
        (2, 1, "f is .f32, which 1 is not"),
        (3, b"1234", "s is a struct of 8 bytes"),
        (3, 8, "s is a struct of 8 bytes"),
    ],
)
def test_arguments_of_another_type_are_refused(
    position: int, argument: object, message: str
) -> None:
    arguments = [out(1), np.uint32(7), np.float32(1.5), bytes(8)]
    launch(KINDS_OF_PARAMETERS, "k", 1, 1, arguments)
    arguments[position] = argument
    with pytest.raises(PtxError, match=re.escape(message)):
        launch(KINDS_OF_PARAMETERS, "k", 1, 1, arguments)


def test_an_array_given_twice_is_one_buffer() -> None:
    both = out(32)
    body = f"{at(0, 4, 0)} {at(1, 4, 1)} st.global.b32 [%q0], %t; ld.global.b32 %r0, [%q1];" + (
        "add.u32 %r0, %r0, 1; st.global.b32 [%q1], %r0;"
    )
    run(body, [both, both], 32)
    assert both.tolist() == list(range(1, 33))
    with pytest.raises(PtxError, match="two of the arrays overlap"):
        run(body, [both[:20], both[10:]], 32)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        (0, 32, 0, "sizes of 1 or more"),
        ((1, 1, 1, 1), 32, 0, "one to three sizes"),
        (1, 0, 0, "sizes of 1 or more"),
        (1, (64, 32), 0, "at most 1024 threads, not 2048"),
        (1, 32, 1 << 20, "0 to 232448 bytes of shared memory"),
        (1, 32, -1, "0 to 232448 bytes of shared memory"),
    ],
)
def test_launches_that_no_gpu_runs_are_refused(
    grid: object, block: object, shared: int, message: str
) -> None:
    with pytest.raises(PtxError, match=message):
        launch(module("", 1, 32), "k", grid, block, [out(1)], shared)


def test_launches_that_do_not_fit_are_refused() -> None:
    text = module("", 1, 32)
    with pytest.raises(PtxError, match=r"an entry named other; the PTX has k\."):
        launch(text, "other", 1, 32, [out(1)])
    with pytest.raises(PtxError, match="k has 1 parameters, but 2 arguments were given"):
        launch(text, "k", 1, 32, [out(1), 0])
    with pytest.raises(PtxError, match="compiled for CTAs of 64 threads"):
        launch(text.replace("a0)\n", "a0)\n.reqntid 64\n"), "k", 1, 32, [out(1)])
    with pytest.raises(PtxError, match="one entry to be named; the PTX has none"):
        launch("hello", None, 1, 32, [])


def test_an_endless_loop_ends() -> None:
    with pytest.raises(FaultError, match="still running") as caught:
        run("HERE: bra HERE;", [out(1)], 32)
    assert caught.value.kind == Fault.UNFINISHED


def test_trap() -> None:
    with pytest.raises(FaultError) as caught:
        run("setp.eq.u32 %p0, %t, 5; @%p0 trap;", [out(1)], 32)
    assert (caught.value.kind, caught.value.thread) == (Fault.TRAP, 5)


def test_a_fault_leaves_the_buffers_alone_and_says_where() -> None:
    """Kernel, instruction, source line, CTA and thread."""
    result = out(32 * 3 + 5)
    body = f"""
    {at(0, 4, 0)}
    .loc 1 17 0 // kernel.py:17:5 @[ kernel.py:40:9 ]
    st.global.b32 [%q0], %i;
    """
    with pytest.raises(FaultError) as caught:
        run(body, [result], 32, 4)
    fault = caught.value
    assert (fault.kind, fault.cta, fault.thread) == (Fault.OUT_OF_BOUNDS, 3, 5)
    assert fault.source == "kernel.py:40"
    assert str(fault).startswith(
        "out of bounds in k at kernel.py:40: global access to bytes 404 to 408 of buffer 0, "
        "which has 404 (CTA 3, thread 5 and 26 more; PTX line "
    )
    assert not result.any()


def test_places_are_followed_to_where_they_were_inlined() -> None:
    """A reduction in a library, called by a helper, called by the kernel; then the helper itself."""
    files = """
    .file 1 "/home/kernel.py"
    .file 2 "/usr/lib/standard.py"
    """
    body = """
    .loc 2 20 5, function_name $L__info_string0, inlined_at 1 40 9 // standard.py:20:5
    .loc 2 10 7, function_name $L__info_string1, inlined_at 2 20 5 // standard.py:10:7
    setp.eq.u32 %p0, %t, 3; @%p0 trap;
    """
    with pytest.raises(FaultError) as caught:
        run(body, [out(1)], 32, variables=files)
    assert caught.value.source == "kernel.py:40"
    with pytest.raises(FaultError) as caught:
        run(body + ".loc 2 20 5 // standard.py:20:5\n trap;", [out(1)], 2, variables=files)
    assert caught.value.source == "standard.py:20"


def test_lines_within_inline_assembly_are_those_of_the_call() -> None:
    body = """
    .loc 1 17 0 // kernel.py:17:5
    // begin inline asm
    .loc 1 18 0 // kernel.py:18:5
    trap;
    // end inline asm
    """
    with pytest.raises(FaultError, match=r"at kernel\.py:17"):
        run(body, [out(1)], 32)


UNDEFINED_USES = {
    "stored": "st.global.b32 [%q0], %r1;",
    "an address": "cvt.u64.u32 %q1, %r1; add.s64 %q1, %q0, %q1; ld.global.b32 %r2, [%q1];",
    "a branch": "setp.eq.u32 %p1, %r1, 0; @%p1 bra OUT; OUT:",
    "after arithmetic": "add.u32 %r2, %r1, 1; xor.b32 %r2, %r2, %r0; st.global.b32 [%q0], %r2;",
    "after a shuffle": "shfl.sync.bfly.b32 %r2, %r1, 16, 31, -1; st.global.b32 [%q0], %r2;",
    "its high half": "mov.b32 {%h0, %h1}, %r1; mov.b32 %r2, {%h0, %h1}; st.global.b32 [%q0], %r2;",
    "one byte": "prmt.b32 %r2, %r0, %r1, 0x3214; st.global.b32 [%q0], %r2;",
    "its sign": "prmt.b32 %r2, %r1, %r0, 0xB654; st.global.b32 [%q0], %r2;",
    "chosen": "setp.eq.u32 %p1, %t, %t; selp.b32 %r2, %r1, %r0, %p1; st.global.b32 [%q0], %r2;",
}
HARMLESS_USES = {
    "not chosen": "selp.b32 %r2, %r1, %r0, %p0; st.global.b32 [%q0], %r2;",
    "no byte": "prmt.b32 %r2, %r0, %r1, 0x3210; st.global.b32 [%q0], %r2;",
    "no byte of the first": "prmt.b32 %r2, %r1, %r0, 0x7654; st.global.b32 [%q0], %r2;",
    "guarded": "add.u32 %r2, %r1, 1; @%p0 st.global.b32 [%q0], %r2;",
    "other half": "mov.b64 %q1, {%r0, %r1}; mov.b64 {%r2, %r3}, %q1; st.global.b32 [%q0], %r2;",
    "overwritten": "mov.b32 %r1, 3; st.global.b32 [%q0], %r1;",
    "shuffled away": "shfl.sync.idx.b32 %r2, %r1, 3, 31, -1; st.global.b32 [%q0], %r2;",
}
PARTLY_DEFINED = f"""
    {at(0, 4, 0)}
    mov.b32 %r0, 5;
    setp.lt.u32 %p0, %t, 8;
    @%p0 mov.b32 %r1, 7;
"""


@pytest.mark.parametrize("use", UNDEFINED_USES)
def test_using_what_was_never_written_is_a_fault(use: str) -> None:
    """%r1 is defined in the first eight lanes only."""
    with pytest.raises(FaultError, match="comes from %r1, which was never written") as caught:
        run(PARTLY_DEFINED + UNDEFINED_USES[use], [out(32)], 32)
    assert caught.value.kind == Fault.UNINITIALISED_REGISTER
    assert caught.value.thread == (0 if use == "after a shuffle" else 8)


@pytest.mark.parametrize("use", HARMLESS_USES)
def test_moving_what_was_never_written_is_none(use: str) -> None:
    result = out(32)
    run(PARTLY_DEFINED + HARMLESS_USES[use], [result], 32)
    stored = {"guarded": 8, "overwritten": 3, "not chosen": 7, "shuffled away": 7}
    assert result[:8].tolist() == [stored.get(use, 5)] * 8
