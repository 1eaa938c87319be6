"""Compile the Triton kernels to PTX in processes of their own, and run it in the emulator.

A test process interprets Triton's kernels and cannot compile them; see aot_triton.py.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.static.ptx import FaultError, Report, launch
from bench.static.ptx.problem import bf16
from kernels import packing
from kernels.formats import find_format
from kernels.kernel import output_shape
from kernels.triton import reading_of
from tests.aot_triton import Job, in_workers, plan_of

FLOATS = {"fp16": np.dtype(np.float16), "bf16": np.dtype(np.uint16), "fp32": np.dtype(np.float32)}
SIXTEEN_BIT = ("native", "upcast")
PROXY_FENCE = "fence.proxy.async.shared::cta;"
WAIT = "wgmma.wait_group.sync.aligned 0;"
EARLY = "was written before it was waited for"
FENCED = tuple(map(int, version("triton").split(".")[:2])) > (3, 6)
SCRATCH_POINTERS = (0, 0)  # two parameters that Triton adds to every kernel


@dataclass(frozen=True)
class Ptx:
    """A compiled kernel and how to launch it.

    Attributes:
        text: the PTX.
        entry: name of the kernel.
        grid: programs along each axis.
        block: threads per program.
        shared_bytes: dynamic shared memory per program.
    """

    text: str
    entry: str
    grid: tuple[int, ...]
    block: int
    shared_bytes: int

    @classmethod
    def of(cls, built: Any, grid: tuple[int, ...]) -> Ptx:
        """What Triton compiled, for a grid."""
        return cls(
            text=built.asm["ptx"],
            entry=built.metadata.name,
            grid=grid,
            block=32 * built.metadata.num_warps,
            shared_bytes=built.metadata.shared,
        )


def compile_ptx(jobs: list[Job], cache: Path) -> dict[Job, Ptx]:
    """The PTX of every job, from worker processes that do not interpret.

    Args:
        jobs: what to compile.
        cache: an empty folder for Triton.
    """
    answers = in_workers("tests.aot_ptx", jobs, cache)
    return {job: Ptx(**a | {"grid": tuple(a["grid"])}) for job, a in answers.items()}


def emit(job: Job) -> Ptx:
    """Compile one job; only in a process that does not interpret."""
    from bench.static.compile import build_kernel

    plan = plan_of(job)
    built = build_kernel(plan.fn, plan.signature, plan.constexprs, job.capability, **plan.options)
    return Ptx.of(built, plan.grid)


def float_bits(values: np.ndarray, activation: str) -> np.ndarray:
    """Values as an array of the activation's storage: float16, or the upper halves of float32."""
    if activation == "bf16":
        return bf16(values).bits
    return values.astype(FLOATS[activation])


def from_bits(values: np.ndarray, written: str) -> np.ndarray:
    """The numbers in an output, float64, or int64 for integers."""
    if written == "int32":
        return values.astype(np.int64)
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def job_arguments(job: Job) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Arguments of a launch, the output among them, and what it should become.

    Returns:
        arguments for `launch`; the output array; the reference, float64 or int64.
    """
    weight_format = find_format(packed_format(job))
    weights = packing.random_weights(job.n, job.k, weight_format, job.activation, seed=7)
    x = packing.random_activations(job.batch, job.k, job.activation, seed=7)
    reading = reading_of(job.regime, job.activation, weight_format.encoding)
    expected = packing.reference(job.arm, weights, x, reading)
    shape, written = output_shape(job.arm, job.n, job.k, job.batch)
    kind = job.activation if written == "activation" else written
    out = np.zeros(shape, np.int32 if kind == "int32" else FLOATS[kind])
    bits = float_bits(x, job.activation)
    if job.arm in SIXTEEN_BIT:
        x = x if job.arm == "upcast" else bits
        return [float_bits(weights.values16, job.activation), x, out, job.k], out, expected
    words = weights.bypass_words if job.arm == "bypass" else weights.words
    stored = packing.scale_dtype(weight_format, job.activation)
    codes = weights.scale_codes
    scales = float_bits(weights.scales, stored) if codes is None else codes.copy()
    others = (weights.zeros, weights.second_level)
    packed = [words.copy(), scales, *(array.copy() for array in others if array is not None)]
    if job.arm == "dequantize":
        return [*packed, out], out, expected
    return [*packed, bits, out, job.k], out, expected


def packed_format(job: Job) -> str:
    """The format whose values a job multiplies: 16-bit kernels take those of a quantized one."""
    return "int8-g128" if job.arm in SIXTEEN_BIT else job.format_name


def execute(ptx: Ptx, arguments: list[Any]) -> Report:
    """Launch with race checks; outputs among the arguments are written."""

    def run(text: str) -> Report:
        given = [*arguments, *SCRATCH_POINTERS]
        return launch(text, ptx.entry, ptx.grid, ptx.block, given, ptx.shared_bytes)

    if FENCED:
        return run(ptx.text)
    try:
        return run(fenced(ptx.text))
    except FaultError as fault:
        if EARLY not in fault.detail:
            raise
        return run(waiting(fenced(ptx.text)))


def fenced(text: str) -> str:
    """PTX with a fence that Triton 3.6 leaves out on sm_90, so that the rest of it can be checked.

    The PTX ISA asks for it between `cp.async`, which writes through the generic proxy, and `wgmma`, which reads
    through the asynchronous one; newer compilers have it in the same place.
    """
    return re.sub(r"^\s*wgmma\.fence\.", f"{PROXY_FENCE}\\g<0>", text, flags=re.MULTILINE)


def waiting(text: str) -> str:
    """PTX with a wait after every product of warp groups.

    The PTX ISA asks for one before registers that a `wgmma` reads are written again: some kernels of Triton 3.6
    write those of the next step too early. What else of these is too early goes unnoticed then.
    """
    return re.sub(r"^\s*wgmma\.commit_group\..*$", rf"\g<0>\n{WAIT}", text, flags=re.MULTILINE)


def run_job(job: Job, ptx: Ptx) -> tuple[float, Report]:
    """Launch a job's PTX with race checks.

    Returns:
        the largest error relative to the largest |reference|, and what was counted.
    """
    arguments, out, expected = job_arguments(job)
    report = execute(ptx, arguments)
    _, written = output_shape(job.arm, job.n, job.k, job.batch)
    error = np.abs(from_bits(out, written) - expected).max() / np.abs(expected).max()
    return float(error), report


if __name__ == "__main__":
    for fields in json.load(sys.stdin):
        print(json.dumps(asdict(emit(Job(*fields)))), flush=True)
