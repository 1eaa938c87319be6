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


def passes(*changes: tuple[str, str]) -> int | None:
    text = LISTING
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (inner,) = nesting.inner_loops(code(text))
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
    (inner,) = nesting.inner_loops(code(swapped.replace("X", "ISETP.GE.AND P0, PT, R7, 0xc, PT")))
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
        ("VIADD R7, R7, 0x1", "VIADD R7, R7, -0x1"),  # 2^31 passes
    ],
)
def test_what_is_not_in_the_code_is_not_guessed(change: tuple[str, str]) -> None:
    assert passes(change) is None
    audit = audit_code("k", 90, code(LISTING.replace(*change)), weights=4)
    assert audit.unknown_loops == 1
    assert audit.instructions == 11  # each once: a lower bound


def test_a_loop_that_waits_counts_once_and_is_known() -> None:
    change = ("FFMA R5, R8, R5, R9", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3], R4")
    assert passes(change, ("ISETP.GE.AND P0, PT, R7, 0xc, PT", "NOP")) == 1


def test_loops_three_deep_multiply() -> None:
    deep = code(
        """
        NOP
        MOV R7, RZ
        MOV R6, RZ
        FFMA R5, R8, R5, R9
        VIADD R6, R6, 0x1
        ISETP.LT.AND P0, PT, R6, 0x3, PT
        @P0 BRA 0x30
        VIADD R7, R7, 0x1
        ISETP.LT.AND P2, PT, R7, 0x5, PT
        @P2 BRA 0x20
        @P1 BRA 0x10
        EXIT
        """
    )
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
    assert nesting.inner_loops(moved) == ()
    assert audit_code("k", 90, moved).instructions == 8


def test_two_ways_back_are_not_two_loops() -> None:
    twice = code(LISTING.replace("FFMA R5, R8, R5, R9", "@P4 BRA 0x50"))
    (inner,) = nesting.inner_loops(twice)
    assert (inner.first, inner.last, inner.passes) == (5, 9, None)
    to_outer = code(LISTING.replace("UIADD3 UR8, UP0, UR8, 0x10, URZ", "@P4 BRA 0x10"))
    assert [loop.passes for loop in nesting.inner_loops(to_outer)] == [12]


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


def cubin(folder: Path, end: str) -> Path:
    (folder / "sums.ptx").write_text(PTX.replace("END", end))
    subprocess.run(
        [tool("ptxas"), "-arch=sm_80", folder / "sums.ptx", "-o", folder / "sums.cubin"], check=True
    )
    return folder / "sums.cubin"


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
    assert "a lower bound: a loop within the hot loop" in " ".join(done.output.split())
    (row,) = json.loads(CliRunner().invoke(APP, [*asked, "--json"]).stdout)["kernels"]
    assert row["ratios"]["a100-80"]["value"] is None
    gate = tmp_path / "gate.toml"
    gate.write_text('[[limit]]\nkernel = "sums"\ntotal = 9')
    done = CliRunner().invoke(APP, [*asked, "--gate", str(gate)])
    assert done.exit_code == 2
    assert "cannot be held against a lower bound" in " ".join(done.stderr.split())
