"""The PTX that the compiler made of every Triton kernel, executed: right, and without a fault."""

from __future__ import annotations

import numpy as np
import pytest

from bench.static.ptx import UnsupportedError
from kernels import packing
from kernels.formats import find_format
from kernels.triton import KERNELS, upcast
from tests.aot_ptx import Ptx, compile_ptx, execute, job_arguments, packed_format, run_job
from tests.aot_triton import Job
from tests.ptx_kernels import all_jobs, covering_jobs, emulated, pairs
from tests.triton_cases import TOLERANCES, run

EXACT = ("stream", "unpack", "dequantize")
WGMMA = Job("fused", "gemm", "int4-g128", "fp16", 64, 512, 64, 90)
INTERPRETED = [
    Job("fused", "gemv", "int4-g128", "fp16", 41, 1280, 5, 80),
    Job("fused", "gemv", "int4-g128-zp", "fp16", 64, 512, 1, 90),
    Job("scale", "gemv", "int8-g128", "fp16", 41, 1280, 1, 120),
    Job("bypass", "gemm", "int8-ch", "fp16", 64, 512, 16, 89),
    Job("fused", "gemv", "nf4-b64", "fp16", 41, 1280, 1, 90),
    Job("fused", "gemv", "fp8_e4m3-b128", "fp16", 41, 1280, 2, 80),
    Job("native", "gemm", "fp16", "fp16", 41, 1280, 33, 80),
]
ONE_ROUNDING = 1e-3  # of the largest |y|: two results in fp16, one unit in the last place apart
COVERING = covering_jobs()
PROOF = [job for job in filter(emulated, all_jobs()) if job not in COVERING]


def name(job: Job) -> str:
    return "-".join(map(str, vars(job).values()))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Ptx]:
    jobs = [*COVERING, *INTERPRETED, WGMMA]
    return compile_ptx(jobs, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def compiled_for_proof(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Ptx]:
    return compile_ptx(PROOF, tmp_path_factory.mktemp("triton"))


def check(job: Job, ptx: Ptx) -> None:
    """Fail unless the job's PTX runs without a fault and its output is right."""
    error, _ = run_job(job, ptx)
    tolerance = upcast.TOLERANCE if job.arm == "upcast" else TOLERANCES[job.activation]
    assert error <= (0 if job.arm in EXACT else tolerance)


def test_the_subset_covers_every_value_on_every_target() -> None:
    everything = {pair for job in filter(emulated, all_jobs()) for pair in pairs(job)}
    assert {pair for job in COVERING for pair in pairs(job)} == everything


@pytest.mark.parametrize("job", COVERING, ids=name)
def test_compiled_kernel_matches_reference(job: Job, compiled: dict[Job, Ptx]) -> None:
    check(job, compiled[job])


@pytest.mark.proof
@pytest.mark.parametrize("job", PROOF, ids=name)
def test_every_compiled_kernel_matches_reference(
    job: Job, compiled_for_proof: dict[Job, Ptx]
) -> None:
    check(job, compiled_for_proof[job])


@pytest.mark.parametrize("job", INTERPRETED, ids=name)
def test_emulator_agrees_with_the_interpreter(job: Job, compiled: dict[Job, Ptx]) -> None:
    """Two executions that share nothing: Triton's of the source, ours of the compiled PTX."""
    weights = packing.random_weights(
        job.n, job.k, find_format(packed_format(job)), job.activation, seed=7
    )
    x = packing.random_activations(job.batch, job.k, job.activation, seed=7)
    (kernel,) = (
        kernel
        for kernel in KERNELS
        if (kernel.arm, kernel.variant, kernel.implementation) == (job.arm, job.regime, "triton")
        and kernel.accepts(find_format(job.format_name), job.activation, job.batch)
    )
    interpreted = run(kernel, weights, x, "cpu")
    arguments, out, _ = job_arguments(job)
    execute(compiled[job], arguments)
    assert np.abs(out - interpreted).max() <= ONE_ROUNDING * np.abs(interpreted).max()


def test_wgmma_is_refused_with_advice(compiled: dict[Job, Ptx]) -> None:
    with pytest.raises(UnsupportedError, match="test the kernel's sm_80"):
        run_job(WGMMA, compiled[WGMMA])


def test_bytes_and_sectors_of_a_stream(compiled: dict[Job, Ptx]) -> None:
    """Each lane loads 16 bytes beside its neighbour's; every word is read once, no byte in vain."""
    job = next(j for j in COVERING if (j.arm, j.regime, j.n) == ("stream", "gemv", 64))
    _, report = run_job(job, compiled[job])
    words = [a for a in report.accesses if a.space == "global" and a.opcode.endswith("v4.b32")]
    stored = find_format(job.format_name).bits * job.n * job.k // 8
    assert sum(access.bytes for access in words) == stored
    assert {access.sector_efficiency for access in words} == {1.0}
