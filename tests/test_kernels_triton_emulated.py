"""The PTX that the compiler made of every Triton kernel, executed: right, and without a fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import product

import numpy as np
import pytest

from bench.static.ptx import FaultError, launch
from kernels import packing
from kernels.formats import find_format
from kernels.triton import KERNELS, upcast
from kernels.triton.plan import ACTIVATIONS
from tests import ptx_cells, ptx_summary
from tests.aot_ptx import (
    EARLY,
    FENCED,
    PROXY_FENCE,
    SCRATCH_POINTERS,
    Ptx,
    compile_ptx,
    execute,
    fenced,
    job_arguments,
    packed_format,
    run_job,
)
from tests.aot_triton import BoardJob, Job
from tests.ptx_builds import Build, code_of
from tests.ptx_cells import AUDITED, SQUARE, Outcome, run_all
from tests.ptx_kernels import (
    CUTS,
    READ_NO_X,
    TARGETS,
    WIDE,
    board_jobs,
    covering_jobs,
    everything,
    formats_of,
    pairs,
    product_jobs,
    ragged_batches,
    ragged_jobs,
    same_without_ptx,
    spill_jobs,
)
from tests.triton_cases import TOLERANCES, run

EXACT = ("stream", "unpack", "dequantize")
WGMMA = Job("fused", "gemm", "int4-g128", "fp16", 64, 512, 64, 90)
KEPT = Job("fused", "gemm", "nvint4", "fp16", 41, 1280, 72, 90)
STREAM = Job("stream", "gemv", "int4-g128", "fp16", 64, 512, 1, 80)
INTERPRETED = [
    Job("fused", "gemv", "int4-g128", "fp16", 41, 1280, 5, 80),
    Job("fused", "gemv", "int4-g128-zp", "fp16", 64, 512, 1, 90),
    Job("scale", "gemv", "int8-g128", "fp16", 41, 1280, 1, 120),
    Job("bypass", "gemm", "int8-ch", "fp16", 64, 512, 16, 89),
    Job("fused", "gemv", "nf4-b64", "fp16", 41, 1280, 1, 90),
    Job("fused", "gemv", "fp8_e4m3-b128", "fp16", 41, 1280, 2, 80),
    Job("native", "gemm", "fp16", "fp16", 41, 1280, 33, 80),
]
AUDITED_JOB = Job("scale", "gemv", "int4-g128", "fp16", *AUDITED, 1, 80)
SAME = [  # with the inline PTX and without: it is not used
    Job(arm, variant, "int4-g128-zp", "fp16", 64, 512, 16, 80)
    for arm, plain in (("stream", "gemv"), ("unpack", "gemm"), ("bypass", "gemm"))
    for variant in (plain, f"{plain}-ptx")
]
ONE_ROUNDING = 1e-3  # of the largest |y|: two results in fp16, one unit in the last place apart
SPILLS = {  # with Triton 3.9: the bytes of the stack; gemm serves batch 16, too
    Job(arm, variant, name, activation, *AUDITED, batch, capability): stack_bytes
    for arm, variant, name, activations, batch, found in (
        ("unpack", "gemv", "int1-g128", ACTIVATIONS, 1, {89: 48, 90: 48, 120: 40}),
        ("unpack", "gemv", "int3-g128", ACTIVATIONS, 1, {90: 8, 120: 8}),
        ("fused", "gemv", "int1-g128", ("bf16",), 16, {80: 8}),
        ("bypass", "gemv-ptx", "int1-g128", ("fp16",), 16, {89: 16, 90: 192, 100: 504, 120: 256}),
        ("bypass", "gemv-ptx", "int1-g128", ("bf16",), 16, {100: 720}),
        ("bypass", "gemv-ptx", "int3-g128", ("fp16",), 16, {100: 8, 120: 8}),
        ("fused", "gemv-ptx", "int1-g128", ("fp16",), 16, {89: 168, 90: 64, 100: 368, 120: 144}),
        ("fused", "gemv-ptx", "int3-g128", ("fp16",), 16, {100: 24}),
    )
    for activation in activations
    for capability, stack_bytes in found.items()
}
COVERING = covering_jobs()
CUT = [
    BoardJob(
        "fused", "gemm-ptx", "int4-g128", ACTIVATIONS[i % 2], *AUDITED, batch, TARGETS[i % 4], sms
    )
    for i, (batch, sms) in enumerate(CUTS)
]
FORMATS = tuple(dict.fromkeys(job.format_name for job in product_jobs()))


def name(job: Job) -> str:
    return "-".join(map(str, vars(job).values()))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Ptx]:
    return compile_ptx(
        [*INTERPRETED, *SAME, WGMMA, KEPT, STREAM, AUDITED_JOB], tmp_path_factory.mktemp("triton")
    )


@pytest.fixture(scope="module")
def covering(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Outcome]:
    return run_all([*COVERING], tmp_path_factory.mktemp("triton"), workers=2)


def complaint(job: Job, outcome: Outcome) -> str:
    """What is wrong with a job; "" if it ran without a fault and its output is right."""
    if outcome.error is None:
        return outcome.problem
    most = upcast.TOLERANCE if job.arm == "upcast" else TOLERANCES[job.activation]
    most = 0 if job.arm in EXACT else most
    return "" if outcome.error <= most else f"its error is {outcome.error:.1e}"


def spilling(outcomes: dict[Job, Outcome]) -> dict[str, int]:
    """Bytes of stack of what has one, ragged shapes aside."""
    return {
        name(job): found.stack_bytes
        for job, found in outcomes.items()
        if found.stack_bytes and (job.n, job.k) in (AUDITED, SQUARE)
    }


def test_known_spills_are_among_what_is_compiled() -> None:
    assert SPILLS.keys() <= {*everything(), *spill_jobs()}


def test_the_subset_covers_every_value_on_every_target() -> None:
    wanted = {pair for job in everything() for pair in pairs(job)}
    assert {pair for job in COVERING for pair in pairs(job)} == wanted


def test_every_kernel_format_and_batch_of_the_product_meets_both_activations() -> None:
    """At every batch but the widest; where x is not read on every target once, whatever the batch."""
    met: dict[tuple[object, ...], list[str]] = {}
    targets: dict[tuple[object, ...], list[int]] = {}
    for job in product_jobs():
        cell = (job.arm, job.regime, job.format_name, None if job.arm in READ_NO_X else job.batch)
        if job.batch != WIDE:
            met.setdefault(cell, []).append(job.activation)
            targets.setdefault(cell, []).append(job.capability)
    assert {tuple(sorted(found)) for found in targets.values()} == {TARGETS}
    for cell, activations in met.items():
        both = 4 if cell[0] in ("native", "upcast") else 2
        assert [activations.count(a) for a in set(activations)] == [both] * (4 // both), cell


def test_the_widest_batch_of_every_format_meets_one_target_in_turn() -> None:
    widest = [job for job in product_jobs() if job.batch == WIDE]
    assert len(widest) == len({replace(job, activation="", capability=0) for job in widest})
    assert met_by(widest) == {job.regime: {*product(TARGETS, ACTIVATIONS)} for job in widest}


@pytest.mark.parametrize("jobs", [ragged_jobs(), board_jobs()], ids=["ragged", "board"])
def test_what_takes_turns_meets_every_target_with_both_activations(jobs: Sequence[Job]) -> None:
    """And every batch and board."""
    for arm in {job.arm for job in jobs} - {"native", "upcast"}:  # those have few formats
        met = met_by([job for job in jobs if job.arm == arm])
        assert met == {regime: {*product(TARGETS, ACTIVATIONS)} for regime in met}, arm
    for stage in {(job.arm, job.regime) for job in jobs}:
        met = {(job.batch, job.board) for job in jobs if (job.arm, job.regime) == stage}
        ragged = {(b, None) for f in formats_of(stage) for b in ragged_batches(stage, f)}
        assert met in ({*CUTS}, ragged), stage


def met_by(jobs: Sequence[Job]) -> dict[str, set[tuple[int, str]]]:
    """Targets and activations that every variant meets."""
    met: dict[str, set[tuple[int, str]]] = {}
    for job in jobs:
        met.setdefault(job.regime, set()).add((job.capability, job.activation))
    return met


@pytest.mark.parametrize("job", COVERING, ids=name)
def test_compiled_kernel_matches_reference(
    job: Job, covering: dict[Job, Outcome], record_property: Callable[[str, object], None]
) -> None:
    assert complaint(job, covering[job]) == ""
    for key, value in ptx_summary.emulated_properties({job: covering[job]}).items():
        record_property(key, value)


@pytest.mark.proof
@pytest.mark.parametrize("format_name", FORMATS)
def test_every_compiled_kernel_matches_reference(
    format_name: str,
    tmp_path_factory: pytest.TempPathFactory,
    record_property: Callable[[str, object], None],
) -> None:
    """The whole product and all ragged shapes; and no kernel spills but those known to."""
    wanted = [job for job in everything() if job.format_name == format_name]
    compiled_only = [job for job in spill_jobs() if job.format_name == format_name]
    found = run_all([*wanted, *compiled_only], tmp_path_factory.mktemp("triton"), workers=1)
    ran = {job: found[job] for job in wanted}
    known = {name(job): size for job, size in SPILLS.items() if job in found}
    wrong = {name(job): complaint(job, outcome) for job, outcome in ran.items()}
    right = {job: outcome for job, outcome in ran.items() if not wrong[name(job)]}
    for key, value in ptx_summary.emulated_properties(right).items():
        record_property(key, value)
    assert {job: problem for job, problem in wrong.items() if problem} == {}
    assert [name(job) for job in compiled_only if not found[job].registers] == []
    spilled = spilling(found)
    assert {job: size for job, size in spilled.items() if size > known.get(job, 0)} == {}
    if version("triton").startswith("3.9."):  # or what was mended would stay in the list
        assert spilled == known


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Outcome]:
    return run_all([*CUT], tmp_path_factory.mktemp("triton"), workers=2)


@pytest.mark.parametrize("job", CUT, ids=name)
def test_a_kernel_that_is_cut_for_a_board_matches_reference(
    job: Job, cut: dict[Job, Outcome]
) -> None:
    """Beside the cells of the product, and not counted among them."""
    assert complaint(job, cut[job]) == ""
    assert cut[job].stack_bytes == 0


@pytest.mark.proof
@pytest.mark.parametrize("arm", ["stream", "unpack", "scale", "bypass", "fused", "native"])
def test_every_kernel_that_is_cut_for_a_board_matches_reference(
    arm: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All kinds of formats, at tiles that a board alone has in turn; and none of them spills."""
    wanted = [job for job in board_jobs() if job.arm == arm]
    found = run_all(wanted, tmp_path_factory.mktemp("triton"), workers=1)
    wrong = {name(job): complaint(job, found[job]) for job in wanted}
    assert {job: problem for job, problem in wrong.items() if problem} == {}
    assert [name(job) for job, outcome in found.items() if outcome.stack_bytes] == []


