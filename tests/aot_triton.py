"""Compile the Triton kernels in a process of its own and report their machine code as JSON.

A test process runs the kernels interpreted, and an interpreted kernel cannot be compiled. To see
the numbers that the tests assert:

    python -m tests.aot_triton <<< '[["fused", "gemv", "int4-g128", "fp16", 4096, 14336, 1, 90]]'
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.static import sass
from bench.static.audit import weights_per_pass
from bench.static.compile import CompiledKernel, compile_kernel
from bench.static.occupancy import resident_programs

if TYPE_CHECKING:
    from kernels.triton.plan import Plan

ROOT = Path(__file__).parent.parent
WORKERS = 2


@dataclass(frozen=True)
class Job:
    """One kernel for one problem and one target, of a board that is not known."""

    arm: str
    regime: str
    format_name: str
    activation: str
    n: int
    k: int
    batch: int
    capability: int

    @property
    def board(self) -> int | None:
        """Multiprocessors of the board; None where it is not known."""
        return None


@dataclass(frozen=True)
class BoardJob(Job):
    """The same, cut for a board of so many multiprocessors."""

    multiprocessors: int

    @property
    def board(self) -> int | None:
        """See Job."""
        return self.multiprocessors


def job_of(values: list[Any]) -> Job:
    """A job from the values of its fields."""
    return (BoardJob if len(values) == len(fields(BoardJob)) else Job)(*values)


@dataclass(frozen=True)
class Report:
    """What the tests ask of the machine code. Counts are of the hot code, one step along k.

    Attributes:
        digest: of all opcodes and operands.
        num_warps: warps per program.
        warps: warps that fit on one multiprocessor.
        weights: weights that one lane handles per step.
        has_loop: whether the hot code is a loop (otherwise it is the whole kernel).
        widened: fp16 numbers turned into fp32.
        loads: global loads by width in bits.
    """

    digest: str
    registers: int
    spills: bool
    num_warps: int
    warps: int
    weights: int
    has_loop: bool
    instructions: int
    integer_to_float: int
    widened: int
    multiply_add: int
    tensor_core: int
    loads: dict[str, int]


def plan_of(job: Job) -> Plan:
    """What is compiled and launched for a job."""
    from kernels import triton
    from kernels.formats import find_format

    shape = (job.activation, job.n, job.k, job.batch, job.capability)
    problem = (job.arm, job.regime, find_format(job.format_name), *shape)
    return triton.plan_of(*problem, multiprocessors=job.board)  # type: ignore[arg-type]


def compile_job(job: Job) -> tuple[CompiledKernel, int]:
    """The compiled kernel, and the weights per lane and step."""
    plan = plan_of(job)
    compiled = compile_kernel(
        plan.fn, plan.signature, plan.constexprs, job.capability, **plan.options
    )
    return compiled, weights_per_pass(plan, compiled.num_warps)


def report(job: Job) -> Report:
    """Compile one job and count."""
    compiled, weights = compile_job(job)
    hot = sass.hot_code(compiled.sass)
    used = (compiled.registers, compiled.shared_bytes, compiled.num_warps)
    text = "\n".join(f"{i.predicate} {i.opcode} {i.operands}" for i in compiled.sass)
    return Report(
        digest=hashlib.sha256(text.encode()).hexdigest(),
        registers=compiled.registers,
        spills=compiled.spills,
        num_warps=compiled.num_warps,
        warps=resident_programs(job.capability, *used) * compiled.num_warps,
        weights=weights,
        has_loop=bool(sass.loops(compiled.sass)),
        instructions=len(hot),
        integer_to_float=sass.count(hot, sass.INTEGER_TO_FLOAT),
        widened=sass.count(hot, sass.WIDEN),
        multiply_add=sass.count(hot, sass.MULTIPLY_ADD),
        tensor_core=sass.count(hot, sass.TENSOR_CORE),
        loads={str(width): number for width, number in sass.load_widths(hot).items()},
    )


def in_workers(
    module: str, jobs: list[Job], cache: Path, workers: int = WORKERS
) -> dict[Job, dict[str, Any]]:
    """What a module prints for every job, from worker processes that do not interpret.

    Args:
        module: run with the jobs as JSON on its input; prints a line of JSON for each.
        jobs: what to compile.
        cache: an empty folder; Triton would otherwise reuse a stale binary.
        workers: processes that share the jobs.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)

    def work(share: list[Job]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps([[*asdict(job).values()] for job in share]),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    shares = [jobs[i::workers] for i in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(work, shares))
    return {
        job: answer
        for share, answers in zip(shares, results, strict=True)
        for job, answer in zip(share, answers, strict=True)
    }


def compile_all(jobs: list[Job], cache: Path) -> dict[Job, Report]:
    """Every job's report, from worker processes."""
    answers = in_workers("tests.aot_triton", jobs, cache)
    return {job: Report(**answer) for job, answer in answers.items()}


if __name__ == "__main__":
    for values in json.load(sys.stdin):
        print(json.dumps(asdict(report(job_of(values)))), flush=True)
