"""Recordings made on real GPUs, replayed in the emulator; and the format they are kept in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests import ptx_golden
from tests.aot_ptx import Ptx, compile_ptx, execute
from tests.aot_triton import Job, plan_of
from tests.ptx_golden import GOLDEN, Origin, Recording, check, load, path_of, record, save

RECORDED = sorted(GOLDEN.glob("*/*.npz"))
NONE_YET = pytest.param(
    None,
    marks=pytest.mark.skip(
        reason="no GPU has been recorded yet: run `make gpu-test` on one, commit tests/data/golden"
    ),
)
PRETENDED = Origin(
    gpu="emulated, not a GPU",
    driver="none",
    torch="none",
    triton="none",
    date="2000-01-01",
    emulated=True,
)
STREAM = Job("stream", "gemv", "int4-g128", "fp16", 41, 768, 1, 80)
DEQUANTIZE = Job("dequantize", "gemv", "int4-g128-zp", "bf16", 41, 768, 1, 90)
GEMV = Job("fused", "gemv", "int8-g128", "bf16", 41, 768, 5, 89)
GEMM = Job("fused", "gemm", "int4-g128", "fp16", 41, 768, 16, 120)
JOBS = (STREAM, DEQUANTIZE, GEMV, GEMM)


@pytest.mark.parametrize("path", RECORDED or [NONE_YET], ids=lambda path: path and path.stem)
def test_emulator_computes_what_the_gpu_did(path: Path) -> None:
    recording = load(path)
    assert not recording.origin.emulated
    check(recording)


@pytest.mark.gpu
@pytest.mark.parametrize("job", ptx_golden.golden_jobs(), ids=ptx_golden.name)
def test_this_gpu_and_the_emulator_agree(job: Job) -> None:
    origin, capability = ptx_golden.this_gpu()
    recording = record(replace(job, capability=capability), origin, ptx_golden.launch_on_gpu)
    if not path_of(recording).exists():
        save(path_of(recording), recording)
    check(recording)


# The format, with recordings that pretend: the emulator stands in for the GPU


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Recording]:
    compiled = compile_ptx(list(JOBS), tmp_path_factory.mktemp("triton"))

    def emulate(job: Job, arguments: list[np.ndarray | int]) -> Ptx:
        execute(compiled[job], arguments)
        return compiled[job]

    return {job: record(job, PRETENDED, emulate) for job in JOBS}


@pytest.fixture
def stored(recordings: dict[Job, Recording], tmp_path: Path) -> dict[Job, Path]:
    paths = {job: tmp_path / f"{job.arm}-{job.regime}.npz" for job in JOBS}
    for job, path in paths.items():
        save(path, recordings[job])
    return paths


@pytest.mark.parametrize("job", JOBS, ids=ptx_golden.name)
def test_a_recording_survives_its_file_and_replays(
    job: Job, recordings: dict[Job, Recording], stored: dict[Job, Path]
) -> None:
    kept, read = recordings[job], load(stored[job])
    assert (read.origin, read.job, read.ptx, read.output) == (PRETENDED, job, kept.ptx, kept.output)
    assert len(read.arguments) == len(kept.arguments)
    for before, after in zip(kept.arguments, read.arguments, strict=True):
        np.testing.assert_array_equal(before, after)
        assert np.asarray(before).dtype == np.asarray(after).dtype
    np.testing.assert_array_equal(kept.written, read.written)
    check(read)


def test_recordings_name_no_folder_of_the_machine(recordings: dict[Job, Recording]) -> None:
    for recording in recordings.values():
        assert str(Path(__file__).parent.parent) not in recording.ptx.text
        assert ".py" in recording.ptx.text  # but the file, for messages


@pytest.mark.parametrize("job", JOBS, ids=ptx_golden.name)
def test_a_corrupted_output_fails(job: Job, recordings: dict[Job, Recording]) -> None:
    written = recordings[job].written.copy()
    top = written.itemsize * 8 - 2  # the highest bit of an exponent; of an integer, a large one
    written.flat[5] ^= written.dtype.type(1 << top)
    with pytest.raises(AssertionError, match=r"1 of .* elements differ from emulated"):
        check(replace(recordings[job], written=written))


@pytest.mark.parametrize("job", [STREAM, DEQUANTIZE], ids=ptx_golden.name)
def test_one_wrong_bit_is_too_many_for_exact_arms(
    job: Job, recordings: dict[Job, Recording]
) -> None:
    written = recordings[job].written.copy()
    written.flat[5] ^= written.dtype.type(1)
    with pytest.raises(AssertionError, match=r"1 of .* elements differ"):
        check(replace(recordings[job], written=written))


@pytest.mark.parametrize("job", JOBS, ids=ptx_golden.name)
def test_a_corrupted_input_fails(job: Job, recordings: dict[Job, Recording]) -> None:
    words, *others = recordings[job].arguments
    assert isinstance(words, np.ndarray)
    corrupted = words.copy()
    corrupted.flat[7] ^= np.uint32(0xFFFF_FFFF)
    with pytest.raises(AssertionError, match="elements differ"):
        check(replace(recordings[job], arguments=(corrupted, *others)))


def test_a_damaged_file_is_refused(stored: dict[Job, Path]) -> None:
    content = stored[STREAM].read_bytes()
    stored[STREAM].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load(stored[STREAM])


def rewrite(path: Path, **changes: np.ndarray) -> None:
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **arrays)


def test_another_ptx_than_the_one_that_ran_is_refused(stored: dict[Job, Path]) -> None:
    with np.load(stored[GEMM]) as file:
        ptx = file["ptx"].copy()
    rewrite(stored[GEMM], ptx=np.append(ptx, np.frombuffer(b"// edited", np.uint8)))
    with pytest.raises(ValueError, match="another PTX"):
        load(stored[GEMM])


def test_another_version_is_refused(stored: dict[Job, Path]) -> None:
    rewrite(stored[GEMV], header=np.frombuffer(b'{"version": 99}', np.uint8))
    with pytest.raises(ValueError, match="version 99"):
        load(stored[GEMV])


def test_an_emulated_recording_cannot_stand_among_golden_ones(
    recordings: dict[Job, Recording],
) -> None:
    path = path_of(recordings[STREAM])
    with pytest.raises(ValueError, match="this was emulated"):
        save(path, recordings[STREAM])
    assert not path.exists()


def test_a_wrong_result_is_not_recorded() -> None:
    def do_nothing(job: Job, arguments: list[np.ndarray | int]) -> Ptx:
        return Ptx("", "", (1,), 32, 0)

    with pytest.raises(ValueError, match="should match its reference"):
        record(STREAM, PRETENDED, do_nothing)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("*i32", np.uint32),
        ("*u8", np.uint8),
        ("*fp32", np.float32),
        ("*fp16", np.float16),
        ("*bf16", np.uint16),
    ],
)
def test_bits_survive_the_way_to_a_device_and_back(kind: str, dtype: type) -> None:
    values = np.arange(60, dtype=np.uint8).view(dtype).reshape(-1, 3)
    bits = ptx_golden.from_tensor(ptx_golden.to_tensor(values, kind, "cpu"))
    np.testing.assert_array_equal(bits, ptx_golden.unsigned(values))


class Interpreted:
    """Triton's interpreter in the place of its launcher; answers as a compiled kernel does."""

    def __init__(self, fn: Any, ptx: Ptx) -> None:
        metadata = SimpleNamespace(
            name=ptx.entry, num_warps=ptx.block // 32, shared=ptx.shared_bytes
        )
        self.fn = fn
        self.built = SimpleNamespace(asm={"ptx": ptx.text}, metadata=metadata)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., SimpleNamespace]:
        def run(**arguments: object) -> SimpleNamespace:
            self.fn[grid](**arguments)
            return self.built

        return run


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="with an NVIDIA GPU Triton compiles; test_this_gpu_and_the_emulator_agree covers this",
)
@pytest.mark.parametrize("job", [STREAM, GEMM], ids=ptx_golden.name)
def test_what_tritons_launcher_computes_is_recorded(
    job: Job, recordings: dict[Job, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, compiled = plan_of(job), recordings[job].ptx
    interpreted = replace(plan, fn=Interpreted(plan.fn, compiled))
    monkeypatch.setattr(ptx_golden, "plan_of", lambda _: interpreted)
    monkeypatch.setattr(ptx_golden, "DEVICE", "cpu")
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    recording = record(job, PRETENDED, ptx_golden.launch_on_gpu)
    assert recording.ptx == compiled
    check(recording)


def test_every_job_has_a_name_and_a_limit() -> None:
    jobs = ptx_golden.golden_jobs()
    assert len({ptx_golden.name(job) for job in jobs}) == len(jobs)
    for job in jobs:
        assert (ptx_golden.limit(job) == 0) == (job.arm in ("stream", "unpack", "dequantize"))
