"""Loops within loops: passes that the machine code says, and counts that are only lower bounds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench import sass as command
from bench.static import nesting, sass
from bench.static.audit import audit_code
from bench.static.compile import tool
from bench.static.foreign import audit_binary

APP = typer.Typer()
APP.command()(command.main)

# The loop of ptxas 12.9 for sm_90, below, shortened: 12 passes of five instructions within six.
LISTING = """
UMOV UR4, URZ
MOV R2, UR8
LDG.E.128 R8, desc[UR6][R2.64]
ISETP.LE.U32.AND P1, PT, R0, UR4, PT
MOV R7, RZ
VIADD R7, R7, 0x1
FFMA R5, R8, R5, R9
ISETP.GE.AND P0, PT, R7, 0xc, PT
FFMA R5, R9, R5, R10
@!P0 BRA 0x50
UIADD3 UR8, UP0, UR8, 0x10, URZ
@!P1 BRA 0x10
EXIT
"""


def code(text: str) -> sass.Code:
    found = []
    for line in map(str.strip, text.strip().splitlines()):
        guard, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        opcode, _, operands = rest.partition(" ")
        found.append({"predicate": guard, "opcode": opcode, "operands": operands})
    return sass.parse(found)


def inner_loops(of: sass.Code) -> tuple[nesting.Inner, ...]:
    return nesting.inner_loops(of, sass.hot_path(of))


def passes(*changes: tuple[str, str]) -> int | None:
    text = LISTING
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (inner,) = inner_loops(code(text))
    assert (inner.first, inner.last) == (5, 9)
    return inner.passes


def test_a_nested_loop_by_hand() -> None:
    """Outer: a move, a load, two tests and moves, an addition, a branch; inner: five, twelve times."""
    audit = audit_code("k", 90, code(LISTING), weights=4)
    assert (audit.inner_loops, audit.unknown_loops) == (1, 0)
    assert audit.classes == {
        "int": 3 + 12 * 2, "load": 1, "fp32": 12 * 2, "other": 2 + 12,
    }  # fmt: skip
    assert audit.instructions == 6 + 12 * 5
    assert audit.loads == {128: 1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((), 12),
        ((("0x1\n", "0x5\n"),), 3),  # 5, 10, 15
        ((("MOV R7, RZ", "MOV R7, 0x4"),), 8),
        ((("MOV R7, RZ", "IMAD.MOV.U32 R7, RZ, RZ, 0x4"),), 8),
        ((("MOV R7, RZ", "HFMA2.MMA R7, -RZ, RZ, 0, 0"),), 12),
        ((("VIADD R7, R7, 0x1", "IADD3 R7, R7, 0x4, RZ"),), 3),
        ((("VIADD R7, R7, 0x1", "IMAD.IADD R7, R7, 0x1, 0x4"),), 3),
        ((("VIADD R7, R7, 0x1", "UIADD3 R7, UPT, UPT, R7, 0x4, URZ"),), 3),
        ((("ISETP.GE.AND P0, PT, R7, 0xc, PT", "ISETP.NE.AND P0, PT, R7, 0xc, PT"),
          ("@!P0", "@P0")), 12),
        ((("MOV R7, RZ", "MOV R7, 0x1e"), ("0x1\n", "-0x3\n"), ("GE.AND P0", "GT.AND P0"),
          ("R7, 0xc", "R7, RZ"), ("@!P0", "@P0")), 10),  # 27 ... 0
        ((("ISETP.GE.AND P0, PT, R7, 0xc, PT", "ISETP.LE.AND P0, PT, 0xc, R7, PT"),), 12),
        ((("MOV R7, RZ", "MOV R7, 0x1e"), ("0x1\n", "-0x3\n"), ("GE.AND P0", "GT.U32.AND P0"),
          ("R7, 0xc", "R7, RZ"), ("@!P0", "@P0")), 10),
    ],
)  # fmt: skip
def test_passes_are_read_off_start_step_and_end(
    changes: tuple[tuple[str, str], ...], expected: int
) -> None:
    assert passes(*changes) == expected


def test_a_test_before_the_change_sees_the_old_value() -> None:
    swapped = LISTING.replace("VIADD R7, R7, 0x1", "X").replace(
        "ISETP.GE.AND P0, PT, R7, 0xc, PT", "VIADD R7, R7, 0x1"
    )
    (inner,) = inner_loops(code(swapped.replace("X", "ISETP.GE.AND P0, PT, R7, 0xc, PT")))
    assert inner.passes == 13


@pytest.mark.parametrize(
    "change",
    [
        ("R7, 0xc, PT", "R7, R4, PT"),  # an end in a register
        ("R7, 0xc, PT", "R7, c[0x0][0x210], PT"),  # or in an argument
        ("R7, 0xc, PT", "R7, 0xc, P2"),  # and something else
        ("MOV R7, RZ", "MOV R7, R3"),  # a start that is not known
        ("MOV R7, RZ", "@P2 MOV R7, RZ"),  # or only sometimes
        ("MOV R7, RZ", "LDG.E.64 R6, [R2]"),  # a pair of registers
        ("MOV R7, RZ", "BRA.U UP3, 0x50"),  # or another way in
        ("VIADD R7, R7, 0x1", "VIADD R7, R7, R3"),  # a step that is not
        ("VIADD R7, R7, 0x1", "@P3 VIADD R7, R7, 0x1"),
        ("VIADD R7, R7, 0x1", "SHF.L.U32 R7, R7, 0x1, RZ"),  # no addition
        ("FFMA R5, R8, R5, R9", "VIADD R7, R7, 0x1"),  # two changes
        ("FFMA R5, R8, R5, R9", "@P4 BRA 0xb0"),  # a second way out
        ("FFMA R5, R8, R5, R9", "@P4 EXIT"),
        ("FFMA R5, R8, R5, R9", "ISETP.GE.AND P3, P0, R7, R9, PT"),  # two tests
        ("FFMA R5, R8, R5, R9", "IADD3 R5, P2, P0, R8, R9, R10"),  # or a carry in place of the test
        ("FFMA R5, R8, R5, R9", "R2P PR, R9, 0x7f"),
        ("FFMA R5, R9, R5, R10", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3], R4"),
        ("VIADD R7, R7, 0x1", "VIADD R7, R7, -0x1"),  # 2^31 passes
    ],
)
def test_what_is_not_in_the_code_is_not_guessed(change: tuple[str, str]) -> None:
    assert passes(change) is None
    audit = audit_code("k", 90, code(LISTING.replace(*change)), weights=4)
    assert audit.unknown_loops == 1
    assert audit.instructions == 11  # each once: a lower bound


# A consumer of tiles that come by themselves: every pass of the inner loop waits for one, then multiplies it.
CONSUMER = """
MOV R9, RZ
IADD3 R9, R9, 0x1, RZ
MOV R0, RZ
IMAD.SHL.U32 R3, R0, 0x80000000, RZ
SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR4], R3
@!P2 BRA 0x40
HMMA.16816.F32 R4, R12, R16, R4
VIADD R0, R0, 0x1
ISETP.GE.AND P0, PT, R0, END, PT
@!P0 BRA 0x30
ISETP.GE.AND P1, PT, R9, R21, PT
@!P1 BRA 0x10
EXIT
"""


def test_a_loop_that_does_nothing_but_wait_counts_once_and_is_known() -> None:
    """With the compiler's NOPs and a nap between two questions."""
    asked = (
        "@!P2 NANOSLEEP.SYNCS 0x989680\n@!P2 SYNCS.PHASECHK.TRANS64 P2, [UR4], R3\n@!P2 BRA 0x40"
    )
    text = CONSUMER.replace("@!P2 BRA 0x40", asked).replace("END", "0xc")
    assert [(i.first, i.last, i.passes) for i in inner_loops(code(text))] == [
        (3, 11, 12),
        (4, 7, 1),
    ]


