"""The table of planted bugs, and what of the emulator catches each.

python -m tests.ptx_mutations          prints it as Markdown
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.static.ptx import Fault
from tests.aot_ptx import Ptx, compile_ptx
from tests.aot_triton import Job
from tests.ptx_by_hand import (
    BY_HAND,
    EXCHANGE,
    HALF_SUM,
    LOOK_UP,
    QUANTIZE,
    REVERSE,
    STAGED,
    TRANSPOSE,
    UNPACK,
    WARP_SUM,
)
from tests.ptx_planting import (
    BARRIER,
    CLEAN,
    FIRST_HALF,
    FIRST_WARP,
    GAP,
    WRONG_RESULT,
    Edit,
    Mutation,
    P,
    R,
    Verdict,
    describe,
    edit,
    judge,
    only_for,
    prepare,
)

# gemv: n = 70 leaves rows of the last program empty, and k = 4608 a part of the last of three steps.
# gemm: n = 72 likewise, and six steps through four stages.
GEMV = Job("fused", "gemv", "int4-g128-zp", "fp16", 70, 4608, 1, 80)
STREAM = Job("stream", "gemv", "int4-g128", "fp16", 70, 4608, 1, 80)
GEMM = Job("fused", "gemm", "int4-g128-zp", "fp16", 72, 768, 16, 80)
BYPASS = Job("bypass", "gemm", "int8-g128", "bf16", 72, 768, 16, 80)
TILE = Job("fused", "gemm", "int4-g128", "bf16", 72, 768, 64, 80)
TARGETS = (80, 86, 89, 90, 120)
CLEAN_JOBS = tuple(
    replace(job, capability=target)
    for job in (GEMV, STREAM, GEMM, BYPASS, TILE)
    for target in TARGETS
)


def on(job: Job, capability: int) -> Job:
    """The same problem for another target."""
    return replace(job, capability=capability)


CLEAN_SUBJECTS = (*CLEAN_JOBS, *BY_HAND)


def shorter(step: int) -> Edit:
    """The loop's test sees a counter that is one step ahead."""
    return edit(
        rf"setp\.lt\.s32 {P}, {R}, {R};({GAP})@\1 bra",
        rf"{{ .reg .b32 %x; add.s32 %x, \2, {step}; setp.lt.s32 \1, %x, \3; }}\4@\1 bra",
        "last",
    )


