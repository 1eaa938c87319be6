"""Compile kernels and run their PTX in the emulator, in processes that do not interpret.

A kernel of the size that is audited (bench/static/audit.py: 4096 x 14336) is too large to emulate whole. Its
first programs run, along the first steps of k: the trip count of its loop is known only at run time. What
they must not read is not there, or no number; what they must not write is checked.

    python -m tests.ptx_cells <<< '[["fused", "gemv", "int4-g128", "fp16", 4096, 14336, 1, 90]]'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.static.audit import K, N
from bench.static.ptx import PtxError
from kernels import packing
from kernels.formats import find_format
from tests.aot_ptx import execute, from_bits, job_arguments, output_shape
from tests.aot_triton import Job, in_workers, job_of
from tests.ptx_builds import Build, build

AUDITED = (N, K)
SQUARE = (4096, 4096)  # only compiled: whether registers suffice depends on k, too
COMPILED_ONLY = 100  # a target whose tensor cores have a memory of their own, which is not emulated
PROGRAMS = 2  # along n, of an audited kernel
COLUMNS = {"gemv": 4096, "gemm": 640}  # of k: one step or two of gemv, five or ten of gemm


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        error: the largest, relative to the largest |reference|; None if it was only compiled, or did not run
            to its end.
        problem: what the compiler or the emulator said instead; "" if it ran.
        program: digest of what ran; targets may share it.
        registers: per thread.
        stack_bytes: per thread.
    """

    error: float | None
    problem: str
    program: str
    registers: int
    stack_bytes: int


def executed(job: Job, made: Build) -> tuple[int, int]:
    """Rows and columns of W that are multiplied: whole steps along k.

    Nested scales are counted over whole rows, so there all columns are.
    """
    if (job.n, job.k) != AUDITED:
        return job.n, job.k
    columns = COLUMNS.get(job.regime.removesuffix("-ptx"), job.k)
    columns = -(-columns // (made.block_k or 1)) * (made.block_k or 1)
    nested = find_format(job.format_name).scale_type == "nested"
    return PROGRAMS * made.block_n, job.k if nested else min(columns, job.k)


def widened(array: np.ndarray, columns: int) -> np.ndarray:
    """An array with columns after its own whose bits are all ones: no numbers, where it has floats."""
    bytes_ = np.full((*array.shape[:-1], columns), -1, f"i{array.itemsize}")
    bytes_[..., : array.shape[-1]] = array.view(bytes_.dtype)
    return bytes_.view(array.dtype)


def widened_words(words: np.ndarray, bits: int, k: int, columns: int) -> np.ndarray:
    """Packed words of k columns as those of a matrix with more columns, plane after plane."""
    planes = packing.split_planes(words, bits)
    return np.concatenate([widened(p, p.shape[1] * columns // k) for p in planes], axis=1)


def run(job: Job, made: Build) -> float:
    """Launch with race checks.

    Returns:
        the largest error relative to the largest |reference|.

    Raises:
        PtxError: the program did something wrong, or cannot be emulated.
        AssertionError: it wrote where it should not.
    """
    n, k = executed(job, made)
    weight_format = find_format(job.format_name)
    arguments, out, expected = job_arguments(replace(job, n=n, k=k))
    result = out
    if (n, k) != (job.n, job.k):
        wide: list[Any] = []
        for argument in arguments:
            if argument is out:
                columns = job.k if job.arm == "dequantize" else job.n
                result = widened(out, columns)
                wide.append(result)
            elif argument is arguments[0] and weight_format.quantized:
                wide.append(widened_words(argument, weight_format.bits, k, job.k))
            elif np.ndim(argument) == 2 and argument.shape[1] > 1:  # else one scale per row
                wide.append(widened(argument, argument.shape[1] * job.k // k))
            else:
                wide.append(argument)
        arguments = wide
    grid = (min(n // made.block_n, made.ptx.grid[0]), *made.ptx.grid[1:])
    whole = made.ptx.grid if (n, k) == (job.n, job.k) else grid
    execute(replace(made.ptx, grid=whole), arguments)
    beyond = result[..., out.shape[-1] :]
    assert (beyond.view(f"i{out.itemsize}") == -1).all(), "it wrote past its rows"
    _, written = output_shape(job.arm, n, k, job.batch)
    got = from_bits(np.ascontiguousarray(result[..., : out.shape[-1]]), written)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def outcomes(jobs: Iterable[Job]) -> Iterable[Outcome]:
    """What becomes of every job; a program runs once for all targets that share it, some are only compiled."""
    seen: dict[tuple[str, Job], Outcome] = {}
    for job in jobs:
        try:
            made = build(job)
        except Exception as error:  # a compiler's own kinds
            yield Outcome(None, f"it does not compile: {error}", "", 0, 0)
            continue
        if job.capability == COMPILED_ONLY or (job.n, job.k) == SQUARE:
            yield Outcome(None, "", made.program, made.registers, made.stack_bytes)
            continue
        key = (made.program, replace(job, capability=0))
        if key not in seen:
            seen[key] = outcome(job, made)
        yield replace(seen[key], registers=made.registers, stack_bytes=made.stack_bytes)


def outcome(job: Job, made: Build) -> Outcome:
    """What becomes of one build."""
    error, problem = None, ""
    try:
        error = run(job, made)
        if np.isnan(error):
            error, problem = None, "its output holds what is no number"
    except (PtxError, AssertionError) as wrong:
        problem = str(wrong)
    return Outcome(error, problem, made.program, made.registers, made.stack_bytes)


def run_all(jobs: list[Job], folder: Path, workers: int) -> dict[Job, Outcome]:
    """The outcome of every job, from worker processes."""
    answers = in_workers("tests.ptx_cells", jobs, folder, workers)
    return {job: Outcome(**answer) for job, answer in answers.items()}


if __name__ == "__main__":
    given = [job_of(values) for values in json.load(sys.stdin)]
    for found in outcomes(given):
        print(json.dumps(asdict(found)), flush=True)
