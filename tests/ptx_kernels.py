"""The suite's Triton kernels, emulated: which, on which targets and shapes, and a table of them.

A *cell* is one kernel (arm and variant), format, batch and target. All of them are the product; what
`make test` runs covers it, `make proof` runs it whole. To save time, a cell is run with one
of the two activations: they alternate, such that every kernel, format and batch meets both, each on two
targets. Stages that multiply nothing read no x: a batch only chooses how they are cut, and they take one per
format and target, in turn. Of the widest batch a format takes one target, in turn.

The product is compiled for the size that is audited, 4096 x 14336: what is executed is what is counted, and
little more is compiled to see that nothing more spills than is known. Shapes that fill no tile are a second,
smaller product: every kernel and *kind* of format, each on one target in turn; of `fused` every second batch,
of what is `fused` without some of its parts one batch, in turn. Formats of one kind differ only in the size of
their groups. Where a board is known `gemm` cuts its tiles for it: those tiles are a third product, cut down
likewise. Codes of 1 and 3 bits run out of registers: `gemv` has them with both activations on every target, at
the batches where registers are scarcest.

python -m tests.ptx_kernels          the covering subset that `make test` runs
python -m tests.ptx_kernels --all    everything that `make proof` runs
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

from kernels.formats import FORMATS, WeightFormat, find_format
from kernels.kernel import PRODUCTS, Kernel
from kernels.triton import KERNELS
from kernels.triton.plan import ACTIVATIONS
from tests.aot_triton import BoardJob, Job
from tests.ptx_cells import AUDITED, COMPILED_ONLY, SQUARE, Outcome, run_all

TARGETS = (80, 89, 90, 120)
BATCHES = (1, 3, 16, 17)
WIDE = 72  # rows of x: two tiles of the widest that gemm has, the second not full
ODD = (2, 5, 9)  # rows of x: tiles of gemv that BATCHES leave out; the first of upcast's gemm
RAGGED = {"gemv": (9, 5248), "gemm": (41, 1280)}  # n, k: last rows and steps that are not whole
TIGHT = {"gemv": (1, 16), "gemm": (WIDE,)}  # batches with a cap, and with the most sums
SCARCE = ("int1-g128", "int3-g128")  # formats whose kernels have spilled
CUTS = (  # rows of x and multiprocessors, and the tile of 4096 rows of W that they lead to
    (65, 132),  # 64 x 64, a stage more
    (33, 132),  # 32 x 64
    (17, 132),  # 16 x 64
    (17, 300),  # 16 x 32, of four warps
    (16, 132),  # 16 x 16
)

READ_NO_X = ("stream", "unpack", "scale")
PARTIAL = (*READ_NO_X, "bypass")  # `fused` without some of its parts

Stage = tuple[str, str]  # arm and variant
Cell = tuple[str, str, str, int, int]  # arm, variant, format, batch, target


@cache
def kind(format_name: str) -> WeightFormat:
    """What a format is but for its name, which 16 bits keep, and the size of its groups."""
    weight_format = find_format(format_name)
    name = "" if weight_format.quantized else format_name
    grouped = 1 if weight_format.group_size else None
    return WeightFormat(**vars(weight_format) | {"name": name, "alias": "", "group_size": grouped})


def formats_of(stage: Stage) -> tuple[str, ...]:
    """Names of the formats that a kernel reads, in the order of FORMATS."""
    named = {n for k in triton_kernels() if (k.arm, k.variant) == stage for n in k.formats}
    return tuple(f.name for f in FORMATS if f.name in named)


def triton_kernels() -> list[Kernel]:
    """All but those of `lowp`, whose tests are apart: test_kernels_lowp_emulated.py."""
    ours = [kernel for kernel in KERNELS if kernel.implementation == "triton"]
    return [kernel for kernel in ours if kernel.arm != "lowp"]


def same_without_ptx(arm: str, variant: str) -> bool:
    """Whether the inline PTX is not used, so that this is the program of the plain variant."""
    return variant.endswith("-ptx") and (
        arm in ("stream", "unpack") or (arm, variant) == ("bypass", "gemm-ptx")
    )


def stages() -> tuple[Stage, ...]:
    """Every kernel that is a program of its own."""
    found = dict.fromkeys((k.arm, k.variant) for k in triton_kernels())
    return tuple(stage for stage in found if not same_without_ptx(*stage))


def activations(stage: Stage, format_name: str, batch: int) -> tuple[str, ...]:
    """The activations with which a kernel has a row."""
    weight_format = find_format(format_name)
    return tuple(
        activation
        for activation in ACTIVATIONS
        if (weight_format.quantized or activation == format_name)
        and any(
            kernel.accepts(weight_format, activation, batch)
            for kernel in triton_kernels()
            if (kernel.arm, kernel.variant) == stage
        )
    )


def batches(stage: Stage) -> tuple[int, ...]:
    """Rows of x of a kernel's cells; one where x is not read."""
    arm, variant = stage
    if arm == "dequantize":
        return (1,)
    wide = (WIDE,) if variant.startswith("gemm") and arm in PRODUCTS else ()
    return (*BATCHES, *wide)