@pytest.mark.parametrize(("end", "multiplied", "unknown"), [("0xc", 12, 0), ("R20", 1, 1)])
def test_a_loop_that_waits_and_works_runs_as_often_as_its_counter_says(
    end: str, multiplied: int, unknown: int
) -> None:
    audit = audit_code("k", 90, code(CONSUMER.replace("END", end)))
    assert (audit.classes["mma"], audit.inner_loops, audit.unknown_loops) == (
        multiplied,
        2,
        unknown,
    )


def test_a_loop_that_starts_with_the_question_it_waits_for() -> None:
    """Both branches lead to one instruction, and how often the longer way is taken is not derived."""
    text = CONSUMER.replace("END", "0xc").replace("@!P0 BRA 0x30", "@!P0 BRA 0x40")
    (inner,) = inner_loops(code(text))
    assert (inner.first, inner.last, inner.passes) == (4, 9, None)


@pytest.mark.parametrize(
    "work", ["LDS R8, [R3]", "FADD R8, R8, R9", "LDG.E R8, [R2]", "IADD3 R8, R8, R9, RZ"]
)
def test_a_loop_that_asks_and_works_does_not_only_wait(work: str) -> None:
    """A question is the way out, but what is done between two of them is done each time."""
    text = CONSUMER.replace("END", "0xc").replace("@!P2 BRA 0x40", f"{work}\n@!P2 BRA 0x40")
    assert [i.passes for i in inner_loops(code(text))] == [12, None]


