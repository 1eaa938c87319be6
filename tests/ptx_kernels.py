"""The suite's Triton kernels, emulated: which, on which targets and shapes, and a table of them.

python -m tests.ptx_kernels          the covering subset that `make test` runs
python -m tests.ptx_kernels --all    everything that `make proof` runs
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

from kernels import formats
from kernels.kernel import LADDER
from tests.aot_ptx import compile_ptx, run_job
from tests.aot_triton import Job

FORMATS = tuple(f.name for f in formats.FORMATS if formats.plain(f))
ACTIVATIONS = ("fp16", "bf16")
SMALL, RAGGED = (64, 512), (41, 1280)  # n, k: whole tiles; rows and a last step that are not
SHAPES = ((*SMALL, 80), (*RAGGED, 80), (*SMALL, 89), (*SMALL, 90), (*RAGGED, 90), (*RAGGED, 120))
BATCHES = {"gemv": (1, 2, 5, 16), "gemm": (16, 33, 64)}
BATCHES |= {f"{regime}-ptx": batches for regime, batches in BATCHES.items()}
WIDEST_WITHOUT_WGMMA = 32  # rows of x; wider sm_90 builds of gemm use wgmma


def all_jobs() -> list[Job]:
    """Every arm, variant, format, activation, batch and target, at one or both shapes."""
    problems = [*product(ACTIVATIONS, SHAPES)]
    ladder = [
        Job(arm, regime, name, activation, n, k, batch, capability)
        for arm, regime, name in product(LADDER, BATCHES, FORMATS)
        if not (regime.endswith("-ptx") and arm in ("stream", "unpack"))  # the same as without
        for activation, (n, k, capability) in problems
        for batch in BATCHES[regime]
        if batch == BATCHES[regime][0] or arm in ("fused", "bypass")
    ]
    others = [
        Job("dequantize", variant, name, activation, n, k, 1, capability)
        for variant, name in product(("default", "ptx"), FORMATS)
        for activation, (n, k, capability) in problems
    ]
    sixteen = [
        Job(arm, regime, activation, activation, n, k, batch, capability)
        for arm, regime in product(("native", "upcast"), ("gemv", "gemm"))
        for activation, (n, k, capability) in problems
        for batch in BATCHES[regime]
    ]
    return [*ladder, *others, *sixteen]


@cache
def pairs(job: Job) -> list[tuple[str, object]]:
    """What a job covers: its target, with each of its other values."""
    return [(f"sm_{job.capability} {field}", value) for field, value in vars(job).items()]


def covering_jobs() -> list[Job]:
    """One job for every kernel and kind of code, of fused at every batch: the one that adds the most.

    What no such choice covers is added at the end.
    """
    choices: dict[tuple[object, ...], list[Job]] = {}
    everything = [*filter(emulated, all_jobs())]
    for job in everything:
        batch = job.batch if job.arm == "fused" else None
        choices.setdefault((job.arm, job.regime, kind(job), batch), []).append(job)
    seen: Counter[tuple[str, object]] = Counter()
    chosen = []
    for jobs in choices.values():
        chosen.append(max(jobs, key=lambda job: news(job, seen)))
        seen.update(pairs(chosen[-1]))
    for job in everything:
        if any(pair not in seen for pair in pairs(job)):
            chosen.append(job)
            seen.update(pairs(job))
    return chosen


def news(job: Job, seen: Counter[tuple[str, object]]) -> float:
    """How much a job adds to those that were chosen."""
    return sum(1 / (1 + seen[pair]) for pair in pairs(job))


def kind(job: Job) -> tuple[int, str]:
    """What a job's codes are: formats that share it differ in groups, scales and zero points."""
    weight_format = formats.find_format(job.format_name)
    return weight_format.bits, weight_format.encoding


def emulated(job: Job) -> bool:
    """Whether all instructions of the job's build are emulated; else its other targets are."""
    wgmma = job.regime.startswith("gemm") and job.arm in ("fused", "bypass", "native")
    return not (wgmma and job.capability == 90 and job.batch > WIDEST_WITHOUT_WGMMA)


def print_table(jobs: list[Job]) -> None:
    """Error, time and counts of every job, in Markdown."""
    with tempfile.TemporaryDirectory() as cache:
        compiled = compile_ptx(jobs, Path(cache))
    print("Executed in our PTX emulator, not on hardware. Error: of the largest |reference|.\n")
    print("| kernel | format | act. | n x k | B | sm | error | s | PTX/weight | conflicts |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for job, ptx in compiled.items():
        row = f"| {job.arm} {job.regime} | {job.format_name} | {job.activation} "
        row += f"| {job.n} x {job.k} | {job.batch} | {job.capability} "
        start = time.perf_counter()
        error, report = run_job(job, ptx)
        seconds = time.perf_counter() - start
        per_weight = report.per_weight(job.n * job.k)
        print(f"{row}| {error:.1e} | {seconds:.2f} | {per_weight:.1f} | {report.bank_conflicts} |")


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    print_table([*filter(emulated, all_jobs())] if "--all" in sys.argv[1:] else covering_jobs())