def cell_of(job: Job) -> Cell:
    """The cell that a job is about."""
    return job.arm, job.regime, job.format_name, job.batch, job.capability


@cache
def product_jobs(capabilities: tuple[int, ...] = TARGETS) -> tuple[Job, ...]:
    """Every cell, with activations in turn."""
    jobs = []
    for stage in stages():
        for place, name in enumerate(formats_of(stage)):
            served = [batch for batch in batches(stage) if activations(stage, name, batch)]
            for row, batch in enumerate(served):
                able = activations(stage, name, batch)
                for column, capability in enumerate(capabilities):
                    turn = place + row + column
                    if stage[0] in READ_NO_X:
                        if (place + column) % len(served) != row:
                            continue
                        turn = place + column // 2  # or batch and activation would turn together
                    if batch == WIDE:
                        if (place - column) % len(capabilities):
                            continue
                        turn = place // len(capabilities)
                    activation = able[turn % len(able)]
                    jobs.append(Job(*stage, name, activation, *AUDITED, batch, capability))
    return tuple(jobs)


def ragged_batches(stage: Stage, format_name: str) -> list[int]:
    """Rows of x that a kernel takes, at shapes that fill no tile."""
    wanted = (*batches(stage), *(ODD if stage[0] in PRODUCTS else ()))
    return [batch for batch in wanted if activations(stage, format_name, batch)]


def one_in(arm: str, served: int) -> int:
    """Of how many batches or tiles a kind of format takes one, outside the product; the next kind the next."""
    if arm in PARTIAL:
        return served
    return 2 if arm == "fused" else 1