def test_a_loop_that_asks_but_depends_on_something_else_does_not_wait() -> None:
    text = CONSUMER.replace("END", "0xc").replace("TRYWAIT P2", "TRYWAIT P3")
    assert [i.passes for i in inner_loops(code(text))] == [12, None]


def test_a_change_that_a_branch_may_skip_is_no_step() -> None:
    """The branch leads over the addition: how often the loop runs depends on how often it is taken."""
    text = """
        MOV R9, RZ
        IADD3 R9, R9, 0x1, RZ
        MOV R0, RZ
        @P3 BRA 0x50
        VIADD R0, R0, 0x1
        FFMA R4, R4, R6, R8
        ISETP.GE.AND P0, PT, R0, 0x4, PT
        @!P0 BRA 0x30
        @!P1 BRA 0x10
        EXIT
        """
    for skipping, expected in (("0x50", None), ("0x40", 4), ("0x60", None), ("0x70", None)):
        (inner,) = inner_loops(code(text.replace("@P3 BRA 0x50", f"@P3 BRA {skipping}")))
        assert inner.passes == expected, skipping


def test_a_change_within_another_loop_is_made_more_than_once() -> None:
    """The counter of the outer one moves on in each of the three passes of the inner one."""
    deep = code(
        """
        NOP
        MOV R7, RZ
        MOV R6, RZ
        VIADD R7, R7, 0x1
        VIADD R6, R6, 0x1
        ISETP.LT.AND P0, PT, R6, 0x3, PT
        @P0 BRA 0x30
        ISETP.LT.AND P2, PT, R7, 0x9, PT
        @P2 BRA 0x20
        @P1 BRA 0x10
        EXIT
        """
    )
    assert [i.passes for i in inner_loops(deep)] == [None, 3]


def test_the_order_of_change_and_test_is_that_in_which_they_run() -> None:
    """The change stands behind the test, in a block that was moved there, and yet comes first: 1 ... 12."""
    moved = code(
        """
        NOP
        MOV R7, RZ
        BRA 0x60
        ISETP.GE.AND P0, PT, R7, 0xc, PT
        @!P0 BRA 0x20
        BRA 0x80
        VIADD R7, R7, 0x1
        BRA 0x30
        @P1 BRA 0x10
        EXIT
        """
    )
    (inner,) = inner_loops(moved)
    assert (inner.body, inner.passes) == ({2, 3, 4, 6, 7}, 12)