@pytest.fixture
def audited(compiled: dict[Job, Ptx]) -> Build:
    """A kernel of the audited size."""
    rows_per_program = AUDITED[0] // compiled[AUDITED_JOB].grid[0]
    return Build(compiled[AUDITED_JOB], rows_per_program, block_k=0, registers=0, stack_bytes=0)


def test_first_programs_and_steps_of_an_audited_kernel_are_right(audited: Build) -> None:
    assert ptx_cells.run(AUDITED_JOB, audited) <= TOLERANCES["fp16"]


def test_one_step_too_many_meets_no_number(audited: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def longer(job: Job) -> tuple[list[object], np.ndarray, np.ndarray]:
        arguments, out, expected = job_arguments(job)
        return [*arguments[:-1], 2 * job.k], out, expected

    monkeypatch.setattr(ptx_cells, "job_arguments", longer)
    outcome = ptx_cells.outcome(AUDITED_JOB, audited)
    assert (outcome.error, outcome.problem) == (None, "its output holds what is no number")


def test_a_program_too_many_is_out_of_bounds(audited: Build) -> None:
    outcome = ptx_cells.outcome(AUDITED_JOB, replace(audited, block_n=audited.block_n // 2))
    assert outcome.error is None
    assert "out of bounds" in outcome.problem


def test_what_is_written_past_the_rows_is_seen(
    audited: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch that writes where another program would."""

    def stray(ptx: Ptx, arguments: list[np.ndarray]) -> None:
        execute(ptx, arguments)
        arguments[-2][-1] = 0  # the output, in its last row

    monkeypatch.setattr(ptx_cells, "execute", stray)
    assert ptx_cells.outcome(AUDITED_JOB, audited).problem == "it wrote past its rows"


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome(1e-3, "", "p", 32, 0), ""),
        (Outcome(3e-3, "", "p", 32, 0), "its error is 3.0e-03"),
        (Outcome(None, "race", "p", 32, 0), "race"),
    ],
)
def test_what_is_wrong_is_said(outcome: Outcome, said: str) -> None:
    assert complaint(AUDITED_JOB, outcome) == said


@pytest.mark.parametrize("plain", SAME[::2], ids=name)
def test_what_the_product_leaves_out_is_the_same_program(
    plain: Job, compiled: dict[Job, Ptx]
) -> None:
    other = SAME[SAME.index(plain) + 1]
    assert same_without_ptx(other.arm, other.regime)
    assert code_of(compiled[plain]) == code_of(compiled[other])


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


def test_tensor_cores_of_sm_90_take_part(compiled: dict[Job, Ptx]) -> None:
    (error, report) = run_job(WGMMA, compiled[WGMMA])
    assert error <= TOLERANCES["fp16"]
    assert report.instructions["wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16"] > 0


def test_without_the_fence_before_them_they_are_refused(compiled: dict[Job, Ptx]) -> None:
    """Triton 3.6 leaves it out, and `execute` puts it in."""
    ptx = compiled[WGMMA]
    assert (PROXY_FENCE in ptx.text) == FENCED
    without = ptx.text.replace(PROXY_FENCE, "")
    arguments, _, _ = job_arguments(WGMMA)
    given = [*arguments, *SCRATCH_POINTERS]
    with pytest.raises(FaultError, match=r"no fence\.proxy\.async"):
        launch(without, ptx.entry, ptx.grid, ptx.block, given, ptx.shared_bytes)
    execute(replace(ptx, text=fenced(without)), arguments)


def test_operands_of_a_product_are_kept_until_it_is_waited_for(compiled: dict[Job, Ptx]) -> None:
    """Triton 3.6 does not: `execute` puts in a wait."""
    ptx = compiled[KEPT]
    arguments, _, _ = job_arguments(KEPT)
    given = [*arguments, *SCRATCH_POINTERS]
    launched = (ptx.entry, ptx.grid, ptx.block, given, ptx.shared_bytes)
    if FENCED:
        launch(ptx.text, *launched)
    else:
        with pytest.raises(FaultError, match=EARLY):
            launch(fenced(ptx.text), *launched)
    assert run_job(KEPT, ptx)[0] <= TOLERANCES["fp16"]


def test_bytes_and_sectors_of_a_stream(compiled: dict[Job, Ptx]) -> None:
    """Each lane loads 16 bytes beside its neighbour's; every word is read once, no byte in vain."""
    _, report = run_job(STREAM, compiled[STREAM])
    words = [a for a in report.accesses if a.space == "global" and a.opcode.endswith("v4.b32")]
    stored = find_format(STREAM.format_name).bits * STREAM.n * STREAM.k // 8
    assert sum(access.bytes for access in words) == stored
    assert {access.sector_efficiency for access in words} == {1.0}