def turn_of(turn: int, row: int, able: tuple[str, ...]) -> tuple[int, str]:
    """The target and the activation whose turn it is."""
    capability = TARGETS[(turn + row) % len(TARGETS)]
    return capability, able[(turn + (turn + row) // len(TARGETS)) % len(able)]


@cache
def ragged_jobs() -> tuple[Job, ...]:
    """Every kernel and kind of format at shapes that fill no tile; batches and targets in turn."""
    jobs = []
    for stage in stages():
        arm, variant = stage
        kinds = {kind(name): name for name in reversed(formats_of(stage))}
        for place, name in enumerate(kinds.values()):
            served = ragged_batches(stage, name)
            every = one_in(arm, len(served))
            shape = RAGGED["gemv" if variant.startswith("gemv") else "gemm"]
            for row, batch in enumerate(served):
                if (place - row) % every == 0:
                    able = activations(stage, name, batch)
                    capability, activation = turn_of(place // every, row, able)
                    jobs.append(Job(*stage, name, activation, *shape, batch, capability))
    return tuple(jobs)


@cache
def board_jobs() -> tuple[BoardJob, ...]:
    """Every kernel and kind of format at tiles that `gemm` has on a board alone; tiles and targets in turn."""
    jobs = []
    for stage in stages():
        arm, variant = stage
        if not variant.startswith("gemm") or arm == "upcast":
            continue
        kinds = {kind(name): name for name in reversed(formats_of(stage))}
        for place, name in enumerate(kinds.values()):
            every = one_in(arm, len(CUTS))
            for row, (batch, multiprocessors) in enumerate(CUTS):
                if (place - row) % every == 0:
                    able = activations(stage, name, batch)
                    capability, activation = turn_of(place // every, row, able)
                    problem = (name, activation, *AUDITED, batch)
                    jobs.append(BoardJob(*stage, *problem, capability, multiprocessors))
    return tuple(jobs)


def scarce_jobs(capabilities: tuple[int, ...] = TARGETS) -> tuple[Job, ...]:
    """All of gemv where registers are scarcest, but `stream`; the product has some of them."""
    return tuple(
        Job(*stage, name, activation, *AUDITED, batch, capability)
        for stage in stages()
        if stage[1].startswith("gemv") and stage[0] in ("unpack", "scale", "bypass", "fused")
        for batch in (TIGHT["gemv"] if stage[0] in PRODUCTS else (1,))
        for name, capability in product(SCARCE, capabilities)
        for activation in activations(stage, name, batch)
    )


def spill_jobs() -> tuple[Job, ...]:
    """What is only compiled: for one target more, and at another k where registers are scarcest.

    Of `fused` at the batches of TIGHT, of `bypass` at 1, of `native` and `upcast` at all; what is scarce. The
    default tiles of every board are counted, too: test_bench_modelled_files.py.
    """
    more = [job for job in product_jobs((COMPILED_ONLY,)) if job.arm in PRODUCTS]
    more = [job for job in more if job.arm != "bypass" or job.batch == 1]
    more = [job for job in more if job.arm != "fused" or job.batch in TIGHT[job.regime[:4]]]
    square = [
        replace(job, n=SQUARE[0], k=SQUARE[1])
        for job in (*product_jobs((120,)), *more)
        if job.arm == "fused" and job.batch == 1
    ]
    return tuple(dict.fromkeys([*more, *square, *scarce_jobs((COMPILED_ONLY,))]))


@cache
def everything() -> tuple[Job, ...]:
    """What `make proof` emulates."""
    return tuple(dict.fromkeys([*product_jobs(), *ragged_jobs(), *scarce_jobs()]))


@cache
def pairs(job: Job) -> tuple[tuple[str, object], ...]:
    """What a job covers: its target, with each of its other values; in one order in every process."""
    values = vars(job) | {"format_name": kind(job.format_name)}
    return tuple((f"sm_{job.capability} {field}", value) for field, value in values.items())


@cache
def covering_jobs() -> tuple[Job, ...]:
    """One job for every kernel and width of code: the one that adds the most.

    Of what dequantizes whole, one for every encoding; of fused, one at every batch. What no such choice
    covers is added at the end.
    """
    choices: dict[tuple[object, ...], list[Job]] = {}
    jobs = everything()
    for job in jobs:
        code = kind(job.format_name)
        encoding = code.encoding if job.arm in ("fused", "dequantize") else ""
        choices.setdefault((job.arm, job.regime, code.bits, encoding), []).append(job)
        if job.arm == "fused":
            choices.setdefault((job.regime, job.batch), []).append(job)
    seen: Counter[tuple[str, object]] = Counter()
    chosen: dict[Job, None] = {}
    for among in choices.values():
        best = max(among, key=lambda job: sum(1 / (1 + seen[pair]) for pair in pairs(job)))
        chosen[best] = None
        seen.update(pairs(best))
    for job in jobs:
        if any(pair not in seen for pair in pairs(job)):
            chosen[job] = None
            seen.update(pairs(job))
    return tuple(chosen)


def print_table(jobs: tuple[Job, ...]) -> None:
    """What became of every job, in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[Job, Outcome] = run_all([*jobs], Path(folder), workers=2)
    print("Executed in our PTX emulator, not on hardware. Error: of the largest |reference|.\n")
    print(
        "| kernel | format | act. | n x k | B | sm | error | registers | stack, bytes | program |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for job, outcome in found.items():
        error = outcome.problem if outcome.error is None else f"{outcome.error:.1e}"
        print(
            f"| {job.arm} {job.regime} | {job.format_name} | {job.activation} | {job.n} x {job.k} "
            f"| {job.batch} | {job.capability} | {error} | {outcome.registers} "
            f"| {outcome.stack_bytes} | {outcome.program} |"
        )


if __name__ == "__main__":
    print_table(everything() if "--all" in sys.argv[1:] else covering_jobs())