def three_deep(inner: int, middle: int) -> str:
    """A listing of three loops; the outermost is the hot one, the others run so many times."""
    return f"""
        NOP
        MOV R7, RZ
        MOV R6, RZ
        FFMA R5, R8, R5, R9
        VIADD R6, R6, 0x1
        ISETP.LT.AND P0, PT, R6, {inner:#x}, PT
        @P0 BRA 0x30
        VIADD R7, R7, 0x1
        ISETP.LT.AND P2, PT, R7, {middle:#x}, PT
        @P2 BRA 0x20
        @P1 BRA 0x10
        EXIT
        """


def test_more_passes_than_anybody_means_are_a_lower_bound() -> None:
    """512 x 512 passes: the inner loop counts once in each pass of the outer one."""
    deep = code(three_deep(0x200, 0x200))
    audit = audit_code("k", 90, deep)
    assert (audit.inner_loops, audit.unknown_loops, audit.classes["fp32"]) == (2, 1, 512)


def test_what_a_branch_may_skip_counts_as_often_as_it_runs() -> None:
    """One FFMA of each of the twelve passes; the six instructions around the loop always run."""
    test = "ISETP.GE.AND P0, PT, R7, 0xc, PT"
    text = LISTING.replace(test, "@P4 BRA 0x90").replace("FFMA R5, R8, R5, R9", test)
    audit = audit_code("k", 90, code(text))
    assert (audit.guarded, audit.instructions) == (12, 6 + 12 * 5)


def test_loops_three_deep_multiply() -> None:
    deep = code(three_deep(3, 5))
    audit = audit_code("k", 90, deep)
    assert audit.inner_loops == 2
    assert audit.classes["fp32"] == 15
    assert audit.instructions == 2 + 5 * (4 + 3 * 4)


def test_a_block_that_was_moved_behind_is_no_loop() -> None:
    """The middle of the hot loop, put at its end: it runs once, where its branch is taken."""
    moved = code(
        """
        NOP
        LDG.E.128 R8, [R2]
        @P3 BRA 0x60
        FFMA R5, R8, R5, R9
        FFMA R5, R9, R5, R10
        BRA 0x80
        FADD R6, R6, R7
        BRA 0x40
        @P1 BRA 0x10
        EXIT
        """
    )
    assert sass.loops(moved) == ((4, 7), (1, 8))
    assert inner_loops(moved) == ()
    assert audit_code("k", 90, moved).instructions == 8


def test_two_ways_back_are_not_two_loops() -> None:
    twice = code(LISTING.replace("FFMA R5, R8, R5, R9", "@P4 BRA 0x50"))
    (inner,) = inner_loops(twice)
    assert (inner.first, inner.last, inner.passes) == (5, 9, None)
    to_outer = code(LISTING.replace("UIADD3 UR8, UP0, UR8, 0x10, URZ", "@P4 BRA 0x10"))
    assert [loop.passes for loop in inner_loops(to_outer)] == [12]


PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry sums(.param .u64 words, .param .u64 out, .param .u32 count, .param .u32 many)
{
    .reg .b64 %rd<4>; .reg .f32 %f<8>; .reg .b32 %r<6>; .reg .pred %p, %q;
    ld.param.u64 %rd0, [words]; ld.param.u64 %rd1, [out]; ld.param.u32 %r0, [count];
    ld.param.u32 %r4, [many]; mov.f32 %f4, 0f00000000; mov.u32 %r1, 0;
OUTER:
    .pragma "nounroll";
    ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd0];
    mov.u32 %r2, 30;