WGMMA = on(TILE, 90)
SWIZZLED = 64 << 32  # the stride in a descriptor; above it stands the swizzle
WAIT = r"wgmma\.wait_group\.sync\.aligned 0;"
MUTATIONS = (
    # Dequantization and arithmetic
    Mutation("wrong lop3 table", UNPACK, edit("0xEA", "0xE8", "first"), WRONG_RESULT),
    Mutation("wrong magic number", UNPACK, edit("0x64006400", "0x64016400", "last"), WRONG_RESULT),
    Mutation("wrong zero point", UNPACK, edit("0x64086408", "0x64076407"), WRONG_RESULT),
    Mutation(
        "wrong shift of packed codes",
        UNPACK,
        edit(r"shr\.u32 (.*), 8;", r"shr.u32 \1, 7;"),
        WRONG_RESULT,
    ),
    Mutation("wrong entry of the codebook", LOOK_UP, edit("0x0C08", "0x0D08"), WRONG_RESULT),
    Mutation("sign bit left in a selector", LOOK_UP, edit("0x7777", "0xF777"), WRONG_RESULT),
    Mutation(
        "wrong mask",
        GEMV,
        edit(rf"and\.b32 {R}, {R}, 983040;", r"and.b32 \1, \2, 917504;", "every"),
        WRONG_RESULT,
    ),
    Mutation(
        "zero points cut to 3 bits",
        on(GEMV, 90),
        edit(r"and\.b16 (%rs\d+), (%rs\d+), 255;", r"and.b16 \1, \2, 7;", "every"),
        WRONG_RESULT,
    ),
    Mutation(
        "wrong scale index",
        on(GEMV, 120),
        edit(rf"shr\.s32 {R}, {R}, 7;", r"shr.s32 \1, \2, 8;"),
        WRONG_RESULT,
    ),
    Mutation(
        "wrong row stride of the scales",
        on(GEMV, 89),
        edit(rf"mul\.lo\.s32 {R}, {R}, 36;", r"mul.lo.s32 \1, \2, 35;", "every"),
        WRONG_RESULT,
    ),
    Mutation(
        "wrong index of the words",
        GEMV,
        edit(rf"shr\.s32 {R}, {R}, 3;", r"shr.s32 \1, \2, 4;"),
        Fault.MISALIGNED,
    ),
    Mutation(
        "unsigned converted as signed",
        on(GEMV, 90),
        edit(r"cvt\.rn\.f32\.u32", "cvt.rn.f32.s32", "every"),
        WRONG_RESULT,
    ),
    Mutation(
        "fp16 read as bf16",
        on(GEMV, 120),
        edit(r"cvt\.f32\.f16", "cvt.f32.bf16", "every"),
        WRONG_RESULT,
    ),
    Mutation(
        "operands of fma swapped",
        GEMV,
        edit(rf"fma\.rn\.f32 {R}, {R}, {R}, {R};", r"fma.rn.f32 \1, \2, \4, \3;", "first"),
        WRONG_RESULT,
    ),
    Mutation(
        "accumulator dropped",
        on(GEMV, 90),
        edit(rf"fma\.rn\.f32 {R}, {R}, {R}, \1;", r"mul.rn.f32 \1, \2, \3;", "first"),
        WRONG_RESULT,
    ),
    Mutation("loop one trip short", on(GEMV, 89), shorter(2048), WRONG_RESULT),
    Mutation(
        "rounds towards zero",
        QUANTIZE,
        edit(r"cvt\.rni", "cvt.rzi"),
        WRONG_RESULT,
    ),
    Mutation("clamp left out", QUANTIZE, edit(r"min\.s32 %r2, %r2, 127;", ""), WRONG_RESULT),
    # Lanes of a warp
    Mutation(
        "wrong shuffle step",
        on(GEMV, 90),
        edit(rf"bfly\.b32 {R}, {R}, 16,", r"bfly.b32 \1, \2, 8,", "first"),
        Fault.RACE,  # lanes that should agree store different sums
    ),
    Mutation(
        "shuffle under a guard",
        GEMV,
        edit(r"shfl\.sync\.bfly[^;]*;", only_for(FIRST_HALF, r"@%q \g<0>"), "first"),
        Fault.MISSING_LANES,
    ),
    Mutation(
        "shuffle mask without lanes that run it",
        on(GEMV, 120),
        edit(rf"(shfl\.sync\.bfly\.b32 {R}, {R}, 16, 31), -1;", r"\1, 0x0000ffff;", "first"),
        Fault.MISSING_LANES,
    ),
    Mutation(
        "shuffle in a branch, mask names lanes elsewhere",
        HALF_SUM,
        edit("0x0000ffff", "0xffffffff", "first"),
        Fault.MISSING_LANES,
    ),
    Mutation(
        "mask of redux too small",
        STREAM,
        edit(rf"mov\.b32 {R}, -1;", r"mov.b32 \1, 65535;"),
        Fault.MISSING_LANES,
    ),
    Mutation(
        "redux over half a warp",
        WARP_SUM,
        edit(
            r"(redux[^,]*, %r\d+), 0xffffffff;",
            only_for(FIRST_HALF, r"@%q \1, 0x0000ffff; @!%q \1, 0xffff0000;"),
        ),
        WRONG_RESULT,
    ),
    Mutation(
        "redux of the wrong kind",
        WARP_SUM,
        edit(r"redux\.sync\.add", "redux.sync.max"),
        WRONG_RESULT,
    ),
    # Bounds and alignment
    Mutation(
        "last row + 1 is loaded",
        GEMV,
        edit(rf"min\.s32 {R}, {R}, 69;", r"min.s32 \1, \2, 70;", "every"),
        Fault.OUT_OF_BOUNDS,
    ),
    Mutation(
        "mask along k one too long",
        on(GEMV, 90),
        edit(rf"setp\.lt\.s32 {P}, {R}, 576;", r"setp.lt.s32 \1, \2, 577;"),
        Fault.OUT_OF_BOUNDS,
    ),
    Mutation(
        "one row too many is stored",
        on(GEMV, 120),
        edit(rf"setp\.lt\.s32 {P}, {R}, 70;", r"setp.lt.s32 \1, \2, 71;"),
        Fault.OUT_OF_BOUNDS,
    ),
    Mutation(
        "one row too few is stored",
        GEMV,
        edit(rf"setp\.lt\.s32 {P}, {R}, 70;", r"setp.lt.s32 \1, \2, 69;"),
        WRONG_RESULT,
    ),
    Mutation(
        "predicate of a load negated",
        on(GEMV, 89),
        edit(rf"@{P} ld\.global\.v4", r"@!\1 ld.global.v4", "first"),
        WRONG_RESULT,
    ),
    Mutation(
        "predicate of a copy negated",
        on(GEMM, 90),
        edit(rf"selp\.b32 {R}, 16, 0, {P};", r"selp.b32 \1, 0, 16, \2;", "last"),
        Fault.OUT_OF_BOUNDS,
    ),
    Mutation(
        "predicate of a store negated", QUANTIZE, edit("@%p0 st", "@!%p0 st"), Fault.OUT_OF_BOUNDS
    ),
    Mutation(
        "vector load at 4 bytes past a multiple of 16",
        GEMV,
        edit(r"(ld\.global\.v4\.b32 \{[^}]*\}, \[ %rd\d+) \+ 0 \]", r"\1 + 4 ]", "first"),
        Fault.MISALIGNED,
    ),
    Mutation(
        "store beyond shared memory",
        on(GEMV, 90),
        edit(rf"(st\.shared\S* \[\s*{R})[^\]]*\]", r"\1+4096]", "first"),
        Fault.OUT_OF_BOUNDS,
    ),
    # Shared memory and barriers
    Mutation(
        "no barrier between write and read",
        GEMV,
        edit(rf"(st\.shared[^;]*;{GAP}){BARRIER}", r"\1", "first"),
        Fault.RACE,
    ),
    Mutation(
        "no barrier between read and write",
        on(GEMV, 120),
        edit(rf"{BARRIER}({GAP}st\.shared)", r"\1", "first"),
        Fault.RACE,
    ),
    Mutation(
        "one buffer instead of two",
        STAGED,
        edit(r"(add\.u32 (?:%r8, %r2|%r9, %r3)), %r[56];", r"\1, 0;", "every"),
        Fault.RACE,
    ),
    Mutation("reads the stage before", STAGED, edit(r"xor\.b32 %r6[^;]*;", ""), WRONG_RESULT),
    Mutation(
        "wrong row stride in shared memory",
        TRANSPOSE,
        edit(r"mad\.lo\.u32 %r6, %r4, 8", "mad.lo.u32 %r6, %r4, 7"),
        WRONG_RESULT,
    ),
    Mutation(
        "store to shared memory left out",
        on(GEMV, 89),
        edit(r"st\.shared[^;]*;", "", "first"),
        Fault.UNINITIALISED_SHARED,
    ),
    Mutation(
        "accumulator never set to zero",
        GEMM,
        edit(rf"mov\.b32 {R}, 0f00000000;", "", "first"),
        Fault.UNINITIALISED_REGISTER,
    ),
    Mutation(
        "barrier for half of each warp",
        GEMV,
        edit(BARRIER, only_for(FIRST_HALF, r"@%q \g<0>"), "first"),
        Fault.DIVERGENT_BARRIER,
    ),
    Mutation(
        "each warp at a barrier of its own",
        on(GEMV, 90),
        edit(
            BARRIER,
            only_for(FIRST_WARP, "@%q bra $ONE; bar.sync 0; bra $TWO; $ONE: bar.sync 0; $TWO:"),
            "first",
        ),
        Fault.DIVERGENT_BARRIER,
    ),
    Mutation(
        "barrier that one warp skips",
        TRANSPOSE,
        edit(BARRIER, only_for(FIRST_WARP, r"@%q \g<0>")),
        Fault.RACE,
    ),
    Mutation(
        "one warp takes a step more, barriers do not pair up",
        STAGED,
        edit(
            r"(setp\.ne\.u32 %p0, %r5, 0;)",
            r"shl.b32 %r11, %warp, 8; setp.ne.u32 %p0, %r5, %r11;",
        ),
        Fault.DIVERGENT_BARRIER,
    ),
    Mutation(
        "loop whose counter stands still",
        STAGED,
        edit(
            r"xor\.b32 %r5[^;]*; xor[^;]*; add\.s64 %rd3[^;]*; setp\.ne",
            "bar.sync 0; setp.eq",
        ),
        Fault.UNFINISHED,
    ),
    # Asynchronous copies and tensor cores
    Mutation(
        "no wait for the copies",
        GEMM,
        edit(r"cp\.async\.wait_group [1-9];", "", "first"),
        Fault.ASYNC_COPY,
    ),
    Mutation(
        "wait for one group too few",
        on(GEMM, 90),
        edit(r"wait_group 6;", "wait_group 7;"),
        Fault.ASYNC_COPY,
    ),
    Mutation(
        "copies never committed",
        on(GEMM, 120),
        edit(r"cp\.async\.commit_group;", "", "last"),
        Fault.ASYNC_COPY,
    ),
    Mutation(
        "writes where copies are in flight",
        on(GEMM, 89),
        edit(r"cp\.async\.wait_group 0;", ""),
        Fault.ASYNC_COPY,
    ),
    Mutation(
        "reads the stage after",
        GEMM,
        edit(rf"mov\.b32 {R}, -1;", r"mov.b32 \1, 0;"),
        Fault.ASYNC_COPY,
    ),
    Mutation(
        "reader wraps around one stage early",
        on(GEMM, 120),
        edit(rf"(setp\.gt\.s32 {P}, {R}), 3;", r"\1, 2;", "first"),
        Fault.ASYNC_COPY,
    ),
    Mutation(
        "no barrier before a copy into a stage that was read",
        on(GEMM, 90),
        edit(
            rf"(mma\.sync(?:(?!wait_group)[\s\S])*){BARRIER}((?:(?!wait_group)[\s\S])*?cp\.async)",
            r"\1\2",
        ),
        Fault.RACE,
    ),
    Mutation(
        "ldmatrix without .trans",
        on(GEMM, 120),
        edit(r"ldmatrix(\S*)\.trans", r"ldmatrix\1"),
        WRONG_RESULT,
    ),
    Mutation(
        "stmatrix without .trans",
        on(TILE, 120),
        edit(r"stmatrix(\S*)\.trans", r"stmatrix\1", "first"),
        WRONG_RESULT,
    ),
    Mutation(
        "ldmatrix of the wrong rows",
        on(GEMM, 89),
        edit(
            rf"(ldmatrix[^;]*)\[{R}\+16384\];",
            r"{ .reg .b32 %x; xor.b32 %x, \2, 64; \1[%x+16384]; }",
            "first",
        ),
        WRONG_RESULT,
    ),
    Mutation(
        "operands of mma swapped",
        GEMM,
        edit(rf"(mma\S* \{{[^}}]*\}}, \{{ {R}), {R}, {R}, ", r"\1, \4, \3, ", "first"),
        WRONG_RESULT,
    ),
    Mutation(
        "accumulator of mma dropped",
        on(BYPASS, 89),
        edit(
            r"(mma\.sync[^;]*), \{[^{}]*\};",
            r"{ .reg .b32 %x; mov.b32 %x, 0; \1, { %x, %x, %x, %x }; }",
            "last",
        ),
        WRONG_RESULT,
    ),
    Mutation(
        "mma of bf16 on fp16 numbers",
        on(GEMM, 89),
        edit(r"f32\.f16\.f16\.f32", "f32.bf16.bf16.f32", "every"),
        WRONG_RESULT,
    ),
    # Warpgroups
    Mutation(
        "no fence of registers before wgmma",
        WGMMA,
        edit(r"wgmma\.fence\.sync\.aligned;", ""),
        Fault.ASYNC_PRODUCT,
    ),
    Mutation(
        "shared memory not shown to wgmma",
        WGMMA,
        edit(r"fence\.proxy\.async\.shared::cta;", ""),
        Fault.ASYNC_PRODUCT,
    ),
    Mutation("no wait for wgmma", WGMMA, edit(WAIT, "", "last"), Fault.ASYNC_PRODUCT),
    Mutation(
        "wrong swizzle in a descriptor",
        WGMMA,
        edit(f"{SWIZZLED | 1 << 62};", f"{SWIZZLED | 2 << 62};", "first"),
        WRONG_RESULT,
    ),
)

