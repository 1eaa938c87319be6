"""Run compiled GPU kernels on a CPU: a functional emulator of PTX.

Triton's interpreter never sees what the compiler made, and cannot run inline PTX. This runs the
PTX itself, from Triton or from NVRTC, with exact arithmetic, and finds what a GPU would hide: races,
unwaited copies, reads of what nobody wrote, accesses out of bounds, lanes that are missing.

    report = launch(compiled.ptx, "gemv_kernel", grid=256, block=64, args=[words, x, out, 1024])

It answers "is it right", and counts what it did; it says nothing about time. Results are
"executed in our PTX emulator, not on hardware": say so wherever they are shown.

    parser.py       text to instructions
    opcodes.py      the whitelist, and what each opcode does; the rest raises
    machine.py      divergence and barriers; registers.py: operands, and which of them are undefined
    arguments.py    checks and lays out what a launch is given
    memory.py       global, shared and local memory, and what is checked there
    access.py atomics.py warp.py tensor_core.py   loads and copies, atom, shuffles and votes, mma
    numerics.py integers.py conversions.py types.py       arithmetic, exact
    counters.py     instructions, sectors, bank conflicts: the `Report`
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from bench.static.ptx.arguments import Argument, check_block, lay_out, three
from bench.static.ptx.counters import Access, Counters, Report
from bench.static.ptx.errors import Fault, FaultError, PtxError, UnsupportedError
from bench.static.ptx.machine import Launch, run
from bench.static.ptx.opcodes import OPCODES
from bench.static.ptx.parser import parse
from bench.static.ptx.tensor_core import Rounding

__all__ = [
    "Access",
    "Fault",
    "FaultError",
    "PtxError",
    "Report",
    "Rounding",
    "UnsupportedError",
    "launch",
]

MOST_LANES = 1 << 15  # run together: more no longer makes a lane cheaper


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without the garbage collector, for the whole process: it took half of a launch.

    It went again and again through a hundred thousand objects that are all in use, or freed without it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@collector_paused()
def launch(
    ptx: str,
    entry: str | None,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    args: Sequence[Argument],
    shared_bytes: int = 0,
    race: bool = True,
    *,
    strict: bool = True,
    most_blocks: int = 100_000,
    rounding: Rounding | None = None,
) -> Report:
    """Run a kernel. The process collects no garbage meanwhile.

    Args:
        ptx: text of a module, from Triton or NVRTC.
        entry: name of the kernel; None if the module has only one.
        grid: thread blocks (CTAs), one number or up to three.
        block: threads per CTA, likewise.
        args: one per parameter. An array is passed as a pointer to its contents and updated in
            place; an int as an integer, a float as fp32, bytes as a struct. Triton's kernels have
            two more parameters than their signature, pointers to scratch memory: pass 0 for each.
        shared_bytes: of dynamic shared memory, per CTA.
        race: whether to look for shared-memory races.
        strict: whether a barrier must be reached by whole warps and at one place in the program.
        most_blocks: basic blocks that may run one after the other before the launch is given up.
        rounding: a model of how tensor cores round; None for one correct rounding.

    Returns:
        what was executed and accessed.

    Raises:
        FaultError: the kernel did something wrong. Arrays are then left as they were.
        UnsupportedError: an opcode is not on the whitelist, or an operand not of its form.
        PtxError: no such entry, or arguments that do not fit it.
    """
    kernel = parse(ptx, entry)
    parameters, addresses, memory = lay_out(kernel, args)
    started = Launch(
        kernel=kernel,
        grid=three(grid),
        block=three(block),
        parameters=parameters,
        addresses=addresses,
        memory=memory,
        shared_bytes=shared_bytes,
        race=race,
        strict=strict,
        most_blocks=most_blocks,
        rounding=rounding,
        counters=Counters(),
    )
    check_block(kernel, started.block, shared_bytes)
    blocks_run = run(started, MOST_LANES)
    memory.copy_back()
    return make_report(started, blocks_run)


def make_report(launched: Launch, blocks_run: npt.NDArray[np.int64]) -> Report:
    """Counts of a finished launch."""
    kernel = launched.kernel
    report = Report(
        kernel=kernel.name,
        target=kernel.target,
        ctas=int(np.prod(launched.grid)),
        threads=int(np.prod(launched.block)),
        accesses=tuple(launched.counters.accesses.values()),
    )
    for (first, end), warps in zip(kernel.blocks, blocks_run, strict=True):
        for instruction in kernel.instructions[first:end] if warps else ():
            report.instructions[instruction.opcode] += int(warps)
    for opcode, warps in report.instructions.items():
        report.by_class[OPCODES[opcode].group] += warps
    report.approximate = tuple(op for op in report.instructions if OPCODES[op].approximate)
    return report