INNER:
    .pragma "nounroll";
    fma.rn.f32 %f4, %f0, %f4, %f1; fma.rn.f32 %f4, %f1, %f4, %f2; fma.rn.f32 %f4, %f2, %f4, %f3;
    add.s32 %r2, %r2, -3;
    setp.gt.s32 %q, %r2, END;
    @%q bra INNER;
    add.u64 %rd0, %rd0, 16; add.u32 %r1, %r1, 1;
    setp.lt.u32 %p, %r1, %r0;
    @%p bra OUTER;
    st.global.f32 [%rd1], %f4;
    ret;
}
"""


def built(folder: Path, text: str, capability: int) -> Path:
    (folder / "sums.ptx").write_text(text)
    arch, binary = f"-arch=sm_{capability}", folder / "sums.cubin"
    subprocess.run([tool("ptxas"), arch, folder / "sums.ptx", "-o", binary], check=True)
    return binary


def cubin(folder: Path, end: str) -> Path:
    return built(folder, PTX.replace("END", end), 80)


WAITING = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry consume(.param .u64 out, .param .u32 count, .param .u32 many)
{
    .reg .b64 %rd1; .reg .f32 %f<2>; .reg .b32 %r<6>; .reg .pred %p, %q, %c; .shared .b64 barrier;
    ld.param.u64 %rd1, [out]; ld.param.u32 %r0, [count]; ld.param.u32 %r4, [many];
    mov.f32 %f0, 0f00000000; mov.u32 %r1, 0; mov.u32 %r5, barrier;
OUTER:
    .pragma "nounroll";
    mov.u32 %r2, 0;
INNER:
    .pragma "nounroll";
    ld.shared.f32 %f1, [%r5+16]; and.b32 %r3, %r2, 1;
WAIT:
    mbarrier.try_wait.parity.shared.b64 %c, [%r5], %r3;
    @!%c bra WAIT;
    fma.rn.f32 %f0, %f1, %f0, %f1; fma.rn.f32 %f0, %f1, %f0, %f1;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %q, %r2, END;
    @%q bra INNER;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p, %r1, %r0;
    @%p bra OUTER;
    st.global.f32 [%rd1], %f0;
    ret;
}
"""


@pytest.mark.parametrize("asking", ["try_wait", "test_wait"])
@pytest.mark.parametrize(("end", "products", "unknown"), [("12", 24, 0), ("%r4", 2, 1)])
def test_a_compiled_consumer_works_in_every_pass(
    tmp_path: Path, asking: str, end: str, products: int, unknown: int
) -> None:
    """Of try_wait the compiler asks once where it stands, and again, in a loop, behind the function."""
    text = WAITING.replace("END", end).replace("try_wait", asking)
    (audit,) = audit_binary(built(tmp_path, text, 90), False, "consume", weights=4)
    assert (audit.classes["fp32"], audit.unknown_loops) == (products, unknown)


def test_a_compiled_kernel_with_a_constant_bound(tmp_path: Path) -> None:
    """30, 27, ..., 3 are ten passes of three FFMA, with one load around them."""
    (audit,) = audit_binary(cubin(tmp_path, "0"), False, "sums", weights=4)
    assert (audit.classes["fp32"], audit.loads, audit.unknown_loops) == (30, {128: 1}, 0)


def test_a_compiled_kernel_with_a_bound_at_run_time_is_a_lower_bound(tmp_path: Path) -> None:
    binary = cubin(tmp_path, "%r4")
    (audit,) = audit_binary(binary, False, "sums", weights=4)
    assert (audit.classes["fp32"], audit.unknown_loops) == (3, 1)
    asked = ["--cubin", str(binary), "--weights", "4", "--format", "int4-g128", "--gpu", "a100"]
    done = CliRunner().invoke(APP, asked)
    assert done.exit_code == 0
    assert "≥ sums" in done.output
    assert "a lower bound, or made of one: a loop within the hot loop" in " ".join(
        done.output.split()
    )
    (row,) = json.loads(CliRunner().invoke(APP, [*asked, "--json"]).stdout)["kernels"]
    assert row["ratios"]["a100-80"]["value"] is None
    gate = tmp_path / "gate.toml"
    gate.write_text('[[limit]]\nkernel = "sums"\ntotal = 9')
    done = CliRunner().invoke(APP, [*asked, "--gate", str(gate)])
    assert done.exit_code == 2
    assert "cannot be held against a lower bound" in " ".join(done.stderr.split())