# Lanes of a warp run together and CTAs in a fixed order, and neither is checked for races.
MISSED = (
    Mutation(
        "no barrier between lanes of one warp", EXCHANGE, edit(r"bar\.warp\.sync [^;]*;", ""), CLEAN
    ),
    Mutation("no barrier between uses of global memory", REVERSE, edit(BARRIER, ""), CLEAN),
)


def jobs() -> list[Job]:
    """Every job that the table needs compiled."""
    planted = [m.subject for m in MUTATIONS if isinstance(m.subject, Job)]
    return list(dict.fromkeys([*CLEAN_JOBS, *planted]))


def run_table(
    compiled: Mapping[Job, Ptx], mutations: Sequence[Mutation]
) -> list[tuple[Mutation, Verdict]]:
    """Bugs and what became of each."""
    rows = []
    for mutation in mutations:
        ptx = prepare(compiled, mutation.subject)
        rows.append((mutation, judge(mutation.subject, ptx, mutation.edit(ptx.text))))
    return rows


def markdown(rows: Sequence[tuple[Mutation, Verdict]]) -> str:
    """A table of them."""
    lines = ["| bug | kernel | target | caught by | message |", "|---|---|---|---|---|"]
    for mutation, verdict in rows:
        message = verdict.message.split(" (CTA")[0].removeprefix(f"{verdict.caught} in ")
        cells = (mutation.bug, *describe(mutation.subject), str(verdict.caught), message)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table; 1 if a bug is missed or a clean kernel accused."""
    with tempfile.TemporaryDirectory() as cache:
        compiled = compile_ptx(jobs(), Path(cache))
    rows = run_table(compiled, MUTATIONS)
    surprises = [mutation.bug for mutation, verdict in rows if verdict.caught != mutation.caught]
    prepared = [(subject, prepare(compiled, subject)) for subject in CLEAN_SUBJECTS]
    accused = sum(judge(subject, ptx, ptx.text).caught != CLEAN for subject, ptx in prepared)
    print(markdown(rows))
    print(
        f"\n{len(rows)} bugs, {len(surprises)} not caught as expected{': ' * bool(surprises)}",
        end="",
    )
    print(f"{', '.join(surprises)}; {len(prepared)} clean kernels, {accused} accused wrongly.")
    print("\nKnown to be missed:\n")
    print(markdown(run_table(compiled, MISSED)))
    return 1 if surprises or accused else 0


if __name__ == "__main__":
    sys.exit(main())
